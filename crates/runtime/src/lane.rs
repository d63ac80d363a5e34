//! Lanes: one arbiter, one thread, one whole pipeline of actors. In a test with paused time they
//! all run on the test's thread.

use std::future::Future;

use actix_rt::{Arbiter, ArbiterHandle};
use tokio::sync::oneshot;

/// A thread that actors live on.
#[derive(Clone)]
pub(crate) enum Lane {
    /// Its own.
    Arbiter(ArbiterHandle),
    /// The supervisor's, which is the caller's.
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
    /// Runs a future that must stay on the lane's thread, and waits for its result; `None` if the
    /// lane has stopped or the future panicked.
    pub(crate) async fn run<F, Fut, T>(&self, make: F) -> Option<T>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = T> + 'static,
        T: Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        self.spawn(move || {
            actix_rt::spawn(async move {
                // The caller may have given up waiting.
                let _ = reply.send(make().await);
            });
        });
        answer.await.ok()
    }

    /// Runs a function on the lane, as soon as the lane gets to it.
    pub(crate) fn spawn(&self, make: impl FnOnce() + Send + 'static) {
        match self {
            // A stopped lane drops it.
            Self::Arbiter(arbiter) => {
                arbiter.spawn_fn(make);
            }
            Self::Here => drop(actix_rt::spawn(async move { make() })),
        }
    }
}
