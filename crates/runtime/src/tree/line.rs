//! A line: a stage that reads queues, the stages it feeds directly, and their actors.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use actix::prelude::*;
use brigade_core::component::{AnyComponent, Setup};
use brigade_core::connector::{
    ConnectorError, Consumer as ConnectorConsumer, Order, Producer as ConnectorProducer, Reader,
};
use brigade_core::credit::Credit;
use futures_util::FutureExt;
use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use super::start::{StartFailure, StartFailureKind};
use super::{Report, Who};
use crate::actors::{
    Ahead, Consumer, ConsumerSite, Control, Crash, Mode, Outlet, Producer, Settler, Told, Worker,
};
use crate::call::{Template, copied, panic_text};
use crate::events::EventSender;
use crate::lane::Lane;
use crate::plan::{Plan, QueueKeeper, QueuePlan, StagePlan};
use crate::pool::{Pool, Port};
use crate::runner::RunnerSite;
use crate::stats::Blocked;

/// The producers of a process: one per queue, shared by its lanes and lines.
pub(crate) struct Producers(Vec<OnceCell<Arc<dyn ConnectorProducer>>>);

impl Producers {
    pub(super) fn new(queues: usize) -> Arc<Self> {
        Arc::new(Self((0..queues).map(|_| OnceCell::new()).collect()))
    }

    async fn open(
        &self,
        plan: &Plan,
        queue: u16,
    ) -> Result<Arc<dyn ConnectorProducer>, ConnectorError> {
        let open = || async {
            let queue = &plan.queues[usize::from(queue)];
            match &queue.keeper {
                QueueKeeper::Connector(connector) => {
                    connector.producer(&queue.spec, &plan.env).await
                }
                QueueKeeper::State => plan.env.state.queue_producer(&queue.spec).await,
            }
        };
        self.0[usize::from(queue)].get_or_try_init(open).await.cloned()
    }

    /// Those that were opened.
    pub(super) fn opened(&self) -> Vec<Arc<dyn ConnectorProducer>> {
        self.0.iter().filter_map(|cell| cell.get().cloned()).collect()
    }
}

/// What is needed to start a line.
#[derive(Clone)]
pub(super) struct Ground {
    pub(super) plan: Arc<Plan>,
    pub(super) lanes: Vec<Lane>,
    pub(super) producers: Arc<Producers>,
    pub(super) report: Report,
    pub(super) events: EventSender,
    /// How many workers each stage is to have.
    pub(super) workers: Arc<[usize]>,
    /// The lives of actors are numbered over all lines, so that a late report from one that was
    /// stopped is not mistaken for one from its successor.
    pub(super) lives: Arc<AtomicU64>,
}

/// A line that has started.
pub(crate) struct Line {
    ground: Ground,
    members: Vec<u16>,
    /// The current life of each actor; reports from earlier ones are ignored.
    lives: HashMap<Who, u64>,
    sites: HashMap<u16, Arc<RunnerSite>>,
    pools: HashMap<u16, Arc<Pool>>,
    /// The components after `init`, by stage and lane.
    templates: HashMap<(u16, usize), Arc<Template>>,
    outlets: HashMap<(u16, usize), Arc<Outlet>>,
    consumers: HashMap<Who, ConsumerEntry>,
}

/// A consumer of the line, whichever actor is behind it.
#[derive(Clone)]
pub(super) struct ConsumerEntry {
    pub(super) stage: u16,
    pub(super) control: Arc<Control>,
    pub(super) consumer: Arc<dyn ConnectorConsumer>,
    place: ConsumerPlace,
}

impl ConsumerEntry {
    /// Its queue and its lane.
    pub(super) fn place(&self) -> (u16, usize) {
        (self.place.queue, self.place.lane)
    }

    /// Whether its actor has not ended.
    pub(super) fn is_open(&self) -> bool {
        !self.control.stopped.load(Relaxed) && self.control.is_up()
    }
}

/// Where a consumer has to run, and for which stage.
#[derive(Clone)]
struct ConsumerPlace {
    who: Who,
    stage: u16,
    queue: u16,
    lane: usize,
    /// Whether it deals to the workers of all lanes.
    alone: bool,
    /// It gets the stage's credit divided by this.
    share: usize,
    /// Its index among the stage's inputs.
    rank: usize,
}

