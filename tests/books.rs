//! The books close when all is well, and find what is made wrong on purpose: a guard that is leaked, a
//! message that is acked twice or counted as no outcome, a delivery that is lost on an edge, an output that is
//! forgotten.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

mod common;
#[path = "common/scrape.rs"]
mod scrape;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use brigade::component::{Context, Emit};
use brigade::watch::{MetricNames, listen};
use brigade::{Failure, PlaceKind, Registry, Running, Supervisor, Unaccounted};
use brigade_testkit::paused;
use common::{World, eventually};
use scrape::value;
use tokio::sync::Mutex;

const YAML: &str = "
restart: { max_restarts: 100 }
queues: { in: { type: memory }, out: { type: memory } }
stages:
  first: { component: flaky, input: in, workers: 2, retry: { min: 1ms, max: 5ms } }
  second: { component: flaky, input: first, outputs: [out], workers: 2, retry: { min: 1ms, max: 5ms } }
";

/// Starts a pipeline that has retries, dead letters and a direct edge, with traffic that goes on.
async fn busy(world: &World) -> Running {
    let running = world.start(YAML, &registry(world)).await;
    eventually("it runs", async || running.is_ready().await).await;
    running
}

fn registry(world: &World) -> Registry {
    let flaky = async |n: u64, cx: &Context| {
        tokio::task::yield_now().await;
        match (n % 50, n % 20, cx.attempt()) {
            (0, _, _) => Err(Failure::reject("each fiftieth")),
            (_, 0, 1) => Err(Failure::retry("each twentieth, once")),
            _ => Ok(serde_json::json!(n)),
        }
    };
    world.registry().component("flaky", flaky)
}

/// Feeds the pipeline for so long, or until the books say that something is wrong.
async fn feed(world: &World, running: &Running, period: Duration) -> Vec<Unaccounted> {
    let begun = Instant::now();
    let mut next = 0;
    while begun.elapsed() < period {
        if world.numbers("in").len() < 1000 {
            world.put("in", next..next + 1000);
            next += 1000;
        }
        world.memory.drain("test", "out");
        let wrong = running.status().await.remove(0).unaccounted;
        if !wrong.is_empty() {
            println!("found after {:?}", begun.elapsed());
            return wrong;
        }
        tokio::task::yield_now().await;
    }
    Vec::new()
}

/// How long nothing may be found where all is well: within this a defect is found on a machine that is idle.
const WATCHED: Duration = Duration::from_secs(3);
/// How long it may take until a defect is found: the books are closed by whoever is given no core.
const PATIENCE: Duration = Duration::from_secs(180);

#[tokio::test]
async fn the_books_of_a_busy_pipeline_close_also_when_actors_die() {
    let world = World::new();
    let running = busy(&world).await;
    for actor in ["worker", "consumer", "producer", "worker"] {
        assert_eq!(feed(&world, &running, WATCHED / 2).await, []);
        // It may be about to come back from the last time.
        let crash = async || running.crash("first", actor).await.is_ok();
        eventually("there is one to kill", crash).await;
    }
    assert_eq!(feed(&world, &running, WATCHED).await, []);
}

#[tokio::test]
async fn a_stage_that_is_fed_directly_counts_what_came_to_it_and_how_it_ended_there() {
    let world = World::new();
    let twice = |n: u64, _: &Context| Ok::<_, Failure>(Emit::to("sort", n).and("sort", n + 100));
    let sort = async |n: u64, _: &Context| match n % 10 {
        0 => Err(Failure::reject("each tenth")),
        1 => Ok(Emit::none()),
        _ => Ok(Emit::value(n)),
    };
    let registry = world.registry().component("twice", twice).component("sort", sort);
    let yaml = "
queues: { in: { type: memory }, out: { type: memory } }
stages:
  twice: { component: twice, input: in }
  sort: { component: sort, input: twice, workers: 2 }
  last: { component: pass, input: sort, outputs: [out] }
";
    world.put("in", 0..100);
    let running = world.start(yaml, &registry).await;
    running.until_idle(None).await.unwrap();
    let stopped = running.drain().await.remove(0);
    assert!(stopped.status.closes(), "{:?}", stopped.status);
    assert_eq!(stopped.dead_letters, 10, "messages that became letters");
    let count = |name: &str| {
        let stage = stopped.status.stage(name).unwrap();
        let ended = (stage.acked, stage.filtered, stage.dead_lettered);
        (stage.fed_by.as_deref(), stage.received, ended)
    };
    assert_eq!(count("twice"), (None, 100, (80, 10, 10)), "with all that they became");
    assert_eq!(count("sort"), (Some("twice"), 200, (160, 20, 20)));
    assert_eq!(count("last"), (Some("sort"), 160, (160, 0, 0)));
    let from_queues = |name: &str| stopped.status.stage(name).unwrap().from_queues;
    let all = brigade::Counts { received: 100, done: 100 };
    assert_eq!((from_queues("twice"), from_queues("sort")), (all, brigade::Counts::default()));
}

