//! Files that are damaged, newer, or somebody else's; and what a store keeps.
#![allow(clippy::unwrap_used, reason = "a test that stops says where")]

use std::path::Path;

use brigade_core::connector::{
    Connector, ConnectorEnv, ErrorKind, Incoming, Order, QueueSpec, Reader, Want,
};
use brigade_core::state::{StateStore, StoreOp};
use brigade_core::{CauseKind, Message};
use brigade_embedded::{Embedded, Options, Store};

fn refused(directory: &Path) -> String {
    Store::open(directory, Options::default()).map(|_| ()).unwrap_err().to_string()
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused_with_advice() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("brigade.db"), vec![b'x'; 10_000]).unwrap();
    let said = refused(directory.path());
    assert!(said.contains("is damaged") && said.contains("sqlite3"), "{said}");
}

#[tokio::test]
async fn a_name_is_had_by_one_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path(), Options::default()).unwrap();
    let lock = store.lock("a/b").await.unwrap();
    assert!(lock.is_some() && store.lock("a/b").await.unwrap().is_none());
    assert!(store.lock("a/c").await.unwrap().is_some());
    // Where two processes that share no more than the state's directory find it.
    assert!(directory.path().join("locks").is_dir());
    drop(lock);
    assert!(store.lock("a/b").await.unwrap().is_some());
}

#[tokio::test]
async fn a_file_that_is_cut_short_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path(), Options::default()).unwrap();
    let put = |n: u32| StoreOp::Put {
        space: "s".into(),
        key: format!("{n}"),
        value: vec![7; 1000].into(),
    };
    store.commit((0..500).map(put).collect()).await.unwrap();
    store.shutdown().await.unwrap();
    let path = directory.path().join("brigade.db");
    let length = std::fs::metadata(&path).unwrap().len();
    std::fs::File::options().write(true).open(&path).unwrap().set_len(length / 2).unwrap();
    let said = refused(directory.path());
    assert!(said.contains("is damaged"), "{said}");
}

#[tokio::test]
async fn a_database_that_was_emptied_or_is_away_is_not_taken_for_a_new_one() {
    let directory = tempfile::tempdir().unwrap();
    let (state, db) = (directory.path().join("state"), directory.path().join("state/brigade.db"));
    let value = async || {
        let store = Store::open(&state, Options::default()).unwrap();
        let value = store.load("s", "k").await.unwrap();
        let (space, key) = ("s".into(), "k".to_owned());
        store.commit(vec![StoreOp::Put { space, key, value: "v".into() }]).await.unwrap();
        store.shutdown().await.unwrap();
        value.is_some()
    };
    assert!(!value().await);
    let whole = std::fs::read(&db).unwrap();
    std::fs::write(&db, "").unwrap();
    let said = refused(&state);
    assert!(said.contains("is empty, but it was made before"), "{said}");
    assert!(said.contains("delete the directory"), "{said}");
    std::fs::remove_file(&db).unwrap();
    let said = refused(&state);
    assert!(said.contains("is not there, but it was made before") && !db.exists(), "{said}");
    std::fs::write(&db, whole).unwrap();
    assert!(value().await);
    // A state of before such notes gets one.
    std::fs::remove_file(db.with_extension("made")).unwrap();
    assert!(value().await);
    std::fs::write(&db, "").unwrap();
    refused(&state);
    // Who wants a new one deletes all of the old one.
    std::fs::remove_dir_all(&state).unwrap();
    assert!(!value().await);
}

#[tokio::test]
async fn a_newer_file_is_refused_by_its_version() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path(), Options::default()).unwrap();
    store.shutdown().await.unwrap();
    let db = rusqlite::Connection::open(directory.path().join("brigade.db")).unwrap();
    db.pragma_update(None, "user_version", 99).unwrap();
    drop(db);
    let said = refused(directory.path());
    assert!(said.contains("has version 99; this program knows version 1"), "{said}");
}

#[tokio::test]
async fn somebody_elses_database_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let db = rusqlite::Connection::open(directory.path().join("brigade.db")).unwrap();
    db.execute_batch("CREATE TABLE mine (x)").unwrap();
    drop(db);
    let said = refused(directory.path());
    assert!(said.contains("not one of Brigade's"), "{said}");
}

#[tokio::test]
async fn what_is_committed_is_there_at_the_next_opening_and_no_lock_is_left() {
    let directory = tempfile::tempdir().unwrap();
    for round in 0..3 {
        let store = Store::open(directory.path(), Options::default()).unwrap();
        let value = store.load("s", "k").await.unwrap();
        assert_eq!(value.is_some(), round > 0);
        let (space, key) = ("s".into(), "k".to_owned());
        store.commit(vec![StoreOp::Put { space, key, value: "v".into() }]).await.unwrap();
        assert_eq!(store.scan("s", "").await.unwrap().len(), 1);
        assert_eq!(store.scan("s", "x").await.unwrap().len(), 0);
        store.shutdown().await.unwrap();
        let locks = std::fs::read_dir(directory.path().join("holders")).unwrap().count();
        assert_eq!(locks, 0);
    }
}

