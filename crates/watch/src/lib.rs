//! Metrics and health of running pipelines, over HTTP.
//!
//! `/metrics` is in the text format of Prometheus; the names are in `docs/src/metrics.md`.
//! `/health/live` answers 200 as long as the program responds; `/health/ready` answers 200 when
//! every stage is running, otherwise 503 with the stages that are not.

mod names;
mod server;
mod volley;

pub use brigade_pipeline::MetricNames;
pub use server::{Listening, ServeError, Server, listen};

use std::sync::OnceLock;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

/// Upper bounds of the histograms' buckets, in seconds.
const SECONDS: [f64; 14] = [
    0.000_001, 0.000_01, 0.000_1, 0.000_5, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0,
];

static RECORDER: OnceLock<Result<PrometheusHandle, String>> = OnceLock::new();

fn recorder() -> Result<&'static PrometheusHandle, ServeError> {
    let installed = RECORDER.get_or_init(|| {
        let builder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)
            .map_err(|error| error.to_string())?;
        let handle = builder.install_recorder().map_err(|error| error.to_string())?;
        names::describe();
        Ok(handle)
    });
    installed.as_ref().map_err(|error| ServeError::recorder(error))
}
