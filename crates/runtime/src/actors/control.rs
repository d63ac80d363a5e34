//! What is visible of a consumer, and how it is controlled, whichever actor is behind it.

use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};

use actix::Addr;
use arc_swap::ArcSwapOption;
use brigade_core::books::Page;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Crash;
use super::consumer::Consumer;

/// What a consumer should do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Pull.
    Running,
    /// Do not pull; resolve what is in flight.
    Paused,
    /// Give up what is in flight, and end.
    Stopping,
}

/// What is visible of a consumer, and how it is controlled, whichever actor is behind it.
pub(crate) struct Control {
    mode: Mutex<Mode>,
    /// How often the mode was set, and the last setting that the actor has acted on.
    pub(super) asked: AtomicU64,
    pub(super) heard: AtomicU64,
    pub(crate) notify: Arc<Notify>,
    pub(crate) in_flight: AtomicUsize,
    /// A finite queue was read to its end.
    pub(crate) ended: AtomicBool,
    /// The consumer waits for more: its last request found nothing.
    waiting: AtomicBool,
    /// It has messages that no worker has been given yet.
    undealt: AtomicBool,
    /// The consumers that may pull only while this one waits.
    followers: Mutex<Vec<Arc<Notify>>>,
    /// Of messages, and of the outputs of those that are settled.
    pages: Mutex<(Page, Page)>,
    /// It has ended, and given back what it held.
    pub(crate) stopped: AtomicBool,
    pub(super) addr: ArcSwapOption<Addr<Consumer>>,
}

impl Control {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            mode: Mutex::new(Mode::Running),
            asked: AtomicU64::new(0),
            heard: AtomicU64::new(0),
            notify: Arc::new(Notify::new()),
            in_flight: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
            waiting: AtomicBool::new(false),
            undealt: AtomicBool::new(false),
            followers: Mutex::default(),
            pages: Mutex::default(),
            stopped: AtomicBool::new(false),
            addr: ArcSwapOption::empty(),
        })
    }

    pub(crate) fn set(&self, mode: Mode) {
        *self.mode.lock() = mode;
        self.asked.fetch_add(1, Release);
        self.notify.notify_one();
    }

    /// How much is in flight, if the actor has acted on the last mode; `None` if it has not yet.
    pub(crate) fn unresolved(&self) -> Option<usize> {
        if !self.is_up() {
            return Some(0);
        }
        let heard = self.heard.load(Acquire) == self.asked.load(Acquire);
        heard.then(|| self.in_flight.load(Relaxed))
    }

    /// Records whether the queue has nothing to take.
    pub(super) fn set_waiting(&self, waiting: bool) {
        let before = self.waiting.swap(waiting, Relaxed);
        if waiting && !before {
            self.tell_followers();
        }
    }

    /// Records whether it has messages that no worker has been given yet.
    pub(super) fn set_undealt(&self, undealt: bool) {
        let before = self.undealt.swap(undealt, Relaxed);
        if before && !undealt {
            self.tell_followers();
        }
    }

    fn tell_followers(&self) {
        let followers = self.followers.lock();
        followers.iter().for_each(|follower| follower.notify_one());
    }

    /// Whether consumers that come after it by priority may not pull.
    pub(super) fn holds_up(&self) -> bool {
        !self.waiting.load(Relaxed) || self.undealt.load(Relaxed)
    }

    /// Whether other consumers may pull only while this one waits.
    pub(super) fn is_followed(&self) -> bool {
        !self.followers.lock().is_empty()
    }

    /// Notifies `follower` whenever the queue has nothing to take.
    pub(super) fn follow(&self, follower: &Arc<Notify>) {
        let mut followers = self.followers.lock();
        if !followers.iter().any(|known| Arc::ptr_eq(known, follower)) {
            followers.push(Arc::clone(follower));
        }
    }

    /// The consumer's page of the books: what came from the queue, what was settled, what is in
    /// flight.
    pub(crate) fn page(&self) -> Page {
        self.pages().0
    }

    /// Its pages of messages, and of outputs: those that settled messages had, and those that are
    /// on their queues, were refused, or went with a message whose lease was lost.
    pub(crate) fn pages(&self) -> (Page, Page) {
        *self.pages.lock()
    }

    pub(super) fn set_pages(&self, messages: Page, outputs: Page) {
        *self.pages.lock() = (messages, outputs);
    }

    /// Whether an actor is behind it.
    pub(crate) fn is_up(&self) -> bool {
        self.addr.load().as_ref().is_some_and(|addr| addr.connected())
    }

    /// The actor with this address has ended. Another one may be behind the consumer by now.
    pub(super) fn down(&self, own: &Arc<Addr<Consumer>>) {
        if self.addr.load().as_ref().is_some_and(|addr| Arc::ptr_eq(addr, own)) {
            self.addr.store(None);
        }
    }

    /// Kills the actor, as if by a defect in Brigade.
    pub(crate) fn crash(&self) -> bool {
        self.addr.load().as_ref().is_some_and(|addr| addr.try_send(Crash).is_ok())
    }

    pub(crate) fn mode(&self) -> Mode {
        *self.mode.lock()
    }
}
