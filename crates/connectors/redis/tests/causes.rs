//! What is told when a server cannot be used: the cause, and what to change. All of it is waited for.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

mod common;

use std::time::Duration;

use brigade_core::CauseKind;
use brigade_core::connector::{
    Connector, ConnectorError, Failed, FailedReason, Outgoing, Produced, Rejected,
};
use brigade_redis::{RedisStreams, Rsmq};
use brigade_testkit::servers::{Redis, RedisCluster, RedisSentinel};
use common::{WANT, again, env, nobody_is_blocked, numbered, open, put, queue, reader};
use redis::{Cmd, Connection, FromRedisValue};
use serde_json::{Value, json};

/// A connection beside those of the queues.
struct Beside(Connection);

impl Beside {
    fn new(url: &str) -> Self {
        Self(redis::Client::open(url).unwrap().get_connection().unwrap())
    }

    /// Runs a command, written as one would type it.
    fn run<T: FromRedisValue>(&mut self, command: &str) -> T {
        let mut words = command.split(' ');
        let mut cmd = Cmd::new();
        words.by_ref().for_each(|word| {
            cmd.arg(word);
        });
        cmd.query(&mut self.0).unwrap()
    }
}

/// What is told of a server with these settings, without any connection to it before.
async fn told(settings: Value, part: &str) -> ConnectorError {
    let queue = queue("shop", settings);
    common::told(part, async || RedisStreams.reach(&queue, &env()).await).await
}

fn assert_told(error: &ConnectorError, parts: &[&str]) {
    let text = error.to_string();
    assert!(error.is_transient(), "it is waited for: {text}");
    assert!(text.contains("queue `shop`"), "{text}");
    for part in parts {
        assert!(text.contains(part), "`{part}` is missing: {text}");
    }
}

