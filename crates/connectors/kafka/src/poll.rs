//! The thread of one consumer: polls, and gives up partitions when the group demands it. Nothing
//! else polls, so neither a slow component nor a drain keeps the group waiting.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use brigade_core::connector::{ConnectorError, Incoming};
use brigade_core::watermark::Watermark;
use brigade_core::{IncarnationId, Timestamp};
use parking_lot::{Condvar, Mutex, MutexGuard};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::topic_partition_list::TopicPartitionListElem;
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::Notify;

use crate::assignment::{Arrival, Assignment, Place};
use crate::client::{Reason, Recollection, explain, log};
use crate::commits::Commit;
use crate::lag::ends;
use crate::ledger::begin;
use crate::membership::Membership;
use crate::metadata::SPAN_MAX;
use crate::record::{CopyHeaders, Shelf};
use crate::settings::{Settings, Site};
use crate::{metadata, record, retry};

/// The most that is polled ahead of requests.
const AHEAD_MESSAGES: usize = 2000;
const AHEAD_BYTES: u64 = 8 << 20;
/// How many records are processed at once.
const BATCH_MAX: usize = 500;
/// The offsets that may still come when a partition is paused, including transaction markers.
const SPAN_SPARE: u64 = 4 * BATCH_MAX as u64;
/// How long one poll waits.
const POLL: Duration = Duration::from_millis(100);
/// How long polling stops while there is no room; after that the partitions are paused. Pausing
/// throws away what was fetched, so it is not done at once.
const NO_ROOM: Duration = Duration::from_millis(500);
/// How long to wait before trying again.
const AGAIN: Duration = Duration::from_millis(100);
/// How long to wait before checking again whether the client can be released.
const LEAVE: Duration = Duration::from_millis(5);
/// How long one request to the broker may take.
const ASK: Duration = Duration::from_secs(10);

pub(crate) type Client = BaseConsumer<Watch>;

/// What the thread and the consumer share.
pub(crate) struct Shared {
    pub(crate) site: Site,
    pub(crate) of: Membership,
    revoke_within: Duration,
    pub(crate) stall_after: Duration,
    state: Mutex<State>,
    /// There is room again, or something was resolved.
    room: Condvar,
    /// Something came, or is to be reported.
    pub(crate) arrived: Notify,
    stopping: AtomicBool,
    /// Nothing is fetched, since there is no room.
    paused: AtomicBool,
    /// Partitions that are paused individually.
    resting: Mutex<Vec<Place>>,
    /// When the thread last showed activity, and when a record last came.
    beats: Mutex<Beats>,
    reason: Reason,
    recollection: Recollection,
}

/// A partition, and what is resolved in it according to the group's commit, if there is one.
type Known = (Place, Option<Watermark>);

/// When something last moved.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Beats {
    pub(crate) polled: Instant,
    pub(crate) came: Instant,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) assignment: Assignment,
    /// The group was rebalanced with this member in it, whatever it was assigned.
    pub(crate) is_shared_out: bool,
    /// What has gone wrong since an error was last reported.
    pub(crate) trouble: Option<ConnectorError>,
    /// Such an error ends the consumer.
    pub(crate) broken: Arc<Notify>,
    /// `None` once the thread ends: the thread is the last to release it, as closing waits for the
    /// group.
    pub(crate) client: Option<Arc<Client>>,
    /// Topics, and partitions' incarnations.
    places: HashMap<(String, i32), (Place, IncarnationId)>,
}

impl State {
    /// Records an error. One that ends the consumer is not replaced by a later one.
    fn tell(&mut self, error: ConnectorError) {
        if !self.trouble.as_ref().is_some_and(is_final) {
            if is_final(&error) {
                self.broken.notify_one();
            }
            self.trouble = Some(error);
        }
    }
}

/// Whether trying again does not help.
pub(crate) fn is_final(error: &ConnectorError) -> bool {
    !error.is_transient()
}

impl Shared {
    pub(crate) fn new(site: Site, of: Membership, settings: &Settings) -> Arc<Self> {
        Arc::new(Self {
            site,
            of,
            revoke_within: settings.revoke_within.0,
            stall_after: settings.stall_after.0,
            state: Mutex::default(),
            room: Condvar::new(),
            arrived: Notify::new(),
            stopping: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            resting: Mutex::default(),
            beats: Mutex::new(Beats { polled: Instant::now(), came: Instant::now() }),
            reason: Reason::default(),
            recollection: Recollection::default(),
        })
    }

