//! `brigade test`: runs the cases of test files.

mod checked;
mod compare;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use brigade_core::{CauseKind, DeadLetter, Message, Period};
use brigade_pipeline::{Diagnostics, Document, Overrides, PipelineFile, Topology};
use brigade_runtime::{Pipeline, Registry, Stopped};
use brigade_testkit::Trial;
use clap::Args;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use self::checked::checked;
use self::compare::{Got, compare};
use crate::Exit;
use crate::common::print;

/// Run the cases of test files: messages that are sent to a pipeline, and what is expected of it.
///
/// Each case has a pipeline of its own, with memory in place of each queue.
#[derive(Debug, Args)]
pub(crate) struct Test {
    /// The test files, such as `orders.test.yaml`; also .toml and .json.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Only cases whose name contains this.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
}

/// A test file.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct TestFile {
    /// The pipeline file, relative to the test file.
    pipeline: PathBuf,
    /// Variables for the pipeline file, overriding those of the environment.
    #[serde(default)]
    env: BTreeMap<String, String>,
    cases: Vec<Case>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    /// What is sent, by queue that a stage reads: payloads, or messages with `payload` or `raw`
    /// (`null` is no payload), `key`, `headers`.
    send: BTreeMap<String, Vec<Value>>,
    #[serde(default)]
    expect: Expect,
    /// How long it may take, with the start of its pipeline. Default: 30s.
    timeout: Option<Period>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Expect {
    /// Payloads by queue, in full: all that stages put there, even if another stage reads it, apart
    /// from dead letters. Equal by value, or byte for byte those in `raw`. A queue that no stage
    /// reads and that is not listed must stay empty.
    #[serde(default)]
    outputs: BTreeMap<String, Vec<Value>>,
    /// Whether outputs must come in this order. Default: any order.
    #[serde(default)]
    ordered: bool,
    /// Dead letters by stage; a stage that is not listed must have none.
    #[serde(default)]
    dead_letters: BTreeMap<String, Vec<ExpectedLetter>>,
    /// How many messages of a stage came to an outcome, by stage.
    #[serde(default)]
    outcomes: BTreeMap<String, Outcomes>,
    /// Stages that fail, as with `on_exhausted: halt` or before they run, each with a part of the
    /// reason; no other may fail. The case ends when one fails, with whatever is left undone.
    #[serde(default)]
    failed: BTreeMap<String, String>,
}

/// Outcomes of a stage; a missing one may be any number.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Outcomes {
    acked: Option<u64>,
    filtered: Option<u64>,
    discarded: Option<u64>,
    failed_attempts: Option<u64>,
}

/// What is expected of a dead letter; a missing key may have any value.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ExpectedLetter {
    cause: Option<CauseKind>,
    /// A part of the cause's message.
    message: Option<String>,
    attempts: Option<u32>,
    payload: Option<Value>,
}

impl fmt::Display for ExpectedLetter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            self.cause.map(|cause| format!("cause {}", cause.as_str())),
            self.message.as_ref().map(|text| format!("`{text}` in its message")),
            self.attempts.map(|attempts| format!("{attempts} attempts")),
            self.payload.as_ref().map(|payload| format!("payload {payload}")),
        ];
        match parts.into_iter().flatten().collect::<Vec<_>>().join(", ") {
            parts if parts.is_empty() => f.write_str("is left"),
            parts => write!(f, "has {parts}"),
        }
    }
}

const TIMEOUT: Duration = Duration::from_secs(30);

impl Test {
    pub(crate) async fn run(&self, registry: &Registry) -> anyhow::Result<Exit> {
        let plans = self.files.iter().map(|path| Plan::read(path, registry));
        let plans = plans.collect::<Result<Vec<Plan<'_>>, _>>()?;
        let wanted = |case: &Case| self.only.as_ref().is_none_or(|only| case.name.contains(only));
        let cases = || plans.iter().flat_map(|plan| plan.file.cases.iter().map(move |c| (plan, c)));
        if let (Some(only), false) = (&self.only, cases().any(|(_, case)| wanted(case))) {
            let names: Vec<String> = cases().map(|(_, case)| format!("`{}`", case.name)).collect();
            anyhow::bail!("no case has `{only}` in its name; there are: {}", names.join(", "));
        }
        let (mut passed, mut failed) = (0_usize, 0_usize);
        for (plan, case) in cases().filter(|(_, case)| wanted(case)) {
            let begun = Instant::now();
            let wrong = run_case(plan, case, registry).await;
            let place = plan.path.display();
            match &wrong[..] {
                [] => {
                    passed += 1;
                    print(&format!("ok      {place}: {} ({:.0?})", case.name, begun.elapsed()))?;
                }
                wrong => {
                    failed += 1;
                    print(&format!("FAILED  {place}: {}", case.name))?;
                    for what in wrong {
                        print(&format!("        {what}"))?;
                    }
                }
            }
        }
        print(&format!("{passed} passed, {failed} failed"))?;
        Ok(if failed == 0 { Exit::Done } else { Exit::Failed })
    }
}

