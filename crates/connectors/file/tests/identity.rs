//! What tells a file that was read from others.
#![allow(clippy::unwrap_used, reason = "a test that stops says where")]

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;

use brigade_core::state::StoreOp;
use common::Place;

const SPACE: &str = "file/p/q/";

/// The keys of the positions in the state.
async fn keys(place: &Place) -> Vec<String> {
    let kept = place.env.state.scan(SPACE, "").await.unwrap();
    kept.into_iter().map(|(key, _)| key).collect()
}

/// Keeps the only position by another key.
async fn keep_as(place: &Place, other: &str) {
    let (key, value) = place.env.state.scan(SPACE, "").await.unwrap().pop().unwrap();
    let put = StoreOp::Put { space: SPACE.into(), key: other.to_owned(), value };
    let delete = StoreOp::Delete { space: SPACE.into(), key };
    place.env.state.commit(vec![put, delete]).await.unwrap();
}

/// Else the device is part of the identity.
fn knows_births(place: &Place) -> bool {
    fs::metadata(place.path()).unwrap().created().is_ok()
}

#[tokio::test]
async fn a_device_that_has_another_number_now_does_not_matter() {
    let place = Place::new("in.txt", false);
    fs::write(place.path(), "a\nb\n").unwrap();
    if !knows_births(&place) {
        return;
    }
    assert_eq!(place.texts().await, ["a", "b"]);
    let key = keys(&place).await;
    let inode = fs::metadata(place.path()).unwrap().ino();
    // As it was kept before the time of birth was part of it.
    keep_as(&place, &format!("99:{inode}")).await;
    assert_eq!(place.texts().await, [""; 0]);
    fs::write(place.path(), "a\nb\nc\n").unwrap();
    assert_eq!(place.texts().await, ["c"]);
    assert_eq!(keys(&place).await, key, "the old key is gone");
    assert_eq!(place.texts().await, [""; 0]);
}

#[tokio::test]
async fn a_file_that_got_the_inode_and_the_beginning_of_another_is_read_whole() {
    let place = Place::new("in.txt", false);
    fs::write(place.path(), "a\n").unwrap();
    if !knows_births(&place) {
        return;
    }
    assert_eq!(place.texts().await, ["a"]);
    let inode = fs::metadata(place.path()).unwrap().ino();
    // The file that was read was another one of this inode.
    keep_as(&place, &format!("born 1000000000000000000:{inode}")).await;
    fs::write(place.path(), "a\nb\n").unwrap();
    assert_eq!(place.texts().await, ["a", "b"]);
}
