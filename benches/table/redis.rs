//! From one Redis stream to another, beside a batched loop on the same client.

use std::sync::Arc;
use std::time::Duration;

use brigade::prelude::*;
use brigade::{Memory, Message, MessageId};
use brigade_testkit::servers::Redis;
use redis::Value;
use serde::{Deserialize, Serialize};

use crate::support::{Row, Spent, Stopwatch, acked, pipeline, timed};

const MESSAGES: usize = 50_000;
const BATCH: usize = 500;

#[derive(Serialize, Deserialize, Output)]
pub(crate) struct Order {
    pub(crate) id: u64,
    pub(crate) text: String,
    pub(crate) total: i64,
}

/// 200 bytes of JSON.
pub(crate) fn payload(id: usize) -> Vec<u8> {
    let order = Order { id: id as u64, text: "x".repeat(160), total: 1 };
    serde_json::to_vec(&order).expect("numbers and texts always encode")
}

pub(crate) fn add(mut order: Order) -> Order {
    order.total += 1;
    order
}

pub(crate) fn streams(name: &'static str) -> Row {
    Row::rates(name, 0.9, MESSAGES, || through("redis_stream"), by_hand)
}

pub(crate) fn streams_processor(name: &'static str) -> Row {
    Row::processor(name, 1.2, MESSAGES, || through("redis_stream"), by_hand)
}

pub(crate) fn rsmq(name: &'static str) -> Row {
    Row::rates(name, 0.8, MESSAGES, || through("rsmq"), rsmq_by_hand)
}

/// A connection to a server.
pub(crate) fn connect(server: &Redis) -> redis::Connection {
    let client = redis::Client::open(server.url()).expect("it is an address");
    client.get_connection().expect("Redis runs")
}

/// Fills a queue of this type, and measures what it takes to pass all of it on to another.
fn through(kind: &str) -> Spent {
    let server = Redis::start();
    let memory = Memory::new();
    let message = |n| Message::new(payload(n)).with_id(MessageId(n as u128 + 1));
    memory.put("bench", "first", (0..MESSAGES).map(message));
    let registry = brigade::registry()
        .connector(Arc::new(memory))
        .component("add", |order: Order| Ok::<_, Failure>(add(order)));
    let text = format!(
        "pipeline: bench
lanes: 1
queues:
  first: {{ type: memory }}
  in: {{ type: {kind}, url: '{0}' }}
  out: {{ type: {kind}, url: '{0}' }}
stages:
  fill: {{ component: pass, input: first, outputs: [in] }}
  add: {{ component: add, input: in, outputs: [out], workers: 1 }}
",
        server.url()
    );
    let only = |stage: &str| {
        let pipeline = pipeline(&text, &registry).state(brigade::MemoryState::new());
        pipeline.stages(&[stage.to_owned()]).expect("the stages are there")
    };
    timed(only("fill"), async |running| acked(running, MESSAGES).await);
    timed(only("add"), async |running| acked(running, MESSAGES).await)
}

/// A stream that is full, and the loop that empties it.
fn by_hand() -> Spent {
    let server = Redis::start();
    let mut client = connect(&server);
    for n in (0..MESSAGES).step_by(BATCH) {
        let mut fill = redis::pipe();
        for n in n..n + BATCH {
            fill.cmd("XADD").arg("in").arg("*").arg("payload").arg(payload(n)).ignore();
        }
        fill.query::<()>(&mut client).expect("Redis answers");
    }
    let mut make = redis::cmd("XGROUP");
    make.arg(&["CREATE", "in", "group", "0"]).query::<()>(&mut client).expect("Redis answers");
    let begun = Stopwatch::start();
    stream_by_hand(&mut client, "group", |done| done >= MESSAGES);
    begun.stop()
}

/// Reads, adds and acks a batch in one pipeline after the other, until so many are enough.
pub(crate) fn stream_by_hand(
    client: &mut redis::Connection,
    group: &str,
    is_enough: impl Fn(usize) -> bool,
) {
    let mut done = 0;
    while !is_enough(done) {
        let mut read = redis::cmd("XREADGROUP");
        read.arg(&["GROUP", group, "one", "COUNT"]).arg(BATCH);
        read.arg(&["BLOCK", "100", "STREAMS", "in", ">"]);
        let Value::Array(mut streams) = read.query(client).expect("Redis answers") else {
            continue;
        };
        let Some(Value::Array(mut stream)) = streams.pop() else { panic!("no stream") };
        let Some(Value::Array(entries)) = stream.pop() else { panic!("no entries") };
        let mut turn = redis::pipe();
        let mut ids: Vec<Vec<u8>> = Vec::new();
        for entry in entries {
            let (id, fields): (Vec<u8>, Vec<Vec<u8>>) =
                redis::from_redis_value(entry).expect("an entry has an id and fields");
            let order: Order = serde_json::from_slice(&fields[1]).expect("it was written so");
            let json = serde_json::to_vec(&add(order)).expect("numbers and texts always encode");
            turn.cmd("XADD").arg("out").arg("*").arg("payload").arg(json).ignore();
            ids.push(id);
        }
        done += ids.len();
        turn.cmd("XACK").arg("in").arg(group).arg(&ids).ignore();
        turn.cmd("XDEL").arg("in").arg(&ids).ignore();
        turn.query::<()>(client).expect("Redis answers");
    }
}