/// Another process opens the file, and takes its time.
#[tokio::test]
async fn who_opens_a_queue_of_its_own_file_keeps_nobody_waiting_on_its_thread() {
    let directory = tempfile::tempdir().unwrap();
    let state = Store::open(&directory.path().join("state"), Options::default()).unwrap();
    let path = directory.path().join("apart");
    drop(Store::open(&path, Options::default()).unwrap());
    let opening = std::fs::File::create(path.join("brigade.opening")).unwrap();
    opening.try_lock().unwrap();
    let queue = QueueSpec::new("p", "q", serde_json::json!({ "path": path }));
    let env = ConnectorEnv { state };
    let opened = tokio::spawn(async move { Embedded.producer(&queue, &env).await.map(drop) });
    tokio::task::yield_now().await;
    assert!(!opened.is_finished(), "this thread has something else to do");
    opening.unlock().unwrap();
    opened.await.unwrap().unwrap();
}

/// Another version of them, and some that were damaged.
#[tokio::test]
async fn a_message_whose_headers_cannot_be_read_is_handed_out_with_its_defect() {
    let directory = tempfile::tempdir().unwrap();
    let state = Store::open(directory.path(), Options::default()).unwrap();
    let (env, queue) = (ConnectorEnv { state }, QueueSpec::new("p", "q", serde_json::json!({})));
    let producer = Embedded.producer(&queue, &env).await.unwrap();
    let message = |n: u32| Message::new(n.to_string()).with_header("h", "v").into();
    producer.produce(&[message(0), message(1), message(2)]).await.unwrap();
    let db = rusqlite::Connection::open(directory.path().join("brigade.db")).unwrap();
    db.execute("UPDATE messages SET headers = x'0207' WHERE id = 1", []).unwrap();
    db.execute("UPDATE messages SET headers = x'0107' WHERE id = 2", []).unwrap();
    for order in [Order::None, Order::Key] {
        let reader = Reader { stage: "s".into(), group: "".into(), order };
        let consumer = Embedded.consumer(&queue, &reader, &env).await.unwrap();
        let taken = consumer.consume(Want { messages: 3, bytes: usize::MAX }).await.unwrap();
        consumer.shutdown().await.unwrap();
        let [newer, damaged, whole] = &taken[..] else { panic!("{taken:?}") };
        let told = |incoming: &Incoming| {
            let defect = incoming.defect.as_deref().expect("it is not handled");
            assert_eq!(defect.kind, CauseKind::Decode);
            defect.message.clone()
        };
        assert!(told(newer).contains("version 2"), "{}", told(newer));
        assert!(told(damaged).contains("damaged"), "{}", told(damaged));
        assert!(whole.defect.is_none() && whole.message.headers.get("h").is_some());
        // What they were is kept, for the dead letter.
        let kept = |of: &Incoming| of.message.headers.get("brigade-headers").flatten().cloned();
        assert_eq!(kept(newer).as_deref(), Some(&[2, 7][..]));
        assert_eq!(kept(damaged).as_deref(), Some(&[1, 7][..]));
        assert_eq!(newer.message.payload.as_deref(), Some(&b"0"[..]));
    }
}

/// As when two supervisors of a program use one state, or a queue of one is in the state of the other.
#[tokio::test]
async fn a_store_is_open_until_all_who_opened_it_are_done() {
    let directory = tempfile::tempdir().unwrap();
    let [at, aside] = ["state", "aside"].map(|name| directory.path().join(name));
    let open = |at: &Path| Store::open(at, Options::default()).unwrap();
    let (first, second) = (open(&at), open(&at));
    let env = ConnectorEnv { state: open(&aside) };
    let queue = QueueSpec::new("p", "q", serde_json::json!({ "path": at }));
    let producer = Embedded.producer(&queue, &env).await.unwrap();
    first.shutdown().await.unwrap();
    // Twice is no more than once.
    first.shutdown().await.unwrap();
    drop(first);
    let put = || StoreOp::Put { space: "s".into(), key: "k".to_owned(), value: "v".into() };
    second.commit(vec![put()]).await.unwrap();
    second.shutdown().await.unwrap();
    producer.produce(&[Message::new("x").into()]).await.unwrap().remove(0).confirmed().unwrap();
    drop(producer);
    let closed = second.commit(vec![put()]).await.unwrap_err();
    assert_eq!(closed.kind(), ErrorKind::Closed);
    assert!(open(&at).load("s", "k").await.unwrap().is_some(), "it is opened anew");
}
