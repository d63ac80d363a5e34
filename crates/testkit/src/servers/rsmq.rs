use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::Value;

use super::{cached, npm, run, used};

/// The clients' packages and versions.
const NODE: &str = "rsmq@0.12.4";
const PYTHON: [&str; 2] = ["PyRSMQ==0.4.5", "redis==8.1.0"];
const NODE_PROGRAM: &str = include_str!("rsmq/client.js");
const PYTHON_PROGRAM: &str = include_str!("rsmq/client.py");

/// One of the other programs' clients for RSMQ queues, as a process: the Node package `rsmq` or the
/// Python package `PyRSMQ`. `npm` and `pip` fetch them, once, into the user's cache directory.
#[derive(Debug)]
pub struct RsmqClient {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl RsmqClient {
    /// The Node client, connected to the Redis on this port; `realtime` is whether it announces
    /// what it sends.
    ///
    /// # Panics
    /// `node` or `npm` is not installed, or the package cannot be fetched.
    pub fn node(port: u16, realtime: bool) -> Self {
        used("rsmq clients");
        let modules = npm("rsmq-node", NODE);
        let mut node = Command::new("node");
        node.arg("-e").arg(NODE_PROGRAM).arg("brigade").arg(port.to_string());
        node.arg(if realtime { "realtime" } else { "silent" });
        Self::start(node.env("NODE_PATH", modules))
    }

    /// The Python client, connected to the Redis on this port. Operations that begin with `x` are
    /// those of the underlying `redis-py`, on streams.
    ///
    /// # Panics
    /// `python3` or its `pip` is not installed, or the package cannot be fetched.
    pub fn python(port: u16) -> Self {
        used("rsmq clients");
        let modules = cached("rsmq-python", &PYTHON.join(" "), |directory: &Path| {
            let mut pip = Command::new("python3");
            pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
            run(pip.arg("--target").arg(directory).args(PYTHON));
        });
        let mut python = Command::new("python3");
        python.arg("-c").arg(PYTHON_PROGRAM).arg(port.to_string());
        Self::start(python.env("PYTHONPATH", modules))
    }

    fn start(command: &mut Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the client's language is installed");
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().expect("it is piped"));
        Self { child, input, output }
    }

    /// Calls a method of the client with its options (an object; for streams, with the unnamed ones
    /// in `args`); returns its answer, or its error.
    ///
    /// # Errors
    /// The client's.
    ///
    /// # Panics
    /// The client's process has ended, or `options` is no object.
    pub fn call(&mut self, operation: &str, mut options: Value) -> Result<Value, String> {
        options["op"] = operation.into();
        let input = self.input.as_mut().expect("it is open until the end");
        writeln!(input, "{options}").expect("the client's process is there");
        let mut line = String::new();
        self.output.read_line(&mut line).expect("the client's process is there");
        let mut answer: Value = serde_json::from_str(&line).expect("it answers with JSON");
        match answer["error"].take() {
            Value::Null => Ok(answer["ok"].take()),
            error => Err(error.as_str().unwrap_or_default().to_owned()),
        }
    }
}

impl Drop for RsmqClient {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
