//! How an RSMQ queue is made, and made again after someone deleted it.

use std::sync::Arc;

use brigade_core::connector::ConnectorError;

use super::scripts::CREATE;
use crate::wire::Wire;

/// A queue's address, and the settings with which it is made if it does not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct QueueDefinition {
    /// Its name in the pipeline file.
    pub(crate) queue: Arc<str>,
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// Its visibility timeout, in seconds.
    pub(crate) vt: u64,
    pub(crate) maxsize: i64,
    /// Whether sent messages are announced.
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

    /// The channel on which sent messages are announced, if they are.
    pub(crate) fn channel(&self) -> Option<String> {
        self.realtime.then(|| format!("{}:rt:{}", self.namespace, self.name))
    }

    /// Makes it if it does not exist; returns whether it was made.
    pub(crate) async fn make(&self, wire: &Arc<Wire>) -> Result<bool, ConnectorError> {
        let mut create = CREATE.key(self.hash());
        create.key(format!("{}:QUEUES", self.namespace)).arg(&self.name);
        create.arg(self.vt).arg(self.maxsize);
        wire.script(create).await
    }

    /// Makes it again after a running pipeline found it deleted, and logs that.
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
