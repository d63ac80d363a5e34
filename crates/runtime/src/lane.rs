//! Lanes: one arbiter, one thread, one whole pipeline of actors. In a test whose time is stopped they are
//! all on the test's thread.

use std::future::Future;

use actix_rt::{Arbiter, ArbiterHandle};
use tokio::sync::oneshot;

/// A thread that actors live on.
#[derive(Clone)]
pub(crate) enum Lane {
    /// One of its own.
    Arbiter(ArbiterHandle),
    /// That of the supervisor, who asks.
    Here,
}

/// The lanes of a pipeline; they end with it.
pub(crate) enum Lanes {
    Arbiters(Vec<Arbiter>),
    Here(usize),
}

/// Where the actors of pipelines live.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Home {
    /// On threads of their own.
    Threads,
    /// On the supervisor's.
    Here,
}

impl Lanes {
    /// Starts `n` lanes.
    pub(crate) fn start(n: usize, home: Home) -> Self {
        match home {
            Home::Threads => Self::Arbiters((0..n.max(1)).map(|_| Arbiter::new()).collect()),
            Home::Here => Self::Here(n.max(1)),
        }
    }

    pub(crate) fn all(&self) -> Vec<Lane> {
        match self {
            Self::Arbiters(all) => all.iter().map(|one| Lane::Arbiter(one.handle())).collect(),
            Self::Here(n) => vec![Lane::Here; *n],
        }
    }
}

impl Drop for Lanes {
    /// Stops the lanes; one that is stuck in user code is left to end with the process.
    fn drop(&mut self) {
        if let Self::Arbiters(arbiters) = self {
            for arbiter in arbiters {
                arbiter.stop();
            }
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
        self.spawn(move || {
            actix_rt::spawn(async move {
                // Who asked may have given up waiting.
                let _ = reply.send(make().await);
            });
        });
        answer.await.ok()
    }

    /// Runs a function on the lane, whenever it comes to it.
    pub(crate) fn spawn(&self, make: impl FnOnce() + Send + 'static) {
        match self {
            // One that has stopped drops it.
            Self::Arbiter(arbiter) => {
                arbiter.spawn_fn(make);
            }
            Self::Here => drop(actix_rt::spawn(async move { make() })),
        }
    }
}
