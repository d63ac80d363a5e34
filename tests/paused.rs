//! Waits of whole pipelines, in time that is stopped: each is as long as the file says, and over at once.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

mod common;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use brigade::connector::{
    Connector, ConnectorEnv, ConnectorError, Consumer, Lag, QueueSpec, Reader,
};
use brigade::prelude::*;
use brigade::{Message, Pipeline, Registry, Timestamp};
use brigade_memory::Memory;
use brigade_testkit::{Fault, Like, LikeConnector, LikeConsumer, Trial, TrialSetup, paused};
use common::{World, eventually};
use tokio::time::Instant;

const MINUTE: Duration = Duration::from_secs(60);

fn of(yaml: &str, registry: &Registry) -> TrialSetup {
    Trial::of(Pipeline::new(World::new().load(yaml, registry), registry).unwrap())
}

/// A stage; `more` stands in it.
fn one(component: &str, more: &str) -> String {
    format!(
        "queues: {{ in: {{ type: memory }}, out: {{ type: memory }} }}
stages:
  first: {{ component: {component}, input: in, outputs: [out], {more} }}
"
    )
}

fn numbered(numbers: std::ops::Range<u64>) -> impl Iterator<Item = Message> {
    let event_time = Some(Timestamp::from(SystemTime::now()));
    numbers.map(move |n| Message { event_time, ..Message::new(n.to_string()) })
}

/// Sends messages, and says how long it took until nothing was left to do.
async fn took(setup: TrialSetup, messages: u64) -> (Trial, Duration) {
    let trial = setup.start().await.unwrap();
    let begun = Instant::now();
    trial.send("in", numbered(0..messages));
    trial.settle().await.unwrap();
    (trial, begun.elapsed())
}

fn at_least(took: Duration, least: Duration) {
    assert!((least..least + MINUTE).contains(&took), "{took:?} instead of {least:?}");
}

#[test]
fn back_offs_are_as_long_as_the_file_says() {
    paused(async {
        let yaml = one("pass", "retry: { attempts: 4, min: 6m, max: 12m }");
        let setup = of(&yaml, &brigade::registry());
        let (trial, took) = took(setup.fault("first", 1..=3, Fault::Error("no".into())), 1).await;
        assert_eq!(trial.outputs("out").len(), 1);
        // Each is the whole or down to half of it: 6, 12 and 12 minutes.
        assert!((15 * MINUTE..31 * MINUTE).contains(&took), "{took:?}");
        let stopped = trial.end().await;
        assert_eq!(stopped[0].status.unaccounted, []);
    });
}

/// A run that ends when nothing is left to do asks how much that is, also meanwhile.
#[test]
fn a_consumer_that_is_opened_again_does_not_end_the_run() {
    paused(async {
        let yaml = format!("restart: {{ min: 5m, max: 5m }}\n{}", one("pass", ""));
        let (trial, took) = took(of(&yaml, &brigade::registry()).stall("in", 1..=1), 3).await;
        assert_eq!(trial.outputs("out").len(), 3);
        at_least(took, 5 * MINUTE);
    });
}

#[test]
fn a_queue_stalls_as_often_as_a_trial_plans() {
    paused(async {
        let yaml = format!("restart: {{ min: 5m, max: 5m }}\n{}", one("pass", ""));
        let setup = of(&yaml, &brigade::registry()).stall("in", 1..=1).stall("in", 3..=3);
        let trial = setup.start().await.unwrap();
        for n in 0..2 {
            trial.send("in", numbered(n..n + 1));
            trial.settle().await.unwrap();
        }
        assert_eq!(trial.outputs("out").len(), 2);
        assert_eq!(trial.status().await.stage("first").unwrap().restarts, 2);
    });
}

#[test]
fn what_was_called_is_counted_while_a_worker_still_waits() {
    let never = async |n: u64| {
        std::future::pending::<()>().await;
        Ok::<_, Failure>(Emit::value(n))
    };
    let registry = brigade::registry().component("never", never);
    for (component, more, acked) in [
        ("never", "", 0),
        ("never", "timeout: 5h", 0),
        ("pass", "throttle: { rate: 1, per: 1h, burst: 1 }", 1),
    ] {
        paused(async {
            let trial = of(&one(component, more), &registry).start().await.unwrap();
            trial.send("in", numbered(0..3));
            let first = async || trial.status().await.stage("first").unwrap().clone();
            let so = async || first().await.calls == 1 && first().await.acked == acked;
            eventually("one was called", so).await;
            trial.stop(Duration::ZERO).await;
        });
    }
}

