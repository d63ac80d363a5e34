//! What a glob found and is not there any more when its turn comes.
#![allow(clippy::unwrap_used, reason = "a test that stops says where")]

mod common;

use std::fs;

use common::{Place, read, texts};

/// The reader has found all files, and waits for room in the middle of the first.
#[tokio::test]
async fn a_file_that_goes_before_it_is_read_does_not_end_the_others() {
    const LINES: usize = 3_000;
    let place = Place::new("*.txt", false);
    let within = |name: &str| place.path().with_file_name(name);
    fs::write(within("a.txt"), "of the first\n".repeat(LINES)).unwrap();
    fs::write(within("b.txt"), "of one that is moved away\n").unwrap();
    fs::write(within("c.txt"), "of the last\n").unwrap();
    let consumer = place.open().await;
    read(&*consumer, 1, true).await;
    fs::rename(within("b.txt"), within("b.done")).unwrap();
    let came = texts(&read(&*consumer, usize::MAX, true).await);
    assert_eq!((came.len(), came.last().unwrap().as_str()), (LINES, "of the last"));
    consumer.shutdown().await.unwrap();
}