    /// When something last moved.
    pub(crate) fn beats(&self) -> Beats {
        *self.beats.lock()
    }

    /// Records that the thread is alive; `came` says that a record came, or none could come.
    fn beat(&self, came: bool) {
        let now = Instant::now();
        let mut beats = self.beats.lock();
        beats.polled = now;
        if came {
            beats.came = now;
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Wakes the thread: something was taken or resolved.
    pub(crate) fn made_room(&self) {
        self.room.notify_all();
    }

    /// Makes the thread end soon.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.room.notify_all();
        self.arrived.notify_waiters();
    }

    pub(crate) fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    pub(crate) fn tell(&self, error: ConnectorError) {
        self.state().tell(error);
        self.arrived.notify_waiters();
    }

    /// Pauses all partitions, or resumes them all.
    fn pause(&self, client: &Client, pause: bool) {
        self.paused.store(pause, Ordering::Relaxed);
        self.resting.lock().clear();
        let set = |all: &_| if pause { client.pause(all) } else { client.resume(all) };
        if let Err(error) = client.assignment().and_then(|all| set(&all)) {
            tracing::debug!(queue = %self.site.queue, %error, pause, "pausing or resuming failed");
        }
    }

    /// Pauses the partitions with enough delayed messages, and resumes those that no longer have.
    fn rest(&self, client: &Client) {
        let mut resting = self.resting.lock();
        let now = self.state().assignment.resting(SPAN_MAX - SPAN_SPARE);
        let list = |of: &[Place], but: &[Place]| {
            let mut list = TopicPartitionList::new();
            for (topic, partition) in of.iter().filter(|place| !but.contains(place)) {
                list.add_partition(topic, *partition);
            }
            list
        };
        let (stop, go) = (list(&now, &resting), list(&resting, &now));
        let stopped = if stop.count() == 0 { Ok(()) } else { client.pause(&stop) };
        let went = if go.count() == 0 { Ok(()) } else { client.resume(&go) };
        if let Err(error) = stopped.and(went) {
            tracing::debug!(queue = %self.site.queue, %error, "pausing or resuming failed");
        }
        *resting = now;
    }

    fn is_full(state: &State) -> bool {
        let (ready, bytes) = state.assignment.ready();
        ready as usize >= AHEAD_MESSAGES || ready > 0 && bytes >= AHEAD_BYTES
    }

    fn takes_anothers(&self, topic: &str) -> ConnectorError {
        ConnectorError::permanent(self.site.told(format!(
            "an expression in `topics` finds `{topic}`, a retry topic of another queue of the group `{}`: \
             narrow the expression, or set another `group`",
            self.of.group
        )))
    }

    /// What a record means to this consumer. A topic found only by an expression may be a retry
    /// topic: another group's, whose copies are skipped, or another queue's of this group.
    fn arrival(
        &self,
        topic: &str,
        incoming: Incoming,
        copy: CopyHeaders,
        (now, time): (Instant, Timestamp),
    ) -> Arrival {
        let Membership { group, topics, .. } = &self.of;
        let is_named = topics.iter().any(|named| named == topic);
        // Attempts that another group counted, or that were made up, do not count for this group.
        let anew = |mut incoming: Incoming| {
            (incoming.attempts, incoming.first_failed_at) = (0, None);
            Arrival::Message { incoming, due: None, origin: None }
        };
        match &copy.group {
            None => return anew(incoming),
            Some(of) if !is_named && retry::is_of_group(topic, of) => {
                return if of == group { Arrival::Anothers } else { Arrival::Nothing };
            }
            Some(of) if of == group => {}
            // Somebody put it here by hand: to this group it is an ordinary message.
            Some(_) => return anew(incoming),
        }
        // A clock that is far behind others must not delay it for longer than intended.
        let now_or_made = incoming.enqueued_at.map_or(time, |made| time.max(made));
        let left = copy.due.map(|due| due.since(now_or_made)).filter(|left| !left.is_zero());
        Arrival::Message { incoming, due: left.map(|left| now + left), origin: copy.origin }
    }

    /// What is committed of new partitions.
    fn committed(&self, client: &Client, list: &TopicPartitionList) -> KafkaResult<Vec<Known>> {
        let committed = client.committed_offsets(list.clone(), ASK)?;
        let known = |one: &TopicPartitionListElem<'_>| {
            // A partition may have an error of its own, while a transaction is open.
            one.error()?;
            let offset = match one.offset() {
                Offset::Offset(offset) => u64::try_from(offset).ok(),
                _ => None,
            };
            let place = (one.topic().into(), one.partition());
            Ok((place, offset.map(|offset| metadata::decode(offset, &metadata::of(one)))))
        };
        let mut committed: Vec<Known> =
            committed.elements().iter().map(known).collect::<KafkaResult<_>>()?;
        if self.of.from_end {
            self.begin_at_end(client, &mut committed)?;
        }
        Ok(committed)
    }