#[test]
fn a_batch_that_is_not_full_waits_for_its_age() {
    let count = async |numbers: Vec<u64>| {
        let each = numbers.into_iter().map(|number| Ok::<_, Failure>(Emit::value(number)));
        each.collect::<Vec<_>>()
    };
    let registry = brigade::registry().component("count", count);
    paused(async {
        let (trial, took) =
            took(of(&one("count", "batch: { size: 10, age: 2m }"), &registry), 13).await;
        assert_eq!(trial.outputs("out").len(), 13);
        at_least(took, 2 * MINUTE);
        assert_eq!(trial.status().await.stage("first").unwrap().calls, 2);
    });
}

/// To wait for the throttle is not the component's time.
#[test]
fn a_throttled_worker_is_idle_and_not_busy() {
    paused(async {
        let yaml = one("pass", "throttle: { rate: 1, per: 1m, burst: 1 }");
        let (trial, _) = took(of(&yaml, &brigade::registry()), 4).await;
        let stage = trial.status().await.stage("first").unwrap().clone();
        assert!(stage.busy < MINUTE && stage.idle >= 2 * MINUTE, "{stage:?}");
    });
}

#[test]
fn a_throttle_takes_as_long_as_its_rate_says() {
    paused(async {
        let yaml = one("pass", "throttle: { rate: 10, per: 1m, burst: 10 }");
        let (trial, took) = took(of(&yaml, &brigade::registry()), 50).await;
        assert_eq!(trial.outputs("out").len(), 50);
        at_least(took, 4 * MINUTE);
    });
}

#[test]
fn a_call_that_takes_too_long_is_tried_again_when_its_time_is_over() {
    let wait = async |number: u64| Ok::<_, Failure>(Emit::value(number));
    let registry = brigade::registry().component("wait", wait);
    paused(async {
        let setup = of(&one("wait", "timeout: 3m, retry: { attempts: 2 }"), &registry);
        let setup = setup.fault("first", 1..=1, Fault::Slow(1000 * MINUTE));
        let (trial, took) = took(setup, 1).await;
        assert_eq!(trial.outputs("out").len(), 1);
        at_least(took, 3 * MINUTE);
        assert_eq!(trial.status().await.stage("first").unwrap().timeouts, 1);
    });
}

#[test]
fn an_output_comes_when_its_delay_is_over_and_a_message_expires() {
    let late = |number: u64| Ok::<_, Failure>(Emit::value(number).delay(5 * MINUTE));
    let registry = brigade::registry().component("late", late);
    let yaml = "queues: { in: { type: memory }, mid: { type: memory }, out: { type: memory } }
stages:
  first: { component: late, input: in, outputs: [mid] }
  second: { component: pass, input: mid, outputs: [out], expire: 4m }
";
    paused(async {
        let (trial, took) = took(of(yaml, &registry), 1).await;
        at_least(took, 5 * MINUTE);
        assert_eq!((trial.outputs("out").len(), trial.dead_letters("second").len()), (0, 1));
    });
}

#[test]
fn what_finds_a_worker_full_is_dealt_as_soon_as_there_is_room() {
    let yaml = "queues: { a: { type: memory }, b: { type: memory }, out: { type: memory } }
stages:
  first: { component: pass, input: [a, b], outputs: [out], workers: 1 }
";
    paused(async {
        // As slow as this, a worker is given two messages at most: those of one of the queues.
        let setup = of(yaml, &brigade::registry()).fault("first", 1..=20, Fault::Slow(MINUTE));
        let trial = setup.start().await.unwrap();
        trial.send("a", numbered(0..10));
        trial.send("b", numbered(10..20));
        assert!(trial.settle_within(60 * MINUTE).await.unwrap(), "some are never dealt");
        assert_eq!(trial.outputs("out").len(), 20);
    });
}

