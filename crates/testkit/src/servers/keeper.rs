use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use parking_lot::Mutex;

use super::{LOOK, PATIENCE};

/// Runs until its standard input ends, even if the test that holds the other end is killed; then
/// ends the server with the signal in the first argument. Also ends when the server ends by itself.
/// Background commands get standard input only by another number.
const SCRIPT: &str = r#"signal=$1; shift; exec 3<&0; "$@" 3<&- & server=$!
{ read -r _ <&3; kill "$signal" $server; } & end=$!
wait $server; kill $end 2>/dev/null"#;

/// A server's process, which never outlives its test.
#[derive(Debug, Default)]
pub(super) struct Keeper(Mutex<Option<Child>>);

impl Keeper {
    /// Starts a server, which writes to this log, and waits until it is ready.
    ///
    /// # Panics
    /// It ends, or is not ready within three minutes.
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
        *self.0.lock() = Some(keeper.spawn().expect("there is a shell"));
        let begun = Instant::now();
        while !ready() {
            // For example because another process has its port.
            let ended = self.has_ended();
            if ended || begun.elapsed() > PATIENCE {
                let log = std::fs::read_to_string(log).unwrap_or_default();
                panic!("the server {}:\n{log}", if ended { "ended" } else { "does not answer" });
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Whether the server has ended by itself.
    pub(super) fn has_ended(&self) -> bool {
        let mut keeper = self.0.lock();
        keeper.as_mut().is_some_and(|keeper| matches!(keeper.try_wait(), Ok(Some(_))))
    }

    /// Ends the server, if it runs.
    ///
    /// # Panics
    /// It cannot be waited for.
    pub(super) fn kill(&self) {
        if let Some(mut keeper) = self.0.lock().take() {
            drop(keeper.stdin.take());
            keeper.wait().expect("one's own child can be waited for");
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.kill();
    }
}