impl Line {
    /// Opens the connections, runs `init`, and starts the actors.
    pub(super) async fn start(root: u16, ground: Ground) -> Result<Self, StartFailure> {
        let members = ground.plan.line(root);
        let mut line = Self {
            members,
            lives: HashMap::new(),
            sites: HashMap::new(),
            pools: HashMap::new(),
            templates: HashMap::new(),
            outlets: HashMap::new(),
            consumers: HashMap::new(),
            ground,
        };
        for stage in line.members.clone() {
            let ports = line.ports(stage, line.ground.workers[usize::from(stage)]);
            line.pools.insert(stage, Pool::new(ports));
        }
        let plan = Arc::clone(&line.ground.plan);
        for queue in plan.written(&line.members) {
            let opened = line.ground.producers.open(&plan, queue).await;
            opened.map_err(|error| StartFailure::connection(root, &error))?;
        }
        let mut opened = Vec::new();
        for place in line.places() {
            let consumer = open_consumer(&plan, &place).await;
            let stage = place.stage;
            opened.push((place, consumer.map_err(|e| StartFailure::connection(stage, &e))?));
        }
        for stage in line.members.clone() {
            line.init(stage).await?;
        }
        line.start_actors(root, opened).await?;
        Ok(line)
    }

    async fn start_actors(
        &mut self,
        root: u16,
        opened: Vec<(ConsumerPlace, Arc<dyn ConnectorConsumer>)>,
    ) -> Result<(), StartFailure> {
        let plan = Arc::clone(&self.ground.plan);
        for lane in 0..self.ground.lanes.len() {
            for queue in plan.written(&self.members) {
                let producer = self.ground.producers.open(&plan, queue).await;
                let producer = producer.map_err(|e| StartFailure::connection(root, &e))?;
                let outlet = Outlet::new(Arc::clone(&plan.queues[usize::from(queue)]), producer);
                self.outlets.insert((queue, lane), outlet);
                self.start_producer(Who::Producer { root, queue, lane });
            }
        }
        // Downstream first, so that a pool exists before anything is sent to it.
        for stage in self.members.clone().into_iter().rev() {
            let site = self.site(&plan.stages[usize::from(stage)]);
            self.sites.insert(stage, site);
            for port in self.pools[&stage].ports().iter() {
                self.start_worker(Who::Worker { stage, index: port.index });
            }
        }
        for (place, consumer) in opened {
            self.add_consumer(place, consumer);
        }
        self.start_consumers();
        Ok(())
    }

    fn add_consumer(&mut self, place: ConsumerPlace, consumer: Arc<dyn ConnectorConsumer>) {
        let (who, stage, control) = (place.who, place.stage, Control::new());
        self.sites[&stage].listen(Arc::clone(&control.notify));
        self.consumers.insert(who, ConsumerEntry { stage, control, consumer, place });
    }

    fn start_consumers(&mut self) {
        for who in self.consumers.keys().copied().collect::<Vec<_>>() {
            self.start_consumer(who);
        }
    }

    /// The ports of a stage's workers: the root's number decides on which lane they begin, so that
    /// lines with one worker each do not all live on the first lane.
    fn ports(&self, stage: u16, workers: usize) -> Vec<Arc<Port>> {
        let lanes = self.ground.lanes.len();
        let offset = usize::from(self.members[0]);
        let ledgers = &self.ground.plan.stages[usize::from(stage)].stats.direct;
        let port = |index| {
            let lane = (offset + index) % lanes;
            Port::new(lane, index, ledgers.get(lane).cloned())
        };
        (0..workers).map(port).collect()
    }

    fn lanes_of(&self, stage: u16) -> Vec<usize> {
        let mut lanes: Vec<_> = self.pools[&stage].ports().iter().map(|port| port.lane).collect();
        lanes.sort_unstable();
        lanes.dedup();
        lanes
    }

