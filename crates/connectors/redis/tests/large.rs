//! Messages so long that a thousand of them are too many, or one for a link.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

mod common;

use brigade_core::connector::{Connector, Outgoing, Produced, Receipt, Want};
use brigade_core::{Message, MessageId};
use brigade_redis::{RedisStreams, Rsmq};
use brigade_testkit::servers::Redis;
use common::{again, ask, connect, env, numbered, open, put, queue};
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

const MESSAGES: usize = 60;
/// What is asked for before it is known how long they are.
const FIRST: u64 = 8;

#[tokio::test]
async fn no_more_is_read_than_there_is_room_for() {
    let want = Want { messages: 1000, bytes: 4 << 20 };
    let streams = (&RedisStreams as &dyn Connector, json!({}));
    for (connector, mut settings) in [streams, (&Rsmq, json!({ "maxsize": -1 }))] {
        let (server, name) = (Redis::start(), connector.type_name());
        settings["url"] = json!(server.url());
        let (producer, consumer) = open(connector, &queue("s", settings)).await;
        let long = |n: usize| -> Outgoing {
            Message::new(vec![b'x'; 1 << 20]).with_id(MessageId(n as u128)).into()
        };
        for n in 1..=MESSAGES {
            producer.produce(&[long(n)]).await.unwrap();
        }
        let mut receipts: Vec<Receipt> = Vec::new();
        while receipts.len() < MESSAGES {
            let taken = consumer.consume(want).await.unwrap();
            receipts.extend(taken.iter().map(|incoming| incoming.receipt));
            let read = consumer.lag().await.unwrap().in_flight.unwrap();
            let ahead = read - receipts.len() as u64;
            assert!(ahead <= FIRST, "{name}: {ahead} are read that nobody has room for");
        }
        assert!(consumer.ack(receipts, Vec::new()).await.unwrap().fenced.is_empty(), "{name}");
        consumer.shutdown().await.unwrap();
    }
}

/// The way to a server, which breaks whenever so much has been sent over a connection.
async fn breaking(server: u16, after: u64) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let server = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
            tokio::spawn(async move {
                let ((from, mut back), (mut answers, mut to)) =
                    (client.into_split(), server.into_split());
                let mut from = from.take(after);
                tokio::select! {
                    _ = tokio::io::copy(&mut from, &mut to) => {}
                    _ = tokio::io::copy(&mut answers, &mut back) => {}
                }
            });
        }
    });
    port
}

/// The server may not be asked how long a value may be: it is tried out.
#[tokio::test]
async fn a_link_that_breaks_makes_no_message_too_long() {
    let server = Redis::start();
    ask::<()>(&mut connect(&server), "ACL SETUSER bob on >secret ~* &* +@all -config");
    let port = breaking(server.port(), 1 << 19).await;
    let queue = queue("s", json!({ "url": format!("redis://bob:secret@127.0.0.1:{port}") }));
    let producer = again(async || RedisStreams.producer(&queue, &env()).await).await;
    let long: Outgoing = Message::new(vec![b'x'; 2 << 20]).with_id(MessageId(1)).into();
    let error = match producer.produce(&[long]).await {
        Err(error) => error,
        Ok(outcomes) => match outcomes.into_iter().next() {
            Some(Produced::Failed(error)) => error,
            outcome => panic!("it may go through later: {outcome:?}"),
        },
    };
    assert!(error.is_transient(), "{error}");
    put(&*producer, &[numbered(2)]).await.unwrap();
}
