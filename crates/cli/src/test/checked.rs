//! What can be said of a test file before anything runs.

use brigade_pipeline::{Diagnostics, Document, Topology};
use serde_json::Value;

use super::compare::beyond_64_bits;
use super::{Case, TestFile, is_read, message};

/// The steps to a place in a test file.
type Steps = Vec<String>;

/// Reports names that the pipeline does not have, queues that nobody reads, and values that are not
/// messages, or would be others: a case with those tests nothing.
pub(super) fn checked(
    mut document: Document<TestFile>,
    topology: &Topology,
) -> Result<TestFile, Diagnostics> {
    let queues: Vec<&str> = topology.queues.keys().map(|name| &**name).collect();
    let stages: Vec<&str> = topology.stages.keys().map(|name| &**name).collect();
    let (mut named, mut wrong) = (Vec::new(), Vec::new());
    for (at, case) in document.value().cases.iter().enumerate() {
        let whole = |steps: Steps| -> Steps {
            ["cases".to_owned(), at.to_string()].into_iter().chain(steps).collect()
        };
        named.extend(names(case).into_iter().map(|(what, steps)| (what, whole(steps))));
        wrong.extend(unread(case, topology).into_iter().map(|(steps, text)| (whole(steps), text)));
        wrong.extend(values(case).into_iter().map(|(steps, text)| (whole(steps), text)));
    }
    if document.value().cases.is_empty() {
        wrong.push((vec!["cases".to_owned()], "no case is in the test file".to_owned()));
    }
    for (what, path) in named {
        let known = if what == "stage" { &stages } else { &queues };
        if !path.last().is_some_and(|name| known.contains(&name.as_str())) {
            document.unknown(&path, what, known.iter().copied());
        }
    }
    for (path, what) in wrong {
        document.wrong(&path, what);
    }
    document.finish()
}

/// The names that a case uses, and what each should be the name of.
fn names(case: &Case) -> Vec<(&'static str, Steps)> {
    let expect = &case.expect;
    let mut named = Vec::new();
    named.extend(case.send.keys().map(|name| ("queue", steps(&["send", name]))));
    let outputs = expect.outputs.keys();
    named.extend(outputs.map(|name| ("queue", steps(&["expect", "outputs", name]))));
    let letters = expect.dead_letters.keys();
    named.extend(letters.map(|name| ("stage", steps(&["expect", "dead_letters", name]))));
    let outcomes = expect.outcomes.keys();
    named.extend(outcomes.map(|name| ("stage", steps(&["expect", "outcomes", name]))));
    let failed = expect.failed.keys();
    named.extend(failed.map(|name| ("stage", steps(&["expect", "failed", name]))));
    named
}

/// Queues to which a case sends and that no stage reads: what is sent is what is found there.
fn unread(case: &Case, topology: &Topology) -> Vec<(Steps, String)> {
    let is_unread =
        |queue: &&String| topology.queues.contains_key(queue.as_str()) && !is_read(topology, queue);
    let read = topology.queues.keys().filter(|queue| is_read(topology, queue));
    let read: Vec<String> = read.map(|queue| format!("`{queue}`")).collect();
    let unread = case.send.keys().filter(is_unread);
    let wrong = unread.map(|queue| {
        let text = format!("no stage reads `{queue}`; stages read {}", read.join(", "));
        (steps(&["send", queue]), text)
    });
    wrong.collect()
}

/// What is wrong with the messages and payloads of a case.
fn values(case: &Case) -> Vec<(Steps, String)> {
    let mut wrong = Vec::new();
    for (queue, messages) in &case.send {
        for (place, value) in messages.iter().enumerate() {
            if let Err(what) = message(value).and_then(|_| has_its_digits(value)) {
                wrong.push((steps(&["send", queue, &place.to_string()]), what));
            }
        }
    }
    for (queue, payloads) in &case.expect.outputs {
        for (place, value) in payloads.iter().enumerate() {
            if let Err(what) = has_its_digits(value) {
                wrong.push((steps(&["expect", "outputs", queue, &place.to_string()]), what));
            }
        }
    }
    for (stage, letters) in &case.expect.dead_letters {
        for (place, letter) in letters.iter().enumerate() {
            if let Some(Err(what)) = letter.payload.as_ref().map(has_its_digits) {
                let place = place.to_string();
                wrong.push((steps(&["expect", "dead_letters", stage, &place, "payload"]), what));
            }
        }
    }
    wrong
}

/// A number of more than 64 bits is read as a fraction, whose last digits are others.
fn has_its_digits(value: &Value) -> Result<(), String> {
    match beyond_64_bits(value) {
        None => Ok(()),
        Some(number) => Err(format!(
            "{number} has more than 64 bits, and would lose its last digits: write the whole payload \
             as a text, `{{ raw: '...' }}`"
        )),
    }
}

fn steps(steps: &[&str]) -> Steps {
    steps.iter().map(|step| (*step).to_owned()).collect()
}
