//! What the conformance suite does not ask of streams: other programs in the group, odd ids, trimming.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

mod common;

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use brigade_core::connector::{
    Connector, ConnectorEnv, Consumer, Failed, FailedReason, Incoming, Order, Outgoing, Producer,
    QueueSpec, Reader, Receipt, Want,
};
use brigade_core::{CauseKind, Message, MessageId};
use brigade_memory::MemoryState;
use brigade_redis::RedisStreams;
use brigade_testkit::servers::{Redis, STREAM_COMMANDS};
use common::{again, ask, calls, connect};
use serde_json::{Value, json};

const WANT: Want = Want { messages: 100, bytes: usize::MAX };

fn env() -> ConnectorEnv {
    ConnectorEnv { state: MemoryState::new() }
}

fn queue(settings: Value) -> QueueSpec {
    QueueSpec::new("shop", "s", settings)
}

async fn consumer(queue: &QueueSpec) -> Arc<dyn Consumer> {
    let reader = Reader { stage: "test".into(), group: "".into(), order: Order::None };
    again(async || RedisStreams.consumer(queue, &reader, &env()).await).await
}

/// As [`consumer`], of one of several stages.
async fn consumer_of(queue: &QueueSpec, group: &str) -> Arc<dyn Consumer> {
    let reader = Reader { stage: group.into(), group: group.into(), order: Order::None };
    again(async || RedisStreams.consumer(queue, &reader, &env()).await).await
}

async fn producer(queue: &QueueSpec) -> Arc<dyn Producer> {
    again(async || RedisStreams.producer(queue, &env()).await).await
}

fn numbered(n: usize) -> Outgoing {
    Message::new(n.to_string()).with_id(MessageId(n as u128 + 1)).into()
}

fn text(incoming: &Incoming) -> &str {
    std::str::from_utf8(incoming.message.payload.as_deref().unwrap()).unwrap()
}

type Pending = Vec<(String, String, u64, u64)>;

#[tokio::test]
async fn what_another_program_works_on_is_its_own_until_it_is_idle_for_too_long() {
    let server = Redis::start();
    let mut other = connect(&server);
    ask::<()>(&mut other, "XGROUP CREATE s shop 0 MKSTREAM");
    let id: String = ask(&mut other, "XADD s * payload held");
    let _: redis::Value = ask(&mut other, "XREADGROUP GROUP shop pyworker COUNT 1 STREAMS s >");
    let settings = json!({ "url": server.url(), "claim_idle": "15s" });
    let consumer = consumer(&queue(settings)).await;
    // It is looked for what others left behind several times; who works on it renews it meanwhile.
    let begun = tokio::time::Instant::now();
    let mut renew = tokio::time::interval(Duration::from_millis(300));
    let mut last = begun;
    let renewed = async {
        while begun.elapsed() < Duration::from_secs(17) {
            renew.tick().await;
            last = tokio::time::Instant::now();
            ask::<redis::Value>(&mut other, &format!("XCLAIM s shop pyworker 0 {id} JUSTID"));
        }
    };
    tokio::select! {
        () = renewed => {}
        taken = consumer.consume(WANT) => panic!("another member works on it: {taken:?}"),
    }
    let taken = again(|| consumer.consume(WANT)).await;
    assert!(last.elapsed() > Duration::from_secs(14), "{:?}", last.elapsed());
    assert_eq!((taken.len(), text(&taken[0]), taken[0].redeliveries), (1, "held", 1));
    let pending: Pending = ask(&mut other, "XPENDING s shop - + 10");
    assert!(pending.len() == 1 && pending[0].1.starts_with("brigade-"), "{pending:?}");
    consumer.ack(vec![taken[0].receipt], Vec::new()).await.unwrap();
    // It holds nothing now, and is still a member.
    let batch = [numbered(0)];
    producer(&queue(json!({ "url": server.url() }))).await.produce(&batch).await.unwrap();
    assert_eq!(consumer.consume(WANT).await.unwrap().len(), 1);
    let members: Vec<Vec<redis::Value>> = ask(&mut other, "XINFO CONSUMERS s shop");
    let name = redis::Value::BulkString(b"pyworker".to_vec());
    assert!(members.iter().any(|member| member[1] == name), "{members:?}");
}

