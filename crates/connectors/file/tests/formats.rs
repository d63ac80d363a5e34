//! A file that is read as something else than before.
#![allow(clippy::unwrap_used, reason = "a test that stops says where")]

mod common;

use std::fs;

use brigade_core::connector::{ErrorKind, Want};
use common::{Place, read, texts};

const WANT: Want = Want { messages: 10, bytes: usize::MAX };

/// The header counted as a line: the last row would be passed over by its number.
#[tokio::test]
async fn what_was_read_in_part_as_lines_is_not_gone_on_with_as_rows() {
    let mut place = Place::new("in.csv", false);
    place.format = Some("lines");
    place.write("n\n1\n2\n");
    assert_eq!(place.texts().await, ["n", "1", "2"]);
    place.format = None;
    assert_eq!(place.texts().await, [""; 0], "there is nothing new in it");
    place.append("3\n");
    let consumer = place.open().await;
    let error = consumer.consume(WANT).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permanent);
    let text = error.to_string();
    assert!(
        text.contains("in.csv was read in part as lines, and is to be read as CSV now"),
        "{text}"
    );
    consumer.shutdown().await.unwrap();
    // As it says.
    place.format = Some("lines");
    assert_eq!(place.texts().await, ["3"]);
    place.format = None;
    let copy = place.path().with_extension("copy");
    fs::copy(place.path(), &copy).unwrap();
    fs::rename(copy, place.path()).unwrap();
    assert_eq!(place.texts().await.len(), 3);
}

#[tokio::test]
async fn what_was_read_in_part_as_rows_is_gone_on_with_as_lines() {
    let mut place = Place::new("in.csv", false);
    place.write("n\n1\n2\n");
    let consumer = place.open().await;
    assert_eq!(texts(&read(&*consumer, 1, true).await), ["{\"n\":\"1\"}"]);
    consumer.shutdown().await.unwrap();
    place.format = Some("lines");
    assert_eq!(place.texts().await, ["2"]);
    place.append("3\n");
    assert_eq!(place.texts().await, ["3"]);
}

/// What is not resolved would be passed over by its number, which counts the header as lines.
#[tokio::test]
async fn what_was_read_as_rows_out_of_order_is_not_gone_on_with_as_lines() {
    let mut place = Place::new("in.csv", false);
    place.write("n\n1\n2\n3\n");
    let consumer = place.open().await;
    let came = consumer.consume(WANT).await.unwrap();
    let second = came.iter().map(|one| one.receipt).skip(1).take(1).collect();
    assert!(consumer.ack(second, Vec::new()).await.unwrap().fenced.is_empty());
    consumer.shutdown().await.unwrap();
    place.format = Some("lines");
    let consumer = place.open().await;
    let error = consumer.consume(WANT).await.unwrap_err();
    assert!(error.to_string().contains("was read in part as CSV"), "{error}");
    consumer.shutdown().await.unwrap();
    place.format = None;
    assert_eq!(place.texts().await, ["{\"n\":\"1\"}", "{\"n\":\"3\"}"]);
}

/// As a writer leaves it between opening and its first batch.
#[tokio::test]
async fn a_compressed_file_with_nothing_in_it_has_no_records() {
    for file in ["in.txt.gz", "in.txt.zst", "in.csv.gz"] {
        let place = Place::new(file, false);
        place.write("");
        assert_eq!(place.texts().await, [""; 0], "{file}");
    }
    let place = Place::new("*.txt.zst", false);
    let within = |name: &str| place.path().with_file_name(name);
    fs::write(within("a.txt.zst"), "").unwrap();
    fs::write(within("b.txt.zst"), zstd::encode_all(&b"1\n"[..], 0).unwrap()).unwrap();
    assert_eq!(place.texts().await, ["1"]);
    fs::write(within("a.txt.zst"), zstd::encode_all(&b"2\n"[..], 0).unwrap()).unwrap();
    assert_eq!(place.texts().await, ["2"]);
}
