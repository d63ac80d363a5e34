//! What a trial tells that could show nothing: names of nothing, and stages that have failed.
#![allow(clippy::unwrap_used, reason = "a test that stops says where")]

use std::sync::Arc;

use brigade_core::component::{Component, Context, Setup};
use brigade_core::{BoxError, Failure, Message};
use brigade_memory::Memory;
use brigade_runtime::{Pipeline, Registry};
use brigade_testkit::Trial;
use serde_json::Value;

const PIPELINE: &str = "
pipeline: orders
queues: { in: { type: memory }, out: { type: memory }, dead: { type: memory }, fixed: { type: memory } }
stages:
  bill: { component: bill, input: in, outputs: [out], dead_letter: dead, on_exhausted: halt, retry: { attempts: 1 } }
  repair: { component: repair, input: dead, outputs: [fixed] }
";

/// Rejects what is negative, and fails at 0.
fn bill(number: i64) -> Result<Value, Failure> {
    match number {
        ..0 => Err(Failure::reject("negative")),
        0 => Err(Failure::retry("nothing")),
        number => Ok(number.into()),
    }
}

fn orders() -> Pipeline {
    let registry = Registry::new().connector(Arc::new(Memory::new()));
    let registry = registry.component("bill", bill);
    let registry = registry.component("repair", |letter: Value| Ok::<_, Failure>(letter));
    Pipeline::from_yaml(PIPELINE, &registry).unwrap()
}

#[tokio::test]
async fn faults_of_queues_that_nobody_uses_so_are_refused() {
    for (setup, said) in [
        (
            Trial::of(orders()).outage("outt", 1..=4),
            "an outage is planned for `outt`, which is no queue that is written by a stage; such are `dead`, \
             `fixed`, `out`",
        ),
        (
            Trial::of(orders()).outage("in", 1..=4),
            "an outage is planned for `in`, which is no queue that is written by a stage; such are `dead`, \
             `fixed`, `out`",
        ),
        (
            Trial::of(orders()).stall("inn", 1..=1),
            "a stall is planned for `inn`, which is no queue that is read by a stage; such are `dead`, `in`",
        ),
        (
            Trial::of(orders()).keep("outt"),
            "queue `outt` is to be kept, which the pipeline does not have; it has `in`, `out`, `dead`, `fixed`",
        ),
    ] {
        assert_eq!(setup.start().await.unwrap_err().to_string(), said);
    }
}

#[tokio::test]
#[should_panic(
    expected = "pipeline `orders` has no queue `inn`; it has `in`, `out`, `dead`, `fixed`"
)]
async fn nothing_is_sent_to_a_queue_that_is_none() {
    Trial::start(orders()).await.unwrap().send("inn", [Message::new("1")]);
}

#[tokio::test]
#[should_panic(
    expected = "pipeline `orders` has no queue `outt`; it has `in`, `out`, `dead`, `fixed`"
)]
async fn a_queue_that_is_none_has_no_outputs() {
    Trial::start(orders()).await.unwrap().outputs("outt");
}

#[tokio::test]
#[should_panic(expected = "pipeline `orders` has no stage `bil`; it has `bill`, `repair`")]
async fn a_stage_that_is_none_has_no_dead_letters() {
    Trial::start(orders()).await.unwrap().dead_letters("bil");
}

#[tokio::test]
async fn dead_letters_are_told_though_a_stage_has_read_them() {
    let trial = Trial::start(orders()).await.unwrap();
    trial.send("in", [Message::new("-1"), Message::new("1")]);
    trial.settle().await.unwrap();
    assert_eq!(trial.outputs("fixed").len(), 1);
    let letters = trial.dead_letters("bill");
    assert_eq!((letters.len(), &*letters[0].cause.message), (1, "negative"));
    assert!(trial.dead_letters("repair").is_empty());
    trial.end().await;
}

#[tokio::test]
async fn what_is_to_be_kept_is_told_though_a_stage_has_read_it() {
    let trial = Trial::of(orders()).keep("dead").keep("in").start().await.unwrap();
    trial.send("in", [Message::new("-1"), Message::new("1")]);
    trial.settle().await.unwrap();
    assert_eq!((trial.kept("dead").len(), trial.outputs("dead").len()), (1, 0));
    assert_eq!(trial.dead_letters("bill").len(), 1);
    assert!(trial.kept("in").is_empty(), "no stage has put anything there");
    trial.end().await;
}

#[tokio::test]
#[should_panic(expected = "queue `out` was not to be kept: see `TrialSetup::keep`")]
async fn what_was_not_to_be_kept_is_not_told() {
    Trial::of(orders()).keep("dead").start().await.unwrap().kept("out");
}

#[tokio::test]
async fn a_stage_that_failed_has_not_settled() {
    let trial = Trial::start(orders()).await.unwrap();
    trial.send("in", [Message::new("0")]);
    let said = trial.settle().await.unwrap_err().to_string();
    assert!(
        said.starts_with("stage `bill` failed: message ") && said.contains("nothing"),
        "{said}"
    );
    trial.end().await;
}

/// A component that does not start.
#[derive(Clone)]
struct Stuck;

impl Component for Stuck {
    type In = Value;
    type Out = Value;

    async fn init(&mut self, _: &Setup) -> Result<(), BoxError> {
        std::future::pending().await
    }

    async fn handle(&mut self, input: Value, _: &Context) -> Result<Value, Failure> {
        Ok(input)
    }
}

#[test]
fn a_stage_that_does_not_start_is_not_waited_for_without_end() {
    let registry = Registry::new().connector(Arc::new(Memory::new())).component("stuck", Stuck);
    let registry = registry.component("repair", |letter: Value| Ok::<_, Failure>(letter));
    let text = PIPELINE.replace("component: bill", "component: stuck");
    let pipeline = || Pipeline::from_yaml(&text, &registry).unwrap();
    brigade_testkit::paused(async {
        let said = Trial::start(pipeline()).await.unwrap_err().to_string();
        assert_eq!(said, "not started within 300s: stage `bill` is still starting");
        let trial = Trial::of(pipeline()).launch().await.unwrap();
        assert!(trial.starting().await.contains(&"stage `bill` is still starting".to_owned()));
        trial.stop(std::time::Duration::ZERO).await;
    });
}
