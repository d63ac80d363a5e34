//! What is measured, and under which names. `docs/src/metrics.md` lists them; a test compares the
//! two.

use brigade_runtime::{
    Outputs, PipelineStatus, PlaceKind, QueueDepth, StageState, StageStatus, Unaccounted,
};
use metrics::{
    Gauge, Label, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge,
};
use parking_lot::Mutex;

/// A counter's name, its meaning, and where to find it in the status.
type Count = (&'static str, &'static str, fn(&StageStatus) -> u64);

/// The counters of a stage.
const COUNTERS: [Count; 12] = [
    ("brigade_messages_received_total", "Messages handed to the stage.", |s| s.received),
    ("brigade_messages_acked_total", "Messages done.", |s| s.acked),
    ("brigade_messages_filtered_total", "Messages that became nothing on purpose.", |s| s.filtered),
    ("brigade_messages_requeued_total", "Messages put back after a failed attempt.", |s| {
        s.requeued
    }),
    ("brigade_messages_released_total", "Messages given back undecided.", |s| s.released),
    ("brigade_messages_discarded_total", "Messages given up on and not kept.", |s| s.discarded),
    ("brigade_pulls_total", "Answers of its queues with messages.", |s| s.pulls),
    ("brigade_calls_total", "Calls of the component.", |s| s.calls),
    ("brigade_failed_attempts_total", "Attempts that failed.", |s| s.failed_attempts),
    ("brigade_panics_total", "Attempts that panicked.", |s| s.panics),
    ("brigade_timeouts_total", "Attempts that took too long.", |s| s.timeouts),
    ("brigade_restarts_total", "Actors started again, and starts tried again.", |s| s.restarts),
];

const DEAD_LETTERS: &str = "brigade_dead_letters_total";
const OUTPUTS: &str = "brigade_outputs_total";
const BUSY: &str = "brigade_busy_milliseconds_total";
const IDLE: &str = "brigade_idle_milliseconds_total";
const BLOCKED_FOR: &str = "brigade_blocked_milliseconds_total";
const LAST: &str = "brigade_last_message_age_seconds";
const IN_FLIGHT: &str = "brigade_in_flight";
const WORKERS: &str = "brigade_workers";
const RUNNING: &str = "brigade_stage_running";
const BLOCKED: &str = "brigade_stage_blocked";
const STUCK: &str = "brigade_stuck_threads";
const UNACCOUNTED: &str = "brigade_unaccounted_messages";
const DEPTH: &str = "brigade_queue_messages";
const PARTITION: &str = "brigade_partition_messages";
const BYTES: &str = "brigade_queue_bytes";
const AGE: &str = "brigade_queue_oldest_age_seconds";
const COMPONENT: &str = "brigade_component_seconds";
const SETTLE: &str = "brigade_settle_seconds";
const MESSAGE_AGE: &str = "brigade_age_seconds";
const QUEUE: &str = "brigade_queue_seconds";

/// The most partitions of a queue whose depths are published.
const PARTITIONS_MAX: usize = 1000;

