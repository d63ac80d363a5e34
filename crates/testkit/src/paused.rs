//! Paused time.

use std::cell::Cell;
use std::future::Future;

use tokio::runtime::Builder;
use tokio::task::LocalSet;

thread_local! {
    static PAUSED: Cell<bool> = const { Cell::new(false) };
}

/// Whether trials started by this thread have paused time.
pub(crate) fn is() -> bool {
    PAUSED.get()
}

/// Runs a test in which waiting takes no time: when nothing is left to do but wait, the clock jumps
/// to the end of the first wait. Back-offs, delays, batch ages, throttles, timeouts, expiry and the
/// test's own `tokio::time::sleep` are as long as the file says and end in the right order, but are
/// over at once; since a pipeline is also checked periodically, a simulated hour takes some
/// seconds.
///
/// To make this possible, the pipelines of a [`Trial`](crate::Trial) run on the test's own thread,
/// including all lanes. Code on its own threads is not affected, and the clock jumps while it
/// works: components with `blocking: true`, for example, but not `tokio::task::spawn_blocking`.
///
/// ```no_run
/// # fn trial(pipeline: brigade_runtime::Pipeline) -> Result<(), Box<dyn std::error::Error>> {
/// use brigade_core::Message;
/// use brigade_testkit::{Fault, Trial};
/// brigade_testkit::paused(async {
///     // Its back-off is of an hour.
///     let setup = Trial::of(pipeline).fault("bill", 1..=2, Fault::Error("away".into()));
///     let trial = setup.start().await?;
///     trial.send("orders", [Message::new("{\"total\": 10}")]);
///     let begun = tokio::time::Instant::now();
///     trial.settle().await?;
///     assert!(begun.elapsed().as_secs() >= 3600);
///     Ok(())
/// })
/// # }
/// ```
///
/// # Panics
/// When called within a runtime, and when the test panics.
pub fn paused<T>(test: impl Future<Output = T>) -> T {
    let runtime = Builder::new_current_thread().enable_all().start_paused(true).build();
    let runtime = runtime.expect("a runtime needs a few file handles");
    let _paused = Paused::set();
    LocalSet::new().block_on(&runtime, test)
}

/// Resets it, even after a panic.
struct Paused;

impl Paused {
    fn set() -> Self {
        PAUSED.set(true);
        Self
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        PAUSED.set(false);
    }
}
