//! A pipeline over a real Redis, with processes and the server killed: nothing is lost.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

#[path = "common/command.rs"]
mod command;
#[path = "common/repeats.rs"]
mod repeats;
#[path = "common/watched.rs"]
mod watched;

use brigade_testkit::servers::Redis;
use repeats::{Blows, LINE, all_fell};
use watched::Watched;

const MESSAGES: usize = 20_000;
const KILLS: usize = 6;
/// What a stage has in flight at most, where its repeats are counted.
const IN_FLIGHT: usize = 512;

/// Outputs, dead letters and acks on one server: one step.
const ONCE: &str = "
pipeline: shop
state: state
queues:
  orders: { type: KIND, url: '${REDIS_URL}', guarantee: exactly_once }
  bills: { type: KIND, url: '${REDIS_URL}' }
  dead: { type: KIND, url: '${REDIS_URL}' }
stages:
  bill:
    component: { map: 'if .n % 1000 == 7 then error else .billed = true end' }
    input: orders
    outputs: [bills]
    dead_letter: dead
";

/// Each stage notes when it handled a message.
const NOTED: &str = "
pipeline: shop
state: state
queues:
  in: { type: file, path: in.jsonl }
  orders: { type: KIND, url: '${REDIS_URL}' }
  bills: { type: KIND, url: '${REDIS_URL}' }
  out: { type: file, path: out.jsonl }
stages:
  feed: { component: { map: '.feed = now' }, input: in, outputs: [orders], max_in_flight: &most { messages: 512 } }
  bill: { component: { map: '.billed = true | .bill = now' }, input: orders, outputs: [bills], max_in_flight: *most }
  keep: { component: { map: '.keep = now' }, input: bills, outputs: [out], max_in_flight: *most }
";

const YAML: &str = "
pipeline: shop
state: state
queues:
  in: { type: file, path: in.jsonl }
  orders: { type: KIND, url: '${REDIS_URL}' }
  bills: { type: KIND, url: '${REDIS_URL}' }
  out: { type: file, path: out.jsonl }
stages:
  feed: { component: pass, input: in, outputs: [orders] }
  bill: { component: { map: '.billed = true' }, input: orders, outputs: [bills] }
  keep: { component: pass, input: bills, outputs: [out] }
";

fn brigade(directory: &Path, server: &Redis, stage: &str) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_brigade"));
    command.current_dir(directory).args(["run", "p.yaml", "--until-idle", "--stage", stage]);
    command.env("REDIS_URL", server.url()).env("RUST_LOG", "info");
    let log = directory.join(format!("{stage}.log"));
    let log = fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
    command.stderr(log).spawn().unwrap()
}

/// How often each number is in the output.
fn counted(directory: &Path) -> BTreeMap<usize, usize> {
    let text = fs::read_to_string(directory.join("out.jsonl")).unwrap_or_default();
    let mut counts = BTreeMap::new();
    for line in text.lines() {
        let value: serde_json::Value = serde_json::from_str(line).expect("no torn line");
        assert_eq!(value["billed"], true);
        *counts.entry(value["n"].as_u64().unwrap() as usize).or_default() += 1;
    }
    counts
}

#[test]
fn over_streams_processes_and_the_server_are_killed_and_nothing_is_lost() {
    kill_everything("redis_stream");
}

#[test]
fn over_rsmq_processes_and_the_server_are_killed_and_nothing_is_lost() {
    // What a dead process held is visible again after this; what a live one has has to be renewed within it.
    kill_everything("rsmq, vt: 10s");
}