    /// Makes a group begin at the end if it has committed nothing, or what it has committed is
    /// deleted. This is committed at once: otherwise it would begin at the end at every rebalance,
    /// and lose what came meanwhile.
    fn begin_at_end(&self, client: &Client, committed: &mut [Known]) -> KafkaResult<()> {
        let logs = ends(client, committed.iter().map(|(place, _)| place))?;
        let mut begun = TopicPartitionList::new();
        for (((topic, partition), known), log) in committed.iter_mut().zip(logs) {
            if known.as_ref().is_none_or(|known| known.low() < log.start) {
                let begins = begin(known.take(), log);
                let mut one = begun.add_partition(topic, *partition);
                one.set_offset(Offset::Offset(i64::try_from(begins.low()).unwrap_or(i64::MAX)))?;
                one.set_metadata(metadata::encode(&begins));
                *known = Some(begins);
            }
        }
        // A group in a rebalance takes no commits; then the next member that gets them commits it.
        if begun.count() > 0
            && let Err(error) = client.commit(&begun, CommitMode::Sync)
        {
            let queue = &self.site.queue;
            tracing::warn!(%queue, %error, "where the group begins could not be committed");
        }
        Ok(())
    }

    /// Waits a while for room; returns whether there is some.
    fn wait_for_room(&self) -> bool {
        let full = |state: &mut State| Self::is_full(state) && !self.stopping();
        let mut state = self.state();
        // That the time is over does not say that there is still none.
        self.room.wait_while_for(&mut state, full, NO_ROOM);
        !full(&mut state)
    }
}

/// Polls until it is told to stop; then leaves the group.
pub(crate) fn run(shared: &Arc<Shared>, client: Arc<Client>) {
    let mut shelf = Shelf::default();
    while !shared.stopping() {
        let paused = shared.paused.load(Ordering::Relaxed);
        let has_room = match paused {
            true => !Shared::is_full(&shared.state()),
            false => shared.wait_for_room(),
        };
        if has_room == paused {
            shared.pause(&client, !has_room);
        }
        if has_room {
            shared.rest(&client);
        }
        // Without room nothing is expected to come.
        shared.beat(!has_room);
        match client.poll(POLL) {
            Some(Ok(first)) => take_over(shared, &client, first, &mut shelf),
            Some(Err(error)) => poll_failed(shared, &error),
            None => {}
        }
    }
    shared.state().client = None;
    leave(client);
}

/// The last to release the client waits until the group has let the member go, and only this thread
/// is waited for: so pending requests have to end first. Otherwise the process might be gone before
/// that, and the member be missed only when its session times out.
fn leave(mut client: Arc<Client>) {
    while let Err(still_asked) = Arc::try_unwrap(client) {
        std::thread::sleep(LEAVE);
        client = still_asked;
    }
}

