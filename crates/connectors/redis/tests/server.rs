//! What the conformance suite does not ask: TLS and users, Sentinels, Clusters, trimming, wrong keys.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use brigade_core::connector::{
    Connector, Consumer, Incoming, Order, Outgoing, Produced, QueueSpec, Reader, Want,
};
use brigade_redis::{RedisStreams, Rsmq};
use brigade_testkit::servers::{MASTER, Redis, RedisCluster, RedisSentinel};
use common::{PATIENCE, WANT, again, env, numbered, open, patient, put, queue, reader, told};
use serde_json::{Value, json};

fn number(incoming: &Incoming) -> usize {
    std::str::from_utf8(incoming.message.payload.as_deref().unwrap()).unwrap().parse().unwrap()
}

/// Takes and acks until so many different ones have come.
async fn drain(consumer: &dyn Consumer, many: usize) -> BTreeSet<usize> {
    let mut seen = BTreeSet::new();
    while seen.len() < many {
        let taken = tokio::time::timeout(PATIENCE, again(|| consumer.consume(WANT))).await;
        let taken = taken.unwrap_or_else(|_| panic!("{} of {many} came", seen.len()));
        seen.extend(taken.iter().map(number));
        let receipts: Vec<_> = taken.iter().map(|incoming| incoming.receipt).collect();
        again(|| consumer.ack(receipts.clone(), Vec::new())).await;
    }
    seen
}

#[tokio::test]
async fn over_tls_a_user_with_few_rights_works_with_streams_and_rsmq() {
    let server = Redis::start_secured();
    let place = json!({ "url": server.url(), "tls": { "ca": server.authority() } });
    let bobs = json!({ "url": server.url_of_bob(), "tls": place["tls"] });
    let users: [(&dyn Connector, &Value); 2] = [(&RedisStreams, &place), (&Rsmq, &bobs)];
    for (connector, place) in users {
        let queue = queue("shop", place.clone());
        assert_eq!(connector.check(&queue).len(), 0);
        again(async || connector.reach(&queue, &env()).await).await;
        let (producer, consumer) = open(connector, &queue).await;
        producer.produce(&(0..10).map(numbered).collect::<Vec<_>>()).await.unwrap();
        assert_eq!(drain(&*consumer, 10).await.len(), 10);
    }
    let without_secret = |error: brigade_core::connector::ConnectorError| {
        assert!(!error.to_string().contains("secret"), "{error}");
        (error.is_transient(), error.to_string())
    };
    // A key that the user may not touch.
    let foreign = queue("other", place.clone());
    let error = told("user", async || RedisStreams.producer(&foreign, &env()).await).await;
    let (transient, text) = without_secret(error);
    let error =
        told("user", async || RedisStreams.consumer(&foreign, &reader(), &env()).await).await;
    assert!(without_secret(error).0, "rights can be given while it waits");
    assert!(transient && text.contains("`other`") && text.contains("user"), "{text}");
    let reached = async |settings: Value, part: &str| {
        let queue = queue("shop", settings);
        told(part, async || RedisStreams.reach(&queue, &env()).await).await
    };
    // A wrong password, an authority that is not trusted, no TLS where TLS is spoken.
    let wrong = json!({ "url": server.url().replace("secret", "guess"), "tls": place["tls"] });
    let error = reached(wrong, "password").await;
    assert!(error.is_transient() && error.to_string().contains("password"), "{error}");
    let untrusted = json!({ "url": server.url() });
    let error = reached(untrusted, "certificate").await;
    assert!(error.to_string().contains("certificate"), "{error}");
    let plain = json!({ "url": server.url().replace("rediss", "redis") });
    assert!(RedisStreams.reach(&queue("shop", plain), &env()).await.is_err());
}

/// In RESP3 answers have other forms, in which nothing would be found.
#[tokio::test]
async fn an_address_that_asks_for_another_protocol_is_used_all_the_same() {
    let server = Redis::start();
    let url = format!("{}/?protocol=resp3", server.url());
    for (name, connector) in [("s", &RedisStreams as &dyn Connector), ("q", &Rsmq)] {
        let queue = queue(name, json!({ "url": url }));
        assert!(connector.check(&queue).is_empty(), "{:?}", connector.check(&queue));
        let (producer, consumer) = open(connector, &queue).await;
        put(&*producer, &[numbered(1)]).await.unwrap();
        assert_eq!(drain(&*consumer, 1).await.len(), 1, "{name}");
    }
}

