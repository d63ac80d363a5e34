//! A file that grows and is rotated, followed by a running pipeline.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test that stops says where")]

mod common;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;

use common::{World, eventually};

fn append(path: &Path, text: &str) {
    let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

#[tokio::test]
async fn every_line_of_a_file_that_is_rotated_comes_once() {
    let world = World::new();
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    append(&log, "1\n");
    let yaml = format!(
        "
queues: {{ in: {{ type: file, path: {}, follow: true }}, out: {{ type: memory }} }}
stages: {{ pass: {{ component: pass, input: in, outputs: [out] }} }}
",
        log.display()
    );
    let running = world.start(&yaml, &world.registry()).await;
    let arrived = async |last: u64| {
        eventually("the line arrives", async || world.numbers("out").last() == Some(&last)).await;
    };
    arrived(1).await;
    append(&log, "2\n3");
    arrived(2).await;
    append(&log, "3\n");
    arrived(33).await;
    fs::rename(&log, directory.path().join("log.1")).unwrap();
    append(&log, "4\n");
    arrived(4).await;
    assert_eq!(world.numbers("out"), [1, 2, 33, 4]);
    running.drain().await;
}
