//! Files that are written by several, or were: what may be cut off, and what may not.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use brigade_core::Message;
use brigade_core::connector::{
    Connector, ConnectorEnv, ConnectorError, Outgoing, Producer, QueueSpec, Staged,
};
use brigade_core::state::{StateStore, StoreOp};
use brigade_embedded::{Options, Store};
use brigade_file::FileConnector;

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn state(&self, name: &str) -> Arc<Store> {
        Store::open(&self.path(name), Options::default()).unwrap()
    }

    async fn open(
        &self,
        state: &Arc<Store>,
        queue: &str,
        name: &str,
    ) -> Result<Arc<dyn Producer>, ConnectorError> {
        let settings = serde_json::json!({ "path": self.path(name) });
        let queue = QueueSpec::new("writing", queue, settings);
        let state: Arc<dyn StateStore> = Arc::<Store>::clone(state);
        FileConnector.producer(&queue, &ConnectorEnv { state }).await
    }

    fn text(&self) -> String {
        fs::read_to_string(self.path("out")).unwrap()
    }

    /// Waits until no writer has the file locked.
    async fn settled(&self) {
        let file = fs::File::open(self.path("out")).unwrap();
        tokio::task::spawn_blocking(move || file.lock()).await.unwrap().unwrap();
    }

    /// Writes as a program that knows nothing of Brigade.
    fn append(&self, text: &str) {
        let mut file = fs::File::options().append(true).open(self.path("out")).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }
}

fn outgoing(text: &str) -> Vec<Outgoing> {
    vec![Message::new(text.to_owned()).into()]
}

async fn put(producer: &Arc<dyn Producer>, text: &str) -> Result<(), ConnectorError> {
    producer.produce(&outgoing(text)).await.map(drop)
}

fn refused(result: Result<(), ConnectorError>, words: &[&str]) {
    let error = result.expect_err("it is refused");
    assert!(!error.is_transient(), "{error}");
    for word in words {
        assert!(error.to_string().contains(word), "`{word}`: {error}");
    }
}

#[tokio::test]
async fn what_others_append_is_never_cut_off() {
    let place = Place::new();
    let state = place.state("state");
    let out = place.open(&state, "out", "out").await.unwrap();
    put(&out, "1").await.unwrap();
    // While it is open, which the state has a note of.
    place.append("2\n");
    refused(put(&out, "3").await, &["out has 4 bytes", "only the first 2", "one `state`"]);
    out.shutdown().await.unwrap();
    // In the next life.
    let out = place.open(&state, "out", "out").await.unwrap();
    refused(put(&out, "3").await, &["out has 4 bytes", "only the first 2"]);
    assert_eq!(place.text(), "1\n2\n");
    // As it says.
    fs::rename(place.path("out"), place.path("away")).unwrap();
    put(&out, "3").await.unwrap();
    assert_eq!(place.text(), "3\n");
}

#[tokio::test]
async fn a_file_of_two_states_stops_the_first_and_loses_nothing() {
    let place = Place::new();
    let (one, other) = (place.state("one"), place.state("other"));
    let first = place.open(&one, "out", "out").await.unwrap();
    put(&first, "1").await.unwrap();
    let second = place.open(&other, "out", "out").await.unwrap();
    put(&second, "2").await.unwrap();
    refused(put(&first, "3").await, &["out has 4 bytes", "only the first 2"]);
    put(&second, "4").await.unwrap();
    assert_eq!(place.text(), "1\n2\n4\n");
}

#[tokio::test]
async fn what_a_crash_left_is_cut_off() {
    let place = Place::new();
    let state = place.state("state");
    let out = place.open(&state, "out", "out").await.unwrap();
    put(&out, "1").await.unwrap();
    // It goes without a word, as in a crash.
    drop(out);
    place.append("torn");
    let out = place.open(&state, "out", "out").await.unwrap();
    put(&out, "2").await.unwrap();
    assert_eq!(place.text(), "1\n2\n");
    // This life's note is its own.
    out.shutdown().await.unwrap();
    place.append("3\n");
    let out = place.open(&state, "out", "out").await.unwrap();
    refused(put(&out, "4").await, &["out has 6 bytes"]);
}

#[tokio::test]
async fn what_is_not_committed_is_cut_off_at_once_and_the_next_goes_on() {
    let place = Place::new();
    let state = place.state("state");
    fs::write(place.path("out"), "0\n").unwrap();
    let out = place.open(&state, "out", "out").await.unwrap();
    for text in ["1", "2"] {
        drop(out.stage(&outgoing("never")).await.unwrap());
        put(&out, text).await.unwrap();
    }
    assert_eq!(place.text(), "0\n1\n2\n");
}

#[tokio::test]
async fn links_lead_to_one_file() {
    let place = Place::new();
    let state = place.state("state");
    std::os::unix::fs::symlink("out", place.path("link")).unwrap();
    std::os::unix::fs::symlink(place.path("link"), place.path("other")).unwrap();
    // Through a link to what is not there yet.
    let linked = place.open(&state, "queue", "other").await.unwrap();
    put(&linked, "1").await.unwrap();
    for name in ["out", "link"] {
        let result = place.open(&state, "dead", name).await.map(drop);
        refused(result, &["queues `queue` and `dead` both write", "out: give each"]);
        let lane = place.open(&state, "queue", name).await.unwrap();
        put(&lane, "2").await.unwrap();
    }
    assert_eq!(place.text(), "1\n2\n2\n");
    linked.shutdown().await.unwrap();
    place.open(&state, "dead", "link").await.unwrap();
    std::os::unix::fs::symlink("circle", place.path("circle")).unwrap();
    refused(place.open(&state, "queue", "circle").await.map(drop), &["in a circle"]);
}

