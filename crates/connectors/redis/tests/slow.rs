//! Links that are slow, and such over which nothing comes any more though nobody has closed them.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use brigade_core::connector::{Connector, Consumer, Outgoing, QueueSpec, Want};
use brigade_core::{Message, MessageId};
use brigade_redis::{RedisStreams, Rsmq};
use brigade_testkit::servers::Redis;
use common::{WANT, ask, connect, env, open, put, queue, reader};
use redis::Connection;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

/// What a link passes on, both ways: some 3 MiB in a second.
const EACH: Duration = Duration::from_millis(20);
const BYTES: usize = 64 << 10;
/// So much takes longer than an answer may take by itself.
const MUCH: usize = 36 << 20;
/// How long something may take before the test gives it up.
const PATIENCE: Duration = Duration::from_secs(300);

/// The way to a server.
struct Link {
    port: u16,
    /// How often it was frozen.
    frozen: Arc<watch::Sender<u32>>,
}

impl Link {
    async fn to(server: &Redis, bytes: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (port, to) = (listener.local_addr().unwrap().port(), server.port());
        let frozen = Arc::new(watch::Sender::new(0));
        let freezes = Arc::clone(&frozen);
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let server = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
                let ((from, back), (answers, ask)) = (client.into_split(), server.into_split());
                tokio::spawn(pass(from, ask, bytes, freezes.subscribe()));
                tokio::spawn(pass(answers, back, bytes, freezes.subscribe()));
            }
        });
        Self { port, frozen }
    }

    /// Nothing comes any more over the connections that there are, and nobody is told.
    fn freeze(&self) {
        self.frozen.send_modify(|times| *times += 1);
    }

    /// A queue that is reached this way.
    fn queue(&self, mut settings: Value) -> QueueSpec {
        settings["url"] = json!(format!("redis://127.0.0.1:{}", self.port));
        queue("shop", settings)
    }
}

async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    bytes: usize,
    mut frozen: watch::Receiver<u32>,
) {
    let mut tick = tokio::time::interval(EACH);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut buffer = vec![0; bytes];
    loop {
        tick.tick().await;
        tokio::select! {
            read = from.read(&mut buffer) => match read {
                Ok(0) | Err(_) => return,
                Ok(read) => {
                    if to.write_all(&buffer[..read]).await.is_err() {
                        return;
                    }
                }
            },
            _ = frozen.changed() => std::future::pending().await,
        }
    }
}

fn long(n: usize, bytes: usize) -> Outgoing {
    Message::new(vec![b'x'; bytes]).with_id(MessageId(n as u128 + 1)).into()
}

/// Else what had come by then were put again and again.
async fn a_batch_goes_through(connector: &dyn Connector, settings: Value, length: &str) {
    const MESSAGES: usize = 200;
    let server = Redis::start();
    let link = Link::to(&server, BYTES).await;
    let producer = connector.producer(&link.queue(settings), &env()).await.unwrap();
    let batch: Vec<Outgoing> = (0..MESSAGES).map(|n| long(n, MUCH / MESSAGES)).collect();
    put(&*producer, &batch).await.unwrap();
    assert_eq!(ask::<usize>(&mut connect(&server), length), MESSAGES);
}

#[tokio::test]
async fn a_batch_goes_through_a_slow_link_once_to_a_stream() {
    a_batch_goes_through(&RedisStreams, json!({}), "XLEN shop").await;
}

#[tokio::test]
async fn a_batch_goes_through_a_slow_link_once_to_rsmq() {
    a_batch_goes_through(&Rsmq, json!({ "maxsize": -1 }), "ZCARD rsmq:shop").await;
}

/// There and back.
async fn a_long_message_goes_through(connector: &dyn Connector, settings: Value) {
    let server = Redis::start();
    let link = Link::to(&server, BYTES).await;
    let (producer, consumer) = open(connector, &link.queue(settings)).await;
    put(&*producer, &[long(1, MUCH)]).await.unwrap();
    let want = Want { messages: 1, ..WANT };
    let came = async {
        loop {
            match consumer.consume(want).await {
                Ok(taken) if taken.is_empty() => {}
                Ok(taken) => break taken,
                Err(error) => assert!(error.is_transient(), "{error}"),
            }
        }
    };
    let came = tokio::time::timeout(PATIENCE, came).await.expect("it comes in the end");
    assert_eq!(came[0].message.payload.as_ref().unwrap().len(), MUCH);
    assert_eq!(consumer.ack(vec![came[0].receipt], Vec::new()).await.unwrap().fenced, []);
}