#[test]
fn a_write_to_the_state_does_not_overtake_one_before_it_whose_output_is_held_up() {
    let last = async |n: u64, cx: &Context| -> Result<Emit, Failure> {
        if n == 10_000 {
            let last = cx.load_state("last").await?;
            return Ok(Emit::bytes_to("seen", last.unwrap_or_default()));
        }
        Ok(match n {
            0 => Emit::to("out", n).put_state("last", "0"),
            100 => Emit::none().put_state("last", "100"),
            _ => Emit::none(),
        })
    };
    let registry = brigade::registry().component("last", last);
    let yaml = "queues: { in: { type: memory }, out: { type: memory }, seen: { type: memory } }
stages:
  first: { component: last, input: in, outputs: [out, seen], workers: 1 }
";
    paused(async {
        let setup = of(yaml, &registry).outage("out", 1..=20);
        let (trial, _) = took(setup, 2000).await;
        trial.send("in", numbered(10_000..10_001));
        trial.settle().await.unwrap();
        assert_eq!(trial.outputs("seen")[0].payload.as_deref(), Some(&b"100"[..]));
    });
}

/// A message is settled when what it became over a direct edge is resolved: an earlier one after a later
/// one, or, where an output is held up, in one settlement with it.
#[test]
fn over_a_direct_edge_an_earlier_write_to_the_state_does_not_go_over_a_later_one() {
    let last = async |n: u64, cx: &Context| -> Result<Emit, Failure> {
        Ok(match n {
            0 => Emit::to("out", n),
            10_000 => Emit::bytes_to("out", cx.load_state("last").await?.unwrap_or_default()),
            _ => Emit::to("hold", n).put_state("last", n.to_string()),
        })
    };
    let hold = async |_: u64| Ok::<_, Failure>(Emit::none());
    let registry = brigade::registry().component("last", last).component("hold", hold);
    let yaml = "queues: { in: { type: memory }, out: { type: memory } }
stages:
  first: { component: last, input: in, outputs: [out], workers: 1 }
  hold: { component: hold, input: first, workers: 2 }
";
    for outage in [0..=0, 1..=15] {
        paused(async {
            let setup = of(yaml, &registry).outage("out", outage.clone());
            let setup = setup.fault("hold", 1..=1, Fault::Slow(Duration::from_secs(1)));
            let (trial, _) = took(setup, 3).await;
            trial.send("in", numbered(10_000..10_001));
            trial.settle().await.unwrap();
            assert_eq!(trial.outputs("out")[1].payload.as_deref(), Some(&b"2"[..]), "{outage:?}");
        });
    }
}

#[test]
fn by_priority_an_input_that_is_opened_again_holds_up_no_later_one() {
    let yaml = "restart: { min: 1h, max: 1h }
queues: { first: { type: memory }, then: { type: memory }, out: { type: memory } }
stages:
  pass: { component: pass, input: { queues: [first, then], priority: true }, outputs: [out] }
";
    paused(async {
        let setup = of(yaml, &brigade::registry()).stall("first", 1..=1);
        let trial = setup.start().await.unwrap();
        trial.send("then", numbered(0..10));
        assert!(!trial.settle_within(30 * MINUTE).await.unwrap(), "the first is not back yet");
        assert_eq!(trial.outputs("out").len(), 10);
    });
}

#[test]
fn all_consumers_of_a_stage_share_what_it_may_have_in_flight() {
    let never = async |number: u64| {
        std::future::pending::<()>().await;
        Ok::<_, Failure>(Emit::value(number))
    };
    let registry = brigade::registry().component("never", never);
    let yaml = "queues: { a: { type: memory }, b: { type: memory } }
stages:
  first: { component: never, input: [a, b], workers: 4, max_in_flight: { messages: 4 } }
";
    paused(async {
        let trial = of(yaml, &registry).start().await.unwrap();
        trial.send("a", numbered(0..100));
        trial.send("b", numbered(100..200));
        assert!(!trial.settle_within(MINUTE).await.unwrap());
        assert_eq!(trial.status().await.stage("first").unwrap().in_flight, 4);
        trial.stop(Duration::ZERO).await;
    });
}

#[test]
fn a_stop_waits_for_its_deadline() {
    let never = async |number: u64| {
        std::future::pending::<()>().await;
        Ok::<_, Failure>(Emit::value(number))
    };
    let registry = brigade::registry().component("never", never);
    paused(async {
        let trial = of(&one("never", ""), &registry).start().await.unwrap();
        trial.send("in", numbered(0..1));
        let held = async || trial.status().await.stage("first").unwrap().in_flight > 0;
        eventually("it is held", held).await;
        let begun = Instant::now();
        let (memory, _) = trial.stop_with_queues(2 * MINUTE).await;
        at_least(begun.elapsed(), 2 * MINUTE);
        assert_eq!(memory.messages("test", "in").len(), 1);
    });
}

