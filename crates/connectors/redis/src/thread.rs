//! The thread of all connections to Redis in this process. Connecting, requests and how long their answers take are
//! its own: a lane whose component keeps its thread for long lets no answer time out, neither its own nor, where they
//! share a connection, another lane's.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError, mpsc};
use std::task::{Context, Poll};
use std::{io, panic};

use tokio::runtime::{Builder, Handle};
use tokio::task::JoinHandle;

/// The way to the thread, once it is there.
static THREAD: Mutex<Option<Thread>> = Mutex::new(None);

/// The way to the thread, which ends with the process.
#[derive(Clone)]
pub(crate) struct Thread(Handle);

impl Thread {
    /// Starts it at first use.
    pub(crate) fn get() -> io::Result<Self> {
        let mut there = THREAD.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = &*there {
            return Ok(thread.clone());
        }
        let thread = Self(start()?);
        *there = Some(thread.clone());
        Ok(thread)
    }

    /// Has something done there.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Task<T> {
        Task(self.0.spawn(work))
    }

    /// The same, whether anybody waits for it or not.
    pub(crate) fn spawn_to_the_end(&self, work: impl Future<Output = ()> + Send + 'static) {
        drop(self.0.spawn(work));
    }
}

fn start() -> io::Result<Handle> {
    let (say, is_made) = mpsc::channel();
    // A runtime that were made here could not be dropped here, where tasks run, if there is no thread.
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

/// What is done on the thread. Who drops it gives it up.
pub(crate) struct Task<T>(JoinHandle<T>);

impl<T> Future for Task<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let done = Pin::new(&mut self.0).poll(context);
        // Nobody gives up what he awaits: it can only have panicked.
        done.map(|done| done.unwrap_or_else(|error| panic::resume_unwind(error.into_panic())))
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
