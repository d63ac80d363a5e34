//! What tells a file that was read from others.
#![allow(clippy::unwrap_used, reason = "a test that stops says where")]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use brigade_core::connector::{Connector, ConnectorEnv, Order, QueueSpec, Reader, Want};
use brigade_core::state::StoreOp;
use brigade_embedded::{Options, Store};
use brigade_file::FileConnector;

const SPACE: &str = "file/p/q/";

struct Place {
    directory: tempfile::TempDir,
    env: ConnectorEnv,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let state = Store::open(&directory.path().join("state"), Options::default()).unwrap();
        Self { directory, env: ConnectorEnv { state } }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("in.txt")
    }

    /// Reads the file to its end; the records that came.
    async fn read(&self) -> Vec<String> {
        let queue = QueueSpec::new("p", "q", serde_json::json!({ "path": self.path() }));
        let reader = Reader { stage: "s".into(), group: "".into(), order: Order::None };
        let consumer = FileConnector.consumer(&queue, &reader, &self.env).await.unwrap();
        let mut all = Vec::new();
        loop {
            let taken = consumer.consume(Want { messages: 10, bytes: usize::MAX }).await.unwrap();
            if taken.is_empty() {
                consumer.shutdown().await.unwrap();
                return all;
            }
            let text =
                |payload: Option<&[u8]>| String::from_utf8(payload.unwrap().to_vec()).unwrap();
            all.extend(taken.iter().map(|one| text(one.message.payload.as_deref())));
            let receipts = taken.iter().map(|one| one.receipt).collect();
            consumer.ack(receipts, Vec::new()).await.unwrap();
        }
    }

    /// The keys of the positions in the state.
    async fn keys(&self) -> Vec<String> {
        let kept = self.env.state.scan(SPACE, "").await.unwrap();
        kept.into_iter().map(|(key, _)| key).collect()
    }

    /// Keeps the only position by another key.
    async fn keep_as(&self, other: &str) {
        let (key, value) = self.env.state.scan(SPACE, "").await.unwrap().pop().unwrap();
        let put = StoreOp::Put { space: SPACE.into(), key: other.to_owned(), value };
        let delete = StoreOp::Delete { space: SPACE.into(), key };
        self.env.state.commit(vec![put, delete]).await.unwrap();
    }
}

/// Else the device is part of the identity.
fn knows_births(place: &Place) -> bool {
    fs::metadata(place.path()).unwrap().created().is_ok()
}

#[tokio::test]
async fn a_device_that_has_another_number_now_does_not_matter() {
    let place = Place::new();
    fs::write(place.path(), "a\nb\n").unwrap();
    if !knows_births(&place) {
        return;
    }
    assert_eq!(place.read().await, ["a", "b"]);
    let key = place.keys().await;
    let inode = fs::metadata(place.path()).unwrap().ino();
    // As it was kept before the time of birth was part of it.
    place.keep_as(&format!("99:{inode}")).await;
    assert_eq!(place.read().await, [""; 0]);
    fs::write(place.path(), "a\nb\nc\n").unwrap();
    assert_eq!(place.read().await, ["c"]);
    assert_eq!(place.keys().await, key, "the old key is gone");
    assert_eq!(place.read().await, [""; 0]);
}

#[tokio::test]
async fn a_file_that_got_the_inode_and_the_beginning_of_another_is_read_whole() {
    let place = Place::new();
    fs::write(place.path(), "a\n").unwrap();
    if !knows_births(&place) {
        return;
    }
    assert_eq!(place.read().await, ["a"]);
    let inode = fs::metadata(place.path()).unwrap().ino();
    // The file that was read was another one of this inode.
    place.keep_as(&format!("born 1000000000000000000:{inode}")).await;
    fs::write(place.path(), "a\nb\n").unwrap();
    assert_eq!(place.read().await, ["a", "b"]);
}