#[test]
fn an_idle_time_of_nothing_is_refused() {
    let problems = RedisStreams.check(&queue(json!({ "claim_idle": "0s" })));
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].path, ["claim_idle"]);
}

#[tokio::test]
async fn entries_with_ids_of_any_size_are_handled_as_others() {
    const IDS: [&str; 5] = [
        "1-1",
        "1-1048576",
        "1763733600000000-0",
        "18446744073709551614-9",
        "18446744073709551615-1",
    ];
    let server = Redis::start();
    let mut other = connect(&server);
    for (n, id) in IDS.iter().enumerate() {
        ask::<()>(&mut other, &format!("XADD s {id} payload {n}"));
    }
    // A second group: what is acked is trimmed, not deleted one by one.
    ask::<()>(&mut other, "XGROUP CREATE s second 0");
    let queue = queue(json!({ "url": server.url() }));
    let admin = again(async || RedisStreams.admin(&queue, &env()).await).await;
    let peeked = admin.peek(0, 10).await.unwrap();
    assert_eq!(peeked.len(), IDS.len());
    for peeked in &peeked {
        let got = admin.get(peeked.position).await.unwrap().unwrap();
        assert_eq!(got.message.payload, peeked.message.payload);
    }
    let first = consumer(&queue).await;
    let taken = first.consume(WANT).await.unwrap();
    let places: Vec<String> = taken.iter().map(|one| first.locate(one.receipt)).collect();
    assert_eq!(places, IDS.map(|id| format!("s#{id}")));
    let ids = |taken: &[Incoming]| taken.iter().map(|one| one.message.id).collect::<HashSet<_>>();
    assert_eq!(ids(&taken).len(), IDS.len());
    // All fail, then the member goes; the next gets all, with the same ids and what is kept of them.
    let reason = FailedReason::Attempt { attempts: 3, error: "no".into() };
    let failed = |one: &Incoming| Failed {
        receipt: one.receipt,
        reason: reason.clone(),
        delay: Duration::ZERO,
    };
    let fenced = first.on_fail(taken.iter().map(failed).collect()).await.unwrap().fenced;
    assert_eq!(fenced, []);
    first.consume(WANT).await.unwrap();
    first.shutdown().await.unwrap();
    let next = consumer(&queue).await;
    let again = next.consume(WANT).await.unwrap();
    assert_eq!(ids(&again), ids(&taken));
    assert!(again.iter().all(|one| one.attempts == 3));
    // An old receipt does not stand, a new one does.
    let old: Vec<Receipt> = taken.iter().map(|one| one.receipt).collect();
    assert_eq!(next.ack(old.clone(), Vec::new()).await.unwrap().fenced.len(), IDS.len());
    let receipts: Vec<Receipt> = again.iter().map(|one| one.receipt).collect();
    let ops = producer(&queue).await.stage(&[numbered(7)]).await.unwrap().ops;
    assert_eq!(next.ack(receipts[..4].to_vec(), ops).await.unwrap().fenced, []);
    let pending: Pending = ask(&mut other, "XPENDING s shop - + 10");
    assert_eq!(pending.len(), 1);
    assert_eq!(pending[0].0, IDS[4]);
    // What the second group has not seen is all there.
    assert_eq!(ask::<usize>(&mut other, "XLEN s"), IDS.len() + 1);
    assert_eq!(next.ack(receipts[4..].to_vec(), Vec::new()).await.unwrap().fenced, []);
    let odd = peeked[2].position;
    assert_eq!(admin.delete(&[odd]).await.unwrap(), 1);
    assert!(admin.get(odd).await.unwrap().is_none());
}

