//! Lanes: one arbiter, one thread, one whole pipeline of actors.

use std::future::Future;

use actix_rt::{Arbiter, ArbiterHandle};
use tokio::sync::oneshot;

/// A thread that actors live on.
#[derive(Clone)]
pub(crate) struct Lane {
    arbiter: ArbiterHandle,
}

/// The lanes of a pipeline; they end with it.
pub(crate) struct Lanes {
    arbiters: Vec<Arbiter>,
}

impl Lanes {
    /// Starts `n` lanes, each a thread.
    pub(crate) fn start(n: usize) -> Self {
        Self { arbiters: (0..n.max(1)).map(|_| Arbiter::new()).collect() }
    }

    pub(crate) fn all(&self) -> Vec<Lane> {
        self.arbiters.iter().map(|arbiter| Lane { arbiter: arbiter.handle() }).collect()
    }
}

impl Drop for Lanes {
    /// Stops the lanes; one that is stuck in user code is left to end with the process.
    fn drop(&mut self) {
        for arbiter in &self.arbiters {
            arbiter.stop();
        }
    }
}

impl Lane {
    /// Runs a future that may not leave its thread, and waits for its answer; `None` when the lane
    /// has stopped or the future panicked.
    pub(crate) async fn run<F, Fut, T>(&self, make: F) -> Option<T>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = T> + 'static,
        T: Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let spawned = self.arbiter.spawn_fn(move || {
            actix_rt::spawn(async move {
                // Who asked may have given up waiting.
                let _ = reply.send(make().await);
            });
        });
        if !spawned {
            return None;
        }
        answer.await.ok()
    }

    /// Runs a function on the lane, whenever it comes to it.
    pub(crate) fn spawn(&self, make: impl FnOnce() + Send + 'static) {
        self.arbiter.spawn_fn(make);
    }
}
