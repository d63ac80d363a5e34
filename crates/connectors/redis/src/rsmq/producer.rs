//! Sending messages to an RSMQ queue.

use async_trait::async_trait;
use brigade_core::CauseKind;
use brigade_core::connector::{
    ConnectorError, Features, Outgoing, Produced, Producer, Rejected, Staged,
};
use brigade_core::state::StoreId;

use super::connector::Site;
use super::scripts::SEND;
use crate::outcomes::{Outcomes, parts};
use crate::{output, value_limit};

/// The most messages in one script: more gains nothing, and makes other requests wait.
const SCRIPT_MAX: usize = 200;
/// How many random characters follow the time in an id.
const RANDOM: usize = 22;

/// Sends messages to an RSMQ queue.
pub(crate) struct RsmqProducer {
    site: Site,
}

impl RsmqProducer {
    pub(crate) fn new(site: Site) -> Self {
        Self { site }
    }

    /// Why a message can never be sent.
    fn refused(&self, outgoing: &Outgoing) -> Option<Rejected> {
        let length = value_limit::of_body(&outgoing.message);
        let max = self.site.features.max_message_bytes?;
        (length > max).then(|| Rejected {
            kind: CauseKind::TooLarge,
            message: format!("{length} bytes; the queue's `maxsize` is {max}"),
        })
    }

    async fn send(&self, batch: &[Outgoing]) -> Result<(), ConnectorError> {
        let send = SEND.key(&self.site.messages);
        output::put(&self.site.wire, send, &self.site.target().enqueue(batch)).await
    }
}

/// The part of an id that follows its time.
pub(crate) fn random_part() -> String {
    std::iter::repeat_with(fastrand::alphanumeric).take(RANDOM).collect()
}

#[async_trait]
impl Producer for RsmqProducer {
    fn features(&self) -> Features {
        self.site.features.clone()
    }

    async fn produce(&self, batch: &[Outgoing]) -> Result<Vec<Produced>, ConnectorError> {
        let mut outcomes = Outcomes::new(batch.iter().map(|outgoing| self.refused(outgoing)));
        let lengths: Vec<u64> = batch.iter().map(|o| value_limit::of_body(&o.message)).collect();
        for (at, why) in value_limit::too_long(&self.site.wire, &lengths).await? {
            outcomes.refuse(at, why);
        }
        let unknown = outcomes.unknown();
        for places in parts(&unknown, SCRIPT_MAX, |at| batch[at].message.size()) {
            let part: Vec<Outgoing> = places.iter().map(|at| batch[*at].clone()).collect();
            let sent = self.send(&part).await.map(|()| places.iter().map(|_| Ok(())).collect());
            // The parts after this one would fail too.
            if !outcomes.enter(places, sent)? {
                break;
            }
        }
        Ok(outcomes.all())
    }

    async fn stage(&self, batch: &[Outgoing]) -> Result<Staged, ConnectorError> {
        let refused = batch.iter().map(|outgoing| self.refused(outgoing)).enumerate();
        let rejected: Vec<_> = refused.filter_map(|(at, why)| Some((at, why?))).collect();
        // Refused messages become dead letters first; the rest is then staged again without them.
        let batch = if rejected.is_empty() { batch } else { &[] };
        Ok(Staged { ops: self.site.target().enqueue(batch), rejected, hold: None })
    }

    fn store(&self) -> Option<StoreId> {
        self.site.wire.store()
    }

    async fn shutdown(&self) -> Result<(), ConnectorError> {
        Ok(())
    }
}