/// Receives so many at once, as the Node and Python clients' script does one.
pub(crate) const RECEIVE: &str = "
  local now = redis.call('TIME')
  now = now[1] * 1000 + math.floor(now[2] / 1000)
  local got = {}
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])) do
    redis.call('ZADD', KEYS[1], now + 30000, id)
    redis.call('HINCRBY', KEYS[1] .. ':Q', 'totalrecv', 1)
    if redis.call('HINCRBY', KEYS[1] .. ':Q', id .. ':rc', 1) == 1 then
      redis.call('HSET', KEYS[1] .. ':Q', id .. ':fr', now)
    end
    got[#got + 1] = id
    got[#got + 1] = redis.call('HGET', KEYS[1] .. ':Q', id)
  end
  return got";

/// Sends a message as the clients do, with an id as long as theirs and in their order.
pub(crate) fn rsmq_send(pipe: &mut redis::Pipeline, queue: &str, n: usize, body: Vec<u8>) {
    let id = format!("{n:032}");
    pipe.cmd("ZADD").arg(queue).arg(n).arg(&id).ignore();
    pipe.cmd("HSET").arg(format!("{queue}:Q")).arg(&id).arg(body).ignore();
    pipe.cmd("HINCRBY").arg(format!("{queue}:Q")).arg("totalsent").arg(1).ignore();
}

/// Deletes messages.
pub(crate) fn rsmq_delete(pipe: &mut redis::Pipeline, queue: &str, ids: &[Vec<u8>]) {
    for id in ids {
        pipe.cmd("ZREM").arg(queue).arg(id).ignore();
        let field = |end: &[u8]| [id, end].concat();
        let fields = [field(b""), field(b":rc"), field(b":fr")];
        pipe.cmd("HDEL").arg(format!("{queue}:Q")).arg(&fields).ignore();
    }
}

/// Receives so many messages at most: their ids and bodies.
pub(crate) fn rsmq_receive(
    client: &mut redis::Connection,
    receive: &redis::Script,
    queue: &str,
) -> Vec<(Vec<u8>, Vec<u8>)> {
    let got: Vec<Vec<u8>> = receive.key(queue).arg(BATCH).invoke(client).expect("Redis answers");
    got.chunks(2).map(|message| (message[0].clone(), message[1].clone())).collect()
}

/// A queue that is full, and the loop that empties it.
fn rsmq_by_hand() -> Spent {
    let server = Redis::start();
    let mut client = connect(&server);
    for n in (0..MESSAGES).step_by(BATCH) {
        let mut fill = redis::pipe();
        (n..n + BATCH).for_each(|n| rsmq_send(&mut fill, "rsmq:in", n, payload(n)));
        fill.query::<()>(&mut client).expect("Redis answers");
    }
    let begun = Stopwatch::start();
    rsmq_copy_by_hand(&mut client, |done| done >= MESSAGES);
    begun.stop()
}

/// Receives a batch with one script, sends and deletes it in one pipeline, until so many are enough. An empty queue is
/// asked again a millisecond later.
pub(crate) fn rsmq_copy_by_hand(client: &mut redis::Connection, is_enough: impl Fn(usize) -> bool) {
    let receive = redis::Script::new(RECEIVE);
    let mut done = 0;
    while !is_enough(done) {
        let got = rsmq_receive(client, &receive, "rsmq:in");
        if got.is_empty() {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        let (mut turn, mut ids) = (redis::pipe(), Vec::new());
        for (id, body) in got {
            let order = serde_json::from_slice(&body).expect("it was written so");
            let json = serde_json::to_vec(&add(order)).expect("numbers and texts always encode");
            rsmq_send(&mut turn, "rsmq:out", done, json);
            ids.push(id);
            done += 1;
        }
        rsmq_delete(&mut turn, "rsmq:in", &ids);
        turn.query::<()>(client).expect("Redis answers");
    }
}
