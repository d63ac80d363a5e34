//! What a stage adds to a message's way from queue to queue at 1,000 messages a second, beside the loop
//! by hand: both are fed and read by the same threads, from outside.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use brigade::Failure;
use brigade_testkit::servers::Redis;

use crate::redis::{
    Order, RECEIVE, add, connect, rsmq_copy_by_hand, rsmq_delete, rsmq_receive, rsmq_send,
    stream_by_hand,
};
use crate::support::{Goal, Row, pipeline, timed};

/// How many messages are put; the first ones, while things warm up, do not count.
pub(crate) const MESSAGES: usize = 12_000;
const WARM_UP: usize = 2000;
const PERIOD: Duration = Duration::from_millis(1);

fn now() -> u64 {
    u64::try_from(
        SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later than 1970").as_nanos(),
    )
    .expect("it is earlier than 2554")
}

/// A message that says when it was put.
fn stamped() -> Vec<u8> {
    let order = Order { id: now(), text: "x".repeat(160), total: 1 };
    serde_json::to_vec(&order).expect("numbers and texts always encode")
}

/// How old a message is, in milliseconds.
pub(crate) fn age(payload: &[u8]) -> f64 {
    let order: Order = serde_json::from_slice(payload).expect("it was written so");
    now().saturating_sub(order.id) as f64 / 1e6
}

/// Puts messages at an even pace.
pub(crate) fn feed(mut put: impl FnMut(Vec<u8>)) {
    let begun = Instant::now();
    for n in 0..MESSAGES as u32 {
        std::thread::sleep((PERIOD * n).saturating_sub(begun.elapsed()));
        put(stamped());
    }
}

/// Feeds and reads while something passes the messages on; `pass_on` returns when it is told that all
/// have come.
pub(crate) fn ages(
    put: impl FnMut(Vec<u8>) + Send,
    read: impl FnOnce() -> Vec<f64> + Send,
    pass_on: impl FnOnce(&AtomicBool),
) -> Vec<f64> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let ages = read();
            done.store(true, Relaxed);
            ages
        });
        scope.spawn(|| feed(put));
        pass_on(&done);
        reading.join().expect("it does not panic").split_off(WARM_UP)
    })
}

pub(crate) fn row(name: &'static str, ours: Vec<f64>, by_hand: Vec<f64>) -> Row {
    Row { name, unit: "ms", ours, by_hand, goal: Goal::AtMostAdded(10.0) }
}

/// Runs a pipeline until it is told that all messages have come.
pub(crate) fn brigade(text: &str, done: &AtomicBool) {
    let registry =
        brigade::registry().component("add", |order: Order| Ok::<_, Failure>(add(order)));
    let pipeline = pipeline(text, &registry).state(brigade::MemoryState::new());
    timed(pipeline, async |_| {
        while !done.load(Relaxed) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
}

/// From one Redis stream to another.
pub(crate) fn streams(name: &'static str) -> Row {
    let through = |by_hand: bool| {
        let server = Redis::start();
        let connect = || connect(&server);
        let (mut putting, mut reading) = (connect(), connect());
        let mut make = redis::cmd("XGROUP");
        make.arg(&["CREATE", "in", "bench", "0", "MKSTREAM"])
            .query::<()>(&mut connect())
            .expect("Redis answers");
        let put = move |payload: Vec<u8>| {
            let mut put = redis::cmd("XADD");
            put.arg("in")
                .arg("*")
                .arg("payload")
                .arg(payload)
                .query::<()>(&mut putting)
                .expect("Redis answers");
        };
        let text = format!(
            "pipeline: bench
lanes: 1
queues:
  in: {{ type: redis_stream, url: '{0}' }}
  out: {{ type: redis_stream, url: '{0}' }}
stages:
  add: {{ component: add, input: in, outputs: [out], workers: 1 }}
",
            server.url()
        );
        ages(
            put,
            move || read_stream(&mut reading),
            |done| match by_hand {
                true => stream_by_hand(&mut connect(), "bench", |_| done.load(Relaxed)),
                false => brigade(&text, done),
            },
        )
    };
    row(name, through(false), through(true))
}

/// The ages of all messages when they come out.
fn read_stream(client: &mut redis::Connection) -> Vec<f64> {
    type Entries = Vec<(String, Vec<(String, Vec<(Vec<u8>, Vec<u8>)>)>)>;
    let (mut ages, mut last) = (Vec::new(), "0".to_owned());
    while ages.len() < MESSAGES {
        let mut read = redis::cmd("XREAD");
        read.arg(&["COUNT", "100", "BLOCK", "1000", "STREAMS", "out", &last]);
        let found: Option<Entries> = read.query(client).expect("Redis answers");
        for (id, fields) in found.into_iter().flatten().flat_map(|(_, entries)| entries) {
            let payload =
                fields.iter().find(|(name, _)| name == b"payload").expect("each entry has it");
            ages.push(age(&payload.1));
            last = id;
        }
    }
    ages
}

/// From one RSMQ queue to another. Who puts announces it, as the Node client does where it is told to (`realtime`);
/// otherwise an empty queue is looked into twenty times a second.
pub(crate) fn rsmq(name: &'static str) -> Row {
    let through = |by_hand: bool| {
        let server = Redis::start();
        let connect = || connect(&server);
        let (mut putting, mut reading) = (connect(), connect());
        let mut made = redis::cmd("HSET");
        made.arg(&["rsmq:in:Q", "vt", "30", "delay", "0", "maxsize", "65536"]);
        made.exec(&mut connect()).expect("Redis answers");
        let mut n = 0;
        let put = move |payload: Vec<u8>| {
            let mut put = redis::pipe();
            rsmq_send(&mut put, "rsmq:in", n, payload);
            put.cmd("PUBLISH").arg("rsmq:rt:in").arg(1).ignore();
            put.query::<()>(&mut putting).expect("Redis answers");
            n += 1;
        };
        let text = format!(
            "pipeline: bench
lanes: 1
queues:
  in: {{ type: rsmq, url: '{0}', realtime: true }}
  out: {{ type: rsmq, url: '{0}' }}
stages:
  add: {{ component: add, input: in, outputs: [out], workers: 1 }}
",
            server.url()
        );
        ages(
            put,
            move || read_rsmq(&mut reading),
            |done| match by_hand {
                true => rsmq_copy_by_hand(&mut connect(), |_| done.load(Relaxed)),
                false => brigade(&text, done),
            },
        )
    };
    row(name, through(false), through(true))
}

/// The ages of all messages when they come out.
fn read_rsmq(client: &mut redis::Connection) -> Vec<f64> {
    let (receive, mut ages) = (redis::Script::new(RECEIVE), Vec::new());
    while ages.len() < MESSAGES {
        let got = rsmq_receive(client, &receive, "rsmq:out");
        if got.is_empty() {
            std::thread::sleep(Duration::from_micros(500));
            continue;
        }
        ages.extend(got.iter().map(|(_, body)| age(body)));
        let ids: Vec<Vec<u8>> = got.into_iter().map(|(id, _)| id).collect();
        let mut turn = redis::pipe();
        rsmq_delete(&mut turn, "rsmq:out", &ids);
        turn.query::<()>(client).expect("Redis answers");
    }
    ages
}
