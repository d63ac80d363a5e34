//! Files that got another name after who wrote them died: nothing stays of what was not committed.
#![allow(clippy::unwrap_used, reason = "a test that stops says where")]

use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::Arc;

use brigade_core::Message;
use brigade_core::connector::{
    Connector, ConnectorEnv, ConnectorError, Outgoing, Producer, QueueSpec,
};
use brigade_core::state::{StateStore, StoreOp};
use brigade_embedded::{Options, Store};
use brigade_file::FileConnector;

struct Place {
    directory: tempfile::TempDir,
    state: Arc<dyn StateStore>,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let state = Store::open(&directory.path().join("state"), Options::default()).unwrap();
        fs::create_dir(directory.path().join("out")).unwrap();
        Self { directory, state }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join("out").join(name)
    }

    async fn open(&self, name: &str) -> Arc<dyn Producer> {
        let queue = QueueSpec::new("p", name, serde_json::json!({ "path": self.path(name) }));
        let env = ConnectorEnv { state: Arc::clone(&self.state) };
        FileConnector.producer(&queue, &env).await.unwrap()
    }

    /// Writes lines in a life that ends without a word, in the midst of the next append.
    async fn die(&self, name: &str, line: &str) {
        let out = self.open(name).await;
        put(&out, line).await.unwrap();
        drop(out);
        self.append(name, "torn");
    }

    /// Writes as a program that knows nothing of Brigade.
    fn append(&self, name: &str, text: &str) {
        let mut file = fs::File::options().append(true).open(self.path(name)).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    fn rename(&self, from: &str, to: &str) {
        fs::rename(self.path(from), self.path(to)).unwrap();
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// Whether the file system says when a file was made: else it is not found by another name.
    fn knows_births(&self) -> bool {
        fs::metadata(self.path("")).unwrap().created().is_ok()
    }
}

async fn put(producer: &Arc<dyn Producer>, line: &str) -> Result<(), ConnectorError> {
    producer.produce(&[Outgoing::from(Message::new(line.to_owned()))]).await.map(drop)
}

#[tokio::test]
async fn what_a_crash_left_is_cut_off_whatever_the_file_is_called_by_now() {
    let place = Place::new();
    if !place.knows_births() {
        return;
    }
    for made_anew in [false, true] {
        place.die("a", "1").await;
        place.rename("a", "a.1");
        if made_anew {
            fs::write(place.path("a"), "").unwrap();
        }
        put(&place.open("a").await, "2").await.unwrap();
        assert_eq!((&*place.text("a.1"), &*place.text("a")), ("1\n", "2\n"));
        fs::remove_file(place.path("a")).unwrap();
    }
}

#[tokio::test]
async fn each_of_several_that_were_killed_leaves_nothing() {
    let place = Place::new();
    if !place.knows_births() {
        return;
    }
    place.die("a", "1").await;
    place.rename("a", "a.1");
    place.die("a", "2").await;
    place.rename("a.1", "a.2");
    place.rename("a", "a.1");
    // One that died before it came to anything.
    fs::write(place.path("a"), "").unwrap();
    place.rename("a", "a.0");
    let out = place.open("a").await;
    put(&out, "3").await.unwrap();
    assert_eq!([place.text("a.2"), place.text("a.1"), place.text("a")], ["1\n", "2\n", "3\n"]);
    // It is done with: what others do to it now is theirs.
    drop(out);
    place.append("a.1", "of somebody else\n");
    put(&place.open("a").await, "4").await.unwrap();
    assert_eq!(place.text("a.1"), "2\nof somebody else\n");
}

#[tokio::test]
async fn a_compressed_file_that_was_renamed_can_be_read_to_its_end() {
    let place = Place::new();
    if !place.knows_births() {
        return;
    }
    place.die("a.gz", "1").await;
    place.rename("a.gz", "b.gz");
    put(&place.open("a.gz").await, "2").await.unwrap();
    for (name, expected) in [("b.gz", "1\n"), ("a.gz", "2\n")] {
        let mut text = String::new();
        let file = fs::File::open(place.path(name)).unwrap();
        flate2::read::MultiGzDecoder::new(file).read_to_string(&mut text).unwrap();
        assert_eq!(text, expected, "{name}");
    }
}

#[tokio::test]
async fn what_others_append_to_a_renamed_file_stays_if_nobody_died() {
    let place = Place::new();
    let out = place.open("a").await;
    put(&out, "1").await.unwrap();
    out.shutdown().await.unwrap();
    place.rename("a", "a.1");
    place.append("a.1", "of somebody else\n");
    put(&place.open("a").await, "2").await.unwrap();
    assert_eq!(place.text("a.1"), "1\nof somebody else\n");
}

#[tokio::test]
async fn another_file_of_the_name_is_not_cut_for_the_one_that_was_renamed() {
    let place = Place::new();
    if !place.knows_births() {
        return;
    }
    place.die("a", "1").await;
    place.rename("a", "a.1");
    fs::write(place.path("a"), "of somebody else\n").unwrap();
    let refused = put(&place.open("a").await, "2").await.unwrap_err();
    assert!(refused.to_string().contains("somebody else has written the rest"), "{refused}");
    assert_eq!((&*place.text("a.1"), &*place.text("a")), ("1\n", "of somebody else\n"));
}

#[tokio::test]
async fn a_renamed_file_that_another_queue_writes_by_now_is_left_to_it() {
    let place = Place::new();
    place.die("a", "1").await;
    place.rename("a", "b");
    let other = place.open("b").await;
    put(&other, "2").await.unwrap();
    put(&place.open("a").await, "3").await.unwrap();
    put(&other, "4").await.unwrap();
    assert_eq!((&*place.text("b"), &*place.text("a")), ("1\ntorn\n2\n4\n", "3\n"));
}

#[tokio::test]
async fn a_file_that_is_gone_is_no_reason_to_stop() {
    let place = Place::new();
    place.die("a", "1").await;
    fs::remove_file(place.path("a")).unwrap();
    put(&place.open("a").await, "2").await.unwrap();
    assert_eq!(place.text("a"), "2\n");
}

/// As the state kept it as long as it did not say of which file.
#[tokio::test]
async fn a_length_that_names_no_file_is_that_of_the_path() {
    for (length, note) in [("2 life", None), ("2", Some("life"))] {
        let place = Place::new();
        let name = place.path("").canonicalize().unwrap().join("a").display().to_string();
        let put_in = |space: &str, key: &str, value: &str| StoreOp::Put {
            space: space.into(),
            key: key.to_owned(),
            value: value.to_owned().into(),
        };
        let mut ops = vec![put_in("file/length", &name, length)];
        ops.extend(note.map(|life| put_in(&format!("file/writers:{name}"), life, "")));
        place.state.commit(ops).await.unwrap();
        fs::write(place.path("a"), "1\ntorn").unwrap();
        let out = place.open("a").await;
        put(&out, "2").await.unwrap();
        assert_eq!(place.text("a"), "1\n2\n");
        assert!(place.state.load("file/length", &name).await.unwrap().is_none(), "it is done with");
    }
}