#[tokio::test]
async fn what_is_wrong_with_an_address_names_the_key_to_change() {
    let server = Redis::start();
    let url = server.url();
    let secured = Redis::start_secured();
    let plain_at_tls = secured.url().replace("rediss:", "redis:");
    let cases = [
        // No name, so that no other machine is asked for it.
        (json!({ "url": "redis://no..where" }), "check the host in `url`"),
        (json!({ "url": "redis://127.0.0.1:1" }), "is the server up, and `url` right?"),
        (json!({ "url": format!("{url}/99") }), "change the database, the number at the end"),
        (json!({ "url": url.replace("redis:", "rediss:") }), "begin it with `redis:`"),
        (json!({ "url": plain_at_tls }), "begin it with `rediss:`"),
        (json!({ "url": secured.url() }), "check `tls`: `ca` is who signed"),
        (json!({ "url": url, "cluster": true }), "remove `cluster`, or change `url`"),
        (json!({ "url": url, "sentinel": { "master": "m" } }), "remove `sentinel`"),
        (
            json!({ "url": url.replace("//", "//alice:secret@") }),
            "check user and password in `url`",
        ),
    ];
    for (settings, help) in cases {
        let error = told(settings, help).await;
        println!("{error}");
        assert_told(&error, &[help]);
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}

#[tokio::test]
async fn a_password_that_is_asked_for_is_told() {
    let server = Redis::start_with(&["--requirepass", "opens"]);
    let error = told(json!({ "url": server.url() }), "asks for a password").await;
    assert_told(&error, &["asks for a password", "`url`"]);
}

#[tokio::test]
async fn sentinels_and_clusters_are_told_from_servers_alone() {
    let group = RedisSentinel::start();
    let other = json!({ "url": group.url(), "sentinel": { "master": "other" } });
    let alone = json!({ "url": group.url() });
    for (settings, help) in [(other, "change `master` in `sentinel`"), (alone, "set `sentinel`")] {
        assert_told(&told(settings, help).await, &[help]);
    }
    let cluster = RedisCluster::start();
    let mut moved = 0;
    // A key in three is on the server that is asked.
    for stream in ["a", "b", "c"] {
        let settings = json!({ "url": cluster.url(), "stream": stream });
        let reached = RedisStreams.reach(&queue("shop", settings), &env()).await;
        if let Err(error) = reached {
            assert_told(&error, &["set `cluster: true`"]);
            moved += 1;
        }
    }
    assert!(moved > 0);
}

#[tokio::test]
async fn a_right_that_is_missing_is_named_and_waited_for() {
    let server = Redis::start();
    let mut beside = Beside::new(&server.url());
    let url = server.url().replace("//", "//bob:secret@");
    for (connector, commands) in
        [(&RedisStreams as &dyn Connector, ["xadd", "xack"]), (&Rsmq, ["hset", "hmget"])]
    {
        let name = connector.type_name();
        beside.run::<()>("ACL SETUSER bob reset on >secret ~* &* +@all");
        let queue = queue("shop", json!({ "url": url }));
        let (producer, consumer) = open(connector, &queue).await;
        put(&*producer, &[numbered(1)]).await.unwrap();
        let receipt = consumer.consume(WANT).await.unwrap()[0].receipt;
        let acked = async || consumer.ack(vec![receipt], Vec::new()).await;
        let [add, ack] = commands;
        beside.run::<()>(&format!("ACL SETUSER bob -{add}"));
        let error = put(&*producer, &[numbered(2)]).await.unwrap_err();
        println!("{name}: {error}");
        assert_told(&error, &["access list of user `bob`", &format!("`ACL SETUSER bob +{add}")]);
        beside.run::<()>(&format!("ACL SETUSER bob +{add} -{ack}"));
        // Within a script, where the server does not name it.
        let error = acked().await.unwrap_err();
        println!("{name}: {error}");
        assert_told(&error, &["access list of user `bob`", &format!("`ACL SETUSER bob +{ack}")]);
        beside.run::<()>(&format!("ACL SETUSER bob +{ack}"));
        assert_eq!(acked().await.unwrap().fenced, [], "{name}");
        beside.run::<()>("ACL SETUSER bob resetkeys ~elsewhere");
        let error = put(&*producer, &[numbered(2)]).await.unwrap_err();
        println!("{name}: {error}");
        assert_told(&error, &["lacks a key of the queue: `ACL SETUSER bob ~KEY`"]);
        beside.run::<()>("ACL SETUSER bob allkeys");
        put(&*producer, &[numbered(2)]).await.unwrap();
        consumer.shutdown().await.unwrap();
        beside.run::<()>("FLUSHALL");
    }
}

#[tokio::test]
async fn a_password_that_changes_while_connected_is_told_and_waited_for() {
    let server = Redis::start();
    let mut beside = Beside::new(&server.url());
    beside.run::<()>("ACL SETUSER bob on >secret allkeys allchannels +@all");
    let url = server.url().replace("//", "//bob:secret@");
    for connector in [&RedisStreams as &dyn Connector, &Rsmq] {
        let (producer, _) = open(connector, &queue("shop", json!({ "url": url }))).await;
        beside.run::<()>("ACL SETUSER bob resetpass >other");
        beside.run::<()>("CLIENT KILL USER bob");
        // The connection that was is noticed to be gone first.
        let error = loop {
            let error = put(&*producer, &[numbered(1)]).await.unwrap_err();
            assert!(error.is_transient(), "{error}");
            if !error.to_string().contains("made again") {
                break error;
            }
        };
        assert_told(&error, &["check user and password in `url`"]);
        let opened = connector.producer(&queue("shop", json!({ "url": url })), &env()).await;
        assert_told(&opened.err().unwrap(), &["check user and password in `url`"]);
        beside.run::<()>("ACL SETUSER bob resetpass >secret");
        put(&*producer, &[numbered(1)]).await.unwrap();
    }
}

#[tokio::test]
async fn a_value_of_another_type_is_told_and_waited_for() {
    let server = Redis::start();
    let mut beside = Beside::new(&server.url());
    for (connector, key) in [(&RedisStreams as &dyn Connector, "shop"), (&Rsmq, "rsmq:shop")] {
        let queue = queue("shop", json!({ "url": server.url() }));
        let (producer, consumer) = open(connector, &queue).await;
        beside.run::<()>(&format!("DEL {key}"));
        beside.run::<()>(&format!("SET {key} text"));
        let wanted = ["change `stream` or `queue`, or remove that key"];
        assert_told(&put(&*producer, &[numbered(1)]).await.unwrap_err(), &wanted);
        assert_told(&consumer.consume(WANT).await.unwrap_err(), &wanted);
        if key == "shop" {
            let opened = connector.consumer(&queue, &reader(), &env()).await;
            assert_told(&opened.err().unwrap(), &wanted);
        }
        beside.run::<()>(&format!("DEL {key}"));
        put(&*producer, &[numbered(1)]).await.unwrap();
        let taken = loop {
            match consumer.consume(WANT).await {
                Ok(taken) => break taken,
                // The group went with the key; it is made again.
                Err(error) => assert!(error.is_transient(), "{error}"),
            }
        };
        assert_eq!(taken.len(), 1);
    }
}

#[tokio::test]
async fn an_output_that_cannot_be_put_is_told_by_its_own_name() {
    let server = Redis::start();
    let mut beside = Beside::new(&server.url());
    for (input, output, key) in [
        (&RedisStreams as &dyn Connector, &RedisStreams as &dyn Connector, "out"),
        (&RedisStreams, &Rsmq, "rsmq:out"),
        (&Rsmq, &Rsmq, "rsmq:out:Q"),
    ] {
        let (producer, consumer) = open(input, &queue("in", json!({ "url": server.url() }))).await;
        let settings = match output.type_name() {
            "rsmq" => json!({ "url": server.url(), "queue": "out" }),
            _ => json!({ "url": server.url(), "stream": "out" }),
        };
        let to = queue("shop", settings);
        let outputs = again(async || output.producer(&to, &env()).await).await;
        put(&*producer, &[numbered(7)]).await.unwrap();
        let receipt = consumer.consume(WANT).await.unwrap()[0].receipt;
        beside.run::<()>(&format!("DEL {key}"));
        beside.run::<()>(&format!("RPUSH {key} one"));
        let ack = async || {
            let ops = outputs.stage(&[numbered(1)]).await.unwrap().ops;
            consumer.ack(vec![receipt], ops).await
        };
        let error = ack().await.unwrap_err();
        assert_told(&error, &[&format!("a list is at the key `{key}`"), "remove that key"]);
        assert!(!error.to_string().contains("`in`"), "{error}");
        beside.run::<()>(&format!("DEL {key}"));
        assert_eq!(ack().await.unwrap().fenced, []);
        consumer.shutdown().await.unwrap();
        beside.run::<()>("FLUSHALL");
    }
}

/// What cannot be done to the end is not begun: an ack that is tried again would put its outputs again.
#[tokio::test]
async fn an_ack_that_lacks_a_right_puts_no_outputs() {
    let server = Redis::start();
    let mut beside = Beside::new(&server.url());
    let url = server.url().replace("//", "//bob:secret@");
    let cases: [(&dyn Connector, &str, &[&str]); 2] = [
        (&RedisStreams, "XLEN out", &["xack", "hdel", "xdel"]),
        (&Rsmq, "ZCARD rsmq:out", &["zrem", "hdel", "hset", "hincrby"]),
    ];
    for (connector, count, commands) in cases {
        for command in commands {
            beside.run::<()>("ACL SETUSER bob reset on >secret ~* &* +@all");
            let at = |name: &str| queue(name, json!({ "url": url }));
            let (producer, consumer) = open(connector, &at("in")).await;
            let outputs = again(async || connector.producer(&at("out"), &env()).await).await;
            put(&*producer, &[numbered(7)]).await.unwrap();
            let receipt = consumer.consume(WANT).await.unwrap()[0].receipt;
            let ack = async || {
                let ops = outputs.stage(&[numbered(1)]).await.unwrap().ops;
                consumer.ack(vec![receipt], ops).await
            };
            beside.run::<()>(&format!("ACL SETUSER bob -{command}"));
            for _ in 0..2 {
                let error = ack().await.unwrap_err();
                let wanted = format!("+{command}");
                assert!(error.is_transient() && error.to_string().contains(&wanted), "{error}");
            }
            assert_eq!(beside.run::<usize>(count), 0, "{command}");
            beside.run::<()>("ACL SETUSER bob +@all");
            assert_eq!(ack().await.unwrap().fenced, [], "{command}");
            assert_eq!(beside.run::<usize>(count), 1, "{command}");
            consumer.shutdown().await.unwrap();
            beside.run::<()>("FLUSHALL");
        }
    }
}

/// A message with a payload of this many bytes.
fn long(bytes: usize) -> Outgoing {
    let Outgoing { mut message, delay } = numbered(bytes);
    message.payload = Some(vec![b'x'; bytes].into());
    Outgoing { message, delay }
}

fn assert_too_large(rejected: &Rejected) {
    assert_eq!(rejected.kind, CauseKind::TooLarge);
    assert!(rejected.message.contains("proto-max-bulk-len"), "{}", rejected.message);
}

const MIB: usize = 1 << 20;

/// Servers whose limit can be asked for, and such that let nobody: each time both kinds of queue.
#[tokio::test]
async fn what_is_longer_than_the_server_takes_is_refused_and_nothing_else() {
    let server = Redis::start();
    let mut beside = Beside::new(&server.url());
    beside.run::<()>("ACL SETUSER bob on >secret ~* &* +@all -config");
    let bob = server.url().replace("//", "//bob:secret@");
    for (connector, url) in [
        (&RedisStreams as &dyn Connector, server.url()),
        (&RedisStreams, bob.clone()),
        (&Rsmq, server.url()),
        (&Rsmq, bob),
    ] {
        let mut settings = json!({ "url": url });
        if connector.type_name() == "rsmq" {
            settings["maxsize"] = (-1).into();
        }
        let (producer, consumer) = open(connector, &queue("shop", settings)).await;
        // While the connection stands the limit is changed: more, less, more.
        beside.run::<()>("CONFIG SET proto-max-bulk-len 4mb");
        let batch = [long(2 * MIB), long(5 * MIB), numbered(1), long(3 * MIB)];
        let is_failed = |one: &Produced| matches!(one, Produced::Failed(_));
        let refused = async || {
            let outcomes = loop {
                match producer.produce(&batch).await {
                    Ok(outcomes) if !outcomes.iter().any(is_failed) => break outcomes,
                    Ok(_) => {}
                    Err(error) => assert!(error.is_transient(), "{error}"),
                }
            };
            let refused = outcomes.iter().enumerate().filter_map(|(at, outcome)| match outcome {
                Produced::Rejected(why) => Some((at, why)),
                _ => None,
            });
            refused.inspect(|(_, why)| assert_too_large(why)).map(|(at, _)| at).collect::<Vec<_>>()
        };
        assert_eq!(refused().await, [1]);
        beside.run::<()>("CONFIG SET proto-max-bulk-len 1mb");
        assert_eq!(refused().await, [0, 1, 3]);
        beside.run::<()>("CONFIG SET proto-max-bulk-len 512mb");
        assert!(refused().await.is_empty());
        let taken = consumer.consume(WANT).await.unwrap();
        assert!(!taken.is_empty());
        // In the script of an ack; this connection has seen nothing of it yet.
        beside.run::<()>("CONFIG SET proto-max-bulk-len 2mb");
        let receipts: Vec<_> = taken.iter().map(|incoming| incoming.receipt).collect();
        let ops = producer.stage(&batch).await.unwrap().ops;
        let acked = consumer.ack(receipts.clone(), ops).await.unwrap();
        let ids: Vec<_> = acked.refused.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, [batch[1].message.id, batch[3].message.id]);
        acked.refused.iter().for_each(|(_, why)| assert_too_large(why));
        let ops = producer.stage(&[numbered(1)]).await.unwrap().ops;
        assert_eq!(consumer.ack(receipts, ops).await.unwrap().fenced, []);
        consumer.shutdown().await.unwrap();
        beside.run::<()>("FLUSHALL");
        beside.run::<()>("CONFIG SET proto-max-bulk-len 512mb");
    }
}

