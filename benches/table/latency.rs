//! From the commit of an input to the commit of its output, at 50 messages a second.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use brigade::component::Raw;
use brigade::{Failure, Memory, MemoryState, Message, Pipeline, Registry, Running};

use crate::support::{Goal, Row, Spent, pipeline, timed};

const SAMPLES: usize = 1000;
const PERIOD: Duration = Duration::from_millis(20);
/// Says which stage a child runs, and where.
const CHILD: &str = "BRIGADE_BENCH_STAGE";

fn now() -> u64 {
    u64::try_from(
        SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later than 1970").as_nanos(),
    )
    .expect("it is earlier than 2554")
}

/// The components: the last notes how old each message is, in milliseconds.
fn registry(ages: Arc<Mutex<Vec<f64>>>) -> Registry {
    brigade::registry().component("last", move |raw: Raw| {
        let payload = raw.0.as_deref().unwrap_or_default();
        let sent: u64 = std::str::from_utf8(payload)?.parse()?;
        ages.lock().expect("nobody panics with it").push(now().saturating_sub(sent) as f64 / 1e6);
        Ok::<_, Failure>(())
    })
}

fn text(kind: &str) -> String {
    format!(
        "pipeline: bench
lanes: 1
queues:
  in: {{ type: {kind} }}
  one: {{ type: {kind} }}
  two: {{ type: {kind} }}
  end: {{ type: {kind} }}
stages:
  a: {{ component: pass, input: in, outputs: [one] }}
  b: {{ component: pass, input: one, outputs: [two] }}
  c: {{ component: pass, input: two, outputs: [end] }}
  last: {{ component: last, input: end }}
"
    )
}

/// Puts messages at an even pace, each with the time; says when the last one has arrived.
async fn feed(running: &Running, ages: &Mutex<Vec<f64>>) {
    let producer = running.producer("in").await.expect("the queue is there");
    let mut pace = tokio::time::interval(PERIOD);
    for _ in 0..SAMPLES {
        pace.tick().await;
        let message = Message::new(now().to_string());
        producer.produce(&[message.into()]).await.expect("the queue takes it");
    }
    let begun = Instant::now();
    while ages.lock().expect("nobody panics with it").len() < SAMPLES {
        assert!(begun.elapsed() < Duration::from_secs(30), "not all have arrived");
        pace.tick().await;
    }
}

fn row(name: &'static str, most: f64, ages: &Mutex<Vec<f64>>) -> Row {
    let ours = ages.lock().expect("nobody panics with it").clone();
    Row { name, unit: "ms", ours, by_hand: vec![], goal: Goal::AtMost(most) }
}

pub(crate) fn memory(name: &'static str) -> Row {
    let ages = Arc::new(Mutex::new(Vec::new()));
    let registry = registry(Arc::clone(&ages)).connector(Arc::new(Memory::new()));
    let pipeline = pipeline(&text("memory"), &registry).state(MemoryState::new());
    timed(pipeline, async |running| feed(running, &ages).await);
    row(name, 5.0, &ages)
}

/// A stage each in two children, the first and the last here.
pub(crate) fn three_processes(name: &'static str) -> Row {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let mut children: Vec<Child> = ["b", "c"].map(|stage| spawn(stage, directory.path())).into();
    let ages = Arc::new(Mutex::new(Vec::new()));
    let pipeline = only(&["a", "last"], directory.path(), &registry(Arc::clone(&ages)));
    timed(pipeline, async |running| feed(running, &ages).await);
    for child in &mut children {
        child.kill().expect("it runs");
        child.wait().expect("nobody else waits for it");
    }
    row(name, 20.0, &ages)
}

/// Runs the third stage here and the two before it in children, on a state whose first queue is full.
pub(crate) fn last_of_three(directory: &Path, until: impl AsyncFnOnce(&Running)) -> Spent {
    let mut children: Vec<Child> = ["a", "b"].map(|stage| spawn(stage, directory)).into();
    let spent = timed(only(&["c"], directory, &registry(Arc::default())), until);
    for child in &mut children {
        child.kill().expect("it runs");
        child.wait().expect("nobody else waits for it");
    }
    spent
}

fn only(stages: &[&str], state: &Path, registry: &Registry) -> Pipeline {
    let stages: Vec<String> = stages.iter().map(|stage| (*stage).to_owned()).collect();
    pipeline(&text("embedded"), registry)
        .state_path(state)
        .stages(&stages)
        .expect("the stages are there")
}

fn spawn(stage: &str, state: &Path) -> Child {
    let mut child = Command::new(std::env::current_exe().expect("the program has a path"));
    child.env(CHILD, format!("{stage}={}", state.display()));
    child.stdout(Stdio::null()).spawn().expect("the program is there")
}

/// Whether this process is one of the children.
pub(crate) fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// Runs one stage until it is killed.
pub(crate) fn child() {
    let what = std::env::var(CHILD).expect("it was asked for");
    let (stage, state) = what.split_once('=').expect("the parent writes it so");
    let pipeline = only(&[stage], Path::new(state), &registry(Arc::default()));
    timed(pipeline, async |_| std::future::pending().await);
}