/// Processes a record, along with any others that are there.
fn take_over(shared: &Shared, client: &Client, first: BorrowedMessage<'_>, shelf: &mut Shelf) {
    let mut batch = vec![first];
    while batch.len() < BATCH_MAX {
        match client.poll(Duration::ZERO) {
            Some(Ok(next)) => batch.push(next),
            Some(Err(error)) => {
                poll_failed(shared, &error);
                break;
            }
            None => break,
        }
    }
    shared.beat(true);
    let now = (Instant::now(), Timestamp::from(SystemTime::now()));
    let is_same = |one: &BorrowedMessage<'_>, next: &BorrowedMessage<'_>| {
        one.partition() == next.partition() && one.topic() == next.topic()
    };
    for records in batch.chunk_by(is_same) {
        let place = (records[0].topic().to_owned(), records[0].partition());
        let here = shared.state().places.get(&place).cloned();
        let Some((place, incarnation)) = here else { continue };
        // Read and copied before locking: a lane needs the lock to take and to resolve.
        let arrivals = records.iter().map(|record| {
            let (incoming, copy) = record::incoming(record, incarnation, shelf);
            let arrival = shared.arrival(record.topic(), incoming, copy, now);
            (u64::try_from(record.offset()).unwrap_or_default(), arrival)
        });
        let arrivals: Vec<_> = arrivals.collect();
        let mut state = shared.state();
        for (offset, arrival) in arrivals {
            if !state.assignment.arrive(&place, offset, arrival) {
                state.tell(shared.takes_anothers(&place.0));
            }
        }
    }
    shared.arrived.notify_waiters();
}

fn poll_failed(shared: &Shared, error: &KafkaError) {
    let why = shared.reason.of(error, Instant::now());
    match error.rdkafka_error_code() {
        // With `enable.partition.eof`: that was all for now.
        _ if matches!(error, KafkaError::PartitionEOF(_)) => {}
        // Polled late after the whole process was suspended: the client joins again by itself.
        Some(Code::PollExceeded) => {
            tracing::warn!(queue = %shared.site.queue, "the group gave the partitions to others");
        }
        Some(Code::UnknownTopicOrPartition) if shared.of.only_finds() => {
            let what = format!("there is no topic that {} finds", shared.of.named());
            shared.tell(ConnectorError::transient(shared.site.told(what)));
        }
        _ => {
            let doing = format!("cannot consume {}", shared.of.named());
            shared.tell(explain(&shared.site, &doing, &why));
        }
    }
}

/// Receives the client's callbacks.
pub(crate) struct Watch(pub(crate) Arc<Shared>);

impl ClientContext for Watch {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        if is_reset(level, facility) {
            let queue = &self.0.site.queue;
            tracing::warn!(
                %queue,
                "what was to be read next is not there: it was deleted before it was read, or the topic was \
                 made anew; reading goes on where `auto.offset.reset` says ({text})"
            );
        }
        log(&self.0.site, level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(queue = %self.0.site.queue, %error, reason, "the client met an error");
        // One broker of several being away, or an idle connection ending, resolves itself; and the
        // end of a partition (`enable.partition.eof`) is not an error.
        let why = self.0.reason.of(&error, Instant::now());
        let minor = [Code::BrokerTransportFailure, Code::Resolve, Code::PartitionEOF];
        match error.rdkafka_error_code() {
            Some(code) if minor.contains(&code) => {}
            // Reported here or by a poll, depending on timing.
            Some(Code::UnknownTopicOrPartition) => poll_failed(&self.0, &error),
            _ => self.0.tell(explain(&self.0.site, "the connection has trouble", &why)),
        }
    }

    fn stats_raw(&self, statistics: &[u8]) {
        if self.0.recollection.fails(statistics) {
            let what = "the client knows no broker any more: the cluster named none for a moment";
            self.0.tell(ConnectorError::stalled(self.0.site.told(what)));
        }
    }
}

impl ConsumerContext for Watch {
    fn pre_rebalance(&self, client: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(list) if list.count() > 0 => self.assigned(client, list),
            Rebalance::Revoke(list) if list.count() > 0 => self.revoked(client, list),
            Rebalance::Error(error) => {
                self.0.tell(explain(&self.0.site, "the group cannot share the topic", error));
            }
            _ => {}
        }
    }

    fn post_rebalance(&self, client: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        if matches!(rebalance, Rebalance::Assign(_)) {
            self.0.state().is_shared_out = true;
            // A partition that was paused when it went is still paused when it comes back.
            self.0.pause(client, false);
        }
    }

    fn commit_callback(&self, _: KafkaResult<()>, _: &TopicPartitionList) {}
}