/// The commands of an access list that the documentation tells: no more than are called. That they are
/// enough is shown by the conformance suite, whose user has these rights.
#[tokio::test]
async fn a_user_needs_the_commands_that_the_documentation_tells() {
    let told: BTreeSet<String> =
        STREAM_COMMANDS.split(' ').map(|command| command[1..].to_owned()).collect();
    let page = include_str!("../../../../docs/src/queues/redis_stream.md");
    let shown: Vec<&str> = page.split_whitespace().collect();
    let commands: Vec<&str> = STREAM_COMMANDS.split(' ').collect();
    assert!(shown.windows(commands.len()).any(|words| words == commands), "{STREAM_COMMANDS}");
    let server = Redis::start();
    let mut other = connect(&server);
    let queue = queue(json!({ "url": server.url() }));
    RedisStreams.reach(&queue, &env()).await.unwrap();
    let admin = again(async || RedisStreams.admin(&queue, &env()).await).await;
    let later = |n| Outgoing { delay: Some(Duration::from_millis(1)), ..numbered(n) };
    admin.put(vec![numbered(0), numbered(1), later(2)]).await.unwrap();
    admin.status().await.unwrap();
    admin.purge().await.unwrap();
    admin.put(vec![numbered(0), numbered(1), later(2)]).await.unwrap();
    // A member of its own kind has died, with nothing in its hands.
    ask::<()>(&mut other, "XGROUP CREATECONSUMER s shop brigade-0");
    let consumer = consumer(&queue).await;
    let mut taken = Vec::new();
    while taken.len() < 3 {
        taken.extend(consumer.consume(WANT).await.unwrap());
    }
    assert_eq!(admin.peek(0, 10).await.unwrap().len(), 3);
    let reason = FailedReason::Attempt { attempts: 1, error: "no".into() };
    let failed = Failed { receipt: taken[0].receipt, reason, delay: Duration::ZERO };
    consumer.on_fail(vec![failed]).await.unwrap();
    let again = consumer.consume(WANT).await.unwrap();
    let ops = producer(&queue).await.stage(&[numbered(3)]).await.unwrap().ops;
    consumer.ack(vec![again[0].receipt], ops).await.unwrap();
    // With another group it trims.
    ask::<()>(&mut other, "XGROUP CREATE s second 0");
    consumer.ack(vec![taken[1].receipt], Vec::new()).await.unwrap();
    consumer.shutdown().await.unwrap();
    let stats: String = ask(&mut other, "INFO commandstats");
    let called = stats.lines().filter_map(|line| {
        let (command, _) = line.strip_prefix("cmdstat_")?.split_once(':')?;
        Some(command.to_owned())
    });
    // What everybody may, and what the test itself has called.
    const BESIDE: [&str; 6] =
        ["client|setinfo", "hello", "info", "ping", "xgroup|create", "xgroup|createconsumer"];
    let mut called: BTreeSet<String> =
        called.filter(|command| !BESIDE.contains(&&**command)).collect();
    called.insert("xgroup|create".to_owned());
    assert_eq!(called, told);
}

/// What is due and has no room on the stream waits alone: what is there comes, and makes room.
#[tokio::test]
async fn without_room_for_what_is_due_the_stream_is_read_all_the_same() {
    let server = Redis::start();
    let mut other = connect(&server);
    let queue = queue(json!({ "url": server.url() }));
    let consumer = consumer(&queue).await;
    let later = Outgoing { delay: Some(Duration::from_millis(1)), ..numbered(9) };
    let failed = |one: &Incoming| Failed {
        receipt: one.receipt,
        reason: FailedReason::Released,
        delay: Duration::ZERO,
    };
    producer(&queue).await.produce(&[numbered(0), numbered(1)]).await.unwrap();
    let taken = consumer.consume(Want { messages: 1, ..WANT }).await.unwrap();
    consumer.on_fail(vec![failed(&taken[0])]).await.unwrap();
    producer(&queue).await.produce(&[later]).await.unwrap();
    ask::<()>(&mut other, "CONFIG SET maxmemory 1");
    let mut seen = Vec::new();
    while seen.len() < 2 {
        let taken = consumer.consume(WANT).await.unwrap();
        seen.extend(taken.iter().map(|one| text(one).to_owned()));
        let receipts = taken.iter().map(|one| one.receipt).collect();
        assert_eq!(consumer.ack(receipts, Vec::new()).await.unwrap().fenced, []);
    }
    assert_eq!(seen, ["0", "1"], "what was put back, then what is new");
    // Also somebody who begins now reads.
    let begun = self::consumer(&queue).await;
    assert!(tokio::time::timeout(Duration::from_secs(1), begun.consume(WANT)).await.is_err());
    begun.shutdown().await.unwrap();
    let before = calls(&mut other, "xreadgroup");
    let waited = tokio::time::timeout(Duration::from_secs(2), consumer.consume(WANT)).await;
    assert!(waited.is_err(), "{waited:?}");
    let asked = calls(&mut other, "xreadgroup") - before;
    assert!(asked < 10, "it asked {asked} times in 2 s");
    ask::<()>(&mut other, "CONFIG SET maxmemory 0");
    let taken = consumer.consume(WANT).await.unwrap();
    assert_eq!((taken.len(), text(&taken[0])), (1, "9"));
    assert_eq!(ask::<usize>(&mut other, "ZCARD {s}:brigade:later"), 0);
}

