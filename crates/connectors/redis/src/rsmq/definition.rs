//! An RSMQ queue as it is made, and made again after somebody deleted it.

use std::sync::Arc;

use brigade_core::connector::ConnectorError;

use super::scripts::CREATE;
use crate::wire::Wire;

/// Where a queue is, and with which settings it is made if it is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct QueueDefinition {
    /// Its name in the pipeline file.
    pub(crate) queue: Arc<str>,
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// Its visibility timeout, in seconds.
    pub(crate) vt: u64,
    pub(crate) maxsize: i64,
    /// Whether sendings are published.
    pub(crate) realtime: bool,
}

impl QueueDefinition {
    /// The key of its messages.
    pub(crate) fn messages(&self) -> String {
        format!("{}:{}", self.namespace, self.name)
    }

    /// The key of its attributes and bodies.
    pub(crate) fn hash(&self) -> String {
        format!("{}:{}:Q", self.namespace, self.name)
    }

    /// Where sendings are published, if they are.
    pub(crate) fn channel(&self) -> Option<String> {
        self.realtime.then(|| format!("{}:rt:{}", self.namespace, self.name))
    }

    /// Makes it, if it is not there; says whether it was not.
    pub(crate) async fn make(&self, wire: &Arc<Wire>) -> Result<bool, ConnectorError> {
        let mut create = CREATE.key(self.hash());
        create.key(format!("{}:QUEUES", self.namespace)).arg(&self.name);
        create.arg(self.vt).arg(self.maxsize);
        wire.script(create).await
    }

    /// Makes it while a pipeline runs that has found it deleted, and tells of it.
    pub(crate) async fn make_again(&self, wire: &Arc<Wire>) -> Result<(), ConnectorError> {
        if self.make(wire).await? {
            tracing::warn!(
                queue = %self.queue, key = self.messages(),
                "somebody has deleted the queue on the server: it is made again, with the settings \
                 of the pipeline file"
            );
        }
        Ok(())
    }
}