/// Waits while something is so; fails where that does not end.
fn wait_while(mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while is_so() {
        assert!(begun.elapsed() < Duration::from_secs(180), "it does not go on");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

fn kill_everything(kind: &str) {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let server = Redis::start();
    let input: String = (0..MESSAGES).map(|n| format!("{{\"n\":{n}}}\n")).collect();
    fs::write(directory.join("in.jsonl"), input).unwrap();
    fs::write(directory.join("p.yaml"), NOTED.replace("KIND", kind)).unwrap();
    const STAGES: [&str; 3] = ["feed", "bill", "keep"];
    let mut running: Vec<Child> =
        STAGES.iter().map(|stage| brigade(directory, &server, stage)).collect();
    let mut random = fastrand::Rng::with_seed(7);
    let length = || fs::metadata(directory.join("out.jsonl")).map_or(0, |file| file.len());
    let (mut done, mut fell) = (Blows::default(), 0);
    let runs = |running: &mut Vec<Child>| {
        running.iter_mut().any(|child| child.try_wait().unwrap().is_none())
    };
    for kill in 0..KILLS {
        // The next death comes when so much more is done, or when all is.
        let until = length() + random.u64(800..2400) * LINE;
        wait_while(|| {
            done.look();
            length() < until && runs(&mut running)
        });
        // One that starts after all have finished would wait for a run of the others.
        if !runs(&mut running) {
            println!("{kind}: done after {kill} of {KILLS} deaths");
            break;
        }
        fell += 1;
        if kill % 3 == 2 {
            done.restart("Redis", || server.restart());
        } else {
            let at = random.usize(..STAGES.len());
            done.kill(STAGES[at], || {
                running[at].kill().unwrap();
                running[at].wait().unwrap();
            });
            // It may have been the end of a run, which one that starts alone would begin anew, and wait for others.
            let text = fs::read_to_string(directory.join("out.jsonl")).unwrap_or_default();
            if text.lines().count() >= MESSAGES {
                for (stage, child) in STAGES.iter().zip(&mut running) {
                    done.kill(stage, || {
                        child.kill().unwrap();
                        child.wait().unwrap();
                    });
                }
                running = vec![brigade(directory, &server, &STAGES.join(","))];
                break;
            }
            running[at] = brigade(directory, &server, STAGES[at]);
        }
    }
    wait_while(|| {
        done.look();
        runs(&mut running)
    });
    for child in &mut running {
        assert!(child.wait().unwrap().success());
    }
    let counts = counted(directory);
    let missing: Vec<usize> = (0..MESSAGES).filter(|n| !counts.contains_key(n)).collect();
    assert!(missing.is_empty(), "{} are missing, as {:?}", missing.len(), &missing[..1]);
    println!("{kind}: {MESSAGES} messages over {}", done.told());
    all_fell(fell, KILLS);
    for stage in STAGES {
        let log = fs::read_to_string(directory.join(format!("{stage}.log"))).unwrap_or_default();
        println!("{kind} {stage}:\n{log}");
    }
    let out = fs::read_to_string(directory.join("out.jsonl")).unwrap();
    done.account(&STAGES, &out, IN_FLIGHT);
}

#[test]
fn from_stream_to_stream_nothing_is_lost_or_twice_though_everything_is_killed() {
    once("redis_stream", ["XLEN", "bills"], |connection, queue| {
        let entries: Vec<(String, Vec<(String, String)>)> =
            redis::cmd("XRANGE").arg(queue).arg("-").arg("+").query(connection).unwrap();
        let payload = |fields: Vec<(String, String)>| {
            fields.into_iter().find(|(name, _)| name == "payload").unwrap().1
        };
        entries.into_iter().map(|(_, fields)| payload(fields)).collect()
    });
}

#[test]
fn from_rsmq_to_rsmq_nothing_is_lost_or_twice_though_everything_is_killed() {
    once("rsmq, vt: 2s", ["ZCARD", "rsmq:bills"], |connection, queue| {
        let ids: Vec<String> = redis::cmd("ZRANGE")
            .arg(format!("rsmq:{queue}"))
            .arg(0)
            .arg(-1)
            .query(connection)
            .unwrap();
        let body = |id: &String| {
            redis::cmd("HGET").arg(format!("rsmq:{queue}:Q")).arg(id).query(connection).unwrap()
        };
        ids.iter().map(body).collect()
    });
}

/// Kills the stage and the server while messages go from one queue to another on it. `length` asks how many are on
/// the other one.
fn once(
    kind: &str,
    length: [&str; 2],
    payloads: impl Fn(&mut redis::Connection, &str) -> Vec<String>,
) {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let server = Redis::start();
    let input: String = (0..MESSAGES).map(|n| format!("{{\"n\":{n}}}\n")).collect();
    fs::write(directory.join("in.jsonl"), input).unwrap();
    fs::write(directory.join("p.yaml"), YAML.replace("KIND", kind)).unwrap();
    assert!(brigade(directory, &server, "feed").wait().unwrap().success());
    fs::write(directory.join("p.yaml"), ONCE.replace("KIND", kind)).unwrap();
    let connect = || redis::Client::open(server.url()).unwrap().get_connection().unwrap();
    let mut random = fastrand::Rng::with_seed(11);
    let mut running = brigade(directory, &server, "bill");
    for kill in 0..KILLS {
        let mut connection = connect();
        let mut there =
            || -> usize { redis::cmd(length[0]).arg(length[1]).query(&mut connection).unwrap() };
        let until = there() + random.usize(500..3000);
        wait_while(|| there() < until && running.try_wait().unwrap().is_none());
        if kill % 3 == 2 {
            server.restart();
        } else {
            running.kill().unwrap();
            running.wait().unwrap();
            running = brigade(directory, &server, "bill");
        }
    }
    // The last process may have had no dead letters to write.
    assert!(matches!(running.wait().unwrap().code(), Some(0 | 3)));
    let mut connection = connect();
    let number = |payload: &String| {
        let value: serde_json::Value = serde_json::from_str(payload).unwrap();
        value["n"].as_u64().unwrap() as usize
    };
    let mut bills: Vec<usize> = payloads(&mut connection, "bills").iter().map(number).collect();
    bills.sort_unstable();
    let wanted: Vec<usize> = (0..MESSAGES).filter(|n| n % 1000 != 7).collect();
    assert_eq!(bills.len(), wanted.len(), "some are lost or there twice");
    assert_eq!(bills, wanted);
    assert_eq!(payloads(&mut connection, "dead").len(), MESSAGES - wanted.len());
}

/// What a killed process held comes to the next one of the same machine at once, before what is newer: not
/// only when its member has not been heard of for a while.
#[test]
fn what_a_killed_process_held_is_the_first_that_the_next_one_gets() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let server = Redis::start();
    let yaml = "
pipeline: shop
state: state
queues:
  orders: { type: redis_stream, url: '${REDIS_URL}' }
  out: { type: file, path: out.jsonl }
stages:
  bill: { component: { map: '.billed = true' }, input: orders, outputs: [out], workers: 1 THROTTLE }
";
    let throttled = ", throttle: { rate: 1, per: 1h, burst: 1 }";
    fs::write(directory.join("p.yaml"), yaml.replace("THROTTLE", throttled)).unwrap();
    let mut connection = redis::Client::open(server.url()).unwrap().get_connection().unwrap();
    let put = |connection: &mut redis::Connection, n: usize| {
        let payload = format!("{{\"n\":{n}}}");
        let mut put = redis::cmd("XADD");
        put.arg("orders").arg("*").arg("payload").arg(payload).exec(connection).unwrap();
    };
    (0..50).for_each(|n| put(&mut connection, n));
    let mut running = brigade(directory, &server, "bill");
    // The first goes through; others wait for the throttle.
    let begun = Instant::now();
    while counted(directory).is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(180), "nothing goes through");
        std::thread::park_timeout(Duration::from_millis(5));
    }
    running.kill().unwrap();
    running.wait().unwrap();
    let mut pending = redis::cmd("XPENDING");
    pending.arg("orders").arg("shop").arg("-").arg("+").arg(100);
    let held: Vec<redis::Value> = pending.query(&mut connection).unwrap();
    assert!(held.len() > 1, "it held more than what went through");
    (50..100).for_each(|n| put(&mut connection, n));
    fs::write(directory.join("p.yaml"), yaml.replace("THROTTLE", "")).unwrap();
    assert!(brigade(directory, &server, "bill").wait().unwrap().success());
    let text = fs::read_to_string(directory.join("out.jsonl")).unwrap();
    let number =
        |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["n"].as_u64();
    let mut came: Vec<u64> = text.lines().filter_map(number).collect();
    // The one that went through may come again. Elsewhere those that were held would be the last: who held them would
    // be dead for others after 12 s at the earliest.
    came.dedup();
    assert_eq!(came, (0..100).collect::<Vec<u64>>(), "{} were held", held.len());
}