#[tokio::test]
async fn what_came_over_a_direct_edge_has_one_outcome_also_when_actors_die() {
    let world = World::new();
    let running = busy(&world).await;
    for (stage, actor) in [("second", "worker"), ("first", "consumer"), ("second", "worker")] {
        assert_eq!(feed(&world, &running, WATCHED / 10).await, []);
        let crash = async || running.crash(stage, actor).await.is_ok();
        eventually("there is one to kill", crash).await;
    }
    assert_eq!(feed(&world, &running, WATCHED / 10).await, []);
    let stopped = running.drain().await.remove(0);
    let second = stopped.status.stage("second").unwrap();
    assert!(second.received > 0 && second.released > 0, "{second:?}");
    assert!(stopped.status.closes(), "{:?}", stopped.status);
}

/// Metrics are the process's, and all pipelines here have one name.
static SCRAPED: Mutex<()> = Mutex::const_new(());

/// Where the metrics say that the books cannot account for messages, and for how many; everything else is told to be 0.
fn unaccounted(address: SocketAddr) -> Vec<(&'static str, &'static str, f64)> {
    let mut stream = TcpStream::connect(address).unwrap();
    let request = "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let all = ["first", "second"].map(|stage| PlaceKind::ALL.map(|place| (stage, place.name())));
    let told = all.into_iter().flatten().map(|(stage, place)| {
        let labels = format!("pipeline=\"test\",stage=\"{stage}\",place=\"{place}\"");
        let line = format!("brigade_unaccounted_messages{{{labels}}}");
        assert!(text.contains(&line), "{text}");
        (stage, place, value(&text, &line))
    });
    told.filter(|(.., messages)| *messages != 0.0).collect()
}