/// A test file that was checked, and its pipeline.
struct Plan<'p> {
    path: &'p Path,
    file: TestFile,
    topology: Topology,
}

impl<'p> Plan<'p> {
    /// Reads a test file and the pipeline beside it, and checks one against the other.
    fn read(path: &'p Path, registry: &Registry) -> Result<Self, Diagnostics> {
        let document = Document::<TestFile>::read(path, "the test file")?;
        let file = document.value();
        let directory = path.parent().unwrap_or(Path::new(""));
        let mut overrides = Overrides::from_env();
        overrides.variables.retain(|(name, _)| !file.env.contains_key(name));
        overrides.variables.extend(file.env.clone());
        overrides.no_unicode.retain(|name| !file.env.contains_key(name));
        let loaded = PipelineFile::load(&directory.join(&file.pipeline), &overrides, registry)?;
        let topology = loaded.topology;
        let file = checked(document, &topology)?;
        Ok(Self { path, file, topology })
    }
}

/// What is wrong with a case, line by line; empty if it passes.
async fn run_case(plan: &Plan<'_>, case: &Case, registry: &Registry) -> Vec<String> {
    let trial = match start(plan, case, registry).await {
        Ok(trial) => trial,
        Err(error) => return vec![format!("the pipeline did not start: {error:#}")],
    };
    let timeout = case.timeout.map_or(TIMEOUT, |timeout| timeout.0);
    let mut wrong = Vec::new();
    let done = tokio::time::timeout(timeout, run(&trial, case)).await;
    match &done {
        Ok(Ok(())) => {}
        Ok(Err(what)) => wrong.push(what.clone()),
        Err(_) => {
            let late = [format!("not done within {timeout:?}")];
            let late = late.into_iter().chain(trial.starting().await);
            wrong.push(late.collect::<Vec<_>>().join(": "));
        }
    }
    check_outputs(&trial, &plan.topology, case, &mut wrong).await;
    check_dead_letters(&trial, case, &mut wrong).await;
    // What was not done in time would not be done in a drain without a deadline either.
    let deadline = if done.is_ok() { timeout } else { Duration::ZERO };
    check_end(&trial.stop(deadline).await, case, &mut wrong);
    wrong
}

async fn start(plan: &Plan<'_>, case: &Case, registry: &Registry) -> anyhow::Result<Trial> {
    let trial = Trial::of(Pipeline::new(plan.topology.clone(), registry)?);
    let read = case.expect.outputs.keys().filter(|queue| is_read(&plan.topology, queue));
    Ok(read.fold(trial, |trial, queue| trial.keep(queue)).launch().await?)
}

/// Sends the messages once all stages run, and returns when nothing is left to do. Also returns when
/// a stage has failed, before it ran or later; whether that was expected is checked at the end.
async fn run(trial: &Trial, case: &Case) -> Result<(), String> {
    trial.until_started().await;
    for (queue, messages) in &case.send {
        let messages = messages.iter().map(message).collect::<Result<Vec<_>, _>>();
        trial.send(queue, messages.map_err(|what| format!("queue `{queue}`: {what}"))?);
    }
    trial.running().until_idle(None).await.map_err(|error| error.to_string())
}

/// Whether a stage reads this queue.
fn is_read(topology: &Topology, queue: &str) -> bool {
    topology.queues.get(queue).is_some_and(|queue| !queue.spec.groups.is_empty())
}

/// A message as written in a test file: a payload, or an object with `raw` or `payload`.
fn message(value: &Value) -> Result<Message, String> {
    let Some(keys) = value.as_object().filter(|keys| is_message(keys)) else {
        return Ok(Message::new(value.to_string()));
    };
    let text = |key: &str| match keys.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => Err(format!("`{key}` is a text, not {other}")),
    };
    let mut message = match (text("raw")?, keys.get("payload")) {
        (Some(raw), None) => Message::new(raw),
        (None, Some(payload)) => Message::new(payload.to_string()),
        // A payload that is none, as Kafka has it for what is gone.
        (None, None) if keys.contains_key("raw") => Message::default(),
        _ => return Err("a message has `raw` or `payload`".to_owned()),
    };
    message.key = text("key")?.map(Into::into);
    match keys.get("headers") {
        None | Some(Value::Null) => {}
        Some(Value::Object(headers)) => {
            for (name, value) in headers {
                let value = value.as_str().ok_or("headers are texts")?.to_owned();
                message.headers.push(name, Some(value.into()));
            }
        }
        Some(other) => return Err(format!("`headers` is a mapping, not {other}")),
    }
    Ok(message)
}

