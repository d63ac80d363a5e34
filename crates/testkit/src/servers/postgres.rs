use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::{LOOK, PATIENCE, free_port, used};

/// Runs until its standard input ends, also when the test that holds the other end is killed. SIGQUIT
/// ends a server as a crash does, with all its processes.
const KEEPER: &str = r#""$@" & server=$!; read -r _; kill -QUIT $server; wait $server 2>/dev/null"#;
/// Where Debian puts the server.
const DEBIAN: &str = "/usr/lib/postgresql";

/// A PostgreSQL server, with the user `brigade` and the database `postgres`. As root it runs as the user
/// `postgres`, since it refuses to run as root.
#[derive(Debug)]
pub struct Postgres {
    directory: tempfile::TempDir,
    port: u16,
    keeper: Mutex<Option<Child>>,
}

impl Postgres {
    /// Starts one and waits until it answers.
    ///
    /// # Panics
    /// It is not installed, or does not answer within a minute.
    pub fn start() -> Self {
        used("postgres");
        let directory = tempfile::tempdir().expect("a directory can be made");
        let postgres = Self { directory, port: free_port(), keeper: Mutex::default() };
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

    /// How to connect to it, as `tokio-postgres` and `psql` take it.
    pub fn url(&self) -> String {
        format!("host=127.0.0.1 port={} user=brigade dbname=postgres", self.port)
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Ends it as a crash does, if it runs.
    ///
    /// # Panics
    /// It cannot be waited for.
    pub fn kill(&self) {
        if let Some(mut keeper) = self.keeper().take() {
            drop(keeper.stdin.take());
            keeper.wait().expect("one's own child can be waited for");
        }
    }

    /// Kills it, starts it again on the same port with what it kept, and waits until it answers.
    ///
    /// # Panics
    /// As [`start`](Postgres::start).
    pub fn restart(&self) {
        self.kill();
        let log = std::fs::File::create(self.directory.path().join("server.log"));
        let log = log.expect("it can be made");
        let server = command("postgres");
        let mut keeper = Command::new("sh");
        keeper.args(["-c", KEEPER, "sh"]).arg(server.get_program()).args(server.get_args());
        keeper.arg("-D").arg(self.data()).args(["-h", "127.0.0.1", "-p", &self.port.to_string()]);
        keeper.arg("-k").arg(self.directory.path());
        let streams = log.try_clone().expect("a file can be opened twice");
        keeper.stdin(Stdio::piped()).stdout(streams).stderr(log);
        *self.keeper() = Some(keeper.spawn().expect("there is a shell"));
        let begun = Instant::now();
        let ready = || {
            let mut ready = command("pg_isready");
            ready.args(["-q", "-h", "127.0.0.1", "-p", &self.port.to_string()]);
            ready.status().is_ok_and(|status| status.success())
        };
        while !ready() {
            if begun.elapsed() > PATIENCE {
                let log = self.directory.path().join("server.log");
                panic!("it does not answer:\n{}", std::fs::read_to_string(log).unwrap_or_default());
            }
            std::thread::sleep(LOOK);
        }
    }

    fn keeper(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.keeper.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.kill();
    }
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output();
    id.is_ok_and(|id| String::from_utf8_lossy(&id.stdout).trim() == "0")
}

/// One of PostgreSQL's programs, as a user that it takes.
fn command(name: &str) -> Command {
    let program = program(name);
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]).arg(program);
    command
}

/// In Debian's directory of the newest version, else in the path.
fn program(name: &str) -> PathBuf {
    let versions = std::fs::read_dir(DEBIAN).into_iter().flatten().flatten();
    let programs = versions.map(|version| version.path().join("bin").join(name));
    let newest = programs.filter(|program| program.exists()).max();
    newest.unwrap_or_else(|| Path::new(name).to_owned())
}