#[test]
fn a_worker_that_has_much_to_do_lets_others_of_its_lane_take_their_turn() {
    const MESSAGES: u64 = 4_000;
    let (fed, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let first_seen = Arc::new(AtomicU64::new(0));
    let counted = fed.clone();
    let feed = move |n: u64| {
        counted.fetch_add(1, Relaxed);
        Ok::<_, Failure>(Emit::value(n))
    };
    let (all, count) = (fed, done.clone());
    // Until all are there the first holds up its key.
    let work = move |n: u64| {
        if all.load(Relaxed) < MESSAGES {
            return Err(Failure::retry("not yet"));
        }
        count.fetch_add(1, Relaxed);
        Ok(Emit::value(n))
    };
    let seen = first_seen.clone();
    let look = move |n: u64| {
        let _ = seen.compare_exchange(0, done.load(Relaxed), Relaxed, Relaxed);
        Ok::<_, Failure>(Emit::value(n))
    };
    let registry = brigade::registry();
    let registry = registry.component("feed", feed).component("work", work).component("look", look);
    let yaml = "queues: { in: { type: memory }, mid: { type: memory }, out: { type: memory } }
stages:
  feed: { component: feed, input: in, max_in_flight: { messages: 10000 } }
  work:
    { component: work, input: feed, outputs: [mid], order: key,
      retry: { attempts: 1000000, min: 1ms, max: 1ms } }
  look: { component: look, input: mid, outputs: [out] }
";
    paused(async {
        let trial = of(yaml, &registry).start().await.unwrap();
        trial.send("in", numbered(0..MESSAGES).map(|message| message.with_key("one")));
        trial.settle().await.unwrap();
        assert_eq!(trial.outputs("out").len() as u64, MESSAGES);
    });
    let first_seen = first_seen.load(Relaxed);
    assert!(first_seen < MESSAGES / 2, "{first_seen} of {MESSAGES} before anybody else");
}

#[test]
fn with_order_by_key_no_more_is_taken_than_workers_do_soon() {
    let slow = async |n: u64| {
        if n < 100 {
            std::future::pending::<()>().await;
        }
        Ok::<_, Failure>(Emit::value(n))
    };
    let registry = brigade::registry().component("slow", slow);
    paused(async {
        let setup = of(&one("slow", "order: key, workers: 4"), &registry);
        let trial = setup.start().await.unwrap();
        let keyed = |message: Message| {
            let key = message.payload.clone().unwrap();
            message.with_key(key)
        };
        trial.send("in", numbered(0..1000).map(keyed));
        assert!(!trial.settle_within(MINUTE).await.unwrap());
        let in_flight = trial.status().await.stage("first").unwrap().in_flight;
        assert!((4..=100).contains(&in_flight), "{in_flight} of 1000 were taken");
        trial.stop(Duration::ZERO).await;
    });
    paused(async {
        // Now each takes its time, and all are handled.
        let setup = of(&one("pass", "order: key, workers: 4"), &registry);
        let setup = setup.fault("first", 1..=1000, Fault::Slow(Duration::from_millis(20)));
        let (trial, _) = took(setup, 1000).await;
        assert_eq!(trial.outputs("out").len(), 1000);
    });
}

/// Volley's kill flag ended a run within ten seconds.
#[test]
fn who_is_idle_stops_within_ten_seconds() {
    paused(async {
        let (trial, _) = took(of(&one("pass", ""), &brigade::registry()), 0).await;
        let begun = Instant::now();
        let stopped = trial.end().await;
        assert!(begun.elapsed() <= Duration::from_secs(10), "{:?}", begun.elapsed());
        assert_eq!(stopped[0].status.unaccounted, []);
    });
}

/// Queues that never say how much waits in them.
struct Silent(Memory);

#[async_trait]
impl LikeConnector for Silent {
    fn inner(&self) -> &dyn Connector {
        &self.0
    }

    fn type_name(&self) -> &'static str {
        "silent"
    }

    async fn consumer(
        &self,
        queue: &QueueSpec,
        reader: &Reader,
        env: &ConnectorEnv,
    ) -> Result<Arc<dyn Consumer>, ConnectorError> {
        Ok(Arc::new(Like(SaysNothing(self.0.consumer(queue, reader, env).await?))))
    }
}

