//! Payload formats whose schemas are kept in a [`SchemaRegistry`].

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::connector::{ConnectorError, Problem, QueueSpec};

/// Where the schemas of a queue's payloads are: a registry that speaks Confluent's HTTP API.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SchemaRegistry {
    /// The registry's address.
    pub url: String,
    /// The subject whose schema outputs are written with: the latest when the stage starts.
    /// Default: `TOPIC-value` or, if the queue has no `topic`, `QUEUE-value`.
    #[serde(default)]
    pub subject: Option<String>,
    /// For Protobuf: the full name of the message that outputs are written as, `shop.Order`.
    #[serde(default)]
    pub message: Option<String>,
    /// A file (`.avsc`, `.proto`, `.json`; relative to the pipeline file) whose schema is
    /// registered under the subject before anything is written, if it is not there yet.
    #[serde(default)]
    pub register: Option<String>,
    /// The user name, if the registry requires one.
    #[serde(default)]
    pub user: Option<String>,
    /// The user's password.
    #[serde(default)]
    pub password: Option<String>,
}

impl fmt::Debug for SchemaRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut all = f.debug_struct("SchemaRegistry");
        all.field("url", &self.url).field("subject", &self.subject).field("user", &self.user);
        all.finish_non_exhaustive()
    }
}

/// Payload formats that need more than the payload to be read: a schema in a [`SchemaRegistry`].
/// The runtime has payloads decoded before a message is handed out and encoded before it is
/// produced; in between they are JSON.
#[async_trait]
pub trait Formats: Send + Sync {
    /// What is wrong with the keys beyond their schema. Does no IO.
    fn check(&self, registry: &SchemaRegistry) -> Vec<Problem>;

    /// Opens the format of a queue's payloads, to read them or also to write them.
    ///
    /// # Errors
    /// The registry cannot be reached, or has no schema to write with.
    async fn open(
        &self,
        queue: &QueueSpec,
        registry: &SchemaRegistry,
        writes: bool,
    ) -> Result<Arc<dyn Format>, ConnectorError>;
}

/// The format of a queue's payloads.
#[async_trait]
pub trait Format: Send + Sync {
    /// Decodes a payload to JSON; the inner error says what is wrong with the payload.
    ///
    /// # Errors
    /// The registry cannot be reached, so the result is not known yet.
    async fn read(&self, payload: &Bytes) -> Result<Result<Bytes, String>, ConnectorError>;

    /// Encodes JSON as a payload; the inner error says what is wrong with the JSON.
    ///
    /// # Errors
    /// The registry cannot be reached, so the result is not known yet.
    async fn write(&self, json: &Bytes) -> Result<Result<Bytes, String>, ConnectorError>;
}
