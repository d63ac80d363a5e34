//! The small web server.

use std::net::{SocketAddr, TcpListener};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use actix_web::dev::ServerHandle;
use actix_web::{App, HttpResponse, HttpServer, Responder, routes, rt, web};
use brigade_pipeline::MetricNames;
use brigade_runtime::{StageState, Watcher, measure_conversions};
use metrics_exporter_prometheus::PrometheusHandle;

use crate::{names, volley};

/// The most connections at once; more wait.
const CONNECTIONS_MAX: usize = 64;
/// How long a client may take for its request.
const REQUEST_MAX: Duration = Duration::from_secs(5);

/// Why nothing is served.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ServeError(String);

impl ServeError {
    pub(crate) fn recorder(error: &str) -> Self {
        Self(format!("metrics cannot be kept: {error}; another recorder is installed"))
    }

    fn at(address: SocketAddr, error: &std::io::Error) -> Self {
        Self(format!("metrics cannot be served at {address}: {error}"))
    }
}

/// A server that runs until it is dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    handle: ServerHandle,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// The address it listens on, with the actual port if 0 was requested.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The future only waits for the server to end, as joining the thread does.
        drop(self.handle.stop(false));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// An address at which metrics and health will be served: connections wait until then.
#[derive(Debug)]
pub struct Listening {
    listener: TcpListener,
    address: SocketAddr,
    recorder: PrometheusHandle,
}

/// Binds an address, with port 0 for a free port, and installs the recorder that keeps the metrics,
/// including the components' own. Call it before pipelines are started, so that none of their
/// metrics are lost, and nothing is running if the address is not available.
///
/// # Errors
/// The address is taken or does not belong to this machine, or the program has installed another
/// recorder of the `metrics` crate.
pub fn listen(address: SocketAddr) -> Result<Listening, ServeError> {
    let recorder = crate::recorder()?.clone();
    let bound = TcpListener::bind(address).and_then(|bound| Ok((bound.local_addr()?, bound)));
    let (address, listener) = bound.map_err(|error| ServeError::at(address, &error))?;
    Ok(Listening { listener, address, recorder })
}

impl Listening {
    /// Serves the metrics, under these names, and the health of pipelines.
    ///
    /// # Errors
    /// No thread can be started, or the server cannot be set up.
    pub fn serve(self, watcher: Watcher, names: MetricNames) -> Result<Server, ServeError> {
        let Self { listener, address, recorder } = self;
        if names == MetricNames::Volley {
            measure_conversions();
        }
        let (ready, started) = std::sync::mpsc::channel();
        let run = move || {
            rt::System::new().block_on(async move {
                let (since, depths) = (SystemTime::now(), names::Depths::default());
                let site = Site { watcher, recorder, names, since, depths };
                match server(site, listener) {
                    Ok(server) => {
                        let _ = ready.send(Ok(server.handle()));
                        let _ = server.await;
                    }
                    Err(error) => drop(ready.send(Err(error))),
                }
            });
        };
        let wrong = |error| ServeError::at(address, &error);
        let thread = std::thread::Builder::new().name("brigade-watch".to_owned()).spawn(run);
        let thread = Some(thread.map_err(wrong)?);
        let handle = started.recv().map_err(|_| ServeError("the server did not start".into()))?;
        Ok(Server { address, handle: handle.map_err(wrong)?, thread })
    }
}

fn server(site: Site, listener: TcpListener) -> std::io::Result<actix_web::dev::Server> {
    let site = web::Data::new(site);
    let app =
        move || App::new().app_data(site.clone()).service(metrics).service(live).service(is_ready);
    let server = HttpServer::new(app)
        .workers(1)
        .max_connections(CONNECTIONS_MAX)
        .client_request_timeout(REQUEST_MAX)
        .disable_signals()
        .listen(listener)?;
    Ok(server.run())
}

struct Site {
    watcher: Watcher,
    recorder: PrometheusHandle,
    names: MetricNames,
    since: SystemTime,
    depths: names::Depths,
}

#[routes]
#[get("/metrics")]
#[head("/metrics")]
async fn metrics(site: web::Data<Site>) -> impl Responder {
    let pipelines = site.watcher.status().await;
    site.recorder.run_upkeep();
    let text = match site.names {
        MetricNames::Brigade => {
            pipelines.iter().for_each(names::publish);
            site.depths.publish(&site.watcher.depths().await);
            site.recorder.render()
        }
        MetricNames::Volley => {
            let text = volley::text(&pipelines, site.since);
            text + &without_own(&site.recorder.render())
        }
    };
    HttpResponse::Ok().content_type("text/plain; version=0.0.4; charset=utf-8").body(text)
}

/// The text without what components count themselves.
fn without_own(text: &str) -> String {
    let own = |line: &&str| {
        let line = line.trim_start_matches("# HELP ").trim_start_matches("# TYPE ");
        !line.starts_with("brigade_")
    };
    text.lines().filter(own).flat_map(|line| [line, "\n"]).collect()
}

#[routes]
#[get("/health/live")]
#[head("/health/live")]
async fn live() -> impl Responder {
    HttpResponse::Ok().body("live\n")
}

#[routes]
#[get("/health/ready")]
#[head("/health/ready")]
async fn is_ready(site: web::Data<Site>) -> impl Responder {
    if site.watcher.is_ready().await {
        return HttpResponse::Ok().body("ready\n");
    }
    let status = site.watcher.status().await;
    let stages = status.iter().flat_map(|pipeline| {
        let waiting = pipeline.stages.iter().filter(|stage| stage.state != StageState::Running);
        waiting.map(|stage| {
            serde_json::json!({
                "pipeline": pipeline.pipeline, "stage": stage.stage, "state": stage.state,
                "error": stage.error,
            })
        })
    });
    let stages: Vec<_> = stages.collect();
    HttpResponse::ServiceUnavailable()
        .content_type("application/json")
        .body(serde_json::json!({ "not_ready": stages }).to_string())
}
