use std::path::{Path, PathBuf};
use std::process::Command;

use super::keeper::Keeper;
use super::{free_port, used};

/// Where Debian puts the server.
const DEBIAN: &str = "/usr/lib/postgresql";

/// A PostgreSQL server, with the user `brigade` and the database `postgres`. As root it runs as the user
/// `postgres`, since it refuses to run as root.
#[derive(Debug)]
pub struct Postgres {
    /// Dropped first: the server writes into the directory.
    keeper: Keeper,
    directory: tempfile::TempDir,
    port: u16,
}

impl Postgres {
    /// Starts one and waits until it answers.
    ///
    /// # Panics
    /// It is not installed, or does not answer within three minutes.
    pub fn start() -> Self {
        used("postgres");
        let directory = tempfile::tempdir().expect("a directory can be made");
        let postgres = Self { directory, port: free_port(), keeper: Keeper::default() };
        if is_root() {
            let chown =
                Command::new("chown").arg("postgres").arg(postgres.directory.path()).status();
            assert!(chown.is_ok_and(|done| done.success()), "there is a user `postgres`");
        }
        let mut initdb = command("initdb");
        initdb.args(["--no-sync", "-A", "trust", "-U", "brigade", "-D"]).arg(postgres.data());
        let made = initdb.output().expect("initdb can be run");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        postgres.restart();
        postgres
    }

    /// How to connect to it, in the form that `tokio-postgres` and `psql` take.
    pub fn url(&self) -> String {
        format!("host=127.0.0.1 port={} user=brigade dbname=postgres", self.port)
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Ends it like a crash, if it runs.
    ///
    /// # Panics
    /// It cannot be waited for.
    pub fn kill(&self) {
        self.keeper.kill();
    }

    /// Kills it, starts it again on the same port with its data, and waits until it answers.
    ///
    /// # Panics
    /// As [`start`](Postgres::start).
    pub fn restart(&self) {
        self.kill();
        let port = self.port.to_string();
        let mut server = command("postgres");
        server.arg("-D").arg(self.data()).args(["-h", "127.0.0.1", "-p", &port]);
        server.arg("-k").arg(self.directory.path());
        let ready = || {
            let mut ready = command("pg_isready");
            ready.args(["-q", "-h", "127.0.0.1", "-p", &port]);
            ready.status().is_ok_and(|status| status.success())
        };
        // SIGQUIT ends it like a crash, with all its processes.
        self.keeper.start(&server, "-QUIT", &self.directory.path().join("server.log"), ready);
    }
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output();
    id.is_ok_and(|id| String::from_utf8_lossy(&id.stdout).trim() == "0")
}

/// One of PostgreSQL's programs, run as a user that it accepts.
fn command(name: &str) -> Command {
    let program = program(name);
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]).arg(program);
    command
}

/// From Debian's directory of the newest version, otherwise from the path.
fn program(name: &str) -> PathBuf {
    let versions = std::fs::read_dir(DEBIAN).into_iter().flatten().flatten();
    let programs = versions.map(|version| version.path().join("bin").join(name));
    let newest = programs.filter(|program| program.exists()).max();
    newest.unwrap_or_else(|| Path::new(name).to_owned())
}