/// What every client looks for in a queue: that it is listed, and its attributes.
fn assert_whole(beside: &mut Beside, name: &str, vt: u32) {
    assert!(beside.run::<Vec<String>>("SMEMBERS rsmq:QUEUES").contains(&name.to_owned()));
    let (own, delay, maxsize, created, modified): (u32, u32, i64, u64, u64) =
        beside.run(&format!("HMGET rsmq:{name}:Q vt delay maxsize created modified"));
    assert_eq!((own, delay, maxsize), (vt, 0, 2048));
    assert!(created > 0 && modified > 0);
}

#[tokio::test]
async fn an_rsmq_queue_that_is_deleted_under_a_stage_is_made_again() {
    let server = Redis::start();
    let mut beside = Beside::new(&server.url());
    let at = |name: &str| queue(name, json!({ "url": server.url(), "vt": "7s", "maxsize": 2048 }));
    let delete = |beside: &mut Beside, name: &str| {
        beside.run::<()>(&format!("DEL rsmq:{name} rsmq:{name}:Q"));
        beside.run::<()>(&format!("SREM rsmq:QUEUES {name}"));
    };
    let (inputs, consumer) = open(&Rsmq, &at("in")).await;
    let (streamed, reading) =
        open(&RedisStreams, &queue("s", json!({ "url": server.url() }))).await;
    let outputs = again(async || Rsmq.producer(&at("out"), &env()).await).await;
    let more = again(async || Rsmq.producer(&at("more"), &env()).await).await;
    // Under who reads: it finds it while it waits, and takes what is put then.
    delete(&mut beside, "in");
    let waiting = consumer.consume(WANT);
    let sending = async {
        while !beside.run::<bool>("HEXISTS rsmq:in:Q vt") {
            tokio::task::yield_now().await;
        }
        assert_whole(&mut beside, "in", 7);
        put(&*inputs, &[numbered(7)]).await.unwrap();
    };
    let (taken, ()) = tokio::join!(waiting, sending);
    // Under who writes.
    delete(&mut beside, "out");
    put(&*outputs, &[numbered(1)]).await.unwrap();
    assert_whole(&mut beside, "out", 7);
    // Under who writes in the script of the ack, from either kind of queue.
    put(&*streamed, &[numbered(8)]).await.unwrap();
    let other = reading.consume(WANT).await.unwrap();
    for (consumer, receipt) in
        [(&consumer, taken.unwrap()[0].receipt), (&reading, other[0].receipt)]
    {
        delete(&mut beside, "out");
        delete(&mut beside, "more");
        let mut ops = outputs.stage(&[numbered(2), numbered(3)]).await.unwrap().ops;
        ops.extend(more.stage(&[numbered(4)]).await.unwrap().ops);
        assert_eq!(consumer.ack(vec![receipt], ops).await.unwrap().fenced, []);
        assert_whole(&mut beside, "out", 7);
        assert_whole(&mut beside, "more", 7);
        assert_eq!(beside.run::<usize>("ZCARD rsmq:out"), 2);
        assert_eq!(beside.run::<usize>("ZCARD rsmq:more"), 1);
    }
}

