//! What the rows share: pairs, percentiles, pipelines out of text.

use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use brigade::pipeline_file::{Format, Overrides, load_str};
use brigade::{Pipeline, Registry, Running, Supervisor};
use serde_json::{Value, json};

/// How often a pair is measured.
pub(crate) const PAIRS: usize = 5;

/// What a row has to show.
#[derive(Clone, Copy)]
pub(crate) enum Goal {
    /// This part of what the loop by hand carries, at least.
    OfByHand(f64),
    /// This many times what the loop by hand takes, at most.
    AtMostOfByHand(f64),
    /// At least so much.
    AtLeast(f64),
    /// At most so much; of several samples the 99th of a hundred.
    AtMost(f64),
    /// So much more than the loop by hand, at most; of both the 99th of a hundred.
    AtMostAdded(f64),
}

/// What was measured.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) ours: Vec<f64>,
    pub(crate) by_hand: Vec<f64>,
    pub(crate) goal: Goal,
}

/// What something took: time, and the processor's time of all threads of the process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spent {
    pub(crate) took: Duration,
    pub(crate) cpu: Duration,
}

/// Measures what is [`Spent`].
pub(crate) struct Stopwatch {
    begun: Instant,
    cpu: Duration,
}

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self { begun: Instant::now(), cpu: processor_time("self") }
    }

    pub(crate) fn stop(self) -> Spent {
        Spent { took: self.begun.elapsed(), cpu: processor_time("self") - self.cpu }
    }
}

/// Of all threads that there are and were in a process, in hundredths of a second.
pub(crate) fn processor_time(process: &str) -> Duration {
    let text =
        std::fs::read_to_string(format!("/proc/{process}/stat")).expect("the process is there");
    // Behind the program's name, which may have blanks: the 12th and 13th of the rest.
    let (_, rest) = text.rsplit_once(") ").expect("the name is in brackets");
    let ticks =
        rest.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u64>().expect("it is a number"));
    Duration::from_millis(ticks.sum::<u64>() * 10)
}

/// The resident memory of a process, in megabytes.
pub(crate) fn resident(process: &str) -> f64 {
    let statm =
        std::fs::read_to_string(format!("/proc/{process}/statm")).expect("the process is there");
    let pages: f64 =
        statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("it is a number");
    pages * 4096.0 / 1e6
}

/// The value that so many of a hundred do not exceed.
fn percentile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (part / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted[at.clamp(1, sorted.len()) - 1]
}

impl Row {
    /// Messages a second of both, in pairs.
    pub(crate) fn rates(
        name: &'static str,
        goal: f64,
        messages: usize,
        ours: impl Fn() -> Spent,
        by_hand: impl Fn() -> Spent,
    ) -> Self {
        let rate = |spent: Spent| messages as f64 / spent.took.as_secs_f64();
        let mut row = Self {
            name,
            unit: "messages/s",
            ours: vec![],
            by_hand: vec![],
            goal: Goal::OfByHand(goal),
        };
        for _ in 0..PAIRS {
            row.by_hand.push(rate(by_hand()));
            row.ours.push(rate(ours()));
        }
        row
    }

    /// Processor time for a message of both, in pairs, all threads of the process together.
    pub(crate) fn processor(
        name: &'static str,
        goal: f64,
        messages: usize,
        ours: impl Fn() -> Spent,
        by_hand: impl Fn() -> Spent,
    ) -> Self {
        let each = |spent: Spent| spent.cpu.as_secs_f64() * 1e6 / messages as f64;
        let (unit, goal) = ("µs of processor/message", Goal::AtMostOfByHand(goal));
        let mut row = Self { name, unit, ours: vec![], by_hand: vec![], goal };
        for _ in 0..PAIRS {
            row.by_hand.push(each(by_hand()));
            row.ours.push(each(ours()));
        }
        row
    }

    /// The median of the pairs' ratios.
    fn ratio(&self) -> Option<f64> {
        if matches!(self.goal, Goal::AtMostAdded(_)) {
            return None;
        }
        let ratios: Vec<f64> = self.ours.iter().zip(&self.by_hand).map(|(o, h)| o / h).collect();
        (!ratios.is_empty()).then(|| percentile(&ratios, 50.0))
    }

    fn met(&self) -> bool {
        match self.goal {
            Goal::OfByHand(part) => self.ratio().is_some_and(|ratio| ratio >= part),
            Goal::AtMostOfByHand(most) => self.ratio().is_some_and(|ratio| ratio <= most),
            Goal::AtLeast(least) => percentile(&self.ours, 50.0) >= least,
            Goal::AtMost(most) => percentile(&self.ours, 99.0) <= most,
            Goal::AtMostAdded(most) => {
                percentile(&self.ours, 99.0) - percentile(&self.by_hand, 99.0) <= most
            }
        }
    }

    pub(crate) fn to_json(&self) -> Value {
        let spread = |values: &[f64]| match values {
            [] => Value::Null,
            values => json!({
                "samples": values.len(),
                "min": percentile(values, 0.0),
                "p50": percentile(values, 50.0),
                "p99": percentile(values, 99.0),
                "max": percentile(values, 100.0),
            }),
        };
        let goal = match self.goal {
            Goal::OfByHand(part) => json!({ "of_by_hand": part }),
            Goal::AtMostOfByHand(most) => json!({ "at_most_of_by_hand": most }),
            Goal::AtLeast(least) => json!({ "at_least": least }),
            Goal::AtMost(most) => json!({ "p99_at_most": most }),
            Goal::AtMostAdded(most) => json!({ "p99_at_most_above_by_hand": most }),
        };
        json!({
            "name": self.name,
            "unit": self.unit,
            "brigade": spread(&self.ours),
            "by_hand": spread(&self.by_hand),
            "ratio": self.ratio(),
            "goal": goal,
            "met": self.met(),
        })
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (p50, p99) = (percentile(&self.ours, 50.0), percentile(&self.ours, 99.0));
        write!(f, "  {p50:.3} {} (p99 {p99:.3})", self.unit)?;
        if let Some(ratio) = self.ratio() {
            write!(f, ", {ratio:.2} of the loop by hand")?;
        }
        write!(f, "{}", if self.met() { "" } else { ": below the goal" })
    }
}

/// A pipeline out of text.
pub(crate) fn pipeline(text: &str, registry: &Registry) -> Pipeline {
    let overrides = Overrides::default();
    let loaded = load_str("bench", Format::Yaml, text, Path::new("."), &overrides, registry);
    let topology = loaded.unwrap_or_else(|error| panic!("{error}")).topology;
    Pipeline::new(topology, registry).expect("the pipeline is good")
}

/// Runs something with a pipeline that has started; says how long that took.
pub(crate) fn timed(pipeline: Pipeline, until: impl AsyncFnOnce(&Running)) -> Spent {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime can be made");
    runtime.block_on(async {
        let begun = Stopwatch::start();
        let running = Supervisor::new().add(pipeline).start().await.expect("it starts");
        until(&running).await;
        let spent = begun.stop();
        // Not drained: a message that fails again and again would never be resolved.
        running.stop(Some(Duration::from_secs(1))).await;
        spent
    })
}

/// Until everything that is there is done.
pub(crate) async fn idle(running: &Running) {
    running.until_idle(None).await.expect("its queues tell when they are empty");
}

/// Until a stage, the only one here, has done so many messages.
pub(crate) async fn acked(running: &Running, messages: usize) {
    let done =
        async || running.status().await[0].stages.iter().map(|stage| stage.acked).sum::<u64>();
    while done().await < messages as u64 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