#[tokio::test]
async fn when_the_master_dies_the_sentinels_new_one_is_used() {
    let servers = RedisSentinel::start();
    let place = json!({ "url": servers.url(), "sentinel": { "master": MASTER } });
    let queue = queue("shop", place);
    let (producer, consumer) = open(&RedisStreams, &queue).await;
    let batch = |from: usize| (from..from + 100).map(numbered).collect::<Vec<_>>();
    producer.produce(&batch(0)).await.unwrap();
    drain(&*consumer, 50).await;
    servers.fail_over();
    again(|| async { put(&*producer, &batch(100)).await }).await;
    let wanted: BTreeSet<usize> = (100..200).collect();
    let mut after = BTreeSet::new();
    while !after.is_superset(&wanted) {
        let taken = again(|| consumer.consume(WANT)).await;
        after.extend(taken.iter().map(number));
        let receipts: Vec<_> = taken.iter().map(|incoming| incoming.receipt).collect();
        again(|| consumer.ack(receipts.clone(), Vec::new())).await;
    }
}

/// Replication is asynchronous: what was confirmed just before the death may be lost. It is the end of what
/// was put, and no more than a moment of it.
#[tokio::test]
async fn what_is_lost_with_a_master_is_a_moments_last_messages() {
    const MOMENT: Duration = Duration::from_secs(4);
    const UNTIL_DEATH: Duration = Duration::from_secs(10);
    let servers = Arc::new(RedisSentinel::start());
    let place = json!({ "url": servers.url(), "sentinel": { "master": MASTER } });
    let (producer, consumer) = open(&RedisStreams, &queue("shop", place)).await;
    let (begun, mut confirmed, mut failing) = (Instant::now(), Vec::new(), None);
    loop {
        if failing.is_none() && begun.elapsed() > UNTIL_DEATH {
            let servers = Arc::clone(&servers);
            failing = Some(tokio::task::spawn_blocking(move || servers.fail_over()));
        }
        let batch: Vec<Outgoing> = (0..10).map(|n| numbered(confirmed.len() + n)).collect();
        match put(&*producer, &batch).await {
            Ok(()) => confirmed.extend([Instant::now(); 10]),
            Err(_) if failing.is_some() => break,
            // It lives, and was slow: the same once more.
            Err(error) => assert!(error.is_transient() && begun.elapsed() < PATIENCE, "{error}"),
        }
    }
    failing.expect("it dies while messages are put").await.unwrap();
    let (mut there, mut taken, begun) = (BTreeSet::new(), 0, Instant::now());
    // Nothing is acked: what is there is read when all of it is in flight.
    loop {
        let lag = again(|| consumer.lag()).await;
        if lag.ready == Some(0) && lag.in_flight.is_some_and(|held| held <= taken) {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{taken} of {lag:?}");
        let next = again(|| consumer.consume(WANT));
        if let Ok(next) = tokio::time::timeout(Duration::from_secs(1), next).await {
            taken += next.len() as u64;
            there.extend(next.iter().map(number));
        }
    }
    let lost: Vec<usize> = (0..confirmed.len()).filter(|n| !there.contains(n)).collect();
    let last = confirmed[confirmed.len() - 1];
    let age = lost.first().map_or(Duration::ZERO, |first| last - confirmed[*first]);
    println!("{} of {} were lost with the master: the last {age:?}", lost.len(), confirmed.len());
    assert!(lost.iter().copied().eq(confirmed.len() - lost.len()..confirmed.len()), "{lost:?}");
    assert!(age <= MOMENT, "{age:?}");
}

#[tokio::test]
async fn on_a_cluster_a_stream_is_followed_when_its_slot_moves() {
    let cluster = RedisCluster::start();
    let place = json!({ "url": cluster.url(), "cluster": true });
    let queue = queue("shop", place.clone());
    let (producer, consumer) = open(&RedisStreams, &queue).await;
    let batch = |from: usize| (from..from + 100).map(numbered).collect::<Vec<_>>();
    producer.produce(&batch(0)).await.unwrap();
    assert_eq!(drain(&*consumer, 100).await.len(), 100);
    producer.produce(&batch(100)).await.unwrap();
    cluster.move_away("shop");
    again(|| async { put(&*producer, &batch(200)).await }).await;
    assert_eq!(drain(&*consumer, 200).await, (100..300).collect());
    // Its streams lie on several servers, so that nothing is settled together.
    assert_eq!(consumer.store(), None);
    let refused = Rsmq.check(&QueueSpec::new("shop", "jobs", place));
    assert!(refused[0].message.contains("several servers"), "{refused:?}");
}

#[tokio::test]
async fn on_a_cluster_what_belongs_to_a_stream_lies_where_its_own_name_says() {
    let cluster = RedisCluster::start();
    for name in ["{shop}:in", "a{b}c{d}", "{shop}", "shop", "a{b"] {
        let queue = queue(name, json!({ "url": cluster.url(), "cluster": true }));
        assert_eq!(RedisStreams.check(&queue).len(), 0, "{name}");
        let (producer, consumer) = open(&RedisStreams, &queue).await;
        let later = Outgoing { delay: Some(Duration::from_millis(1)), ..numbered(1) };
        producer.produce(&[numbered(0), later]).await.unwrap();
        assert_eq!(drain(&*consumer, 2).await, (0..2).collect(), "{name}");
        assert_eq!(consumer.lag().await.unwrap().ready, Some(0), "{name}");
        consumer.shutdown().await.unwrap();
    }
    for name in ["a}b", "{}b", "}{"] {
        let settings = json!({ "url": cluster.url(), "cluster": true, "stream": name });
        let problems = RedisStreams.check(&queue("shop", settings));
        assert_eq!((problems.len(), &*problems[0].path), (1, &["stream".to_owned()][..]));
        assert!(problems[0].message.contains(name), "{problems:?}");
        // A server alone has all keys.
        assert_eq!(RedisStreams.check(&queue(name, json!({}))).len(), 0);
    }
}

/// The process of the server of a Cluster that has this key.
fn process_with(cluster: &RedisCluster, key: &str) -> String {
    let connect = |url: String| redis::Client::open(url).unwrap().get_connection().unwrap();
    let nodes: String =
        redis::cmd("CLUSTER").arg("NODES").query(&mut connect(cluster.url())).unwrap();
    let addresses = nodes.lines().map(|line| line.split([' ', '@']).nth(1).unwrap());
    let mut connections = addresses.map(|address| connect(format!("redis://{address}")));
    // The others tell where it is.
    let has = |c: &mut redis::Connection| redis::cmd("TYPE").arg(key).query::<String>(c).is_ok();
    let mut node = connections.find_map(|mut c| has(&mut c).then_some(c)).unwrap();
    let info: String = redis::cmd("INFO").arg("server").query(&mut node).unwrap();
    let process = info.lines().find_map(|line| line.strip_prefix("process_id:"));
    process.unwrap().trim().to_owned()
}

/// A node that takes what is sent and says nothing, as one whose machine vanished: it is told in a bounded
/// time, and what is asked goes on when it is back.
#[tokio::test]
async fn a_node_of_a_cluster_that_does_not_answer_is_not_waited_for_for_ever() {
    let cluster = RedisCluster::start();
    let settings = json!({ "url": cluster.url(), "cluster": true });
    // On another node than the one that `url` names, and on that one.
    for stream in ["a", "b"] {
        let (producer, consumer) = open(&RedisStreams, &queue(stream, settings.clone())).await;
        let process = process_with(&cluster, stream);
        let signal = |signal: &str| {
            let sent = std::process::Command::new("kill").args([signal, &process]).status();
            assert!(sent.unwrap().success());
        };
        let waiting = consumer.consume(WANT);
        tokio::pin!(waiting);
        let early = tokio::time::timeout(Duration::from_millis(50), &mut waiting).await;
        assert!(early.is_err(), "it reads");
        signal("-STOP");
        let (read, written) = tokio::join!(
            tokio::time::timeout(PATIENCE, &mut waiting),
            tokio::time::timeout(PATIENCE, async {
                let batch = [numbered(0)];
                put(&*producer, &batch).await
            })
        );
        signal("-CONT");
        let read = read.expect("it is told").unwrap_err();
        let written = written.expect("it is told").unwrap_err();
        assert!(read.is_transient() && written.is_transient(), "{read} {written}");
        let batch = [numbered(1)];
        again(|| put(&*producer, &batch)).await;
        // What was put while it said nothing may have come all the same.
        while !drain(&*consumer, 1).await.contains(&1) {}
    }
}

#[tokio::test]
async fn with_several_groups_what_all_are_past_is_trimmed_and_nothing_else() {
    const MANY: usize = 1000;
    let server = Redis::start();
    let mut queue = queue("shop", json!({ "url": server.url() }));
    queue.groups = vec!["one".into(), "two".into()];
    let producer = again(async || RedisStreams.producer(&queue, &env()).await).await;
    let batch: Vec<Outgoing> = (0..MANY).map(numbered).collect();
    producer.produce(&batch).await.unwrap();
    let reader =
        |group: &str| Reader { stage: group.into(), group: group.into(), order: Order::None };
    let one = again(async || RedisStreams.consumer(&queue, &reader("one"), &env()).await).await;
    let two = again(async || RedisStreams.consumer(&queue, &reader("two"), &env()).await).await;
    let mut connection = redis::Client::open(server.url()).unwrap().get_connection().unwrap();
    let mut length = || redis::cmd("XLEN").arg("shop").query::<usize>(&mut connection).unwrap();
    assert_eq!(drain(&*one, MANY).await.len(), MANY);
    assert_eq!(length(), MANY, "the other group has seen nothing yet");
    assert_eq!(drain(&*two, MANY).await.len(), MANY);
    // Redis removes whole blocks of entries, of a hundred by default.
    assert!(length() <= 200, "{} are left", length());
}

#[tokio::test]
async fn a_key_of_another_kind_is_told_before_and_during_a_run() {
    let server = Redis::start();
    let mut connection = redis::Client::open(server.url()).unwrap().get_connection().unwrap();
    redis::cmd("SET").arg("shop").arg("text").exec(&mut connection).unwrap();
    redis::cmd("SET").arg("rsmq:shop").arg("text").exec(&mut connection).unwrap();
    let queue = queue("shop", json!({ "url": server.url() }));
    for connector in [&RedisStreams as &dyn Connector, &Rsmq] {
        let error = told("has a string", async || connector.reach(&queue, &env()).await).await;
        assert!(!error.is_transient(), "{error}");
        let text = error.to_string();
        assert!(text.contains("`shop`") && text.contains("has a string"), "{text}");
    }
    let error = told("change `stream`", async || RedisStreams.producer(&queue, &env()).await).await;
    assert!(error.is_transient() && error.to_string().contains("change `stream`"), "{error}");
}

#[tokio::test]
async fn a_server_that_forgets_its_scripts_costs_nothing() {
    let server = Redis::start();
    let mut connection = redis::Client::open(server.url()).unwrap().get_connection().unwrap();
    for connector in [&RedisStreams as &dyn Connector, &Rsmq] {
        let queue = queue("shop", json!({ "url": server.url() }));
        let (producer, consumer) = open(connector, &queue).await;
        for n in 0..10 {
            redis::cmd("SCRIPT").arg("FLUSH").exec(&mut connection).unwrap();
            producer.produce(&[numbered(n)]).await.unwrap();
            redis::cmd("SCRIPT").arg("FLUSH").exec(&mut connection).unwrap();
            assert_eq!(drain(&*consumer, 1).await, BTreeSet::from([n]));
        }
        consumer.shutdown().await.unwrap();
        redis::cmd("DEL").arg("shop").exec(&mut connection).unwrap();
    }
}

#[tokio::test]
async fn queues_are_looked_into_filled_and_emptied_but_for_what_somebody_works_on() {
    let server = Redis::start();
    for connector in [&RedisStreams as &dyn Connector, &Rsmq] {
        let name = connector.type_name();
        let queue = queue(name, json!({ "url": server.url() }));
        let admin = again(async || connector.admin(&queue, &env()).await).await;
        admin.put((0..20).map(numbered).collect()).await.unwrap();
        let status = admin.status().await.unwrap();
        assert_eq!((status.len(), status[0].lag.ready), (1, Some(20)), "{name}");
        let (_, consumer) = open(connector, &queue).await;
        let want = Want { messages: 3, ..WANT };
        let held = consumer.consume(want).await.unwrap();
        let text = |peeked: &brigade_core::connector::Peeked| {
            String::from_utf8(peeked.message.payload.clone().unwrap().to_vec()).unwrap()
        };
        let all = admin.peek(0, 100).await.unwrap();
        let mut seen: Vec<usize> = all.iter().map(|peeked| text(peeked).parse().unwrap()).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..20).collect::<Vec<_>>(), "{name}");
        assert_eq!(admin.peek(5, 3).await.unwrap().len(), 3);
        let free = all.iter().find(|one| text(one) == "15").unwrap();
        assert_eq!(text(&admin.get(free.position).await.unwrap().unwrap()), "15");
        assert_eq!(admin.delete(&[free.position]).await.unwrap(), 1);
        assert!(admin.get(free.position).await.unwrap().is_none());
        let worked_on = all.iter().find(|one| text(one) == number(&held[0]).to_string()).unwrap();
        assert_eq!(admin.delete(&[worked_on.position]).await.unwrap(), 0, "{name}");
        assert_eq!(admin.purge().await.unwrap(), 16, "{name}");
        let receipts: Vec<_> = held.iter().map(|incoming| incoming.receipt).collect();
        assert_eq!(consumer.ack(receipts, Vec::new()).await.unwrap().fenced, [], "{name}");
        assert_eq!(admin.peek(0, 100).await.unwrap().len(), 0, "{name}");
    }
}

