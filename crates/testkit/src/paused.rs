//! Time that is stopped.

use std::cell::Cell;
use std::future::Future;

use tokio::runtime::Builder;
use tokio::task::LocalSet;

thread_local! {
    static PAUSED: Cell<bool> = const { Cell::new(false) };
}

/// Whether trials that this thread starts have stopped time.
pub(crate) fn is() -> bool {
    PAUSED.get()
}

/// Runs a test in which no wait takes time: when all that is left to do is to wait, the clock jumps to
/// where the first wait ends. Back-offs, delays, batch ages, throttles, timeouts, expiry and the test's own
/// `tokio::time::sleep` are as long as the file says, in the right order, and over at once; looking at a
/// pipeline now and then costs an hour some seconds.
///
/// For this the pipelines of a [`Trial`](crate::Trial) run on the test's own thread, lanes and all. What has
/// a thread of its own knows nothing of it, and the clock jumps while that works: components with
/// `blocking: true`, `tokio::task::spawn_blocking` excepted.
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
/// When it is called in a runtime, and when the test panics.
pub fn paused<T>(test: impl Future<Output = T>) -> T {
    let runtime = Builder::new_current_thread().enable_all().start_paused(true).build();
    let runtime = runtime.expect("a runtime needs a few file handles");
    let _paused = Paused::set();
    LocalSet::new().block_on(&runtime, test)
}

/// Sets it back, also after a panic.
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
