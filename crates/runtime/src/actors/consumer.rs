//! The actor of one consumer: pulls on credit, deals to workers, settles what is resolved.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::{Duration, Instant};

use actix::prelude::*;
use brigade_core::DeadLetter;
use brigade_core::books::Page;
use brigade_core::connector::{
    ConnectorError, Consumer as ConnectorConsumer, ErrorKind, Incoming, Order, Want,
};
use brigade_core::credit::Credit;
use brigade_core::delivery::{Delivery, Guard, Origin, Parts, Resolved};
use brigade_core::flight::{Finished, Flights, Since};
use brigade_core::order::{Lines, shard};
use brigade_core::outcome::Outcome;
use brigade_core::retry::doubled;
use futures_util::future::{LocalBoxFuture, OptionFuture};
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::MissedTickBehavior;

use super::Crash;
use super::control::{Control, Mode};
use super::pull::{BACK_OFF, Pull, Pulled, is_in_full, put_back};
use super::settler::{SettleError, Settled, Settler};
use crate::plan::{QueueKeeper, QueuePlan, StagePlan};
use crate::pool::{CHUNK_MAX, Pool, Port};
use crate::tree::{Exit, Report};

/// The most messages requested at once: sixteen chunks, or two per worker.
const PULL_MAX: usize = 16 * CHUNK_MAX;
/// Half of what one worker is given at most, and so of what one hanging call delays.
const DEALT_MAX: usize = 4 * CHUNK_MAX;
/// With order by key, this many times more may wait: keys do not spread evenly over the workers.
const KEYS_AHEAD: usize = 4;
/// The most messages settled in one transaction, so that locks are not held for long.
const SETTLE_MAX: usize = 2 * PULL_MAX;
/// While a settlement is under way, another starts only with at least this many messages: many
/// small transactions cost a store more than few large ones.
const SETTLE_BESIDE: usize = PULL_MAX / 2;
/// Settlements under way at once: one that waits for the disk and one that is being prepared.
const SETTLEMENTS_MAX: usize = 2;
/// How long pending settlements may take when the consumer closes.
const LAST_SETTLEMENTS: Duration = Duration::from_secs(2);
/// How long a pull waits for more credit than there is, if there is little.
const GATHER: Duration = Duration::from_millis(10);

/// Everything a consumer actor works with.
pub(crate) struct ConsumerSite {
    pub(crate) stage: Arc<StagePlan>,
    pub(crate) input: Arc<QueuePlan>,
    pub(crate) consumer: Arc<dyn ConnectorConsumer>,
    pub(crate) pool: Arc<Pool>,
    /// Deal only to the workers of this lane; `None`: to all.
    pub(crate) lane: Option<usize>,
    /// Inputs with priority over this one.
    pub(crate) before: Vec<Arc<Control>>,
    pub(crate) control: Arc<Control>,
    /// Its share of the stage's credit.
    pub(crate) credit: Credit,
    pub(crate) settler: Settler,
    pub(crate) report: Report,
}

impl ConsumerSite {
    /// Whether a worker gets this consumer's messages: the workers of its lane do; with order by
    /// key any worker may, since the messages of a key that come over several queues, or again from
    /// the dead letters, have one worker.
    fn deals_to(&self, port: &Port) -> bool {
        self.stage.order == Order::Key || self.lane.is_none_or(|here| here == port.lane)
    }

    /// The most messages a worker has: what it does in two chunks' time (at most `2 * max`), or two
    /// batches, if that is more.
    fn room(&self, port: &Port, max: usize) -> usize {
        2 * port.ahead(max).max(self.stage.batch.map_or(1, |(size, _)| size))
    }
}

pub(crate) struct Consumer {
    site: Option<ConsumerSite>,
    control: Arc<Control>,
    /// Its own address, as `control` has it.
    addr: Option<Arc<Addr<Self>>>,
    exit: Exit,
}

impl Consumer {
    pub(crate) fn new(site: ConsumerSite, exit: Exit) -> Self {
        let control = Arc::clone(&site.control);
        Self { site: Some(site), control, addr: None, exit }
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        // Before `exit` reports the death: whoever hears of it must not find an actor here. After a
        // panic the mailbox, and with it the address, lasts a little longer than the actor.
        if let Some(own) = &self.addr {
            self.control.down(own);
        }
    }
}

