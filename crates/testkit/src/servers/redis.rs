use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{Door, LOOK, PATIENCE, free_port, used};

/// The commands that a user of queues on streams needs, as an access list has them.
pub const STREAM_COMMANDS: &str = "+xadd +xack +xclaim +xdel +xlen +xpending +xrange +xreadgroup +xtrim \
    +xgroup|create +xgroup|delconsumer +xinfo|consumers +xinfo|groups +zadd +zcard +zcount +zrange \
    +zrangebyscore +zrem +hget +hset +hdel +get +set +pexpire +del +type +time +evalsha +script|load";
/// How long a full server waits, at most, for a command that it refuses.
const FULL: Duration = Duration::from_secs(5);
/// The streams that its user may use, each with the keys beside it.
const STREAMS: [&str; 2] = ["shop", "beside"];

/// A Redis server (`redis-server` in the path) that keeps on disk everything it confirmed.
#[derive(Debug)]
pub struct Redis {
    directory: tempfile::TempDir,
    port: u16,
    /// The port for TLS, if it listens on one.
    tls: Option<u16>,
    /// The first of its users, if it does not accept everybody.
    user: Option<&'static str>,
    more: Vec<String>,
    child: Mutex<Option<Child>>,
}

impl Redis {
    /// Starts one and waits until it answers.
    ///
    /// # Panics
    /// It is not installed, ends, or does not answer within three minutes.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts one with further options, each as `--name value`.
    ///
    /// # Panics
    /// As [`start`](Redis::start).
    pub fn start_with(options: &[&str]) -> Self {
        Self::start_at(free_port(), options)
    }

    pub(super) fn start_at(port: u16, options: &[&str]) -> Self {
        used("redis");
        let directory = tempfile::tempdir().expect("a directory can be made");
        let more = options.iter().map(|option| (*option).to_owned()).collect();
        let child = Mutex::default();
        let redis = Self { directory, port, tls: None, user: None, more, child };
        redis.restart();
        redis
    }

    /// Starts one that accepts only two users, with the password `secret`: `alice`, who may do
    /// [what streams need](STREAM_COMMANDS) with the streams `shop` and `beside`, and `bob`, who
    /// may do everything with keys that begin with `rsmq`.
    ///
    /// # Panics
    /// As [`start`](Redis::start).
    pub fn start_restricted() -> Self {
        used("redis, restricted");
        let directory = tempfile::tempdir().expect("a directory can be made");
        let options = write_users(directory.path());
        let (user, child) = (Some("alice"), Mutex::default());
        let redis =
            Self { directory, port: free_port(), tls: None, user, more: options.into(), child };
        redis.restart();
        redis
    }

    /// Starts one as [`start_restricted`](Redis::start_restricted) does, but with TLS.
    ///
    /// # Panics
    /// As [`start`](Redis::start); or `openssl` is not installed.
    pub fn start_secured() -> Self {
        used("redis, tls");
        used("redis, user");
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
        ];
        let more = [&options[..], &write_users(directory.path())].concat();
        let (tls, user, child) = (Some(port), Some("alice"), Mutex::default());
        let redis = Self { directory, port: free_port(), tls, user, more, child };
        redis.restart();
        redis
    }

    /// The same for its other user, `bob`.
    pub fn url_of_bob(&self) -> String {
        self.url().replace("alice", "bob")
    }

    /// Its address as a URL: the one for TLS if it has that, with its first user if it has users.
    pub fn url(&self) -> String {
        let user = self.user.map(|user| format!("{user}:secret@")).unwrap_or_default();
        match self.tls {
            None => format!("redis://{user}127.0.0.1:{}", self.port),
            Some(port) => format!("rediss://{user}127.0.0.1:{port}"),
        }
    }

    /// The same, through a door before it; without TLS.
    pub fn url_through(&self, door: &Door) -> String {
        self.url().replace(&format!(":{}", self.port), &format!(":{}", door.port()))
    }

    /// The file with the certificate of the authority that signed its own.
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
        if let Some(mut child) = self.child.lock().take() {
            child.kill().expect("one's own child can be killed");
            child.wait().expect("one's own child can be waited for");
        }
    }

    /// Kills it, starts it again on the same port with its data, and waits until it answers.
    ///
    /// # Panics
    /// As [`start`](Redis::start).
    pub fn restart(&self) {
        self.kill();
        let mut server = Command::new("redis-server");
        server.args(["--port", &self.port.to_string(), "--save", "", "--appendonly", "yes"]);
        server.args(["--appendfsync", "always", "--dir"]).arg(self.directory.path());
        let server = server.args(&self.more).stdout(Stdio::null()).spawn();
        *self.child.lock() = Some(server.expect("redis-server is installed"));
        let begun = Instant::now();
        while !self.answers() {
            // For example because another process has its port.
            let ended = self.child.lock().as_mut().map(|child| child.try_wait());
            assert!(!matches!(ended, Some(Ok(Some(_)))), "the server ended: {ended:?}");
            assert!(begun.elapsed() < PATIENCE, "the server does not answer");
            std::thread::sleep(LOOK);
        }
    }

    /// Leaves it no memory until it has refused a command, for at most five seconds; for a server
    /// without access control. Returns whether it has refused one.
    ///
    /// # Panics
    /// The server does not answer.
    pub fn fill(&self) -> bool {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("the server runs");
        stream.set_read_timeout(Some(PATIENCE)).expect("it is no zero");
        let mut ask = |command: &str| -> Vec<u8> {
            stream.write_all(command.as_bytes()).expect("the server answers");
            let mut answer = vec![0; 1 << 16];
            let length = stream.read(&mut answer).expect("the server answers");
            answer.truncate(length);
            answer
        };
        ask("CONFIG RESETSTAT\r\n");
        ask("CONFIG SET maxmemory 1\r\n");
        let (begun, mut refused) = (Instant::now(), false);
        while !refused && begun.elapsed() < FULL {
            std::thread::sleep(LOOK);
            refused =
                String::from_utf8_lossy(&ask("INFO errorstats\r\n")).contains("errorstat_OOM");
        }
        ask("CONFIG SET maxmemory 0\r\n");
        refused
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
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Writes the users of a server that has some; returns the options that load them.
fn write_users(directory: &Path) -> [String; 2] {
    let keys = STREAMS.map(|stream| format!("~{stream} ~{{{stream}}}:brigade:*")).join(" ");
    // Without rights for `default`, the server forgets on a restart what scripts wrote.
    let users = format!(
        "user default off ~* &* +@all\n\
         user alice on >secret {keys} {STREAM_COMMANDS}\n\
         user bob on >secret ~rsmq* &* +@all -@admin\n"
    );
    let file = directory.join("users.acl");
    std::fs::write(&file, users).expect("it can be written");
    ["--aclfile".to_owned(), file.display().to_string()]
}

/// Makes an authority's certificate (`ca.pem`), and one for this machine, signed by it, with its
/// key.
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
