use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::keeper::Keeper;
use super::{cached, free_port, used};

/// What Maven has to fetch, and the plugin that does it.
const ARTIFACT: &str = "io.apicurio:apicurio-registry-app:2.6.13.Final:tar.gz:all";
const PLUGIN: &str = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy";
const PROGRAM: &str = "apicurio-registry-app-2.6.13.Final-runner.jar";

/// A schema registry that speaks Confluent's HTTP API: Apicurio Registry, with its schemas in memory. It
/// needs Java 17; Maven fetches it, once, into the user's cache directory.
#[derive(Debug)]
pub struct SchemaRegistry {
    /// Dropped first: the server writes into the directory.
    keeper: Keeper,
    directory: tempfile::TempDir,
    port: u16,
}

impl SchemaRegistry {
    /// Starts one and waits until it answers.
    ///
    /// # Panics
    /// Java, Maven or tar is not installed, or it does not answer within three minutes.
    pub fn start() -> Self {
        used("schema registry");
        let directory = tempfile::tempdir().expect("a directory can be made");
        let registry = Self { directory, port: free_port(), keeper: Keeper::default() };
        registry.restart();
        registry
    }

    /// Its address, in the form that `registry: { url: .. }` takes.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/apis/ccompat/v7", self.port)
    }

    /// Kills it, if it runs.
    ///
    /// # Panics
    /// It cannot be killed.
    pub fn kill(&self) {
        self.keeper.kill();
    }

    /// Kills it, starts it again on the same port, without any schema, and waits until it answers.
    ///
    /// # Panics
    /// As [`start`](SchemaRegistry::start).
    pub fn restart(&self) {
        self.kill();
        let mut server = Command::new("java");
        server.args(["-Xmx256m", "-XX:TieredStopAtLevel=1", "-Dquarkus.http.host=127.0.0.1"]);
        server.arg(format!("-Dquarkus.http.port={}", self.port)).arg("-jar").arg(program());
        let log = self.directory.path().join("server.log");
        self.keeper.start(&server, "-KILL", &log, || self.answers());
    }

    fn answers(&self) -> bool {
        let ask = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            let request =
                "GET /apis/ccompat/v7/subjects HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
            stream.write_all(request.as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).map(|_| answer)
        };
        ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
    }
}

/// The directory of the server's program, which is fetched if it is not there.
fn program() -> PathBuf {
    let there = cached("schema-registry", ARTIFACT, |directory| {
        let mut maven = Command::new("mvn");
        maven.args(["-q", "-B", PLUGIN, &format!("-Dartifact={ARTIFACT}")]);
        maven.arg(format!("-DoutputDirectory={}", directory.display()));
        let done = maven.output().expect("Maven (`mvn`) is installed");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
        let archive = directory.join("apicurio-registry-app-2.6.13.Final-all.tar.gz");
        let mut tar = Command::new("tar");
        let done = tar.arg("xzf").arg(&archive).arg("-C").arg(directory).status();
        assert!(done.is_ok_and(|done| done.success()), "tar unpacks {}", archive.display());
        std::fs::remove_file(&archive).expect("it can be removed");
    });
    there.join(PROGRAM)
}