async fn found(defect: &str, stage: &str) -> Unaccounted {
    let _alone = SCRAPED.lock().await;
    let world = World::new();
    let running = busy(&world).await;
    let listening = listen(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let server = listening.serve(running.watcher(), MetricNames::Brigade).unwrap();
    assert_eq!(feed(&world, &running, WATCHED / 3).await, []);
    assert_eq!(unaccounted(server.address()), []);
    running.sabotage(stage, defect).await.unwrap();
    let mut wrong = feed(&world, &running, PATIENCE).await;
    assert!(!wrong.is_empty(), "nobody noticed");
    let told = unaccounted(server.address());
    let wrong = wrong.remove(0);
    let is_it = |told: &&(&str, &str, f64)| (told.0, told.1) == (stage, wrong.kind.name());
    assert!(!told.is_empty() && told.iter().all(|told| is_it(&told)), "{told:?}, {wrong:?}");
    wrong
}

/// Within this long the metrics tell of what has vanished or been counted twice.
const TOLD: Duration = Duration::from_secs(3);

/// By the clock that the books go by: what a machine takes to come to it is not counted.
#[test]
fn a_defect_is_in_the_metrics_within_three_seconds_with_its_stage_and_place() {
    let defects = [
        ("leak", "second", "worker"),
        ("ack_twice", "first", "consumer"),
        ("lose", "second", "edge"),
        ("no_outcome", "first", "consumer"),
        ("drop_output", "first", "consumer"),
    ];
    for (defect, stage, place) in defects {
        paused(async {
            let _alone = SCRAPED.lock().await;
            let world = World::new();
            let registry = registry(&world);
            let pipeline = brigade::Pipeline::new(world.load(YAML, &registry), &registry).unwrap();
            let pipeline = pipeline.state(world.state.clone());
            let running = Supervisor::new().add(pipeline).start_here().await.unwrap();
            eventually("it runs", async || running.is_ready().await).await;
            let listening = listen(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
            let server = listening.serve(running.watcher(), MetricNames::Brigade).unwrap();
            let address = server.address();
            // The clock stands still while somebody waits for this.
            let told =
                async || tokio::task::spawn_blocking(move || unaccounted(address)).await.unwrap();
            running.sabotage(stage, defect).await.unwrap();
            world.put("in", 0..1000);
            let begun = tokio::time::Instant::now();
            let mut wrong = told().await;
            assert_eq!(wrong, [], "it takes three closings");
            while wrong.is_empty() {
                assert!(begun.elapsed() < TOLD, "{defect} is not told");
                tokio::time::advance(Duration::from_millis(50)).await;
                wrong = told().await;
            }
            println!("{defect}: told after {:?}", begun.elapsed());
            assert!(wrong.iter().all(|told| (told.0, told.1) == (stage, place)), "{wrong:?}");
        });
    }
}

#[tokio::test]
async fn a_guard_that_a_worker_leaks_is_found() {
    let wrong = found("leak", "second").await;
    assert_eq!(
        (wrong.stage.as_str(), wrong.kind, wrong.messages),
        ("second", PlaceKind::Worker, 1)
    );
    assert!(wrong.place.starts_with("worker "), "{wrong:?}");
}

#[tokio::test]
async fn a_message_that_is_acked_twice_is_found() {
    let wrong = found("ack_twice", "first").await;
    assert_eq!(
        (wrong.stage.as_str(), wrong.kind, wrong.messages),
        ("first", PlaceKind::Consumer, -1)
    );
    assert!(wrong.place.starts_with("consumer of queue `in`"), "{wrong:?}");
}

/// What came is one more than all outcomes, each counted as its kind, and what is in flight.
#[tokio::test]
async fn a_message_that_is_counted_as_no_kind_of_outcome_is_found() {
    let wrong = found("no_outcome", "first").await;
    assert_eq!(
        (wrong.stage.as_str(), wrong.kind, wrong.messages),
        ("first", PlaceKind::Consumer, 1)
    );
    assert!(wrong.place.starts_with("consumer of queue `in`"), "{wrong:?}");
}

#[tokio::test]
async fn an_output_that_is_neither_put_nor_refused_is_found() {
    let wrong = found("drop_output", "first").await;
    assert_eq!(
        (wrong.stage.as_str(), wrong.kind, wrong.messages),
        ("first", PlaceKind::Consumer, 1)
    );
    assert!(wrong.place.starts_with("outputs of what came from queue `in`"), "{wrong:?}");
}

#[tokio::test]
async fn a_delivery_that_is_lost_on_an_edge_is_found() {
    // Both workers of the stage lose one.
    let wrong = found("lose", "second").await;
    assert_eq!((wrong.stage.as_str(), wrong.kind, wrong.messages), ("second", PlaceKind::Edge, 1));
    assert!(wrong.place.starts_with("edge to worker "), "{wrong:?}");
}

/// After a restart: what was stored, and what came since, is resolved or left.
#[tokio::test]
async fn after_a_restart_what_was_stored_and_came_is_resolved_or_left() {
    const STORED: u64 = 5000;
    const NEW: u64 = 2000;
    let directory = tempfile::tempdir().unwrap();
    let world = World::new();
    let yaml = "
queues: { first: { type: memory }, kept: { type: embedded }, out: { type: embedded } }
stages:
  feed: { component: pass, input: first, outputs: [kept] }
  work: { component: sometimes, input: kept, outputs: [out], max_in_flight: { messages: 50 } }
";
    let sometimes = async |n: u64| match n % 7 {
        0 => Err(Failure::reject("each seventh")),
        _ => Ok(serde_json::json!(n)),
    };
    let registry = world.registry().component("sometimes", sometimes);
    let start = async || {
        let topology = world.load(yaml, &registry);
        let pipeline = brigade::Pipeline::new(topology, &registry).unwrap();
        let pipeline = pipeline.state_path(directory.path());
        brigade::Supervisor::new().add(pipeline).start().await.unwrap()
    };
    let count = async |running: &Running, stage: &str| {
        let status = running.status().await.remove(0);
        let stage = status.stage(stage).unwrap();
        (stage.acked, stage.acked + stage.filtered + stage.dead_lettered + stage.discarded)
    };
    let left = async |running: &Running| {
        let mut depths = Vec::new();
        // A queue that does not answer in time is left out.
        eventually("the depth of the queue is told", async || {
            depths = running.watcher().depths().await;
            depths.retain(|depth| depth.queue == "kept");
            !depths.is_empty()
        })
        .await;
        let lag = &depths[0].lag;
        [lag.ready, lag.delayed, lag.in_flight].into_iter().flatten().sum::<u64>()
    };

    world.put("first", 0..STORED);
    let running = start().await;
    eventually("all is stored", async || count(&running, "feed").await.0 == STORED).await;
    running.stop(Some(Duration::ZERO)).await;

    let running = start().await;
    eventually("it runs", async || running.is_ready().await).await;
    running.drain_stage("work").await.unwrap();
    let stored = left(&running).await;
    let (_, before) = count(&running, "work").await;
    world.put("first", STORED..STORED + NEW);
    eventually("the new ones are stored", async || count(&running, "feed").await.0 == NEW).await;
    running.resume("work").await.unwrap();
    eventually("some are done", async || count(&running, "work").await.1 > before + 500).await;
    running.drain_stage("work").await.unwrap();
    let (_, resolved) = count(&running, "work").await;
    assert_eq!(stored + before + NEW, resolved + left(&running).await);
    assert_eq!(running.status().await.remove(0).unaccounted, []);
    running.stop(None).await;
}
