//! Several stages that read one file, and one that did alone.
#![allow(clippy::unwrap_used, reason = "a test that stops says where")]

mod common;

use brigade_core::connector::ErrorKind;
use common::{Place, texts};

/// What a stage reads to the end, alone or as one of several.
async fn read(place: &Place, stage: &str, alone: bool) -> Vec<String> {
    let consumer = place.open_for(stage, alone).await.unwrap();
    let came = common::read(&*consumer, usize::MAX, true).await;
    consumer.shutdown().await.unwrap();
    texts(&came)
}

#[tokio::test]
async fn stages_that_read_a_file_go_on_where_one_was_and_one_where_it_was_itself() {
    let place = Place::new("in.txt", false);
    place.append("1\n");
    assert_eq!(read(&place, "s", true).await, ["1"]);
    place.append("2\n");
    assert_eq!(read(&place, "s", false).await, ["2"], "it has read the first alone");
    assert_eq!(read(&place, "t", false).await, ["2"], "what was left when it began");
    place.append("3\n");
    assert_eq!(read(&place, "s", false).await, ["3"]);
    assert_eq!(read(&place, "s", true).await, [""; 0], "it is alone again");
    place.append("4\n");
    assert_eq!(read(&place, "s", true).await, ["4"]);
    assert_eq!(read(&place, "t", false).await, ["3", "4"], "what it had before is its own");
    assert_eq!(read(&place, "s", false).await, [""; 0]);
}

#[tokio::test]
async fn stages_wait_for_a_process_that_still_reads_alone() {
    let place = Place::new("in.txt", false);
    place.append("1\n");
    assert_eq!(read(&place, "s", true).await, ["1"]);
    let alone = place.open_for("s", true).await.unwrap();
    let error = place.open_for("t", false).await.err().expect("it is being read");
    assert_eq!(error.kind(), ErrorKind::Transient);
    assert!(error.to_string().contains("by another process"), "{error}");
    alone.shutdown().await.unwrap();
    let (s, t) = tokio::join!(place.open_for("s", false), place.open_for("t", false));
    s.unwrap().shutdown().await.unwrap();
    t.unwrap().shutdown().await.unwrap();
}
