//! The names of Volley 1.x, for existing dashboards: `metrics: { names: volley }`.
//!
//! Written as text rather than through the recorder, which has no summaries without quantiles.

use std::fmt::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use brigade_runtime::{PipelineStatus, StageState, StageStatus, Times, conversions};

/// The types of queues whose times are reported as those of Redis.
const REDIS: [&str; 2] = ["redis_stream", "rsmq"];

/// The exposition of these pipelines. `since` is when the counts began.
pub(crate) fn text(pipelines: &[PipelineStatus], since: SystemTime) -> String {
    let since = since.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let mut page = Page { text: String::new(), since };
    // Writing to a string cannot fail.
    let _ = page.write(pipelines);
    page.text
}

struct Page {
    text: String,
    since: f64,
}

/// Labels and a count.
type Count = (String, u64);

impl Page {
    fn write(&mut self, pipelines: &[PipelineStatus]) -> fmt::Result {
        let stages = || pipelines.iter().flat_map(|pipeline| &pipeline.stages);
        let of = |stage: &StageStatus, rest: &str| {
            format!("volley_app=\"{}\",{rest}", escaped(&stage.stage))
        };
        let pulls = stages().map(|stage| stage.pulls).sum();
        self.counter("heartbeats", "Answers of queues.", [(String::new(), pulls)])?;
        let consumed = stages().flat_map(|stage| {
            let wrong = unreadable(stage);
            let read = stage.received.saturating_sub(wrong);
            [(of(stage, "status=\"success\""), read), (of(stage, "status=\"fail\""), wrong)]
        });
        let text = "Messages that came; those that do not decode or fit the schema are failures.";
        self.counter("messages_consumed_count", text, consumed)?;
        let produced = stages().flat_map(|stage| {
            stage.outputs.iter().map(move |outputs| {
                let (from, to) = (escaped(&outputs.input), escaped(&outputs.output));
                let edge = format!("source=\"{from}\",destination=\"{to}\"");
                (of(stage, &edge), outputs.messages)
            })
        });
        self.counter("messages_produced_count", "Outputs to queues.", produced)?;
        let process = stages().flat_map(|stage| {
            let component = Times { count: stage.calls, time: stage.busy };
            [
                (of(stage, "process_name=\"component\""), component),
                (of(stage, "process_name=\"cycle\""), stage.settled),
            ]
        });
        let text = "Time in the component, and from receiving a message until it is settled.";
        self.summary("process_time_seconds", text, process)?;
        // Components' values become payloads in one step.
        let conversions = conversions().chain([("deconstruct", Times::default())]);
        let conversions = conversions.map(|(name, times)| (format!("process=\"{name}\""), times));
        let text = "Time to turn payloads into values, and values into payloads.";
        self.summary("data_model_process_seconds", text, conversions)?;
        let ended = stages().flat_map(|stage| {
            let name = escaped(&stage.stage);
            let label = |status| format!("app_name=\"{name}\",status=\"{status}\"");
            let is = |state| u64::from(stage.state == state);
            [
                (label("success"), is(StageState::Stopped)),
                (label("failure"), is(StageState::Failed)),
            ]
        });
        self.counter("volley_app_completions", "Stages that have ended.", ended)?;
        self.queues(pipelines)
    }

    fn queues(&mut self, pipelines: &[PipelineStatus]) -> fmt::Result {
        let queues = || pipelines.iter().flat_map(|pipeline| &pipeline.queues);
        if queues().any(|queue| queue.kind == "kafka") {
            let kafka = || queues().filter(|queue| queue.kind == "kafka");
            let reports = [
                ("success", kafka().map(|queue| queue.written).sum()),
                ("fail", kafka().map(|queue| queue.failed).sum()),
            ];
            let reports = reports.map(|(status, n)| (format!("status=\"{status}\""), n));
            self.counter("delivery_report_status", "Outputs to Kafka, by its answer.", reports)?;
        }
        if queues().any(|queue| REDIS.contains(&queue.kind)) {
            let redis = || queues().filter(|queue| REDIS.contains(&queue.kind));
            let all = |times: Vec<Times>| {
                let add = |sum: Times, one: Times| Times {
                    count: sum.count + one.count,
                    time: sum.time + one.time,
                };
                times.into_iter().fold(Times::default(), add)
            };
            let operations = [
                ("read", all(redis().map(|queue| queue.reads).collect())),
                ("write", all(redis().map(|queue| queue.writes).collect())),
                ("delete", all(redis().map(|queue| queue.acks).collect())),
            ];
            let operations = operations.map(|(name, t)| (format!("operation=\"{name}\""), t));
            let text = "Answers of Redis to batches; reading includes waiting for messages.";
            self.summary("redis_process_time_seconds", text, operations)?;
        }
        Ok(())
    }

    fn counter(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = Count>,
    ) -> fmt::Result {
        let values: Vec<Count> = values.into_iter().collect();
        self.head(&format!("{name}_total"), help, "counter")?;
        for (labels, value) in &values {
            self.line(&format!("{name}_total"), labels, value)?;
        }
        self.created(name, help, values.iter().map(|(labels, _)| labels))
    }

    fn summary(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (String, Times)>,
    ) -> fmt::Result {
        let values: Vec<(String, Times)> = values.into_iter().collect();
        self.head(name, help, "summary")?;
        for (labels, times) in &values {
            self.line(&format!("{name}_count"), labels, times.count)?;
            self.line(&format!("{name}_sum"), labels, times.time.as_secs_f64())?;
        }
        self.created(name, help, values.iter().map(|(labels, _)| labels))
    }

    fn created<'l>(
        &mut self,
        name: &str,
        help: &str,
        labels: impl Iterator<Item = &'l String>,
    ) -> fmt::Result {
        let (name, since) = (format!("{name}_created"), self.since);
        self.head(&name, help, "gauge")?;
        for labels in labels {
            self.line(&name, labels, since)?;
        }
        Ok(())
    }

    fn head(&mut self, name: &str, help: &str, kind: &str) -> fmt::Result {
        writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}")
    }

    fn line(&mut self, name: &str, labels: &str, value: impl fmt::Display) -> fmt::Result {
        match labels {
            "" => writeln!(self.text, "{name} {value}"),
            _ => writeln!(self.text, "{name}{{{labels}}} {value}"),
        }
    }
}

/// Messages that could not be read, or did not fit their queue's schema.
fn unreadable(stage: &StageStatus) -> u64 {
    ["decode", "schema"].iter().filter_map(|cause| stage.causes.get(cause)).sum()
}

/// A label's value, escaped for the text format.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_escaped() {
        assert_eq!(escaped("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