/// Describes the metrics to the recorder.
pub(crate) fn describe() {
    for (name, text, _) in COUNTERS {
        describe_counter!(name, text);
    }
    describe_counter!(DEAD_LETTERS, "Dead letters, by the kind of their cause.");
    describe_counter!(BUSY, Unit::Milliseconds, "Time in components, all workers together.");
    describe_counter!(OUTPUTS, "Outputs to queues.");
    describe_counter!(
        IDLE,
        Unit::Milliseconds,
        "Time that workers waited for something to do, or for the throttle."
    );
    describe_counter!(BLOCKED_FOR, Unit::Milliseconds, "Time that outputs waited for a queue.");
    describe_gauge!(LAST, Unit::Seconds, "How long ago the stage's last message came.");
    describe_gauge!(IN_FLIGHT, "Messages delivered and unresolved.");
    describe_gauge!(WORKERS, "Workers.");
    describe_gauge!(RUNNING, "1 if the stage is running.");
    describe_gauge!(BLOCKED, "1 if outputs wait for a queue that does not take them.");
    describe_gauge!(STUCK, "Threads of blocking calls that were given up on and still run.");
    describe_gauge!(UNACCOUNTED, "Messages that the books cannot account for: 0 when all is well.");
    describe_gauge!(DEPTH, "Messages that wait for the stage: ready, delayed, in_flight, parked.");
    describe_gauge!(PARTITION, "Messages that wait for the stage in one partition.");
    describe_gauge!(AGE, Unit::Seconds, "How long the oldest ready message has waited.");
    describe_gauge!(BYTES, Unit::Bytes, "What is on the queue for the stage, whatever its state.");
    describe_histogram!(SETTLE, Unit::Seconds, "From receiving a message until it is settled.");
    describe_histogram!(
        MESSAGE_AGE,
        Unit::Seconds,
        "From putting a message on its queue to settling it."
    );
    describe_histogram!(
        QUEUE,
        Unit::Seconds,
        "How long a queue takes to answer: read, write, ack."
    );
    describe_histogram!(COMPONENT, Unit::Seconds, "How long one message takes in the component.");
}

/// Puts the state of a pipeline into the metrics.
pub(crate) fn publish(pipeline: &PipelineStatus) {
    for stage in &pipeline.stages {
        let labels = vec![
            Label::new("pipeline", pipeline.pipeline.clone()),
            Label::new("stage", stage.stage.clone()),
        ];
        for (name, _, value) in COUNTERS {
            counter!(name, labels.clone()).absolute(value(stage));
        }
        for (kind, count) in &stage.causes {
            let mut labels = labels.clone();
            labels.push(Label::new("cause", *kind));
            counter!(DEAD_LETTERS, labels).absolute(*count);
        }
        for Outputs { input, output, messages } in &stage.outputs {
            let mut labels = labels.clone();
            labels.push(Label::new("input", input.clone()));
            labels.push(Label::new("output", output.clone()));
            counter!(OUTPUTS, labels).absolute(*messages);
        }
        for (name, time) in
            [(BUSY, stage.busy), (IDLE, stage.idle), (BLOCKED_FOR, stage.blocked_for)]
        {
            let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
            counter!(name, labels.clone()).absolute(ms);
        }
        if let Some(ago) = stage.last_message {
            gauge!(LAST, labels.clone()).set(ago.as_secs_f64());
        }
        for kind in PlaceKind::ALL {
            let is_here = |wrong: &&Unaccounted| wrong.stage == stage.stage && wrong.kind == kind;
            let lost = pipeline.unaccounted.iter().filter(is_here);
            let lost: u64 = lost.map(|wrong| wrong.messages.unsigned_abs()).sum();
            let mut labels = labels.clone();
            labels.push(Label::new("place", kind.name()));
            gauge!(UNACCOUNTED, labels).set(lost as f64);
        }
        let is = |yes: bool| if yes { 1.0 } else { 0.0 };
        for (name, value) in [
            (IN_FLIGHT, stage.in_flight as f64),
            (WORKERS, stage.workers as f64),
            (RUNNING, is(stage.state == StageState::Running)),
            (BLOCKED, is(stage.blocked)),
            (STUCK, stage.stuck_threads as f64),
        ] {
            gauge!(name, labels.clone()).set(value);
        }
    }
}

/// The gauges of queue depths that were published last time.
#[derive(Debug, Default)]
pub(crate) struct Depths(Mutex<Vec<Gauge>>);

impl Depths {
    /// Publishes the depths of queues in the metrics, as far as they are known. A depth that was
    /// published and is not known any more, such as that of a queue that cannot be queried, becomes
    /// NaN: the last value would look current.
    pub(crate) fn publish(&self, depths: &[QueueDepth]) {
        let mut told = self.0.lock();
        told.drain(..).for_each(|gauge| gauge.set(f64::NAN));
        let mut tell = |gauge: Gauge, value: f64| {
            gauge.set(value);
            told.push(gauge);
        };
        for depth in depths {
            publish_depth(depth, &mut tell);
        }
    }
}