    /// Where consumers have to run: on each lane that has workers, if the queue can be shared;
    /// otherwise one for all lanes.
    fn places(&self) -> Vec<ConsumerPlace> {
        let mut places = Vec::new();
        for stage in &self.members {
            let plan = &self.ground.plan.stages[usize::from(*stage)];
            let lanes = self.lanes_of(*stage);
            let kept = |queue: &&u16| {
                let keeper = &self.ground.plan.queues[usize::from(**queue)].keeper;
                matches!(keeper, QueueKeeper::State)
            };
            // Redriven messages are not counted as an input: they are rare, and no credit is
            // reserved for them.
            let inputs = plan.inputs.iter().filter(|queue| !kept(queue)).count().max(1);
            for (rank, queue) in plan.inputs.iter().enumerate() {
                let input = &self.ground.plan.queues[usize::from(*queue)];
                let kept = kept(&queue);
                let alone = !input.features.competing || kept || plan.order == Order::Queue;
                let share = inputs * if alone && !kept { 1 } else { lanes.len() };
                let lanes = if alone { &lanes[..1] } else { &lanes[..] };
                places.extend(lanes.iter().map(|lane| ConsumerPlace {
                    who: Who::Consumer { stage: *stage, queue: *queue, lane: *lane },
                    stage: *stage,
                    queue: *queue,
                    lane: *lane,
                    alone,
                    share,
                    rank,
                }));
            }
        }
        places
    }

    /// Runs a stage's `init` on each of its lanes that has not had it yet.
    async fn init(&mut self, stage: u16) -> Result<(), StartFailure> {
        let plan = Arc::clone(&self.ground.plan.stages[usize::from(stage)]);
        for lane in self.lanes_of(stage) {
            if self.templates.contains_key(&(stage, lane)) {
                continue;
            }
            let workers =
                self.pools[&stage].ports().iter().filter(|port| port.lane == lane).count();
            let setup = Setup { stage: Arc::clone(&plan.context), lane, workers };
            let plan = Arc::clone(&plan);
            let init = move || async move { initialised(&plan, &setup).await };
            let component = match self.ground.lanes[lane].run(init).await {
                Some(result) => result,
                None => Err("its lane has stopped".to_owned()),
            };
            let kind = StartFailureKind::Init;
            let component = component.map_err(|error| StartFailure { stage, error, kind })?;
            self.templates.insert((stage, lane), Template::new(component));
        }
        Ok(())
    }

    fn site(&self, stage: &Arc<StagePlan>) -> Arc<RunnerSite> {
        let order = |index: u16| self.ground.plan.stages[usize::from(index)].order;
        let downstream =
            stage.feeds().map(|index| (index, order(index), Arc::clone(&self.pools[&index])));
        Arc::new(RunnerSite {
            stage: Arc::clone(stage),
            queues: self.ground.plan.queues.clone(),
            downstream: downstream.collect(),
            report: self.ground.report.clone(),
            listeners: Mutex::default(),
        })
    }

    fn new_life(&mut self, who: Who) -> u64 {
        let life = self.ground.lives.fetch_add(1, Relaxed);
        self.lives.insert(who, life);
        life
    }

    pub(super) fn is_current(&self, who: Who, life: u64) -> bool {
        self.lives.get(&who) == Some(&life)
    }

    pub(super) fn start_worker(&mut self, who: Who) {
        let Who::Worker { stage, index } = who else { return };
        let Some(port) = self.pools[&stage].ports().get(index).cloned() else { return };
        let life = self.new_life(who);
        let exit = self.ground.report.exit(who, life);
        let site = Arc::clone(&self.sites[&stage]);
        let template = Arc::clone(&self.templates[&(stage, port.lane)]);
        self.ground.lanes[port.lane].spawn(move || {
            Worker::new(site, template, port, exit).start();
        });
    }

    pub(super) fn start_producer(&mut self, who: Who) {
        let Who::Producer { queue, lane, .. } = who else { return };
        let life = self.new_life(who);
        let exit = self.ground.report.exit(who, life);
        let outlet = Arc::clone(&self.outlets[&(queue, lane)]);
        self.ground.lanes[lane].spawn(move || {
            Producer::new(outlet, exit).start();
        });
    }

    pub(super) fn start_consumer(&mut self, who: Who) {
        let Some(entry) = self.consumers.get(&who).cloned() else { return };
        let life = self.new_life(who);
        let exit = self.ground.report.exit(who, life);
        let site = self.consumer_site(&entry);
        self.ground.lanes[entry.place.lane].spawn(move || {
            Consumer::new(site, exit).start();
        });
    }