/// Whether a log line of librdkafka's says that it does not continue at the next offset.
fn is_reset(level: RDKafkaLogLevel, facility: &str) -> bool {
    matches!(level, RDKafkaLogLevel::Warning) && facility == "OFFSET"
}

/// The partitions in a list.
pub(crate) fn places_of(list: &TopicPartitionList) -> Vec<Place> {
    list.elements().iter().map(|one| (one.topic().into(), one.partition())).collect()
}

impl Watch {
    /// Reads what is resolved of the new partitions, beyond what is committed. Waits as long as the
    /// broker does not answer: otherwise messages would be handled again. Since the client
    /// processes nothing else meanwhile, it may have to be reopened.
    fn assigned(&self, client: &Client, list: &TopicPartitionList) {
        let (shared, begun) = (&self.0, Instant::now());
        let committed = loop {
            if shared.stopping() {
                return;
            }
            match shared.committed(client, list) {
                Ok(committed) => break committed,
                Err(error) => {
                    let told = explain(&shared.site, "cannot read the group's commits", &error);
                    shared.tell(match begun.elapsed() < shared.stall_after {
                        true => told,
                        false => ConnectorError::stalled(told.to_string()),
                    });
                    shared.beat(true);
                    std::thread::sleep(AGAIN);
                }
            }
        };
        let mut state = shared.state();
        for (place, known) in committed {
            if !state.assignment.assign(place.clone(), known) {
                let message = shared.site.told("more than 65536 partitions");
                state.tell(ConnectorError::permanent(message));
            }
            let name = format!("{}/{}/{}", shared.of.cluster, place.0, place.1);
            let incarnation = IncarnationId::of(name.as_bytes());
            state.places.insert((place.0.to_string(), place.1), (place, incarnation));
        }
        drop(state);
        shared.arrived.notify_waiters();
        shared.beat(true);
        tracing::info!(queue = %shared.site.queue, partitions = list.count(), "assigned");
    }

    /// Lets what is in flight of these partitions be resolved, commits, and forgets them. For
    /// partitions that are already lost, nothing can be committed any more.
    fn revoked(&self, client: &Client, list: &TopicPartitionList) {
        let shared = &self.0;
        let places = places_of(list);
        let begun = Instant::now();
        let mut state = shared.state();
        let lost = client.assignment_lost();
        loop {
            shared.beat(true);
            state.assignment.stop_handing_out(&places);
            let held = state.assignment.held_of(&places);
            let left = shared.revoke_within.saturating_sub(begun.elapsed());
            if held == 0 || lost || left.is_zero() || shared.stopping() {
                break;
            }
            shared.room.wait_for(&mut state, left.min(POLL));
        }
        let held = state.assignment.held_of(&places);
        let mut commits = state.assignment.to_commit();
        drop(state);
        // With transactions it would overtake an open one; what has outputs is in those.
        let none = lost || shared.of.in_transactions;
        commits.retain(|commit| places.contains(&commit.place) && !none);
        let committed = commit(client, &commits);
        let mut state = shared.state();
        match committed {
            Ok(()) => state.assignment.committed(&commits),
            Err(error) => tracing::warn!(
                queue = %shared.site.queue, %error,
                "the last commit before partitions go to others failed: messages come again"
            ),
        }
        places.iter().for_each(|place| state.assignment.revoke(place));
        drop(state);
        tracing::info!(
            queue = %shared.site.queue, partitions = places.len(), unresolved = held, lost,
            "revoked"
        );
    }
}

/// Commits, and waits for the broker.
pub(crate) fn commit(client: &Client, commits: &[Commit]) -> KafkaResult<()> {
    if commits.is_empty() {
        return Ok(());
    }
    match client.commit(&offsets(commits)?, CommitMode::Sync) {
        Err(KafkaError::ConsumerCommit(Code::NoOffset)) => Ok(()),
        done => done,
    }
}

/// Converts commits to the client's type.
pub(crate) fn offsets(commits: &[Commit]) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::with_capacity(commits.len());
    for Commit { place: (topic, partition), offset, metadata, .. } in commits {
        let mut one = list.add_partition(topic, *partition);
        one.set_offset(Offset::Offset(*offset))?;
        if !metadata.is_empty() {
            one.set_metadata(metadata);
        }
    }
    Ok(list)
}
