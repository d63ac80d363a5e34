//! A program that runs stages of a pipeline file and is told on standard input how many workers they are to
//! have: a line `STAGE WORKERS`, as often as one likes, and `drain` to end before all is done. `cargo xtask
//! soak` scales it while other things happen to it.
//!
//! `cargo run --example scaled -- FILE ADDRESS STAGE...`; metrics are served at the address.

/// The soak's file has its component, which another process runs.
#[path = "unreliable.rs"]
#[allow(dead_code, reason = "nobody calls its main here")]
mod unreliable;

use std::io::BufRead;

use brigade::prelude::*;
use brigade::{Running, watch};
use tokio::sync::mpsc;

#[tokio::main(flavor = "current_thread")]
#[expect(clippy::print_stderr, reason = "it tells what it does")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let file = arguments.next().ok_or("which file?")?;
    let address = arguments.next().ok_or("which address?")?;
    let stages: Vec<String> = arguments.collect();
    let registry = brigade::registry().component("check", unreliable::check);
    let pipeline = Pipeline::from_file(file, &registry)?.stages(&stages)?;
    let listening = watch::listen(address.parse()?)?;
    let running = Supervisor::new().add(pipeline).start().await?;
    let _server = listening.serve(running.watcher(), watch::MetricNames::default())?;
    tokio::select! {
        idle = running.until_idle(None) => idle?,
        () = obey(&running) => eprintln!("draining"),
    }
    for stopped in running.drain().await {
        let received: u64 = stopped.status.stages.iter().map(|stage| stage.received).sum();
        match stopped.status.closes() {
            true => eprintln!("the books close: {received} messages received, each has an outcome"),
            false => eprintln!("the books do not close: {:?}", stopped.status),
        }
    }
    Ok(())
}

/// Scales as it is told, until it is told to end.
#[expect(clippy::print_stderr, reason = "it tells what it does")]
async fn obey(running: &Running) {
    let mut lines = lines();
    while let Some(line) = lines.recv().await {
        let (stage, workers) = line.split_once(' ').unwrap_or((&line, ""));
        match workers.parse() {
            _ if line == "drain" => return,
            Err(_) => eprintln!("`{line}` is no order: `STAGE WORKERS`, or `drain`"),
            Ok(workers) => match running.scale(stage, workers).await {
                Ok(()) => eprintln!("`{stage}` has {workers} workers"),
                Err(error) => eprintln!("not scaled: {error}"),
            },
        }
    }
    // Nobody tells it anything any more.
    std::future::pending().await
}

/// What comes on standard input.
fn lines() -> mpsc::UnboundedReceiver<String> {
    let (sender, receiver) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}
