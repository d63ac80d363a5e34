//! Looking into an RSMQ queue, and putting and deleting its messages.

use async_trait::async_trait;
use brigade_core::connector::{
    ConnectorError, Lag, Outgoing, Peeked, Produced, Producer, QueueAdmin, QueueStatus,
};
use brigade_core::{IncarnationId, Message, MessageId};
use redis::cmd;

use super::connector::Site;
use super::producer::RsmqProducer;
use super::received::{Id, number};
use super::scripts::{LAG, REMOVE};

/// How many ids are looked at in one go.
const BATCH: usize = 500;
/// How many digits of an id are its time, in base 36 microseconds; that is its position.
const TIME_DIGITS: usize = 10;

/// An RSMQ queue as administrators see it.
pub(crate) struct RsmqAdmin {
    site: Site,
    producer: RsmqProducer,
}

impl RsmqAdmin {
    pub(crate) fn new(site: Site) -> Self {
        Self { producer: RsmqProducer::new(site.clone()), site }
    }

    /// Ids in the order in which their messages may be received.
    async fn ids(&self, from: u64, max: usize) -> Result<Vec<Id>, ConnectorError> {
        let to = from.saturating_add(max as u64).saturating_sub(1);
        let mut range = cmd("ZRANGE");
        range.arg(&self.site.messages).arg(from).arg(to);
        self.site.wire.command(&range).await
    }

    /// The ids with this time.
    async fn ids_at(&self, position: u64) -> Result<Vec<Id>, ConnectorError> {
        let (mut cursor, mut found) = ("0".to_owned(), Vec::new());
        loop {
            let mut scan = cmd("ZSCAN");
            scan.arg(&self.site.messages).arg(&cursor);
            scan.arg("MATCH").arg(format!("{}*", base36(position))).arg("COUNT").arg(BATCH);
            let (next, pairs): (String, Vec<(Id, f64)>) = self.site.wire.command(&scan).await?;
            // Less than a whole time is a prefix of other times.
            let ids = pairs.into_iter().map(|(id, _)| id);
            found.extend(ids.filter(|id| self::position(id) == Some(position)));
            if next == "0" {
                return Ok(found);
            }
            cursor = next;
        }
    }

    async fn peeked(&self, id: Id) -> Result<Option<Peeked>, ConnectorError> {
        let mut get = cmd("HMGET");
        get.arg(&self.site.hash).arg(&id).arg([&id, &b":rc"[..]].concat());
        let (body, received): (Option<Vec<u8>>, Option<u32>) = self.site.wire.command(&get).await?;
        let attempts: Option<Vec<u8>> =
            self.site.wire.command(cmd("HGET").arg(&self.site.attempts).arg(&id)).await?;
        let (received, attempts) = (received.unwrap_or(0), number(attempts));
        let Some(position) = position(&id) else { return Ok(None) };
        Ok(Some(Peeked {
            position,
            group: String::new(),
            message: Message {
                id: MessageId::root(IncarnationId::of(&id), 0),
                payload: body.map(Into::into),
                ..Message::default()
            },
            attempts,
            redeliveries: received.saturating_sub(attempts),
            parked: None,
            holder: None,
        }))
    }

    /// Removes messages that can be received now, and those that were never received: one that is
    /// hidden after a receive is being worked on.
    async fn remove(&self, ids: &[Id]) -> Result<u64, ConnectorError> {
        let mut remove = REMOVE.key(&self.site.messages);
        remove.key(&self.site.hash).key(&self.site.attempts);
        for id in ids {
            remove.arg(id);
        }
        self.site.wire.script(remove).await
    }
}

fn position(id: &[u8]) -> Option<u64> {
    u64::from_str_radix(std::str::from_utf8(id.get(..TIME_DIGITS)?).ok()?, 36).ok()
}

fn base36(mut number: u64) -> String {
    let mut digits = Vec::new();
    while number > 0 {
        let digit = u32::try_from(number % 36).expect("less than 36");
        digits.push(char::from_digit(digit, 36).expect("less than 36"));
        number /= 36;
    }
    digits.iter().rev().collect()
}

#[async_trait]
impl QueueAdmin for RsmqAdmin {
    async fn status(&self) -> Result<Vec<QueueStatus>, ConnectorError> {
        let lag = LAG.key(&self.site.messages);
        let (ready, hidden): (u64, u64) = self.site.wire.script(lag).await?;
        let lag = Lag { ready: Some(ready), in_flight: Some(hidden), ..Lag::default() };
        Ok(vec![QueueStatus { group: String::new(), lag }])
    }

    async fn peek(&self, skip: u64, limit: u64) -> Result<Vec<Peeked>, ConnectorError> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let (mut from, mut peeked) = (skip, Vec::new());
        while peeked.len() < limit {
            let ids = self.ids(from, BATCH.min(limit - peeked.len())).await?;
            if ids.is_empty() {
                break;
            }
            from += ids.len() as u64;
            for id in ids {
                peeked.extend(self.peeked(id).await?);
            }
        }
        Ok(peeked)
    }

    async fn get(&self, position: u64) -> Result<Option<Peeked>, ConnectorError> {
        match self.ids_at(position).await?.into_iter().next() {
            Some(id) => self.peeked(id).await,
            None => Ok(None),
        }
    }

    async fn put(&self, messages: Vec<Outgoing>) -> Result<Vec<Produced>, ConnectorError> {
        self.site.definition.make(&self.site.wire).await?;
        self.producer.produce(&messages).await
    }

    async fn delete(&self, positions: &[u64]) -> Result<u64, ConnectorError> {
        let mut gone = 0;
        for position in positions {
            gone += self.remove(&self.ids_at(*position).await?).await?;
        }
        Ok(gone)
    }

    async fn purge(&self) -> Result<u64, ConnectorError> {
        let (mut from, mut gone) = (0, 0);
        loop {
            let ids = self.ids(from, BATCH).await?;
            if ids.is_empty() {
                return Ok(gone);
            }
            let removed = self.remove(&ids).await?;
            gone += removed;
            // What remains is skipped.
            from += ids.len() as u64 - removed;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_the_time_of_an_id() {
        let id = "g5z1tm5kz7aaaaaaaaaaaaaaaaaaaaaa";
        let position = position(id.as_bytes()).expect("its time");
        assert!(id.starts_with(&base36(position)));
    }
}
