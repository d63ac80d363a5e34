//! Durable queues in one SQLite file.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use brigade::component::Raw;
use brigade::{Failure, Memory, Message, MessageId, Registry};
use rusqlite::{Connection, TransactionBehavior};

use crate::latency;
use crate::support::{Goal, Row, Spent, Stopwatch, acked, idle, pipeline, timed};

const MESSAGES: usize = 100_000;
const BATCH: usize = 512;
const SAMPLES: usize = 3;

/// Puts messages with keys on the embedded queue `in`.
fn fill(state: &Path, messages: usize, keys: usize) {
    let memory = Memory::new();
    let message = |n: usize| {
        let payload = format!("{{\"n\":{n},\"text\":\"{}\"}}", "x".repeat(150));
        Message::new(payload).with_id(MessageId(n as u128 + 1)).with_key((n % keys).to_string())
    };
    memory.put("bench", "first", (0..messages).map(message));
    let registry = brigade::registry().connector(Arc::new(memory));
    let text = "pipeline: bench
queues:
  first: { type: memory }
  in: { type: embedded }
stages:
  fill: { component: pass, input: first, outputs: [in] }
";
    timed(pipeline(text, &registry).state_path(state), idle);
}

/// From one durable queue to another.
pub(crate) fn durable(name: &'static str) -> Row {
    let ours = || {
        let directory = tempfile::tempdir().expect("a directory can be made");
        fill(directory.path(), MESSAGES, 1000);
        let text = "pipeline: bench
lanes: 1
queues:
  in: { type: embedded }
  out: { type: embedded }
stages:
  move: { component: pass, input: in, outputs: [out], workers: 1 }
";
        let pipeline = pipeline(text, &brigade::registry());
        timed(pipeline.state_path(directory.path()), idle)
    };
    Row::rates(name, 0.8, MESSAGES, ours, by_hand)
}

/// From one durable queue over two others to a fourth, a process for each of the three stages.
pub(crate) fn three_processes(name: &'static str) -> Row {
    let ours = || {
        let directory = tempfile::tempdir().expect("a directory can be made");
        fill(directory.path(), MESSAGES, 1000);
        latency::last_of_three(directory.path(), async |running| acked(running, MESSAGES).await)
    };
    Row::rates(name, 0.8, MESSAGES, ours, three_by_hand)
}

/// A file with a table for each queue, the first of them full.
fn tables(directory: &Path, queues: usize) -> Connection {
    let mut file = open(directory);
    for queue in 0..queues {
        let columns = "n integer primary key, id blob, key blob, payload blob";
        file.execute(&format!("create table queue_{queue} ({columns})"), [])
            .expect("SQLite takes it");
    }
    let fill = file.transaction().expect("SQLite takes it");
    for n in 0..MESSAGES {
        let payload = format!("{{\"n\":{n},\"text\":\"{}\"}}", "x".repeat(150));
        let insert = "insert into queue_0 (id, key, payload) values (?, ?, ?)";
        let id = (n as u128).to_le_bytes();
        let mut insert = fill.prepare_cached(insert).expect("the statement is good");
        insert
            .execute((id, (n % 1000).to_string().as_bytes(), payload.as_bytes()))
            .expect("SQLite takes it");
    }
    fill.commit().expect("SQLite takes it");
    file
}

fn open(directory: &Path) -> Connection {
    let file = Connection::open(directory.join("queues.db")).expect("the file can be opened");
    file.pragma_update(None, "journal_mode", "wal").expect("SQLite knows it");
    file.pragma_update(None, "synchronous", "full").expect("SQLite knows it");
    file.busy_timeout(Duration::from_secs(60)).expect("SQLite knows it");
    file
}

/// A loop over two tables.
fn by_hand() -> Spent {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let mut file = tables(directory.path(), 2);
    let begun = Stopwatch::start();
    pass_on(&mut file, 0);
    begun.stop()
}

