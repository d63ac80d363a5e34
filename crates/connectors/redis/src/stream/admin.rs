//! Looking into a stream, and putting and deleting its messages.

use std::sync::Arc;

use async_trait::async_trait;
use brigade_core::IncarnationId;
use brigade_core::connector::{
    ConnectorError, Outgoing, Peeked, Produced, Producer, QueueAdmin, QueueSpec, QueueStatus,
};
use redis::{Value, cmd};
use tokio::sync::OnceCell;

use super::admin_scripts::{DELETE, KNOWN, PURGE_LATER, WAITING};
use super::connector::{Keys, producer};
use super::entry::{EntryId, incoming};
use super::groups;
use super::lag::lag;
use super::producer::StreamProducer;
use super::retention::Retention;
use crate::wire::Wire;

/// How many entries are looked at or deleted in one go.
const BATCH: usize = 500;

/// A stream as administrators see it.
pub(crate) struct StreamAdmin {
    /// The stream for each of its groups, with the group's name in the pipeline file.
    groups: Vec<(String, Keys)>,
    queue: QueueSpec,
    /// Opened for the first message that is put: opening makes the stream and its groups.
    producer: OnceCell<StreamProducer>,
    wire: Arc<Wire>,
    retention: Option<Retention>,
}

impl StreamAdmin {
    pub(crate) fn new(
        groups: Vec<(String, Keys)>,
        queue: QueueSpec,
        wire: Arc<Wire>,
        retention: Option<Retention>,
    ) -> Self {
        Self { groups, queue, producer: OnceCell::new(), wire, retention }
    }

    fn keys(&self) -> &Keys {
        &self.groups[0].1
    }

    /// Those of some entries that wait for one of the groups, and the last entry that was looked
    /// at.
    async fn waiting(
        &self,
        from: &str,
        to: &str,
        max: usize,
    ) -> Result<(Vec<Value>, Option<EntryId>), ConnectorError> {
        let mut waiting = WAITING.key(&self.keys().stream);
        waiting.arg(from).arg(to).arg(max);
        for (_, keys) in &self.groups {
            waiting.arg(&keys.group);
        }
        let (entries, last): (Vec<Value>, String) = self.wire.script(waiting).await?;
        Ok((entries, last.parse().ok()))
    }

    /// Entries from one id to another.
    async fn range(&self, from: &str, to: &str, max: usize) -> Result<Vec<Value>, ConnectorError> {
        let mut range = cmd("XRANGE");
        range.arg(&self.keys().stream).arg(from).arg(to).arg("COUNT").arg(max);
        self.wire.command(&range).await
    }

    /// The entries at these positions. Odd ones are searched for from the beginning.
    async fn find(&self, positions: &[u64]) -> Result<Vec<EntryId>, ConnectorError> {
        let found = positions.iter().copied().filter_map(EntryId::unpack);
        let mut found: Vec<EntryId> = found.collect();
        let mut from = "-".to_owned();
        while found.len() < positions.len() {
            let entries = self.range(&from, "+", BATCH).await?;
            let Some(last) = entries.last().and_then(id_of) else { break };
            let ids = entries.iter().filter_map(id_of);
            let is_odd = |id: &EntryId| EntryId::unpack(id.position()).is_none();
            found.extend(ids.filter(|id| is_odd(id) && positions.contains(&id.position())));
            from = after(last);
        }
        Ok(found)
    }

    /// Which stream this is. If no group has read it, that is not known yet: once one does, its
    /// entries get other ids.
    async fn incarnation(&self) -> Result<IncarnationId, ConnectorError> {
        let made = groups::incarnation(&self.wire, self.keys()).await?;
        Ok(made.unwrap_or(IncarnationId(0)))
    }

