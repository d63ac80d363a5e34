//! What the tests that read files share.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use brigade_core::MessageId;
use brigade_core::connector::{
    Connector, ConnectorEnv, ConnectorError, Consumer, Order, QueueSpec, Reader, Want,
};
use brigade_embedded::{Options, Store};
use brigade_file::FileConnector;

/// A file, and the state of a pipeline that reads it.
pub(crate) struct Place {
    directory: tempfile::TempDir,
    pub(crate) env: ConnectorEnv,
    file: &'static str,
    follow: bool,
    /// The queue's `format`, if it has one.
    pub(crate) format: Option<&'static str>,
}

/// What a message says, and its id.
pub(crate) type Came = (String, MessageId);

impl Place {
    pub(crate) fn new(file: &'static str, follow: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let state = Store::open(&directory.path().join("state"), Options::default()).unwrap();
        Self { directory, env: ConnectorEnv { state }, file, follow, format: None }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join(self.file)
    }

    /// Writes the file anew, in place.
    pub(crate) fn write(&self, text: &str) {
        fs::write(self.path(), text).unwrap();
    }

    pub(crate) fn append(&self, text: &str) {
        let mut file = OpenOptions::new().create(true).append(true).open(self.path()).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    pub(crate) async fn open(&self) -> Arc<dyn Consumer> {
        self.open_for("s", true).await.unwrap()
    }

    /// Opens it for a stage, which is alone or one of several.
    pub(crate) async fn open_for(
        &self,
        stage: &str,
        alone: bool,
    ) -> Result<Arc<dyn Consumer>, ConnectorError> {
        let mut settings = serde_json::json!({ "path": self.path(), "follow": self.follow });
        if let Some(format) = self.format {
            settings["format"] = format.into();
        }
        let queue = QueueSpec::new("p", "q", settings);
        let group = if alone { "" } else { stage };
        let reader = Reader { stage: stage.into(), group: group.into(), order: Order::None };
        FileConnector.consumer(&queue, &reader, &self.env).await
    }

    /// Reads the file to its end, or so many messages of one that is followed, by a consumer of its own.
    pub(crate) async fn read(&self, messages: usize) -> Vec<Came> {
        let consumer = self.open().await;
        let came = read(&*consumer, messages, true).await;
        consumer.shutdown().await.unwrap();
        came
    }

    pub(crate) async fn texts(&self) -> Vec<String> {
        texts(&self.read(usize::MAX).await)
    }
}

/// Takes so many messages, or all, and acks them if asked.
pub(crate) async fn read(consumer: &dyn Consumer, messages: usize, ack: bool) -> Vec<Came> {
    let mut all = Vec::new();
    while all.len() < messages {
        let want = Want { messages: (messages - all.len()).min(10), bytes: usize::MAX };
        let taken = consumer.consume(want).await.unwrap();
        if taken.is_empty() {
            break;
        }
        all.extend(taken.iter().map(|one| {
            let text = one.message.payload.as_deref().unwrap().to_vec();
            (String::from_utf8(text).unwrap(), one.message.id)
        }));
        if ack {
            let receipts = taken.iter().map(|one| one.receipt).collect();
            consumer.ack(receipts, Vec::new()).await.unwrap();
        }
    }
    all
}

pub(crate) fn texts(came: &[Came]) -> Vec<String> {
    came.iter().map(|(text, _)| text.clone()).collect()
}