/// Three loops over four tables, the first two in children.
fn three_by_hand() -> Spent {
    let directory = tempfile::tempdir().expect("a directory can be made");
    drop(tables(directory.path(), 4));
    let mut children = [0, 1].map(|queue| {
        let mut child = Command::new(std::env::current_exe().expect("the program has a path"));
        child.env(CHILD, format!("{queue}={}", directory.path().display()));
        child.stdout(Stdio::null()).spawn().expect("the program is there")
    });
    let begun = Stopwatch::start();
    pass_on(&mut open(directory.path()), 2);
    let spent = begun.stop();
    for child in &mut children {
        assert!(child.wait().expect("nobody else waits for it").success());
    }
    spent
}

/// What tells a child of [`three_by_hand`] its queue, and where.
const CHILD: &str = "BRIGADE_BENCH_BY_HAND";

/// Whether this process is one of them.
pub(crate) fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// Passes on what is on one queue.
pub(crate) fn child() {
    let what = std::env::var(CHILD).expect("it was asked for");
    let (queue, directory) = what.split_once('=').expect("the parent writes it so");
    pass_on(&mut open(Path::new(directory)), queue.parse().expect("the parent writes a number"));
}

/// Passes all messages on to the next table: a batch is read, inserted and deleted in one synced
/// transaction.
fn pass_on(file: &mut Connection, queue: usize) {
    let select = format!("select n, id, key, payload from queue_{queue} order by n limit ?");
    let insert = format!("insert into queue_{} (id, key, payload) values (?, ?, ?)", queue + 1);
    let mut moved = 0;
    while moved < MESSAGES {
        let turn = file
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .expect("SQLite takes it");
        let (mut last, before) = (0_i64, moved);
        {
            let mut select = turn.prepare_cached(&select).expect("the statement is good");
            let mut insert = turn.prepare_cached(&insert).expect("the statement is good");
            let mut rows = select.query([BATCH]).expect("SQLite takes it");
            while let Some(row) = rows.next().expect("SQLite takes it") {
                last = row.get(0).expect("the column is of this type");
                let blob =
                    |at: usize| row.get::<_, Vec<u8>>(at).expect("the column is of this type");
                insert.execute((blob(1), blob(2), blob(3))).expect("SQLite takes it");
                moved += 1;
            }
        }
        turn.execute(&format!("delete from queue_{queue} where n <= ?"), [last])
            .expect("SQLite takes it");
        turn.commit().expect("SQLite takes it");
        if moved == before {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// `order: key`, if wished with a key whose first message, the first of all, fails again and again.
pub(crate) fn by_key(name: &'static str, keys: usize, blocked: bool) -> Row {
    let goal = Goal::AtLeast(5000.0);
    let mut row = Row { name, unit: "messages/s", ours: vec![], by_hand: vec![], goal };
    let messages = if blocked { 500_000 } else { keys.max(MESSAGES) };
    for _ in 0..SAMPLES {
        let directory = tempfile::tempdir().expect("a directory can be made");
        fill(directory.path(), messages, keys);
        let handled = Arc::new(AtomicUsize::new(0));
        let registry = by_key_registry(Arc::clone(&handled), blocked);
        let text = "pipeline: bench
queues:
  in: { type: embedded }
stages:
  handle:
    component: handle
    input: in
    order: key
    workers: 4
    retry: { attempts: 1000000, min: 50ms, max: 50ms }
";
        let wanted = if blocked { MESSAGES } else { messages };
        let pipeline = pipeline(text, &registry).state_path(directory.path());
        let Spent { took, .. } = timed(pipeline, async |_| {
            while handled.load(Relaxed) < wanted {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        row.ours.push(wanted as f64 / took.as_secs_f64());
    }
    row
}

fn by_key_registry(handled: Arc<AtomicUsize>, blocked: bool) -> Registry {
    brigade::registry().component("handle", move |raw: Raw| {
        let payload = raw.0.as_deref().unwrap_or_default();
        if blocked && payload.starts_with(b"{\"n\":0,") {
            return Err(Failure::retry("blocked"));
        }
        handled.fetch_add(1, Relaxed);
        Ok(())
    })
}