/// Who has no credit left does not read, and so does not find it: what it holds has to be resolved first.
#[tokio::test]
async fn what_is_held_of_a_group_that_is_gone_is_fenced_and_the_group_made_again() {
    let server = Redis::start();
    let mut other = connect(&server);
    let queue = queue(json!({ "url": server.url() }));
    for command in ["DEL s", "XGROUP DESTROY s shop", "FLUSHALL"] {
        for resolve in ["ack", "ack with an output", "ack of nothing", "fail"] {
            let (producer, consumer) = (producer(&queue).await, consumer(&queue).await);
            producer.produce(&[numbered(1)]).await.unwrap();
            let receipt = consumer.consume(WANT).await.unwrap()[0].receipt;
            ask::<()>(&mut other, command);
            let output = producer.stage(&[numbered(7)]).await.unwrap().ops;
            let resolved = match resolve {
                "ack" => consumer.ack(vec![receipt], Vec::new()).await,
                "ack with an output" => consumer.ack(vec![receipt], output).await,
                "ack of nothing" => consumer.ack(Vec::new(), output).await,
                _ => {
                    let (reason, delay) = (FailedReason::Released, Duration::ZERO);
                    consumer.on_fail(vec![Failed { receipt, reason, delay }]).await
                }
            };
            let fenced = resolved.unwrap_or_else(|e| panic!("{command}, {resolve}: {e}")).fenced;
            let is_put = resolve == "ack of nothing";
            assert_eq!(fenced.len(), usize::from(!is_put), "{command}, {resolve}");
            // It goes on, with what is there.
            producer.produce(&[numbered(2)]).await.unwrap();
            let mut seen = Vec::new();
            while !seen.contains(&"2".to_owned()) {
                let taken = match consumer.consume(WANT).await {
                    Ok(taken) => taken,
                    Err(error) if error.is_transient() => continue,
                    Err(error) => panic!("{command}, {resolve}: {error}"),
                };
                seen.extend(taken.iter().map(|one| text(one).to_owned()));
                let receipts = taken.iter().map(|one| one.receipt).collect();
                assert_eq!(consumer.ack(receipts, Vec::new()).await.unwrap().fenced, []);
            }
            assert_eq!(seen.contains(&"7".to_owned()), is_put, "{command}, {resolve}: {seen:?}");
            consumer.shutdown().await.unwrap();
            ask::<()>(&mut other, "FLUSHALL");
        }
    }
}

