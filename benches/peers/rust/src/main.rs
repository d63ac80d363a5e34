//! Small programs of peer libraries, to be measured beside Brigade: the first argument says which.

mod ruststream;
mod sea_streamer;

use std::env;
use std::error::Error;
use std::process::ExitCode;

use serde::{Deserialize, Serialize};
use tokio::runtime::{Builder, Runtime};

const USAGE: &str = "usage:
  peers ruststream-memory MESSAGES LANES
  peers ruststream-json MESSAGES
  peers ruststream-redis URL IN OUT MESSAGES
  peers ruststream-redis-fill URL IN MESSAGES
  peers sea-streamer-redis URL IN OUT MESSAGES
  peers sea-streamer-redis-fill URL IN MESSAGES";

type Done<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

/// What passes through Redis: 200 bytes of JSON.
#[derive(Serialize, Deserialize, ::ruststream::Outgoing)]
struct Order {
    id: u64,
    text: String,
    total: i64,
}

impl Order {
    fn new(id: usize) -> Self {
        Self { id: id as u64, text: "x".repeat(160), total: 1 }
    }
}

/// A stream to read, one to append to, and how many messages that is to be done with.
struct Job {
    url: String,
    input: String,
    output: String,
    messages: usize,
}

impl Job {
    fn new(url: &str, input: &str, output: &str, messages: &str) -> Done<Self> {
        let [url, input, output] = [url, input, output].map(str::to_owned);
        Ok(Self { url, input, output, messages: messages.parse()? })
    }
}

/// Has one worker thread, the one that is here, or that many of its own.
fn runtime(threads: usize) -> Runtime {
    let mut builder = match threads {
        1 => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    builder.worker_threads(threads.max(1)).enable_all().build().expect("a runtime")
}

fn run(arguments: &[&str]) -> Done {
    match *arguments {
        ["ruststream-memory", messages, lanes] => {
            ruststream::memory(messages.parse()?, lanes.parse()?)
        }
        ["ruststream-json", messages] => ruststream::json(messages.parse()?),
        ["ruststream-redis", url, input, output, messages] => {
            ruststream::redis(Job::new(url, input, output, messages)?)
        }
        ["ruststream-redis-fill", url, input, messages] => {
            ruststream::redis_fill(&Job::new(url, input, "", messages)?)
        }
        ["sea-streamer-redis", url, input, output, messages] => {
            sea_streamer::redis(Job::new(url, input, output, messages)?)
        }
        ["sea-streamer-redis-fill", url, input, messages] => {
            sea_streamer::redis_fill(&Job::new(url, input, "", messages)?)
        }
        _ => Err(USAGE.into()),
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