    fn consumer_site(&self, entry: &ConsumerEntry) -> ConsumerSite {
        let plan = &self.ground.plan;
        let place = &entry.place;
        let stage = Arc::clone(&plan.stages[usize::from(place.stage)]);
        let input: Arc<QueuePlan> = Arc::clone(&plan.queues[usize::from(place.queue)]);
        let line = plan.line(place.stage);
        let written = plan.written(&line);
        let mut outlets: Vec<_> =
            written.iter().map(|queue| Arc::clone(&self.outlets[&(*queue, place.lane)])).collect();
        // What is staged for one transaction is locked in this order everywhere.
        outlets.sort_by(|a, b| a.producer.stage_order().cmp(b.producer.stage_order()));
        let settler = Settler {
            consumer: Arc::clone(&entry.consumer),
            input: Arc::clone(&input),
            stages: line.iter().map(|s| Arc::clone(&plan.stages[usize::from(*s)])).collect(),
            outlets,
            state: Arc::clone(&plan.env.state),
            events: self.ground.events.clone(),
            ahead: Ahead::default(),
            blocked: Blocked::default(),
            told: Told::default(),
        };
        let before = self.consumers.values().filter(|other| {
            let first = other.place.stage == place.stage && other.place.rank < place.rank;
            // The redrive queue, the last, never waits for the others.
            stage.priority && first && !matches!(input.keeper, QueueKeeper::State)
        });
        ConsumerSite {
            before: before.map(|other| Arc::clone(&other.control)).collect(),
            credit: Credit {
                messages: (stage.credit.messages / place.share).max(1),
                bytes: (stage.credit.bytes / place.share).max(1),
            },
            pool: Arc::clone(&self.pools[&place.stage]),
            lane: (!place.alone).then_some(place.lane),
            consumer: Arc::clone(&entry.consumer),
            control: Arc::clone(&entry.control),
            report: self.ground.report.clone(),
            stage,
            input,
            settler,
        }
    }

    /// Reopens a consumer; what the old one held is given back first.
    pub(super) fn reopen(&self, who: Who) -> Option<impl Future<Output = Opened> + use<>> {
        let ConsumerEntry { consumer, place, .. } = self.consumers.get(&who)?.clone();
        let plan = Arc::clone(&self.ground.plan);
        Some(async move {
            close_consumer(&*consumer).await;
            open_consumer(&plan, &place).await
        })
    }

    /// Replaces a consumer by its reopened one.
    pub(super) fn replace_consumer(&mut self, who: Who, consumer: Arc<dyn ConnectorConsumer>) {
        if let Some(entry) = self.consumers.get_mut(&who) {
            entry.consumer = consumer;
            entry.control.ended.store(false, Relaxed);
        }
        self.start_consumer(who);
    }

    pub(super) fn consumers(&self) -> impl Iterator<Item = &ConsumerEntry> {
        self.consumers.values()
    }

    /// The ports of all workers, each with its stage.
    pub(super) fn ports_of_all(&self) -> impl Iterator<Item = (u16, Arc<Port>)> {
        self.pools.iter().flat_map(|(stage, pool)| {
            let ports = pool.ports();
            let ports: Vec<_> = ports.iter().map(|port| (*stage, Arc::clone(port))).collect();
            ports
        })
    }

    /// Unresolved deliveries of a stage, including descendants.
    pub(super) fn in_flight(&self, stage: u16) -> usize {
        let own = self.consumers().filter(|entry| entry.stage == stage);
        own.map(|entry| entry.control.in_flight.load(Relaxed)).sum()
    }

    pub(super) fn set_mode(&self, mode: Mode) {
        for entry in self.consumers() {
            entry.control.set(mode);
        }
    }

    /// Stops pulling. Consumers that are paused or ending stay so.
    pub(super) fn keep_paused(&self) {
        for entry in self.consumers().filter(|entry| entry.control.mode() == Mode::Running) {
            entry.control.set(Mode::Paused);
        }
    }

    /// Whether all consumers have acted on the last mode.
    pub(super) fn has_heard(&self) -> bool {
        self.consumers().all(|entry| entry.control.unresolved().is_some())
    }

    /// Whether nothing is in flight.
    pub(super) fn is_quiet(&self) -> bool {
        self.consumers().all(|entry| entry.control.unresolved() == Some(0))
    }

    /// Whether all consumers have ended.
    pub(super) fn is_closed(&self) -> bool {
        !self.consumers().any(ConsumerEntry::is_open)
    }

    /// Ends all actors; what they hold is given back.
    pub(super) fn halt(&mut self) {
        self.set_mode(Mode::Stopping);
        for pool in self.pools.values() {
            for port in pool.ports().iter() {
                port.close();
                port.give_back();
            }
        }
    }

