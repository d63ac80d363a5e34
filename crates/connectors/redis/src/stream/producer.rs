use std::sync::Arc;

use async_trait::async_trait;
use brigade_core::CauseKind;
use brigade_core::connector::{
    ConnectorError, Features, Outgoing, Produced, Producer, Rejected, Staged,
};
use brigade_core::state::StoreId;
use redis::{Pipeline, Value, cmd};

use super::connector::Keys;
use super::entry::fields;
use super::retention::{Retention, Trimming};
use super::scripts::LATER;
use crate::longest;
use crate::output::Target;
use crate::server::Place;
use crate::wire::Wire;

/// The most entries in one pipeline: more gains nothing.
const PIPELINE_MAX: usize = 500;
/// The most headers of a message: a script passes an entry's names and values on as arguments, of which
/// Lua takes 8,000.
const HEADERS_MAX: usize = 1000;

/// Puts messages on a stream.
pub(crate) struct StreamProducer {
    keys: Keys,
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
        // A group that is made later would not get what is put before.
        for group in groups {
            make_group(&wire, &keys.stream, &group).await?;
        }
        Ok(Self { keys, features, wire, trimming: Trimming::new(retention) })
    }

    async fn add(&self, batch: &[Outgoing]) -> Result<(), ConnectorError> {
        let mut pipeline = Pipeline::with_capacity(batch.len());
        for outgoing in batch {
            let add = pipeline.cmd("XADD").arg(&self.keys.stream).arg("*");
            for (name, value) in fields(outgoing) {
                add.arg(name).arg(value);
            }
            add.ignore();
        }
        self.wire.pipe::<()>(&pipeline).await
    }

    async fn add_later(&self, outgoing: &Outgoing) -> Result<(), ConnectorError> {
        let delay = outgoing.delay.unwrap_or_default().as_millis();
        let mut script = LATER.key(&self.keys.later);
        script.arg(delay.to_string()).arg(fastrand::u128(..).to_string());
        for (name, value) in fields(outgoing) {
            script.arg(name).arg(value);
        }
        self.wire.script::<i64>(&script).await.map(drop)
    }
}

/// Makes a group from the beginning of its stream, and the stream, if they are not there.
pub(crate) async fn make_group(
    wire: &Wire,
    stream: &str,
    group: &str,
) -> Result<(), ConnectorError> {
    let mut make = cmd("XGROUP");
    make.arg("CREATE").arg(stream).arg(group).arg("0").arg("MKSTREAM");
    match wire.command::<()>(&make).await {
        Err(error) if error.to_string().contains("BUSYGROUP") => Ok(()),
        // Without room it is refused before it is looked for.
        Err(error) if error.to_string().contains("OOM") => {
            let mut groups = cmd("XINFO");
            groups.arg("GROUPS").arg(stream);
            let groups: Vec<Vec<Value>> = wire.command(&groups).await.unwrap_or_default();
            let name = Value::BulkString(group.as_bytes().to_vec());
            groups.iter().any(|told| told.get(1) == Some(&name)).then_some(()).ok_or(error)
        }
        made => made,
    }
}

/// Whether somebody deleted a group, or its stream.
pub(super) fn is_no_group(error: &ConnectorError) -> bool {
    let text = error.to_string();
    ["NOGROUP", "no such key"].iter().any(|part| text.contains(part))
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
        self.trimming.before(batch.len(), &self.wire, &self.keys.stream).await?;
        let mut refused: Vec<Option<Rejected>> = batch.iter().map(refused).collect();
        let lengths: Vec<u64> = batch.iter().map(|o| longest::of_entry(&o.message)).collect();
        for (at, why) in longest::too_long(&self.wire, &lengths).await? {
            refused[at].get_or_insert(why);
        }
        let taken: Vec<Outgoing>;
        let batch = match refused.iter().any(Option::is_some) {
            false => batch,
            true => {
                let both = batch.iter().zip(&refused);
                taken = both.filter(|(_, why)| why.is_none()).map(|(one, _)| one.clone()).collect();
                &taken
            }
        };
        let delayed = |outgoing: &Outgoing| outgoing.delay.is_some_and(|delay| !delay.is_zero());
        for part in batch.chunk_by(|a, b| delayed(a) == delayed(b)) {
            for chunk in part.chunks(PIPELINE_MAX) {
                if delayed(&chunk[0]) {
                    for outgoing in chunk {
                        self.add_later(outgoing).await?;
                    }
                } else {
                    self.add(chunk).await?;
                }
            }
        }
        let outcome = |why: Option<Rejected>| why.map_or(Produced::Confirmed, Produced::Rejected);
        Ok(refused.into_iter().map(outcome).collect())
    }

    async fn stage(&self, batch: &[Outgoing]) -> Result<Staged, ConnectorError> {
        self.trimming.before(batch.len(), &self.wire, &self.keys.stream).await?;
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
