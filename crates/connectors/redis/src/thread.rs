//! The thread that serves all connections to Redis in this process. Connecting, requests and the
//! timeouts of answers run on it: a lane whose component blocks for long makes no answer time out,
//! neither its own nor, on a shared connection, another lane's.

use std::future::Future;
use std::pin::Pin;
use std::sync::mpsc;
use std::task::{Context, Poll};
use std::{io, panic};

use parking_lot::Mutex;
use tokio::runtime::{Builder, Handle};
use tokio::task::JoinHandle;

/// The handle of the thread, once it runs.
static THREAD: Mutex<Option<Thread>> = Mutex::new(None);

/// A handle of the thread, which ends with the process.
#[derive(Clone)]
pub(crate) struct Thread(Handle);

impl Thread {
    /// Starts the thread at first use.
    pub(crate) fn get() -> io::Result<Self> {
        let mut there = THREAD.lock();
        if let Some(thread) = &*there {
            return Ok(thread.clone());
        }
        let thread = Self(start()?);
        *there = Some(thread.clone());
        Ok(thread)
    }

    /// Runs work on the thread; dropping the task cancels it.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Task<T> {
        Task(self.0.spawn(work))
    }

    /// Runs work on the thread to its end, whether or not anything waits for it.
    pub(crate) fn spawn_to_the_end(&self, work: impl Future<Output = ()> + Send + 'static) {
        drop(self.0.spawn(work));
    }
}

fn start() -> io::Result<Handle> {
    let (say, is_made) = mpsc::channel();
    // Built on the new thread: a runtime built here, where tasks run, could not be dropped here if
    // the thread cannot be started.
    std::thread::Builder::new().name("brigade-redis".to_owned()).spawn(move || {
        match Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => {
                let _ = say.send(Ok(runtime.handle().clone()));
                runtime.block_on(std::future::pending::<()>());
            }
            Err(error) => {
                let _ = say.send(Err(error));
            }
        }
    })?;
    is_made.recv().map_err(io::Error::other)?
}

/// Work on the thread. Dropping it cancels the work.
pub(crate) struct Task<T>(JoinHandle<T>);

impl<T> Future for Task<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let done = Pin::new(&mut self.0).poll(context);
        // A task that is being awaited has not been cancelled: it can only have panicked.
        done.map(|done| done.unwrap_or_else(|error| panic::resume_unwind(error.into_panic())))
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
