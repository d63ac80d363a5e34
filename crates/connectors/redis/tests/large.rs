//! Messages so long that a thousand of them are too many.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

mod common;

use brigade_core::connector::{Connector, Outgoing, Receipt, Want};
use brigade_core::{Message, MessageId};
use brigade_redis::{RedisStreams, Rsmq};
use brigade_testkit::servers::Redis;
use common::{open, queue};
use serde_json::json;

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