fn is_message(keys: &Map<String, Value>) -> bool {
    const KEYS: [&str; 4] = ["raw", "payload", "key", "headers"];
    let says = keys.contains_key("raw") || keys.contains_key("payload");
    says && keys.keys().all(|key| KEYS.contains(&key.as_str()))
}

async fn check_outputs(trial: &Trial, topology: &Topology, case: &Case, wrong: &mut Vec<String>) {
    // For a queue that a stage reads, the stage's outcomes show what came to it.
    let queues = topology.queues.keys().map(|name| &**name);
    let mut queues: Vec<&str> = queues.filter(|name| !is_read(topology, name)).collect();
    queues.extend(case.expect.outputs.keys().map(String::as_str));
    queues.sort_unstable();
    queues.dedup();
    for queue in queues {
        let expected = case.expect.outputs.get(queue);
        let mut got = match is_read(topology, queue) {
            true => trial.kept(queue),
            false => trial.outputs(queue),
        };
        // They are reported by stage.
        got.retain(|message| !is_dead_letter(message, queue, topology));
        let expected = expected.map_or(&[][..], |expected| expected);
        let got = got.iter().map(Got::of).collect();
        compare(&format!("queue `{queue}`"), expected, got, case.expect.ordered, wrong);
    }
    let status = trial.status().await;
    for (name, outcomes) in &case.expect.outcomes {
        let Some(stage) = status.stage(name) else { continue };
        for (what, expected, got) in [
            ("acked", outcomes.acked, stage.acked),
            ("filtered", outcomes.filtered, stage.filtered),
            ("discarded", outcomes.discarded, stage.discarded),
            ("failed_attempts", outcomes.failed_attempts, stage.failed_attempts),
        ] {
            if expected.is_some_and(|expected| expected != got) {
                let expected = expected.unwrap_or_default();
                wrong.push(format!("stage `{name}`: {expected} {what} expected, {got} found"));
            }
        }
    }
}

/// Whether a message is a dead letter of a stage that puts its dead letters on this queue.
fn is_dead_letter(message: &Message, queue: &str, topology: &Topology) -> bool {
    let letter = message.payload.as_deref().map(DeadLetter::from_json);
    let stage = letter.and_then(Result::ok).and_then(|letter| topology.stages.get(&*letter.stage));
    stage.is_some_and(|stage| stage.dead_letter.as_deref() == Some(queue))
}

/// Reports stages that failed, or should have but did not, and messages that have vanished.
fn check_end(stopped: &[Stopped], case: &Case, wrong: &mut Vec<String>) {
    let failed = || stopped.iter().flat_map(|stopped| &stopped.failed);
    for (stage, why) in failed() {
        match case.expect.failed.get(stage) {
            Some(part) if why.contains(part) => {}
            Some(part) => {
                wrong.push(format!("stage `{stage}` failed, without `{part}` in why: {why}"));
            }
            None => wrong.push(format!("stage `{stage}` failed: {why}")),
        }
    }
    let expected = case.expect.failed.keys();
    let worked = expected.filter(|stage| !failed().any(|(name, _)| name == *stage));
    wrong.extend(worked.map(|stage| format!("stage `{stage}` has not failed")));
    for lost in stopped.iter().flat_map(|stopped| &stopped.status.unaccounted) {
        let (stage, place, messages) = (&lost.stage, &lost.place, lost.messages);
        wrong.push(format!(
            "stage `{stage}`, {place}: {messages} messages are not accounted for; please report it"
        ));
    }
}

async fn check_dead_letters(trial: &Trial, case: &Case, wrong: &mut Vec<String>) {
    let status = trial.status().await;
    for stage in &status.stages {
        let name = &stage.stage;
        let mut left = trial.dead_letters(name);
        for expected in case.expect.dead_letters.get(name).into_iter().flatten() {
            match left.iter().position(|letter| fits(expected, letter)) {
                Some(at) => drop(left.remove(at)),
                None => wrong.push(format!("stage `{name}`: no dead letter {expected}")),
            }
        }
        wrong.extend(left.iter().map(|letter| {
            let (kind, message) = (letter.cause.kind.as_str(), &letter.cause.message);
            let payload = Got::of(&letter.message);
            format!(
                "stage `{name}`: dead letter not expected: {kind}: {message}; payload {payload}"
            )
        }));
    }
}

