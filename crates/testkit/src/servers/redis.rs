use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{LOOK, PATIENCE, free_port};

/// A Redis server (`redis-server` in the path) that keeps on disk whatever it confirmed.
#[derive(Debug)]
pub struct Redis {
    directory: tempfile::TempDir,
    port: u16,
    child: Mutex<Option<Child>>,
}

impl Redis {
    /// Starts one and waits until it answers.
    ///
    /// # Panics
    /// It is not installed, or does not answer within 30 s.
    pub fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let redis = Self { directory, port: free_port(), child: Mutex::default() };
        redis.restart();
        redis
    }

    /// Its address as a URL.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Kills it, if it runs.
    ///
    /// # Panics
    /// It cannot be killed.
    pub fn kill(&self) {
        if let Some(mut child) = self.child().take() {
            child.kill().expect("one's own child can be killed");
            child.wait().expect("one's own child can be waited for");
        }
    }

    /// Kills it, starts it again on the same port with what it kept, and waits until it answers.
    ///
    /// # Panics
    /// As [`start`](Redis::start).
    pub fn restart(&self) {
        self.kill();
        let mut server = Command::new("redis-server");
        server.args(["--port", &self.port.to_string(), "--save", "", "--appendonly", "yes"]);
        server.args(["--appendfsync", "always", "--dir"]).arg(self.directory.path());
        let server = server.stdout(Stdio::null()).spawn();
        *self.child() = Some(server.expect("redis-server is installed"));
        let begun = Instant::now();
        while !self.answers() {
            assert!(begun.elapsed() < PATIENCE, "the server does not answer");
            std::thread::sleep(LOOK);
        }
    }

    fn answers(&self) -> bool {
        let ping = || -> std::io::Result<bool> {
            let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
            stream.set_read_timeout(Some(Duration::from_secs(1)))?;
            stream.write_all(b"PING\r\n")?;
            let mut answer = [0; 5];
            stream.read_exact(&mut answer)?;
            Ok(&answer == b"+PONG")
        };
        ping().unwrap_or(false)
    }

    fn child(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}