/// The rights that the book names, and no others.
#[tokio::test]
async fn the_rights_that_the_book_names_are_enough() {
    const SHARED: &str = "+@connection +@sortedset +@hash +@scripting +exists +type +time";
    let server = Redis::start();
    let mut beside = Beside::new(&server.url());
    let url = server.url().replace("//", "//bob:secret@");
    let streams = "~in ~out ~{in}:brigade:* ~{out}:brigade:* +@stream +set +pexpire +del";
    let rsmq = "~rsmq:* +@set &rsmq:* +publish +subscribe";
    for (connector, own) in [(&RedisStreams as &dyn Connector, streams), (&Rsmq, rsmq)] {
        let name = connector.type_name();
        // What still reads has the rights of before.
        nobody_is_blocked(&mut beside.0).await;
        beside.run::<()>(&format!("ACL SETUSER bob reset on >secret {SHARED} {own}"));
        let mut settings = json!({ "url": url });
        if name == "rsmq" {
            settings["realtime"] = true.into();
        }
        let (input, output) = (queue("in", settings.clone()), queue("out", settings));
        connector.reach(&input, &env()).await.unwrap();
        let (producer, consumer) = open(connector, &input).await;
        let outputs = again(async || connector.producer(&output, &env()).await).await;
        let later = Outgoing { delay: Some(Duration::from_millis(20)), ..numbered(2) };
        put(&*producer, &[numbered(1), later]).await.unwrap();
        // Once given back, then acked with an output.
        let (mut given_back, mut acked) = (false, 0);
        while acked < 2 {
            for incoming in consumer.consume(WANT).await.unwrap() {
                let receipt = incoming.receipt;
                if given_back {
                    let ops = outputs.stage(&[numbered(3)]).await.unwrap().ops;
                    consumer.ack(vec![receipt], ops).await.unwrap();
                    acked += 1;
                } else {
                    let reason = FailedReason::Released;
                    let failed = Failed { receipt, reason, delay: Duration::ZERO };
                    consumer.on_fail(vec![failed]).await.unwrap();
                    given_back = true;
                }
            }
        }
        consumer.lag().await.unwrap();
        consumer.shutdown().await.unwrap();
        let admin = again(async || connector.admin(&output, &env()).await).await;
        assert_eq!(admin.peek(0, 10).await.unwrap().len(), 2, "{name}");
        assert_eq!(admin.purge().await.unwrap(), 2, "{name}");
        let log: Vec<redis::Value> = beside.run("ACL LOG");
        assert!(log.is_empty(), "{name}: {log:?}");
    }
}