#[test]
fn queues_and_dead_letters_on_redis_are_looked_into_and_sent_back() {
    for kind in ["redis_stream", "rsmq"] {
        let directory = tempfile::tempdir().unwrap();
        let server = Redis::start();
        let yaml = "
pipeline: shop
state: state
queues:
  in: { type: generator, count: 10, template: { n: '{{seq}}' } }
  orders: { type: KIND, url: '${REDIS_URL}' }
  dead: { type: KIND, url: '${REDIS_URL}' }
  out: { type: KIND, url: '${REDIS_URL}' }
stages:
  feed: { component: pass, input: in, outputs: [orders] }
  bill:
    component: { map: 'if .n == 3 then error(\"three\") else . end' }
    input: orders
    outputs: [out]
    dead_letter: dead
"
        .replace("KIND", kind);
        fs::write(directory.path().join("p.yaml"), yaml).unwrap();
        let url = server.url();
        let brigade =
            |arguments: &[&str]| command::brigade(directory.path(), ("REDIS_URL", &url), arguments);
        let (code, told) = brigade(&["run", "p.yaml", "--until-idle"]);
        assert_eq!(code, Some(3), "{kind}: {told}");
        let ready = |queue: &str| command::ready(&brigade(&["queues", "list", "p.yaml"]).1, queue);
        assert_eq!((&*ready("out"), &*ready("dead")), ("9", "1"), "{kind}");
        let (_, shown) = brigade(&["dead-letters", "list", "p.yaml"]);
        assert!(shown.contains("three"), "{kind}: {shown}");
        let (code, told) = brigade(&["dead-letters", "redrive", "p.yaml"]);
        assert_eq!(code, Some(0), "{kind}: {told}");
        let mended = "stages.bill.component.map=.";
        let (code, told) = brigade(&["run", "p.yaml", "--until-idle", "--set", mended]);
        assert_eq!(code, Some(0), "{kind}: {told}");
        assert_eq!((&*ready("out"), &*ready("dead")), ("10", "0"), "{kind}");
        let (_, peeked) = brigade(&["queues", "peek", "p.yaml", "out"]);
        assert_eq!(peeked.matches("{\"n\":").count(), 10, "{kind}: {peeked}");
        let (_, purged) = brigade(&["queues", "purge", "p.yaml", "out"]);
        assert!(purged.contains("10"), "{kind}: {purged}");
    }
}

