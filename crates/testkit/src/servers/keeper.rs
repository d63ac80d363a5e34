use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::{LOOK, PATIENCE};

/// Runs until its standard input ends, also when the test that holds the other end is killed; then ends
/// the server with the signal that stands first.
const SCRIPT: &str = r#"signal=$1; shift; "$@" & server=$!; read -r _; kill "$signal" $server; wait $server 2>/dev/null"#;

/// A server's process, which never outlives its test.
#[derive(Debug, Default)]
pub(super) struct Keeper(Mutex<Option<Child>>);

impl Keeper {
    /// Starts a server, which writes to this log, and waits until it is ready.
    ///
    /// # Panics
    /// It is not ready within three minutes.
    pub(super) fn start(
        &self,
        server: &Command,
        signal: &str,
        log: &Path,
        ready: impl Fn() -> bool,
    ) {
        let output = File::create(log).expect("it can be made");
        let errors = output.try_clone().expect("a file can be opened twice");
        let mut keeper = Command::new("sh");
        keeper.args(["-c", SCRIPT, "sh", signal]).arg(server.get_program()).args(server.get_args());
        keeper.stdin(Stdio::piped()).stdout(output).stderr(errors);
        *self.child() = Some(keeper.spawn().expect("there is a shell"));
        let begun = Instant::now();
        while !ready() {
            if begun.elapsed() > PATIENCE {
                let log = std::fs::read_to_string(log).unwrap_or_default();
                panic!("the server does not answer:\n{log}");
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Ends the server, if it runs.
    ///
    /// # Panics
    /// It cannot be waited for.
    pub(super) fn kill(&self) {
        if let Some(mut keeper) = self.child().take() {
            drop(keeper.stdin.take());
            keeper.wait().expect("one's own child can be waited for");
        }
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.kill();
    }
}