impl Actor for Consumer {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let Some(site) = self.site.take() else { return };
        let (report, stage) = (site.report.clone(), site.stage.index);
        let control = Arc::clone(&site.control);
        let addr = Arc::new(ctx.address());
        self.addr = Some(Arc::clone(&addr));
        control.addr.store(Some(addr));
        let pull = PullLoop::new(site).run();
        ctx.spawn(pull.into_actor(self).map(move |result, actor, ctx| {
            control.addr.store(None);
            match result {
                // It died: the supervisor reopens its connection.
                Err(End::Stalled) => return ctx.stop(),
                // Told to end, it may find its connection closed: that is no failure of the stage, which
                // may have been started again by then.
                Err(End::Failed(_)) if control.mode() == Mode::Stopping => {}
                Err(End::Failed(error)) => report.failed(stage, error),
                Ok(()) => {}
            }
            actor.exit.expected();
            control.stopped.store(true, Relaxed);
            ctx.stop();
        }));
    }
}

impl Handler<Crash> for Consumer {
    type Result = ();

    fn handle(&mut self, _: Crash, _: &mut Self::Context) {
        panic!("killed by a test");
    }
}

/// Why a consumer cannot go on.
enum End {
    /// It will not recover by itself: the stage fails.
    Failed(String),
    /// Its connection has to be reopened.
    Stalled,
}

type Extending = LocalBoxFuture<'static, Result<(), ConnectorError>>;
type Settling = LocalBoxFuture<'static, Result<Settled, SettleError>>;

struct PullLoop {
    site: Rc<ConsumerSite>,
    flights: Flights,
    origin: Arc<Origin>,
    /// What has not been given to a worker yet: one line, or with order one per worker.
    backlog: Vec<VecDeque<Delivery>>,
    /// Present with order by key, if the queue does not keep a key busy itself.
    lines: Option<Lines>,
    finished: VecDeque<Finished>,
    settling: FuturesUnordered<Settling>,
    /// What is being settled writes to a stage's state.
    writing: bool,
    pulling: Option<LocalBoxFuture<'static, Pulled>>,
    /// While nothing is to be pulled: others get what the consumer has taken and not returned.
    putting_back: Option<LocalBoxFuture<'static, ()>>,
    /// Until when the next pull waits for more credit, if there is little.
    gathering: Option<tokio::time::Instant>,
    /// What was asked for last, and whether as much came: then there may be more.
    asked: Want,
    came_in_full: bool,
    extending: Option<Extending>,
    /// Ends when the consumer cannot go on, whatever else it is asked for.
    breaking: LocalBoxFuture<'static, ConnectorError>,
    /// Scratch space, kept for its memory.
    resolved: Vec<Resolved>,
    failures: u32,
    /// How many messages came in, and how many have an outcome, whichever kind.
    came: u64,
    outcomes: u64,
    /// How many outputs settled messages had, and how many of them have come to something.
    emitted: u64,
    ended: u64,
}

impl PullLoop {
    fn new(site: ConsumerSite) -> Self {
        let consumer = Arc::clone(&site.consumer);
        let notify = Arc::clone(&site.control.notify);
        let handed_out = site.stage.handed_out.clone();
        let locate = Arc::new(move |receipt| consumer.locate(receipt));
        site.before.iter().for_each(|first| first.follow(&site.control.notify));
        let watched = Arc::clone(&site.consumer);
        let by_key = site.stage.order == Order::Key && !site.consumer.features().key_order;
        let lines = by_key.then(|| Lines::new(site.pool.ports().iter().map(|port| port.life())));
        Self {
            site: Rc::new(site),
            flights: Flights::default(),
            origin: Origin::new(handed_out, locate, move || notify.notify_one()),
            backlog: Vec::new(),
            lines,
            finished: VecDeque::new(),
            settling: FuturesUnordered::new(),
            writing: false,
            pulling: None,
            putting_back: None,
            gathering: None,
            asked: Want { messages: 0, bytes: 0 },
            came_in_full: true,
            extending: None,
            breaking: Box::pin(async move { watched.broken().await }),
            resolved: Vec::new(),
            failures: 0,
            came: 0,
            outcomes: 0,
            emitted: 0,
            ended: 0,
        }
    }

    /// Pulls, deals and settles until it is stopped or cannot go on; then closes.
    async fn run(mut self) -> Result<(), End> {
        let result = self.pull_until_stopped().await;
        self.close().await;
        result
    }