/// A run as a user of a server that has to be made there.
fn watched(yaml: &str, server: &Redis) -> Watched {
    let url = server.url().replace("//", "//bob:secret@");
    Watched::start(yaml, &["--until-idle"], &[("REDIS_URL", url)])
}

/// How many messages come within ten seconds: long enough to do something to the server meanwhile.
const FLOW: usize = 5000;

/// The pipeline with messages that come for so long.
fn flowing() -> String {
    let flow = format!(
        "in: {{ type: generator, count: {FLOW}, rate: 500, template: {{ n: '{{{{seq}}}}' }} }}"
    );
    YAML.replace("in: { type: file, path: in.jsonl }", &flow)
}

#[test]
fn a_pipeline_goes_on_when_the_server_is_mended() {
    let yaml = flowing();
    for (kind, key) in [("redis_stream", "orders"), ("rsmq", "rsmq:orders:Q")] {
        let server = Redis::start();
        let client = redis::Client::open(server.url()).unwrap();
        let mut connection = client.get_connection().unwrap();
        // Commands as one would type them, as one step.
        let mut run = |commands: &[&str]| {
            let mut pipe = redis::pipe();
            pipe.atomic();
            for command in commands {
                let mut words = command.split(' ');
                let first = pipe.cmd(words.next().unwrap());
                words.for_each(|word| {
                    first.arg(word);
                });
            }
            pipe.exec(&mut connection).unwrap();
        };
        // From the beginning: another password, then a right that is missing.
        run(&["ACL SETUSER bob on >other ~* &* +@all -evalsha -xgroup"]);
        let mut running = watched(&yaml.replace("KIND", kind), &server);
        running.wait_for("check user and password in `url`");
        run(&["ACL SETUSER bob >secret"]);
        running.wait_for("the access list of user `bob` lacks the command");
        run(&["ACL SETUSER bob +@all"]);
        // While it runs: a queue's key of another type, a right that is taken, another password.
        running.wait_for_output(1);
        run(&[&format!("RENAME {key} away"), &format!("SET {key} text")]);
        running.wait_for("remove that key");
        run(&[&format!("RENAME away {key}"), "ACL SETUSER bob -evalsha"]);
        running.wait_for("lacks the command `evalsha`");
        run(&["ACL SETUSER bob resetpass >other +@all", "CLIENT KILL USER bob"]);
        running.wait_for("check user and password in `url`");
        run(&["ACL SETUSER bob >secret"]);
        let told = running.told();
        assert_eq!(running.end(), (Some(0), FLOW), "{kind}: {told}");
    }
}