#[tokio::test]
async fn what_is_handed_out_too_often_without_an_outcome_is_told_as_a_crash() {
    let server = Redis::start();
    for connector in [&RedisStreams as &dyn Connector, &Rsmq] {
        let name = connector.type_name();
        let queue = queue(name, json!({ "url": server.url(), "max_redeliveries": 2 }));
        let (producer, consumer) = open(connector, &queue).await;
        producer.produce(&[numbered(7)]).await.unwrap();
        for time in 0..4 {
            let taken = consumer.consume(WANT).await.unwrap();
            let defect = taken[0].defect.as_ref().map(|defect| defect.message.clone());
            assert_eq!(defect.is_some(), time == 3, "{name}, time {time}: {defect:?}");
            let failed = brigade_core::connector::Failed {
                receipt: taken[0].receipt,
                reason: brigade_core::connector::FailedReason::Released,
                delay: Duration::ZERO,
            };
            consumer.on_fail(vec![failed]).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_realtime_queue_hears_of_what_is_sent() {
    let server = Redis::start();
    let queue = queue("shop", json!({ "url": server.url(), "realtime": true }));
    let (producer, consumer) = open(&Rsmq, &queue).await;
    // It listens once the server counts a subscriber.
    let mut connection = redis::Client::open(server.url()).unwrap().get_connection().unwrap();
    let mut listeners = || {
        let mut count = redis::cmd("PUBSUB");
        let answer: (String, u64) =
            count.arg("NUMSUB").arg("rsmq:rt:shop").query(&mut connection).unwrap();
        answer.1
    };
    while listeners() == 0 {
        tokio::task::yield_now().await;
    }
    let mut rounds = Vec::new();
    // Without hearing of it, an empty queue is looked into once a second here: a message in two is as quick by chance,
    // and a round in a hundred. A machine that is busy makes some slow that it hears of.
    while rounds.last().is_none_or(|quick| *quick < 9) {
        assert!(rounds.len() < 5, "so many of 10 came at once: {rounds:?}");
        let mut quick = 0;
        for n in 0..10 {
            let waiting = consumer.consume(WANT);
            tokio::pin!(waiting);
            // The queue is empty: it waits now.
            let early = tokio::time::timeout(Duration::from_millis(20), &mut waiting).await;
            assert!(early.is_err());
            producer.produce(&[numbered(n)]).await.unwrap();
            let sent = tokio::time::Instant::now();
            let taken = waiting.await.unwrap();
            quick += usize::from(sent.elapsed() < Duration::from_millis(500));
            consumer.ack(vec![taken[0].receipt], Vec::new()).await.unwrap();
        }
        rounds.push(quick);
    }
}

#[tokio::test]
async fn an_output_that_cannot_be_put_leaves_its_input_where_it_is() {
    let server = Redis::start();
    let mut connection = redis::Client::open(server.url()).unwrap().get_connection().unwrap();
    for connector in [&RedisStreams as &dyn Connector, &Rsmq] {
        let name = connector.type_name();
        let (input, good) = (format!("{name}-in"), format!("{name}-good"));
        let at = |name: &str| queue(name, json!({ "url": server.url() }));
        let (producer, consumer) = open(connector, &at(&input)).await;
        let outputs = again(async || connector.producer(&at(&good), &env()).await).await;
        let broken =
            again(async || connector.producer(&at(&format!("{name}-bad")), &env()).await).await;
        // Somebody puts another kind of value at the key of one output.
        let key = |name: &str| {
            if connector.type_name() == "rsmq" { format!("rsmq:{name}") } else { name.to_owned() }
        };
        let bad = key(&format!("{name}-bad"));
        redis::cmd("DEL").arg(&bad).exec(&mut connection).unwrap();
        redis::cmd("SET").arg(&bad).arg("text").exec(&mut connection).unwrap();
        producer.produce(&[numbered(7)]).await.unwrap();
        let taken = consumer.consume(WANT).await.unwrap();
        let mut ops = outputs.stage(&[numbered(1)]).await.unwrap().ops;
        ops.extend(broken.stage(&[numbered(2)]).await.unwrap().ops);
        let error = consumer.ack(vec![taken[0].receipt], ops).await.unwrap_err();
        assert!(error.is_transient() && error.to_string().contains(&bad), "{name}: {error}");
        let admin = again(async || connector.admin(&at(&good), &env()).await).await;
        assert_eq!(admin.peek(0, 10).await.unwrap().len(), 0, "{name}: nothing of it is put");
        // It still stands, and can be acked with what can be put.
        let ops = outputs.stage(&[numbered(1)]).await.unwrap().ops;
        let acked = consumer.ack(vec![taken[0].receipt], ops).await.unwrap();
        assert_eq!(acked.fenced, [], "{name}");
        assert_eq!(admin.peek(0, 10).await.unwrap().len(), 1, "{name}");
    }
}

/// A server whose disk is full, or whose memory: what is asked of it is told, tried again, and done when
/// there is room. Nothing is lost, and nothing done twice.
#[tokio::test]
async fn a_server_that_has_no_room_is_told_and_waited_for() {
    for (connector, fault) in [
        (&RedisStreams as &dyn Connector, "MISCONF"),
        (&Rsmq, "MISCONF"),
        (&RedisStreams, "OOM"),
        (&Rsmq, "OOM"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().display().to_string();
        let server = Redis::start_with(&["--enable-protected-configs", "yes"]);
        let admin = redis::Client::open(server.url()).unwrap();
        let patient = patient();
        let mut admin = admin.get_multiplexed_async_connection_with_config(&patient).await.unwrap();
        let mut config = async |name: &str, value: &str| {
            let set = redis::cmd("CONFIG").arg("SET").arg(name).arg(value).clone();
            set.query_async::<()>(&mut admin).await.unwrap();
        };
        config("dir", &place).await;
        let queue = queue("shop", json!({ "url": server.url() }));
        let (producer, consumer) = open(connector, &queue).await;
        producer.produce(&(0..10).map(numbered).collect::<Vec<_>>()).await.unwrap();
        let taken = again(|| consumer.consume(Want { messages: 5, ..WANT })).await;
        if fault == "OOM" {
            config("maxmemory", "1").await;
        } else {
            // A snapshot cannot take the place of a directory; then the server takes no writes.
            std::fs::create_dir(directory.path().join("dump.rdb")).unwrap();
            config("appendonly", "no").await;
            config("save", "1 1").await;
        }
        let (mut next, mut wanted) = (10, (0..10).collect::<BTreeSet<_>>());
        let begun = std::time::Instant::now();
        let error = loop {
            assert!(begun.elapsed() < Duration::from_secs(180), "{fault} does not come");
            let numbers = next..next + 20;
            next += 20;
            let batch: Vec<Outgoing> = numbers.clone().map(numbered).collect();
            let mut told = None;
            for (n, outcome) in numbers.zip(producer.produce(&batch).await.unwrap()) {
                match outcome.confirmed() {
                    Ok(()) => {
                        wanted.insert(n);
                    }
                    Err(error) => told = Some(error),
                }
            }
            if let Some(error) = told {
                break error;
            }
        };
        let text = error.to_string();
        assert!(error.is_transient() && text.contains("`shop`") && text.contains(fault), "{text}");
        assert!(text.len() < 700, "{text}");
        let receipts: Vec<_> = taken.iter().map(|incoming| incoming.receipt).collect();
        let acked = consumer.ack(receipts.clone(), Vec::new()).await;
        if fault == "MISCONF" {
            let error = acked.as_ref().unwrap_err();
            assert!(error.is_transient() && error.to_string().contains("disk"), "{error}");
            std::fs::remove_dir(directory.path().join("dump.rdb")).unwrap();
            config("save", "").await;
        } else {
            config("maxmemory", "0").await;
        }
        let last = [numbered(1_000_000)];
        again(|| put(&*producer, &last)).await;
        // Whoever was told that it is done does not ask again.
        let acked = match acked {
            Ok(acked) => acked,
            Err(_) => again(|| consumer.ack(receipts.clone(), Vec::new())).await,
        };
        assert_eq!(acked.fenced, []);
        let first: BTreeSet<usize> = taken.iter().map(number).collect();
        let mut seen = drain(&*consumer, wanted.len() - taken.len() + 1).await;
        assert!(first.is_disjoint(&seen), "what is acked does not come again");
        seen.extend(first);
        wanted.insert(1_000_000);
        assert_eq!(seen, wanted, "{fault}");
    }
}

/// More headers than a script can pass on make a dead letter, not an ack that fails for ever.
#[tokio::test]
async fn a_message_with_too_many_headers_is_refused() {
    let server = Redis::start();
    let queue = queue("shop", json!({ "url": server.url() }));
    let with = |n: usize, headers: usize| -> Outgoing {
        let Outgoing { mut message, delay } = numbered(n);
        (0..headers).for_each(|h| message.headers.push(&format!("h{h}"), Some("v".into())));
        Outgoing { message, delay }
    };
    let (producer, consumer) = open(&RedisStreams, &queue).await;
    let batch = [with(0, 0), with(1, 1001), with(2, 1000)];
    let outcomes = producer.produce(&batch).await.unwrap();
    let [Produced::Confirmed, Produced::Rejected(why), Produced::Confirmed] = &outcomes[..] else {
        panic!("{outcomes:?}")
    };
    assert!(why.message.contains("1001 headers"), "{}", why.message);
    // The same in the script that acks: the largest that is taken goes through it.
    let taken = again(|| consumer.consume(WANT)).await;
    assert_eq!(taken.len(), 2);
    let staged = producer.stage(&batch).await.unwrap();
    assert_eq!((staged.ops.len(), staged.rejected.len(), staged.rejected[0].0), (2, 1, 1));
    let receipts = taken.iter().map(|incoming| incoming.receipt).collect();
    assert_eq!(consumer.ack(receipts, staged.ops).await.unwrap().fenced, []);
    let out = again(|| consumer.consume(WANT)).await;
    let headers: Vec<usize> = out.iter().map(|incoming| incoming.message.headers.len()).collect();
    assert_eq!(headers, [0, 1000]);
}

/// Who connects may be left alone half-way: others do not wait for it.
#[tokio::test]
async fn a_connection_that_is_being_made_holds_nobody_up() {
    for connector in [&RedisStreams as &dyn Connector, &Rsmq] {
        let server = Redis::start();
        let queue = queue("shop", json!({ "url": server.url() }));
        let (producer, consumer) = open(connector, &queue).await;
        producer.produce(&[numbered(1)]).await.unwrap();
        let held = consumer.consume(WANT).await.unwrap();
        server.kill();
        // Somebody who takes connections and says nothing.
        let silent = std::net::TcpListener::bind(("127.0.0.1", server.port())).unwrap();
        let begun = Instant::now();
        let left_alone = loop {
            let mut asking = Box::pin(consumer.lag());
            let half = tokio::time::timeout(Duration::from_millis(100), &mut asking).await;
            if half.is_err() {
                break asking;
            }
            assert!(begun.elapsed() < PATIENCE, "it connects to nobody");
        };
        drop(silent);
        server.restart();
        let receipts = [held[0].receipt];
        let acked = again(|| consumer.ack(receipts.to_vec(), Vec::new()));
        let acked = tokio::time::timeout(PATIENCE, acked).await;
        let acked = acked.expect("it is not held up");
        drop(left_alone);
        assert_eq!(acked.fenced, [], "{}", connector.type_name());
    }
}