#[tokio::test]
async fn what_is_no_file_is_refused() {
    let place = Place::new();
    let state = place.state("state");
    let made = std::process::Command::new("mkfifo").arg(place.path("fifo")).status().unwrap();
    assert!(made.success());
    for name in ["/dev/null", "fifo"] {
        let words = ["is not a regular file", "`-` for standard output"];
        refused(place.open(&state, "queue", name).await.map(drop), &words);
    }
}

#[tokio::test]
async fn a_commit_that_nobody_waits_for_any_more_keeps_what_it_wrote() {
    let place = Place::new();
    let state = place.state("state");
    let out = place.open(&state, "out", "out").await.unwrap();
    put(&out, "1").await.unwrap();
    let Staged { ops, hold, .. } = out.stage(&outgoing("2")).await.unwrap();
    // The state has been asked and has much to do before it; then a stop comes.
    let much = (0..20_000).map(|key| StoreOp::Put {
        space: "test".into(),
        key: key.to_string(),
        value: "much".into(),
    });
    for ops in [much.collect(), ops] {
        let _ = tokio::time::timeout(Duration::ZERO, state.commit(ops)).await;
    }
    drop(hold);
    // Nobody else gets at the file before it is decided.
    place.settled().await;
    assert_eq!(place.text(), "1\n2\n");
    put(&out, "3").await.unwrap();
    assert_eq!(place.text(), "1\n2\n3\n");
}

#[tokio::test]
async fn an_append_that_nobody_waits_for_any_more_leaves_nothing() {
    let place = Place::new();
    let state = place.state("state");
    let out = place.open(&state, "out", "out").await.unwrap();
    for text in ["1", "2"] {
        let _ = tokio::time::timeout(Duration::ZERO, out.stage(&outgoing("never"))).await;
        put(&out, text).await.unwrap();
    }
    let _ = tokio::time::timeout(Duration::ZERO, out.stage(&outgoing("never"))).await;
    // Not before that has come to its end.
    out.shutdown().await.unwrap();
    drop(out);
    assert_eq!(place.text(), "1\n2\n");
    place.append("3\n");
    let out = place.open(&state, "out", "out").await.unwrap();
    refused(put(&out, "4").await, &["out has 6 bytes", "only the first 4"]);
}

#[tokio::test]
async fn what_a_crash_left_in_a_file_that_began_anew_is_cut_off() {
    let rotate = |place: &Place| fs::rename(place.path("out"), place.path("away")).unwrap();
    let truncate = |place: &Place| drop(fs::File::create(place.path("out")).unwrap());
    for begin_anew in [rotate, truncate] {
        let place = Place::new();
        let state = place.state("state");
        let out = place.open(&state, "out", "out").await.unwrap();
        put(&out, "of many bytes").await.unwrap();
        begin_anew(&place);
        // Killed in the midst of the next append.
        let staged = out.stage(&outgoing("2")).await.unwrap();
        drop((staged, out));
        place.settled().await;
        place.append("torn");
        let out = place.open(&state, "out", "out").await.unwrap();
        put(&out, "2").await.unwrap();
        assert_eq!(place.text(), "2\n");
    }
}

#[tokio::test]
async fn a_writer_whose_file_was_rotated_away_leaves_no_note() {
    let place = Place::new();
    let state = place.state("state");
    let out = place.open(&state, "out", "out").await.unwrap();
    put(&out, "1").await.unwrap();
    fs::rename(place.path("out"), place.path("away")).unwrap();
    out.shutdown().await.unwrap();
    drop(out);
    assert!(!place.path("out").exists());
    fs::write(place.path("out"), "of somebody else\n").unwrap();
    let out = place.open(&state, "out", "out").await.unwrap();
    refused(put(&out, "2").await, &["out has 17 bytes", "only the first 2"]);
    assert_eq!(place.text(), "of somebody else\n");
}

#[tokio::test]
async fn what_cannot_be_a_line_is_told_with_its_queue() {
    let place = Place::new();
    let env = ConnectorEnv { state: place.state("state") };
    let settings = serde_json::json!({ "path": place.path("out"), "max_message_bytes": "9B" });
    let queue = QueueSpec::new("p", "orders", settings);
    let producer = FileConnector.producer(&queue, &env).await.unwrap();
    let batch = ["", "a\nb", "0123456789"].map(|text| Message::new(text).into());
    let produced = producer.produce(&batch).await.unwrap();
    for (outcome, words) in
        produced.iter().zip(["null or empty", "several lines", "10 bytes, longer"])
    {
        let told = format!("{outcome:?}");
        assert!(told.contains(words) && told.contains("queue `orders`"), "{told}");
    }
}

#[tokio::test]
async fn json_of_several_lines_is_one_line_and_nothing_else_of_it_changes() {
    let place = Place::new();
    let state = place.state("state");
    let out = place.open(&state, "out", "out").await.unwrap();
    let several = "{\"n\":\r\n12345678901234567890123, \"a\": 1,\n\"a\": 1.50 }\n";
    put(&out, several).await.unwrap();
    let line = "{\"n\":  12345678901234567890123, \"a\": 1, \"a\": 1.50 }\n";
    assert_eq!(place.text(), line);
}