/// Its output's server may be away, or it has a process of its own: nobody has put anything by Brigade.
#[tokio::test]
async fn a_stage_that_begins_later_gets_what_another_has_acked() {
    let server = Redis::start();
    let groups = vec!["first".into(), "later".into()];
    let queue = QueueSpec { groups, ..queue(json!({ "url": server.url() })) };
    ask::<String>(&mut connect(&server), "XADD s * payload 7");
    for stage in ["first", "later"] {
        let consumer = consumer_of(&queue, stage).await;
        let taken = consumer.consume(WANT).await.unwrap();
        assert_eq!(taken.iter().map(text).collect::<Vec<_>>(), ["7"], "{stage}");
        consumer.ack(vec![taken[0].receipt], Vec::new()).await.unwrap();
        consumer.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn a_field_id_of_another_program_is_no_message_id() {
    let server = Redis::start();
    let own = "000000000000000000000000000000ff";
    for id in ["4711", "4711", own] {
        ask::<String>(&mut connect(&server), &format!("XADD s * id {id} payload x"));
    }
    let consumer = consumer(&queue(json!({ "url": server.url() }))).await;
    let taken = consumer.consume(WANT).await.unwrap();
    let ids: HashSet<MessageId> = taken.iter().map(|incoming| incoming.message.id).collect();
    assert_eq!(ids.len(), 3);
    assert!(ids.contains(&MessageId(0xff)) && !ids.contains(&MessageId(0x4711)));
    consumer.shutdown().await.unwrap();
}

#[tokio::test]
async fn entries_of_streams_of_one_name_in_two_databases_have_other_ids() {
    let server = Redis::start();
    let mut ids = HashSet::new();
    for database in [0, 1] {
        let mut other = connect(&server);
        ask::<()>(&mut other, &format!("SELECT {database}"));
        ask::<String>(&mut other, "XADD s 1-1 payload x");
        let url = format!("{}/{database}", server.url());
        let consumer = consumer(&queue(json!({ "url": url }))).await;
        ids.insert(consumer.consume(WANT).await.unwrap()[0].message.id);
        consumer.shutdown().await.unwrap();
    }
    assert_eq!(ids.len(), 2);
}

/// As most programs write streams: each value in a field of its own.
#[tokio::test]
async fn an_entry_without_a_payload_that_has_other_fields_is_a_defect_with_all_of_them() {
    let server = Redis::start();
    let mut other = connect(&server);
    let mut add = |fields: &[&[u8]]| {
        let mut add = redis::cmd("XADD");
        add.arg("s").arg("*").arg(fields).exec(&mut other).unwrap();
    };
    add(&[b"name", b"Ada", b"amount", b"3"]);
    add(&[b"Payload", b"one", b"Payload", b"two", b"id", b"4711", b"raw", b"\xff\x00"]);
    add(&[b"key", b"k", b"amount", b"3"]);
    add(&[b"key", b"k", b"h:of", b"others"]);
    add(&[b"payload", b"7", b"amount", b"3"]);
    let queue = queue(json!({ "url": server.url() }));
    let taken = consumer(&queue).await.consume(WANT).await.unwrap();
    let is_defect = |incoming: &Incoming| incoming.defect.is_some();
    assert_eq!(taken.iter().map(is_defect).collect::<Vec<_>>(), [true, true, true, false, false]);
    let defect = taken[0].defect.as_ref().unwrap();
    assert_eq!(defect.kind, CauseKind::Decode);
    assert!(defect.message.contains("no field `payload`; it has `name`, `amount`"), "{defect:?}");
    let all: Vec<Value> =
        taken[..3].iter().map(|one| serde_json::from_str(text(one)).unwrap()).collect();
    let wanted = [
        json!({ "name": "Ada", "amount": "3" }),
        json!({ "Payload": ["one", "two"], "id": "4711", "raw": { "base64": "/wA=" } }),
        json!({ "key": "k", "amount": "3" }),
    ];
    assert_eq!(all, wanted);
    assert_eq!((&taken[3].message.payload, text(&taken[4])), (&None, "7"));
}

/// A stream that somebody else keeps short loses what is being worked on, and what was not read.
#[tokio::test]
async fn what_is_trimmed_while_it_is_worked_on_is_not_taken_for_read() {
    let server = Redis::start();
    let mut other = connect(&server);
    ask::<()>(&mut other, "XGROUP CREATE s shop 0 MKSTREAM");
    for n in 1..=10 {
        ask::<String>(&mut other, &format!("XADD s {n}-0 payload {n}"));
    }
    let admin =
        again(async || RedisStreams.admin(&queue(json!({ "url": server.url() })), &env()).await)
            .await;
    let ready = async || admin.status().await.unwrap()[0].lag.ready;
    assert_eq!(ready().await, Some(10));
    let read = "XREADGROUP GROUP shop m COUNT 6 STREAMS s >";
    ask::<redis::Value>(&mut other, read);
    assert_eq!(ready().await, Some(4));
    // What stays of what is worked on, and of what is not read: 2 and 4, 0 and 3.
    ask::<u64>(&mut other, "XTRIM s MAXLEN 6");
    assert_eq!(ready().await, Some(4));
    ask::<u64>(&mut other, "XTRIM s MAXLEN 3");
    assert_eq!(ready().await, Some(3));
    // One that is deleted in the midst of what is worked on counts as one less that waits, but for the last.
    ask::<redis::Value>(&mut other, "XREADGROUP GROUP shop m COUNT 2 STREAMS s >");
    assert_eq!(ready().await, Some(1));
    ask::<u64>(&mut other, "XDEL s 9-0");
    assert_eq!(ready().await, Some(1));
}

/// What is put together with an ack names its stream in a line.
#[test]
fn a_stream_with_a_line_break_in_its_name_is_refused() {
    let problems = RedisStreams.check(&queue(json!({ "stream": "two\nlines" })));
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].message.contains("line break"), "{problems:?}");
}
