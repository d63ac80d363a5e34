//! Looking into a stream, and putting and deleting its messages.

use std::sync::Arc;

use async_trait::async_trait;
use brigade_core::IncarnationId;
use brigade_core::connector::{
    ConnectorError, Outgoing, Peeked, Produced, Producer, QueueAdmin, QueueSpec, QueueStatus,
};
use redis::Value;
use tokio::sync::OnceCell;

use super::admin_scripts::{DELETE, KNOWN, LIST, PURGE_LATER};
use super::connector::{Keys, producer};
use super::entry::{EntryId, incoming};
use super::groups;
use super::lag::lag;
use super::producer::StreamProducer;
use super::retention::Retention;
use crate::server::answer_max;
use crate::wire::Wire;

/// How many entries are looked at or deleted in one go.
const BATCH: usize = 500;

/// An entry, or none; who works on it; how often it was handed out; what is kept of its attempts.
type Known = (Option<Value>, Option<Vec<u8>>, u64, Option<String>);

/// An entry, and how long it is.
struct Listed {
    id: EntryId,
    bytes: usize,
}

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

    /// Which of some entries wait for one of the groups, `max` at most, and the last entry that was
    /// looked at.
    async fn waiting(
        &self,
        from: &str,
        to: &str,
        max: usize,
    ) -> Result<(Vec<Listed>, Option<EntryId>), ConnectorError> {
        self.list(&self.groups, from, to, max).await
    }

    /// The same for these groups; without groups all entries.
    async fn list(
        &self,
        groups: &[(String, Keys)],
        from: &str,
        to: &str,
        max: usize,
    ) -> Result<(Vec<Listed>, Option<EntryId>), ConnectorError> {
        let mut list = LIST.key(&self.keys().stream);
        list.arg(from).arg(to).arg(BATCH).arg(max);
        for (_, keys) in groups {
            list.arg(&keys.group);
        }
        let (all, last): (Vec<(String, usize)>, String) = self.wire.script(list).await?;
        let listed = |(id, bytes): (String, usize)| Some(Listed { id: id.parse().ok()?, bytes });
        Ok((all.into_iter().filter_map(listed).collect(), last.parse().ok()))
    }

    /// The entries at these positions. Odd ones are searched for from the beginning.
    async fn find(&self, positions: &[u64]) -> Result<Vec<EntryId>, ConnectorError> {
        let found = positions.iter().copied().filter_map(EntryId::unpack);
        let mut found: Vec<EntryId> = found.collect();
        let mut from = "-".to_owned();
        while found.len() < positions.len() {
            let (listed, last) = self.list(&[], &from, "+", BATCH).await?;
            let Some(last) = last else { break };
            let ids = listed.into_iter().map(|listed| listed.id);
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
        Listed { id, bytes }: Listed,
        incarnation: IncarnationId,
    ) -> Result<Option<Peeked>, ConnectorError> {
        let (name, keys) = &self.groups[0];
        let mut known = KNOWN.key(&keys.stream);
        known.key(&keys.attempts).arg(id.to_string());
        for (_, keys) in &self.groups {
            known.arg(&keys.group);
        }
        let known = self.wire.try_script_for(known, answer_max(bytes)).await;
        let (entry, holder, handed_out, kept): Known =
            known.map_err(|failure| self.wire.told(&failure))?;
        // It may be gone by now.
        let Some(entry) = entry else { return Ok(None) };
        let Some((_, incoming)) = incoming(keys, entry, incarnation)? else { return Ok(None) };
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
            let left = skip.saturating_add(limit - peeked.len() as u64);
            let max = usize::try_from(left).unwrap_or(BATCH).min(BATCH);
            let (waiting, last) = self.waiting(&from, "+", max).await?;
            let Some(last) = last else { break };
            for one in waiting {
                if skip > 0 {
                    skip -= 1;
                } else {
                    peeked.extend(self.peeked(one, incarnation).await?);
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
            Some(waiting) => self.peeked(waiting, self.incarnation().await?).await,
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
            let (waiting, last) = self.waiting(&from, "+", BATCH).await?;
            let Some(last) = last else { break };
            let ids: Vec<EntryId> = waiting.into_iter().map(|waiting| waiting.id).collect();
            gone += self.delete_ids(&ids).await?;
            from = after(last);
        }
        let later: u64 = self.wire.script(PURGE_LATER.key(&self.keys().later)).await?;
        Ok(gone + later)
    }
}
