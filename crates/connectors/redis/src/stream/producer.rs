//! Putting messages on a stream.

use std::sync::Arc;

use async_trait::async_trait;
use brigade_core::CauseKind;
use brigade_core::connector::{
    ConnectorError, Features, Outgoing, Produced, Producer, Rejected, Staged,
};
use brigade_core::state::StoreId;
use redis::Pipeline;

use super::connector::Keys;
use super::entry::fields;
use super::groups::make_groups;
use super::retention::{Retention, Trimming};
use super::scripts::LATER;
use crate::outcomes::{Outcomes, parts};
use crate::output::Target;
use crate::server::Place;
use crate::value_limit;
use crate::wire::Wire;

/// The most entries in one pipeline: more gains nothing.
const PIPELINE_MAX: usize = 500;
/// The most headers of a message: a script passes an entry's names and values on as arguments, and
/// Lua takes 8,000 of them.
const HEADERS_MAX: usize = 1000;

/// Puts messages on a stream.
pub(crate) struct StreamProducer {
    keys: Keys,
    /// All groups as which the file's stages read the stream.
    groups: Vec<String>,
    features: Features,
    wire: Arc<Wire>,
    trimming: Trimming,
}

impl StreamProducer {
    pub(crate) async fn open(
        keys: Keys,
        groups: Vec<String>,
        place: &Place,
        features: Features,
        retention: Option<Retention>,
    ) -> Result<Self, ConnectorError> {
        let wire = Wire::new(&keys.queue, place)?;
        // A group made later would not get what is put before that.
        if !groups.is_empty() {
            make_groups(&wire, &keys, &groups).await?;
        }
        Ok(Self { keys, groups, features, wire, trimming: Trimming::new(retention) })
    }

    /// Trims now and then, before this many messages are put.
    async fn trim_before(&self, many: usize) -> Result<(), ConnectorError> {
        self.trimming.before(many, &self.wire, &self.keys, &self.groups).await
    }

    /// Puts entries, each by itself.
    async fn add<'o>(
        &self,
        batch: impl Iterator<Item = &'o Outgoing>,
    ) -> Result<Vec<Result<(), ConnectorError>>, ConnectorError> {
        let (mut pipeline, mut bytes) = (Pipeline::new(), 0);
        for outgoing in batch {
            bytes += outgoing.message.size();
            let add = pipeline.cmd("XADD").arg(&self.keys.stream).arg("*");
            for (name, value) in fields(outgoing) {
                add.arg(name).arg(value);
            }
        }
        self.wire.each(pipeline, bytes).await
    }

    async fn add_later(&self, outgoing: &Outgoing) -> Result<(), ConnectorError> {
        let delay = outgoing.delay.unwrap_or_default().as_millis();
        let mut script = LATER.key(&self.keys.later);
        script.arg(delay.to_string()).arg(fastrand::u128(..).to_string());
        for (name, value) in fields(outgoing) {
            script.arg(name).arg(value);
        }
        let put = self.wire.try_script_of::<i64>(script, outgoing.message.size()).await;
        put.map(drop).map_err(|failure| self.wire.told(&failure))
    }
}

/// A message with more headers than a script can pass on.
fn refused(outgoing: &Outgoing) -> Option<Rejected> {
    let headers = outgoing.message.headers.len();
    (headers > HEADERS_MAX).then(|| Rejected {
        kind: CauseKind::Refused,
        message: format!("{headers} headers; a stream's entry takes at most {HEADERS_MAX}"),
    })
}

#[async_trait]
impl Producer for StreamProducer {
    fn features(&self) -> Features {
        self.features.clone()
    }

    async fn produce(&self, batch: &[Outgoing]) -> Result<Vec<Produced>, ConnectorError> {
        self.trim_before(batch.len()).await?;
        let mut outcomes = Outcomes::new(batch.iter().map(refused));
        let lengths: Vec<u64> = batch.iter().map(|o| value_limit::of_entry(&o.message)).collect();
        for (at, why) in value_limit::too_long(&self.wire, &lengths).await? {
            outcomes.refuse(at, why);
        }
        let is_delayed = |at: &usize| batch[*at].delay.is_some_and(|delay| !delay.is_zero());
        let (delayed, at_once): (Vec<_>, Vec<_>) =
            outcomes.unknown().into_iter().partition(is_delayed);
        // The parts after one that failed wait until it is put: they would most likely fail too.
        for places in parts(&at_once, PIPELINE_MAX, |at| batch[at].message.size()) {
            let put = self.add(places.iter().map(|at| &batch[*at])).await;
            if !outcomes.enter(places, put)? {
                break;
            }
        }
        for at in delayed {
            let put = self.add_later(&batch[at]).await.map(|()| vec![Ok(())]);
            if !outcomes.enter(&[at], put)? {
                break;
            }
        }
        Ok(outcomes.all())
    }

    async fn stage(&self, batch: &[Outgoing]) -> Result<Staged, ConnectorError> {
        self.trim_before(batch.len()).await?;
        let Keys { queue, stream, later, .. } = self.keys.clone();
        let target = Target::Stream { queue, stream, later };
        let rejected: Vec<(usize, Rejected)> =
            batch.iter().enumerate().filter_map(|(at, one)| Some((at, refused(one)?))).collect();
        let mut ops = target.enqueue(batch);
        for (at, _) in rejected.iter().rev() {
            ops.remove(*at);
        }
        Ok(Staged { ops, rejected, hold: None })
    }

    fn store(&self) -> Option<StoreId> {
        self.wire.store()
    }

    async fn shutdown(&self) -> Result<(), ConnectorError> {
        Ok(())
    }
}