fn fits(expected: &ExpectedLetter, letter: &DeadLetter) -> bool {
    let cause = &letter.cause;
    expected.cause.is_none_or(|kind| kind == cause.kind)
        && expected.message.as_ref().is_none_or(|text| cause.message.contains(text))
        && expected.attempts.is_none_or(|attempts| attempts == letter.attempts)
        && expected.payload.as_ref().is_none_or(|value| Got::of(&letter.message).is(value))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use brigade_core::component::{Component, Context, IntoComponent, Setup};
    use brigade_core::{BoxError, Failure};
    use brigade_memory::Memory;

    use super::*;

    const PIPELINE: &str = "
pipeline: p
queues: { in: { type: memory }, out: { type: memory } }
restart: { max_restarts: 0 }
stages:
  s: { component: code, input: in, outputs: [out], on_exhausted: halt, retry: { attempts: 1 } }
";

    /// What is wrong with a case that sends one message to a stage that always fails.
    async fn wrong_with(expect: &str) -> Vec<String> {
        let code = |_: Value| Err::<Value, Failure>(Failure::retry("no service"));
        wrong_of(&format!("expect: {{ {expect} }}"), code).await
    }

    /// What is wrong with a case that sends one message to this code.
    async fn wrong_of<M>(keys: &str, code: impl IntoComponent<M>) -> Vec<String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("p.test.yaml");
        let case = format!("{{ name: one, send: {{ in: [1] }}, {keys} }}");
        std::fs::write(directory.path().join("p.yaml"), PIPELINE).unwrap();
        std::fs::write(&path, format!("pipeline: p.yaml\ncases:\n  - {case}\n")).unwrap();
        let registry = Registry::new().connector(Arc::new(Memory::new())).component("code", code);
        let plan = Plan::read(&path, &registry).unwrap();
        run_case(&plan, &plan.file.cases[0], &registry).await
    }

    #[tokio::test]
    async fn a_stage_that_fails_fails_the_case_unless_that_is_expected() {
        for expect in ["", "outputs: { out: [] }"] {
            let wrong = wrong_with(expect).await;
            let [told] = &wrong[..] else { panic!("{wrong:?}") };
            assert!(told.starts_with("stage `s` failed: message "), "{told}");
            assert!(told.contains("used up its attempts") && told.contains("no service"), "{told}");
        }
        assert_eq!(wrong_with("failed: { s: no service }").await, [""; 0]);
        let wrong = wrong_with("failed: { s: no network }").await;
        assert!(
            wrong[0].starts_with("stage `s` failed, without `no network` in why: "),
            "{wrong:?}"
        );
    }

    #[tokio::test]
    async fn a_case_that_hangs_ends_after_its_time() {
        let code = async |_: Value| std::future::pending::<Result<Value, Failure>>().await;
        let wrong = wrong_of("timeout: 10ms", code).await;
        assert_eq!(wrong, ["not done within 10ms"]);
    }

    /// A component that does not start.
    #[derive(Clone)]
    enum Stuck {
        Fails,
        Waits,
    }

    impl Component for Stuck {
        type In = Value;
        type Out = Value;

        async fn init(&mut self, _: &Setup) -> Result<(), BoxError> {
            match self {
                Self::Fails => Err("no table".into()),
                Self::Waits => std::future::pending().await,
            }
        }

        async fn handle(&mut self, input: Value, _: &Context) -> Result<Value, Failure> {
            Ok(input)
        }
    }

    #[tokio::test]
    async fn a_case_whose_stage_does_not_start_ends_after_its_time_and_names_it() {
        let wrong = wrong_of("timeout: 10ms", Stuck::Waits).await;
        assert_eq!(wrong, ["not done within 10ms: stage `s` is still starting"]);
    }

    #[tokio::test]
    async fn a_stage_that_fails_before_it_runs_can_be_expected() {
        let wrong = wrong_of("timeout: 30s", Stuck::Fails).await;
        let [told] = &wrong[..] else { panic!("{wrong:?}") };
        assert!(told.starts_with("stage `s` failed: ") && told.contains("no table"), "{told}");
        let expected = "expect: { failed: { s: no table }, outputs: { out: [] } }";
        assert_eq!(wrong_of(expected, Stuck::Fails).await, [""; 0]);
    }

    #[test]
    fn a_stage_that_should_fail_and_does_not_fails_the_case() {
        let case: Case = serde_json::from_value(serde_json::json!({
            "name": "one", "send": {}, "expect": { "failed": { "s": "" } },
        }))
        .unwrap();
        let mut wrong = Vec::new();
        check_end(&[], &case, &mut wrong);
        assert_eq!(wrong, ["stage `s` has not failed"]);
    }
}