fn publish_depth(depth: &QueueDepth, tell: &mut impl FnMut(Gauge, f64)) {
    let labels = vec![
        Label::new("pipeline", depth.pipeline.clone()),
        Label::new("stage", depth.stage.clone()),
        Label::new("queue", depth.queue.clone()),
    ];
    let lag = &depth.lag;
    for (state, count) in [
        ("ready", lag.ready),
        ("delayed", lag.delayed),
        ("in_flight", lag.in_flight),
        ("parked", lag.parked),
    ] {
        let Some(count) = count else { continue };
        let mut labels = labels.clone();
        labels.push(Label::new("state", state));
        tell(gauge!(DEPTH, labels), count as f64);
    }
    for part in lag.partitions.iter().take(PARTITIONS_MAX) {
        let mut labels = labels.clone();
        labels.push(Label::new("partition", part.partition.clone()));
        tell(gauge!(PARTITION, labels), part.messages as f64);
    }
    if let Some(bytes) = lag.bytes {
        tell(gauge!(BYTES, labels.clone()), bytes as f64);
    }
    if lag.age.is_some() || lag.ready == Some(0) {
        tell(gauge!(AGE, labels), lag.age.unwrap_or_default().as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use brigade_core::connector::{Lag, PartitionLag};
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    fn depth(queue: &str, lag: Lag) -> QueueDepth {
        QueueDepth { pipeline: "p".into(), queue: queue.into(), stage: "s".into(), lag }
    }

    #[test]
    fn what_waits_is_told_of_each_partition_and_no_more_of_one_that_went() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let text = recorder.handle();
        let of = |numbers: std::ops::Range<u64>| {
            let part = |n| PartitionLag { partition: format!("orders/{n}"), messages: n };
            depth("in", Lag { partitions: numbers.map(part).collect(), ..Lag::default() })
        };
        let told = |n: u64| {
            let name = format!("partition=\"orders/{n}\"}} ");
            let text = text.render();
            text.lines().find_map(|line| line.split_once(&name).map(|(_, value)| value.to_owned()))
        };
        metrics::with_local_recorder(&recorder, || {
            let depths = Depths::default();
            depths.publish(&[of(0..2000)]);
            assert_eq!((told(0), told(999)), (Some("0".to_owned()), Some("999".to_owned())));
            assert_eq!(told(1000), None, "there is a limit");
            depths.publish(&[of(0..1)]);
            assert_eq!((told(0), told(1)), (Some("0".to_owned()), Some("NaN".to_owned())));
        });
    }

    #[test]
    fn the_depth_of_a_queue_that_cannot_be_asked_any_more_is_no_number() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let text = recorder.handle();
        let here = depth("here", Lag { ready: Some(0), ..Lag::default() });
        let away = depth("away", Lag { ready: Some(3), bytes: Some(7), ..Lag::default() });
        metrics::with_local_recorder(&recorder, || {
            let depths = Depths::default();
            depths.publish(&[here.clone(), away.clone()]);
            let is = |queue: &str, state: &str, value: &str| {
                let labels =
                    format!("{{pipeline=\"p\",stage=\"s\",queue=\"{queue}\"{state}}} {value}\n");
                text.render().contains(&labels)
            };
            let ready = ",state=\"ready\"";
            assert!(is("away", ready, "3") && is("away", "", "7"), "{}", text.render());
            depths.publish(std::slice::from_ref(&here));
            assert!(is("away", ready, "NaN") && is("away", "", "NaN"), "{}", text.render());
            assert!(is("here", ready, "0"), "{}", text.render());
            depths.publish(&[here, away]);
            assert!(is("away", ready, "3"), "{}", text.render());
        });
    }
}