    /// An entry, with what its first group knows about it, and who works on it in any group.
    async fn peeked(
        &self,
        entry: Value,
        incarnation: IncarnationId,
    ) -> Result<Option<Peeked>, ConnectorError> {
        let (name, keys) = &self.groups[0];
        let Some((id, incoming)) = incoming(keys, entry, incarnation)? else {
            return Ok(None);
        };
        let id = id.to_string();
        let mut known = KNOWN.key(&keys.stream);
        known.key(&keys.attempts).arg(&id);
        for (_, keys) in &self.groups {
            known.arg(&keys.group);
        }
        let (holder, handed_out, kept): (Option<Vec<u8>>, u64, Option<String>) =
            self.wire.script(known).await?;
        let attempts = kept.as_deref().and_then(|kept| kept.split(':').next()?.parse().ok());
        let attempts: u32 = attempts.unwrap_or(0);
        let handed_out = u32::try_from(handed_out).unwrap_or(u32::MAX);
        Ok(Some(Peeked {
            position: incoming.receipt.position,
            group: name.clone(),
            message: incoming.message,
            attempts,
            redeliveries: handed_out.saturating_sub(1).saturating_sub(attempts),
            parked: None,
            holder: holder.map(Into::into),
        }))
    }

    /// Deletes entries that nobody works on.
    async fn delete_ids(&self, ids: &[EntryId]) -> Result<u64, ConnectorError> {
        let keys = self.keys();
        let mut delete = DELETE.key(&keys.stream);
        for (_, keys) in &self.groups {
            delete.key(&keys.delayed).key(&keys.attempts);
        }
        delete.arg(self.groups.len());
        for (_, keys) in &self.groups {
            delete.arg(&keys.group);
        }
        for id in ids {
            delete.arg(id.to_string());
        }
        self.wire.script(delete).await
    }
}

/// Where the entries after this one begin.
fn after(id: EntryId) -> String {
    format!("({id}")
}

fn id_of(entry: &Value) -> Option<EntryId> {
    match entry {
        Value::Array(parts) => match parts.first()? {
            Value::BulkString(id) => String::from_utf8_lossy(id).parse().ok(),
            _ => None,
        },
        _ => None,
    }
}

#[async_trait]
impl QueueAdmin for StreamAdmin {
    async fn status(&self) -> Result<Vec<QueueStatus>, ConnectorError> {
        let mut all = Vec::with_capacity(self.groups.len());
        for (name, keys) in &self.groups {
            let lag = lag(&self.wire, keys, self.retention).await?;
            all.push(QueueStatus { group: name.clone(), lag });
        }
        Ok(all)
    }

    async fn peek(&self, skip: u64, limit: u64) -> Result<Vec<Peeked>, ConnectorError> {
        let (mut skip, mut from, mut peeked) = (skip, String::new(), Vec::new());
        let incarnation = self.incarnation().await?;
        while (peeked.len() as u64) < limit {
            let (entries, last) = self.waiting(&from, "+", BATCH).await?;
            let Some(last) = last else { break };
            for entry in entries {
                if skip > 0 {
                    skip -= 1;
                } else if (peeked.len() as u64) < limit {
                    peeked.extend(self.peeked(entry, incarnation).await?);
                }
            }
            from = after(last);
        }
        Ok(peeked)
    }

    async fn get(&self, position: u64) -> Result<Option<Peeked>, ConnectorError> {
        let Some(id) = self.find(&[position]).await?.first().map(EntryId::to_string) else {
            return Ok(None);
        };
        match self.waiting(&id, &id, 1).await?.0.pop() {
            Some(entry) => self.peeked(entry, self.incarnation().await?).await,
            None => Ok(None),
        }
    }

    async fn put(&self, messages: Vec<Outgoing>) -> Result<Vec<Produced>, ConnectorError> {
        let producer = self.producer.get_or_try_init(|| producer(&self.queue)).await?;
        producer.produce(&messages).await
    }

    async fn delete(&self, positions: &[u64]) -> Result<u64, ConnectorError> {
        self.delete_ids(&self.find(positions).await?).await
    }

    async fn purge(&self) -> Result<u64, ConnectorError> {
        let (mut from, mut gone) = (String::new(), 0);
        loop {
            let (entries, last) = self.waiting(&from, "+", BATCH).await?;
            let Some(last) = last else { break };
            let ids: Vec<EntryId> = entries.iter().filter_map(id_of).collect();
            gone += self.delete_ids(&ids).await?;
            from = after(last);
        }
        let later: u64 = self.wire.script(PURGE_LATER.key(&self.keys().later)).await?;
        Ok(gone + later)
    }
}