    /// Closes the connections whose actor cannot close them, since it died or was not started. What
    /// they held is given back.
    pub(super) fn close_deserted(&self) -> impl Future<Output = ()> + use<> {
        self.close(|entry| !entry.control.is_up())
    }

    /// Closes all open connections, including those whose actors are stuck in a call: what they
    /// hold becomes available to others.
    pub(super) fn close_open(&self) -> impl Future<Output = ()> + use<> {
        self.close(|_| true)
    }

    fn close(&self, which: fn(&ConsumerEntry) -> bool) -> impl Future<Output = ()> + use<> {
        let open = self.consumers().filter(|entry| !entry.control.stopped.load(Relaxed));
        let open = open.filter(|entry| which(entry));
        let open: Vec<_> = open.map(|entry| Arc::clone(&entry.consumer)).collect();
        async move {
            join_all(open.iter().map(|consumer| close_consumer(&**consumer))).await;
        }
    }

    /// Ends all actors of a line whose consumers have ended: nothing is settled any more.
    pub(super) fn end(mut self) {
        self.halt();
        self.outlets.values().for_each(|outlet| outlet.close());
    }

    /// Restarts with another number of workers for one stage; nothing may be in flight, and the
    /// consumers must have ended.
    pub(super) async fn scale(&mut self, stage: u16, workers: usize) -> Result<(), StartFailure> {
        for port in self.pools[&stage].ports().iter() {
            self.new_life(Who::Worker { stage, index: port.index });
            port.close();
        }
        self.close_deserted().await;
        self.pools[&stage].replace(self.ports(stage, workers));
        self.init(stage).await?;
        for index in 0..workers {
            self.start_worker(Who::Worker { stage, index });
        }
        self.consumers.clear();
        for site in self.sites.values() {
            site.forget_listeners();
        }
        let plan = Arc::clone(&self.ground.plan);
        for place in self.places() {
            let consumer = open_consumer(&plan, &place).await;
            let consumer = consumer.map_err(|e| StartFailure::connection(place.stage, &e))?;
            self.add_consumer(place, consumer);
        }
        self.start_consumers();
        Ok(())
    }

    /// Kills an actor of a stage, as if by a defect in Brigade.
    pub(super) fn crash(&self, stage: u16, kind: &str) -> bool {
        match kind {
            "worker" => {
                let addr = self.pools[&stage].ports().first().and_then(|port| port.addr());
                addr.is_some_and(|addr| addr.try_send(Crash).is_ok())
            }
            "consumer" => {
                let entry = self.consumers().find(|e| e.stage == stage && e.place.rank == 0);
                entry.is_some_and(|entry| entry.control.crash())
            }
            "producer" => {
                let outlets = self.outlets.values();
                outlets.map(|outlet| outlet.crash()).filter(|crashed| *crashed).count() > 0
            }
            _ => false,
        }
    }
}

/// A copy of a stage's component, after its `init`. Both are the user's code, so they run on a lane, and
/// a panic in them is the stage's failure.
async fn initialised(plan: &StagePlan, setup: &Setup) -> Result<Box<dyn AnyComponent>, String> {
    let mut component = copied(|| plan.component())?;
    let failed = |error: String| format!("`init` of its component failed: {error}");
    match AssertUnwindSafe(component.init(setup)).catch_unwind().await {
        Ok(Ok(())) => Ok(component),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(panic) => Err(failed(format!("panicked: {}", panic_text(panic)))),
    }
}

/// Closes a connection that no actor closes.
pub(super) async fn close_consumer(consumer: &dyn ConnectorConsumer) {
    if let Err(error) = consumer.shutdown().await {
        tracing::warn!(%error, "a consumer whose actor has not closed it did not shut down cleanly");
    }
}

async fn open_consumer(plan: &Plan, place: &ConsumerPlace) -> Opened {
    let stage = &plan.stages[usize::from(place.stage)];
    let queue = &plan.queues[usize::from(place.queue)];
    let reader =
        Reader { stage: Arc::clone(&stage.name), group: queue.group_of(stage), order: stage.order };
    match &queue.keeper {
        QueueKeeper::Connector(connector) => {
            connector.consumer(&queue.spec, &reader, &plan.env).await
        }
        QueueKeeper::State => plan.env.state.queue_consumer(&queue.spec, &reader).await,
    }
}

/// The result of opening a consumer.
pub(super) type Opened = Result<Arc<dyn ConnectorConsumer>, ConnectorError>;