#[tokio::test]
async fn a_message_that_takes_long_to_come_comes_from_a_stream() {
    a_long_message_goes_through(&RedisStreams, json!({})).await;
}

#[tokio::test]
async fn a_message_that_takes_long_to_come_comes_from_rsmq() {
    a_long_message_goes_through(&Rsmq, json!({ "maxsize": -1, "vt": "2s" })).await;
}

/// As when the machine of a server dies, or a router forgets a connection on which nothing is said.
#[tokio::test]
async fn who_hears_of_sendings_finds_that_nothing_comes_any_more() {
    let server = Redis::start();
    let link = Link::to(&server, 1 << 16).await;
    let queue = link.queue(json!({ "realtime": true }));
    let _consumer = Rsmq.consumer(&queue, &reader(), &env()).await.unwrap();
    let mut beside = connect(&server);
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    let mut hears = async |many: u64| {
        // Of the one that is frozen the server knows nothing.
        while ask::<(String, u64)>(&mut beside, "PUBSUB NUMSUB rsmq:rt:shop").1 < many {
            tick.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE, hears(1)).await.expect("it listens");
    link.freeze();
    tokio::time::timeout(PATIENCE, hears(2)).await.expect("it listens on another connection");
}

/// How many connections a server has had.
fn connections(beside: &mut Connection) -> u64 {
    let stats: String = ask(beside, "INFO stats");
    let line = stats.lines().find_map(|line| line.strip_prefix("total_connections_received:"));
    line.unwrap().parse().unwrap()
}

/// What comes of a queue from which one message at a time is taken, while its server may not be heard.
async fn one(consumer: &dyn Consumer) {
    let want = Want { messages: 1, ..WANT };
    let taken = async {
        loop {
            match consumer.consume(want).await {
                Ok(taken) if taken.is_empty() => {}
                Ok(taken) => break taken,
                Err(error) => assert!(error.is_transient(), "{error}"),
            }
        }
    };
    let taken = tokio::time::timeout(PATIENCE, taken).await.expect("it comes");
    assert_eq!(consumer.ack(vec![taken[0].receipt], Vec::new()).await.unwrap().fenced, []);
}

/// Answers may take longer from then on, which is no reason to connect each time.
async fn after_a_stall_reads_share_a_connection(connector: &dyn Connector) {
    const MESSAGES: usize = 60;
    let server = Redis::start();
    let (link, mut beside) = (Link::to(&server, BYTES).await, connect(&server));
    let beside_link = queue("shop", json!({ "url": server.url() }));
    let producer = connector.producer(&beside_link, &env()).await.unwrap();
    let consumer = connector.consumer(&link.queue(json!({})), &reader(), &env()).await.unwrap();
    put(&*producer, &[long(0, 1)]).await.unwrap();
    one(&*consumer).await;
    link.freeze();
    put(&*producer, &[long(1, 1), long(2, 1)]).await.unwrap();
    for _ in 0..2 {
        one(&*consumer).await;
    }
    let before = connections(&mut beside);
    put(&*producer, &(3..3 + MESSAGES).map(|n| long(n, 1)).collect::<Vec<_>>()).await.unwrap();
    for _ in 0..MESSAGES {
        one(&*consumer).await;
    }
    let made = connections(&mut beside) - before;
    assert!(made < 10, "{made} connections for {MESSAGES} messages");
}

#[tokio::test]
async fn after_a_stall_reads_of_a_stream_share_a_connection() {
    after_a_stall_reads_share_a_connection(&RedisStreams).await;
}

#[tokio::test]
async fn after_a_stall_reads_of_rsmq_share_a_connection() {
    after_a_stall_reads_share_a_connection(&Rsmq).await;
}