    async fn pull_until_stopped(&mut self) -> Result<(), End> {
        let lease = self.site.consumer.lease().map(|lease| lease / 3);
        let mut extend = lease.map(tokio::time::interval);
        if let Some(extend) = &mut extend {
            extend.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        loop {
            let asked = self.site.control.asked.load(Acquire);
            self.collect();
            self.settle();
            self.deal();
            self.site.control.set_undealt(self.backlog.iter().any(|line| !line.is_empty()));
            self.pull();
            let in_flight = self.flights.messages();
            self.site.control.in_flight.store(in_flight, Relaxed);
            self.close_page();
            self.site.control.heard.store(asked, Release);
            if self.site.control.mode() == Mode::Stopping {
                return Ok(());
            }
            let pulled = OptionFuture::from(self.pulling.as_mut());
            // One extension at a time; everything else goes on meanwhile.
            let due = extend.as_mut().filter(|_| self.extending.is_none());
            let tick = OptionFuture::from(due.map(tokio::time::Interval::tick));
            let extending = OptionFuture::from(self.extending.as_mut());
            let putting_back = OptionFuture::from(self.putting_back.as_mut());
            let gathered = OptionFuture::from(self.gathering.map(tokio::time::sleep_until));
            tokio::select! {
                Some(pulled) = pulled => {
                    self.pulling = None;
                    self.take_in(pulled)?;
                }
                error = &mut self.breaking => return Err(self.end(&error)),
                Some(settled) = self.settling.next() => {
                    self.free_slots(settled.map_err(|error| End::Failed(error.to_string()))?);
                }
                Some(extended) = extending => {
                    self.extending = None;
                    if let Err(error) = extended {
                        tracing::warn!(
                            queue = %self.site.input.spec.name, %error,
                            "leases could not be extended"
                        );
                    }
                }
                Some(_) = tick => {
                    let (consumer, held) =
                        (Arc::clone(&self.site.consumer), self.flights.receipts());
                    self.extending = Some(Box::pin(async move { consumer.extend(&held).await }));
                }
                Some(()) = gathered => {}
                Some(()) = putting_back => {}
                () = self.site.control.notify.notified() => {}
            }
        }
    }

    fn free_slots(&mut self, settled: Settled) {
        let Settled { slots, outcomes, outputs: (emitted, ended) } = settled;
        self.outcomes += outcomes as u64;
        self.emitted += emitted;
        self.ended += ended;
        for slot in slots {
            self.flights.settled(slot);
            if let Some(lines) = &mut self.lines {
                lines.settled(slot);
            }
        }
    }

    fn close_page(&self) {
        let held = self.flights.roots() as u64;
        let page = Page { came: self.came, went: self.outcomes, held };
        // A settlement that is not over is not in it: it holds none.
        let outputs = Page { came: self.emitted, went: self.ended, held: 0 };
        self.site.control.set_pages(page, outputs);
    }

    /// Collects what was resolved since the last time.
    fn collect(&mut self) {
        self.origin.take(&mut self.resolved);
        for resolved in self.resolved.drain(..) {
            if let Some(finished) = self.flights.resolve(resolved) {
                self.finished.push_back(finished);
            }
        }
    }

    /// Begins to settle what has finished. With order, one settlement follows the other, so that
    /// outputs leave in order too; the same applies if state is written, so that the last value
    /// wins.
    fn settle(&mut self) {
        let max = if self.site.stage.order == Order::None { SETTLEMENTS_MAX } else { 1 };
        while !self.finished.is_empty() && self.settling.len() < max {
            let n = self.finished.len().min(SETTLE_MAX);
            let writes = self.finished.iter().take(n).any(Finished::writes);
            if self.settling.is_empty() {
                self.writing = writes;
            } else if self.writing || writes || self.finished.len() < SETTLE_BESIDE {
                return;
            }
            let batch: Vec<Finished> = self.finished.drain(..n).collect();
            let site = Rc::clone(&self.site);
            self.settling.push(Box::pin(async move { site.settler.settle(batch).await }));
        }
    }

    /// Gives chunks to the workers that have room, unless what they have made so far fills the
    /// credit: how much a component makes of a message is known only afterwards.
    fn deal(&mut self) {
        let full = self.flights.made() >= self.site.credit.bytes;
        if full || self.backlog.iter().all(VecDeque::is_empty) {
            return;
        }
        let ports = self.site.pool.ports();
        let mut ports: Vec<_> = ports.iter().filter(|port| self.site.deals_to(port)).collect();
        let ordered = self.site.stage.order != Order::None;
        if ordered {
            for (port, line) in ports.iter().zip(&mut self.backlog) {
                if !line.is_empty() {
                    let life = self.lines.as_ref().map(|lines| lines.life(port.index));
                    port.send(life, line.drain(..).collect());
                }
            }
            return;
        }
        self.deal_what_fits(&mut ports);
        if !self.backlog[0].is_empty() {
            // The room may be taken by another consumer's messages, which do not wake this one.
            ports.iter().for_each(|port| port.want_room());
            self.deal_what_fits(&mut ports);
        }
    }

    fn deal_what_fits(&mut self, ports: &mut [&Arc<Port>]) {
        // Queried once each: the workers change it meanwhile, and sorting needs consistent values.
        ports.sort_by_cached_key(|port| port.queued());
        let line = &mut self.backlog[0];
        // A fair share first, so that one worker does not get all of a small backlog.
        let share = line.len().div_ceil(ports.len().max(1));
        for port in ports {
            let room = self.site.room(port, DEALT_MAX).saturating_sub(port.queued());
            let room = room.min(share.max(1)).min(line.len());
            if room > 0 {
                port.send(None, line.drain(..room).collect());
            }
        }
    }

    /// Requests more, if there is credit and no other input has priority.
    fn pull(&mut self) {
        let gathering = self.gathering.take();
        let control = &self.site.control;
        let idle = self.pulling.is_none() && !control.ended.load(Relaxed);
        if control.mode() != Mode::Running {
            self.pulling = None;
            let (consumer, input) = (&self.site.consumer, &self.site.input);
            let back = || Box::pin(put_back(Arc::clone(consumer), Arc::clone(input))) as _;
            self.putting_back.get_or_insert_with(back);
            // A consumer at its end has no more to come, so it holds nobody up.
            control.set_waiting(control.ended.load(Relaxed));
            return;
        }
        self.putting_back = None;
        if let Some(lines) = &mut self.lines
            && lines.wait(self.site.pool.ports().iter().map(|port| port.life()))
        {
            // What it has taken but not returned comes after what is given back. Nobody is held up
            // by that: it takes until a worker is back.
            self.pulling = None;
            control.set_waiting(true);
            return;
        }
        let room = self.room();
        if !idle || self.is_full(room) {
            return;
        }
        if self.site.before.iter().any(|first| first.holds_up()) {
            return;
        }
        let max = if self.site.stage.order == Order::Queue { 1 } else { room };
        let Some(want) = self.want(max) else { return };
        if self.site.credit.is_little(want, max) {
            let now = tokio::time::Instant::now();
            let until = gathering.unwrap_or_else(|| now + GATHER);
            if now < until {
                self.gathering = Some(until);
                return;
            }
        }
        self.asked = want;
        let pull = Pull {
            consumer: Arc::clone(&self.site.consumer),
            control: Arc::clone(control),
            input: Arc::clone(&self.site.input),
            want,
            back_off: match self.failures {
                0 => Duration::ZERO,
                failures => doubled(BACK_OFF.0, BACK_OFF.1, failures),
            },
            may_have_more: self.came_in_full,
        };
        self.pulling = Some(Box::pin(pull.run()));
    }

    /// The most that the consumer holds in addition to what its workers have: as much as they do in
    /// two chunks' time, so that it does not sit on work that another lane or process could do.
    fn room(&self) -> usize {
        let ports = self.site.pool.ports();
        let here = ports.iter().filter(|port| self.site.deals_to(port));
        let room: usize = here.map(|port| self.site.room(port, PULL_MAX)).sum();
        room.clamp(1, PULL_MAX)
    }

    /// Whether there is no room for more. With order by key, what counts is what the workers hold,
    /// since they get messages at once.
    fn is_full(&self, room: usize) -> bool {
        if self.site.stage.order != Order::Key {
            return self.backlog.iter().map(VecDeque::len).sum::<usize>() >= room;
        }
        let ports = self.site.pool.ports();
        let full = || ports.iter().map(|port| port.queued()).sum::<usize>() >= KEYS_AHEAD * room;
        // What waits may be another consumer's, whose messages do not wake this one.
        full() && {
            ports.iter().for_each(|port| port.want_room());
            full()
        }
    }

    /// What may be pulled now, at most `max` messages.
    fn want(&self, max: usize) -> Option<Want> {
        let (messages, bytes) = (self.flights.messages(), self.flights.bytes());
        // In queue order one at a time: the next may not be seen before the previous one is
        // resolved.
        if self.site.stage.order == Order::Queue && messages > 0 {
            return None;
        }
        self.site.credit.want(messages, bytes, max)
    }

    fn take_in(&mut self, pulled: Pulled) -> Result<(), End> {
        let queue = &self.site.input.spec.name;
        match pulled {
            Ok(messages) if messages.is_empty() => {
                self.site.control.ended.store(true, Relaxed);
                self.site.control.set_waiting(true);
                Ok(())
            }
            Ok(messages) => {
                self.failures = 0;
                self.came_in_full = is_in_full(&messages, self.asked);
                self.came += messages.len() as u64;
                self.site.stage.came(messages.len());
                self.hand_out(messages);
                Ok(())
            }
            Err(error) if error.is_transient() => {
                self.failures += 1;
                let again = doubled(BACK_OFF.0, BACK_OFF.1, self.failures);
                tracing::warn!(%queue, %error, failures = self.failures, ?again, "cannot consume");
                Ok(())
            }
            Err(error) => Err(self.end(&error)),
        }
    }

    /// What an error does that does not pass by itself.
    fn end(&self, error: &ConnectorError) -> End {
        let queue = &self.site.input.spec.name;
        if error.kind() == ErrorKind::Stalled {
            tracing::error!(%queue, %error, "the consumer is opened again");
            return End::Stalled;
        }
        End::Failed(format!("cannot consume from queue `{queue}`: {error}"))
    }

    fn hand_out(&mut self, messages: Vec<Incoming>) {
        let (received, workers) = (Instant::now(), self.site.pool.ports().len());
        let mut handing_out = self.origin.hand_out(messages.len());
        for incoming in messages {
            let since = Since { enqueued_at: incoming.enqueued_at, received };
            let size = incoming.message.size();
            let slot = self.flights.hand_out(incoming.receipt, size, Some(since));
            let mut delivery = self.delivery(incoming, handing_out.next(slot));
            let line = self.line(&mut delivery, workers);
            if let Some(lines) = &mut self.lines {
                lines.hand_out(slot, line);
            }
            if self.backlog.len() <= line {
                self.backlog.resize_with(line + 1, VecDeque::new);
            }
            self.backlog[line].push_back(delivery);
        }
    }

    /// The index of a delivery's line in the backlog, with one line for each of `workers`.
    fn line(&self, delivery: &mut Delivery, workers: usize) -> usize {
        if self.site.stage.order != Order::Key {
            return 0;
        }
        // The worker reports a key that cannot be read, as it does a payload that does not decode.
        let _ = self.site.input.read_key(delivery);
        delivery.message.key.as_ref().map_or(0, |key| shard(key, workers))
    }

    fn delivery(&self, mut incoming: Incoming, (number, guard): (u64, Guard)) -> Delivery {
        let codec = match self.site.input.keeper {
            QueueKeeper::Connector(_) => self.site.input.codec,
            // A redriven message has the codec that it had when it came to the stage.
            QueueKeeper::State => DeadLetter::take_codec(&mut incoming.message),
        };
        let parts = Parts {
            message: incoming.message,
            codec,
            parsed: None,
            number,
            attempts: incoming.attempts,
            redeliveries: incoming.redeliveries,
            input: self.site.input.index,
            belongs_to: self.site.input.index,
            receipt: incoming.receipt,
            enqueued_at: incoming.enqueued_at,
            first_failed_at: incoming.first_failed_at,
            defect: incoming.defect,
            guard,
        };
        parts.into()
    }

    /// The connector gives back what is not settled.
    async fn close(mut self) {
        (self.pulling, self.putting_back, self.extending) = (None, None, None);
        // Outputs may already be on their queues: finishing a pending ack saves doing them again. A
        // settlement that is blocked by a queue taking nothing is not waited for.
        let site = Rc::clone(&self.site);
        let rest = async {
            while self.settling.len() > site.settler.blocked.count() {
                if let Some(Ok(settled)) = self.settling.next().await {
                    self.free_slots(settled);
                }
            }
        };
        let _ = tokio::time::timeout(LAST_SETTLEMENTS, rest).await;
        self.settling.clear();
        self.backlog.clear();
        let queue = &self.site.input.spec.name;
        if let Err(error) = self.site.consumer.shutdown().await {
            tracing::warn!(%queue, %error, "the consumer did not shut down cleanly");
        }
    }
}

impl Drop for PullLoop {
    /// Also when the actor dies: what was in flight has an outcome.
    fn drop(&mut self) {
        let counted = self.site.settler.ahead.take();
        let released = self.flights.roots().saturating_sub(counted) as u64;
        self.site.stage.stats.from_queues.add(Outcome::Released, released);
        self.origin.close();
        // Until it is replaced, it holds nobody up.
        self.site.control.set_undealt(false);
        self.site.control.set_waiting(true);
        self.site.control.in_flight.store(0, Relaxed);
        self.site.control.set_pages(Page::default(), Page::default());
    }
}