/// As where another program has written an entry with the last id that there is.
#[tokio::test]
async fn an_ack_with_an_output_to_a_stream_that_is_at_its_end_puts_nothing() {
    let server = Redis::start();
    let mut beside = Beside::new(&server.url());
    beside.run::<String>("XADD full 18446744073709551615-18446744073709551615 payload x");
    let at = |name: &str| queue(name, json!({ "url": server.url() }));
    let (producer, consumer) = open(&RedisStreams, &at("in")).await;
    put(&*producer, &[numbered(7)]).await.unwrap();
    let receipt = consumer.consume(WANT).await.unwrap()[0].receipt;
    let later = Outgoing { delay: Some(Duration::from_secs(600)), ..numbered(2) };
    let mut ops = Vec::new();
    for (name, batch) in [("out", &[numbered(1), later][..]), ("full", &[numbered(3)])] {
        let output = again(async || RedisStreams.producer(&at(name), &env()).await).await;
        ops.extend(output.stage(batch).await.unwrap().ops);
    }
    for _ in 0..2 {
        let error = consumer.ack(vec![receipt], ops.clone()).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains("queue `full`") && text.contains("the last possible ID"), "{text}");
        assert_eq!(beside.run::<u64>("XLEN out"), 0, "nothing stands");
        assert_eq!(beside.run::<u64>("ZCARD {out}:brigade:later"), 0, "nothing stands");
    }
}

