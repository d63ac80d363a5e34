use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{LOOK, PATIENCE, free_port, used};

/// A Redis server (`redis-server` in the path) that keeps on disk whatever it confirmed.
#[derive(Debug)]
pub struct Redis {
    directory: tempfile::TempDir,
    port: u16,
    /// Where it listens for TLS, if it does.
    tls: Option<u16>,
    more: Vec<String>,
    child: Mutex<Option<Child>>,
}

impl Redis {
    /// Starts one and waits until it answers.
    ///
    /// # Panics
    /// It is not installed, or does not answer within 30 s.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts one with more of its options, as `--name value`.
    ///
    /// # Panics
    /// As [`start`](Redis::start).
    pub fn start_with(options: &[&str]) -> Self {
        used("redis");
        let directory = tempfile::tempdir().expect("a directory can be made");
        let more = options.iter().map(|option| (*option).to_owned()).collect();
        let redis = Self { directory, port: free_port(), tls: None, more, child: Mutex::default() };
        redis.restart();
        redis
    }

    /// Starts one that takes TLS and the user `alice`, with the password `secret`, who may do
    /// everything with keys that begin with `shop`, `{shop` or `rsmq`; and nobody else.
    ///
    /// # Panics
    /// As [`start`](Redis::start); or `openssl` is not installed.
    pub fn start_secured() -> Self {
        used("redis, secured");
        let directory = tempfile::tempdir().expect("a directory can be made");
        let (certificate, key) = make_certificates(directory.path());
        let port = free_port();
        let options = [
            "--tls-port".to_owned(),
            port.to_string(),
            "--tls-cert-file".to_owned(),
            certificate.display().to_string(),
            "--tls-key-file".to_owned(),
            key.display().to_string(),
            "--tls-ca-cert-file".to_owned(),
            directory.path().join("ca.pem").display().to_string(),
            "--tls-auth-clients".to_owned(),
            "no".to_owned(),
            "--aclfile".to_owned(),
            directory.path().join("users.acl").display().to_string(),
        ];
        let users = "user default off\n\
                     user alice on >secret ~shop* ~{shop* ~rsmq* &* +@all -@admin\n";
        std::fs::write(directory.path().join("users.acl"), users).expect("it can be written");
        let (tls, child) = (Some(port), Mutex::default());
        let redis = Self { directory, port: free_port(), tls, more: options.into(), child };
        redis.restart();
        redis
    }

    /// Its address as a URL, the one for TLS if it takes that.
    pub fn url(&self) -> String {
        match self.tls {
            None => format!("redis://127.0.0.1:{}", self.port),
            Some(port) => format!("rediss://alice:secret@127.0.0.1:{port}"),
        }
    }

    /// The file with the certificate of who signed its own.
    pub fn authority(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// The port that it listens on, without TLS.
    pub fn port(&self) -> u16 {
        self.port
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
        let server = server.args(&self.more).stdout(Stdio::null()).spawn();
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
            Ok([b"+PONG", b"-NOAU"].contains(&&answer))
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

/// An authority's certificate (`ca.pem`), and one for this machine that it has signed, with its key.
fn make_certificates(directory: &Path) -> (PathBuf, PathBuf) {
    let openssl = |arguments: &[&str]| {
        let made = Command::new("openssl").args(arguments).current_dir(directory).output();
        let made = made.expect("openssl is installed");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    };
    let new_key = ["-newkey", "rsa:2048", "-nodes"];
    let authority = ["req", "-x509", "-days", "2", "-subj", "/CN=authority"];
    openssl(&[&authority[..], &new_key, &["-keyout", "ca.key", "-out", "ca.pem"]].concat());
    let request = ["req", "-subj", "/CN=localhost", "-keyout", "server.key", "-out", "server.csr"];
    openssl(&[&request[..], &new_key].concat());
    let names = "subjectAltName=IP:127.0.0.1\n";
    std::fs::write(directory.join("names"), names).expect("it can be written");
    openssl(&[
        "x509",
        "-req",
        "-days",
        "2",
        "-in",
        "server.csr",
        "-CA",
        "ca.pem",
        "-CAkey",
        "ca.key",
        "-CAcreateserial",
        "-extfile",
        "names",
        "-out",
        "server.pem",
    ]);
    (directory.join("server.pem"), directory.join("server.key"))
}