struct SaysNothing(Arc<dyn Consumer>);

#[async_trait]
impl LikeConsumer for SaysNothing {
    fn inner(&self) -> &dyn Consumer {
        &*self.0
    }

    async fn lag(&self) -> Result<Lag, ConnectorError> {
        std::future::pending().await
    }
}

/// Each time somebody reads the metrics.
#[test]
fn queues_that_do_not_answer_keep_nobody_waiting_for_the_others() {
    let yaml = "
queues: { a: { type: silent }, b: { type: silent }, c: { type: memory } }
stages:
  one: { component: log, input: { queues: [a, b, c] } }
";
    paused(async {
        let world = World::new();
        let registry = world.registry().connector(Arc::new(Like(Silent(world.memory.clone()))));
        let running = world.start(yaml, &registry).await;
        eventually("it runs", async || running.is_ready().await).await;
        let begun = Instant::now();
        let depths = running.watcher().depths().await;
        let told: Vec<&str> = depths.iter().map(|depth| &*depth.queue).collect();
        assert!(told.contains(&"c") && !told.contains(&"a"), "{told:?}");
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        running.stop(None).await;
    });
}

/// Little credit is used too: otherwise a quarter of the workers would wait for calls that take long.
#[test]
fn a_worker_works_while_all_the_others_are_held_up() {
    let hour = 60 * MINUTE;
    let times = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&times);
    let work = move |n: u64| {
        noted.lock().unwrap().push((n, Instant::now()));
        Ok::<_, Failure>(Emit::value(n))
    };
    paused(async move {
        let registry = brigade::registry().component("work", work);
        let yaml = one("work", "workers: 8, max_in_flight: { messages: 8 }");
        let setup = of(&yaml, &registry).fault("first", 1..=7, Fault::Slow(hour));
        let begun = Instant::now();
        let (trial, took) = took(setup, 17).await;
        assert_eq!(trial.outputs("out").len(), 17);
        at_least(took, hour);
        let times = times.lock().unwrap();
        let quick = times.iter().filter(|(_, at)| *at - begun < MINUTE).count();
        assert_eq!(quick, 10, "{times:?}");
    });
}

/// One at a time means one after the other, not one each time that credit has been waited for.
#[test]
fn messages_in_the_order_of_the_queue_do_not_wait_for_credit() {
    paused(async {
        let setup = of(&one("pass", "order: queue"), &brigade::registry());
        let (trial, took) = took(setup, 1000).await;
        assert_eq!(trial.outputs("out").len(), 1000);
        assert!(took < Duration::from_secs(5), "{took:?}");
    });
}

/// What a component makes is larger than what it gets, and waits on a direct edge.
#[test]
fn what_waits_on_a_direct_edge_is_bounded_in_bytes() {
    const MESSAGES: u64 = 800;
    let (waiting, most) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (added, noted) = (Arc::clone(&waiting), Arc::clone(&most));
    let grow = move |_: u64| {
        noted.fetch_max(added.fetch_add(1, Relaxed) + 1, Relaxed);
        Ok::<_, Failure>(Emit::value("x".repeat(20_000)))
    };
    let hold = move |text: String| {
        waiting.fetch_sub(1, Relaxed);
        Ok::<_, Failure>(Emit::value(text.len()))
    };
    let yaml = "
queues: { in: { type: memory }, out: { type: memory } }
stages:
  grow: { component: grow, input: in, max_in_flight: { bytes: 400KB } }
  hold: { component: hold, input: grow, outputs: [out] }
";
    paused(async move {
        let registry = brigade::registry().component("grow", grow).component("hold", hold);
        let setup =
            of(yaml, &registry).fault("hold", 1..=MESSAGES, Fault::Slow(Duration::from_secs(1)));
        let (trial, _) = took(setup, MESSAGES).await;
        assert_eq!(trial.outputs("out").len(), MESSAGES as usize);
        // 20 fill the credit; as many as a worker gets at once may already have been dealt.
        let most = most.load(Relaxed);
        assert!(most <= 20 + 512 + 20, "{most} messages of 20 kB at once");
    });
}