/// The names of queues and streams stand in what is told.
#[tokio::test]
async fn a_name_with_a_code_in_it_is_not_taken_for_that_code() {
    let server = Redis::start();
    let mut beside = Beside::new(&server.url());
    beside.run::<()>("ACL SETUSER bob on >secret allkeys allchannels +@all -set");
    let of_bob = server.url().replace("//", "//bob:secret@");
    let opened =
        RedisStreams.consumer(&queue("ROOMS", json!({ "url": of_bob })), &reader(), &env()).await;
    assert!(opened.err().unwrap().to_string().contains("`ACL SETUSER bob +set`"));
    let (_, consumer) = open(&RedisStreams, &queue("ROOMS", json!({ "url": server.url() }))).await;
    beside.run::<()>("XGROUP DESTROY ROOMS shop");
    let error = consumer.consume(WANT).await.unwrap_err().to_string();
    assert!(error.contains("NOGROUP") && !error.contains("`maxmemory`"), "{error}");
}

#[tokio::test]
async fn a_name_in_what_the_server_says_is_not_taken_for_a_cause() {
    let server = Redis::start();
    let queue = queue("shop", json!({ "url": server.url(), "stream": "certificates" }));
    let (_, consumer) = open(&RedisStreams, &queue).await;
    Beside::new(&server.url()).run::<()>("XGROUP DESTROY certificates shop");
    let error = loop {
        let next = tokio::time::timeout(Duration::from_secs(180), consumer.consume(WANT)).await;
        if let Err(error) = next.expect("it is told") {
            break error.to_string();
        }
    };
    assert!(error.contains("NOGROUP") && !error.contains("`tls`"), "{error}");
}