/// What was in it is gone with it; what comes after that is handled.
#[test]
fn a_queue_that_is_deleted_while_it_is_used_is_told_and_made_again() {
    let yaml = flowing();
    let (stream, rsmq) = (&["orders"][..], &["rsmq:orders", "rsmq:orders:Q"][..]);
    for (kind, keys) in [("redis_stream", stream), ("rsmq", rsmq)] {
        let server = Redis::start();
        let client = redis::Client::open(server.url()).unwrap();
        let mut connection = client.get_connection().unwrap();
        let user = ["bob", "on", ">secret", "~*", "&*", "+@all"];
        redis::cmd("ACL").arg("SETUSER").arg(&user).exec(&mut connection).unwrap();
        let mut running = watched(&yaml.replace("KIND", kind), &server);
        running.wait_for_output(1);
        redis::cmd("DEL").arg(keys).exec(&mut connection).unwrap();
        let (code, _) = running.end();
        let told = running.told();
        assert_eq!(code, Some(0), "{kind}: {told}");
        let line = told.lines().find(|line| line.contains("somebody has deleted"));
        let line = line.unwrap_or_else(|| panic!("{kind}: it is not told: {told}"));
        assert!(line.contains("orders") && line.contains(keys[0]), "{kind}: {line}");
        let out = fs::read_to_string(running.path("out.jsonl")).unwrap();
        let last = format!("\"n\":{},", FLOW - 1);
        assert!(out.contains(&last), "{kind}: the last one came: {told}");
    }
}

/// A message that is longer than the server takes becomes a dead letter, and holds nobody up.
#[test]
fn what_is_longer_than_the_server_takes_becomes_a_dead_letter() {
    for kind in ["redis_stream", "rsmq, maxsize: -1"] {
        let yaml = "
pipeline: shop
state: state
queues:
  in: { type: KIND, url: '${REDIS_URL}' }
  orders: { type: KIND, url: '${REDIS_URL}' }
  dead: { type: file, path: dead.jsonl }
  out: { type: file, path: out.jsonl }
  big: { type: generator, count: 10, template: { n: '{{seq}}' } }
stages:
  feed:
    component: { map: 'if .n == 3 then .text = \"x\" * 2000000 else . end' }
    input: big
    outputs: [in]
    dead_letter: dead
  grow:
    component: { map: 'if .n == 5 then .text = \"x\" * 2000000 else . end' }
    input: in
    outputs: [orders]
    dead_letter: dead
  keep: { component: pass, input: orders, outputs: [out] }
";
        let server = Redis::start();
        let mut connection = redis::Client::open(server.url()).unwrap().get_connection().unwrap();
        let mut cmd = redis::cmd("CONFIG");
        cmd.arg("SET").arg("proto-max-bulk-len").arg("1mb").exec(&mut connection).unwrap();
        let mut user = redis::cmd("ACL");
        user.arg("SETUSER").arg("bob").arg("on").arg(">secret").arg("~*").arg("&*").arg("+@all");
        user.exec(&mut connection).unwrap();
        let mut running = watched(&yaml.replace("KIND", kind), &server);
        assert_eq!(running.end(), (Some(3), 8), "{kind}: {}", running.told());
        let dead = fs::read_to_string(running.path("dead.jsonl")).unwrap();
        assert_eq!(dead.lines().count(), 2, "{kind}");
        assert_eq!(dead.matches("proto-max-bulk-len").count(), 2, "{kind}: {dead}");
    }
}

#[test]
fn what_a_queue_refuses_is_told_by_who_puts_it() {
    let server = Redis::start();
    let mut connection = redis::Client::open(server.url()).unwrap().get_connection().unwrap();
    let mut config = redis::cmd("CONFIG");
    config.arg("SET").arg("proto-max-bulk-len").arg("1mb").query::<()>(&mut connection).unwrap();
    for kind in ["rsmq, maxsize: 1024", "redis_stream"] {
        let directory = tempfile::tempdir().unwrap();
        let yaml = YAML.replace("KIND", kind);
        fs::write(directory.path().join("p.yaml"), yaml).unwrap();
        let mut put = Command::new(env!("CARGO_BIN_EXE_brigade"));
        put.current_dir(directory.path()).args(["queues", "put", "p.yaml", "orders"]);
        put.env("REDIS_URL", server.url()).stdin(Stdio::piped());
        let mut put = put.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = format!("1\n\"{}\"\n2\n", "x".repeat(2 << 20));
        put.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        let output = put.wait_with_output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), &output.stdout[..]), (Some(2), &b""[..]), "{told}");
        let words =
            "queue `orders`: of the first 3 lines 2 were put, but not line 2: 2097154 bytes";
        assert!(told.contains(words), "{kind}: {told}");
        redis::cmd("FLUSHALL").query::<()>(&mut connection).unwrap();
    }
}
