//! A component and its tests: the function alone, then in a pipeline on memory queues.
//!
//! `cargo run --example testing_a_component` shows what it does; the tests are at the end.

use brigade::prelude::*;

// ANCHOR: component
#[derive(serde::Deserialize)]
struct Reading {
    sensor: String,
    celsius: f64,
}

/// Turns readings into alarms; what cannot be is rejected.
fn alarm(reading: Reading) -> Result<Emit, Failure> {
    match reading.celsius {
        impossible if impossible < -273.15 => Err(Failure::reject("colder than cold can be")),
        hot if hot > 90.0 => Ok(Emit::value(format!("{} is hot", reading.sensor))),
        _ => Ok(Emit::none()),
    }
}
// ANCHOR_END: component

#[expect(clippy::print_stdout, reason = "an example shows its result")]
fn main() {
    let reading = Reading { sensor: "boiler".to_owned(), celsius: 95.0 };
    println!("{:?}", alarm(reading).map(|emit| emit.outputs().len()));
}

// ANCHOR: tests
#[cfg(test)]
mod tests {
    use brigade::prelude::*;
    use brigade_testkit::{Fault, Trial};

    use super::{Reading, alarm};

    fn reading(celsius: f64) -> Reading {
        Reading { sensor: "boiler".to_owned(), celsius }
    }

    #[test]
    fn only_what_is_hot_is_an_alarm() {
        assert_eq!(alarm(reading(20.0)).unwrap().outputs().len(), 0);
        assert_eq!(alarm(reading(95.0)).unwrap().outputs().len(), 1);
        assert!(matches!(alarm(reading(-300.0)), Err(Failure::Reject(_))));
    }

    const PIPELINE: &str = "
pipeline: boiler
queues: { readings: { type: embedded }, alarms: { type: embedded } }
stages:
  alarm: { component: alarm, input: readings, outputs: [alarms] }
";

    fn boiler() -> Pipeline {
        pipeline(PIPELINE)
    }

    fn pipeline(text: &str) -> Pipeline {
        let registry = brigade::registry().component("alarm", alarm);
        Pipeline::from_yaml(text, &registry).unwrap()
    }

    fn patient() -> Pipeline {
        let retry = "retry: { attempts: 10, min: 20m, max: 20m }";
        pipeline(&PIPELINE.replace("outputs: [alarms]", &format!("outputs: [alarms], {retry}")))
    }

    #[tokio::test]
    async fn in_a_pipeline_alarms_go_on_and_nonsense_is_a_dead_letter() {
        let trial = Trial::start(boiler()).await.unwrap();
        trial.send(
            "readings",
            [
                Message::new("{\"sensor\":\"boiler\",\"celsius\":95}"),
                Message::new("{\"sensor\":\"boiler\",\"celsius\":-300}"),
                Message::new("no JSON at all"),
            ],
        );
        trial.settle().await.unwrap();
        let alarms = trial.outputs("alarms");
        assert_eq!(alarms[0].payload.as_deref(), Some(&b"\"boiler is hot\""[..]));
        assert_eq!(alarms.len(), 1);
        let mut causes: Vec<_> =
            trial.dead_letters("alarm").iter().map(|letter| letter.cause.kind.as_str()).collect();
        causes.sort_unstable();
        assert_eq!(causes, ["decode", "rejected"]);
        trial.end().await;
    }
    // ANCHOR_END: tests

    // ANCHOR: faults
    #[tokio::test]
    async fn an_alarm_gets_through_though_nearly_everything_fails() {
        let trial = Trial::of(boiler())
            .fault("alarm", 1..=1, Fault::Panic)
            .fault("alarm", 2..=3, Fault::Error("the service is away".to_owned()))
            .outage("alarms", 1..=4)
            .without_back_off();
        let trial = trial.start().await.unwrap();
        trial.send("readings", [Message::new("{\"sensor\":\"boiler\",\"celsius\":95}")]);
        trial.settle().await.unwrap();
        assert_eq!(trial.outputs("alarms").len(), 1);
        let stage = trial.status().await.stages.remove(0);
        assert_eq!((stage.calls, stage.failed_attempts), (4, 3));
    }
    // ANCHOR_END: faults

    // ANCHOR: paused
    #[test]
    fn a_service_that_is_away_for_an_hour_costs_no_alarm_and_no_hour() {
        brigade_testkit::paused(async {
            let away = Fault::Error("the service is away".to_owned());
            let trial = Trial::of(patient()).fault("alarm", 1..=7, away).start().await.unwrap();
            let begun = tokio::time::Instant::now();
            trial.send("readings", [Message::new("{\"sensor\":\"boiler\",\"celsius\":95}")]);
            trial.settle().await.unwrap();
            assert_eq!(trial.outputs("alarms").len(), 1);
            assert!(begun.elapsed().as_secs() > 3600);
        });
    }
    // ANCHOR_END: paused
}
