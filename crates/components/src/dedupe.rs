//! The component `dedupe`.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use brigade_core::component::{
    AnyComponent, ComponentFactory, Context, Emit, HandleError, Handling, Kind, Parsed, Setup,
    StageContext, StageSite,
};
use brigade_core::connector::Problem;
use brigade_core::field::{FieldPath, FieldPathError};
use brigade_core::{BoxError, Failure, MessageId, Period, Timestamp};
use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use jaq_json::Val;
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use crate::jq::input;
use crate::key::{find, key_of};
use crate::shared::{forward, one_way, reject, schema, settings};

/// `dedupe`: drops messages whose key was seen before. The keys seen are kept in the state, written
/// together with the ack, so they survive a restart; a message that is handled again after a crash
/// is not a duplicate of itself.
///
/// ```yaml
/// component: { dedupe: { key: id, for: 1h } }
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Dedupe;

/// The settings of `dedupe`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Settings {
    /// Path of the key in the message.
    key: String,
    /// How long a key is remembered.
    #[serde(default = "an_hour", rename = "for")]
    period: Period,
    /// How many keys are remembered; the oldest are forgotten first.
    #[serde(default = "a_million")]
    #[schemars(range(min = 1))]
    max: usize,
}

fn an_hour() -> Period {
    Period(Duration::from_secs(3600))
}

fn a_million() -> usize {
    1_000_000
}

/// The message that brought a key, and when.
type Sighting = (MessageId, Timestamp);

/// The keys with their last sightings, and the keys by age.
#[derive(Default)]
struct Seen {
    keys: HashMap<String, Sighting>,
    /// A key once per remembered time; only its latest entry counts.
    by_age: VecDeque<(String, Timestamp)>,
    /// Whether it includes what was seen before this process started.
    is_filled: bool,
}

/// At most this many keys are forgotten per message, so that no message has to wait for a large
/// cleanup.
const FORGET_MAX: usize = 4;

#[derive(Clone)]
struct Deduping {
    field: FieldPath,
    period: Duration,
    max: usize,
    /// Shared by all workers.
    seen: Arc<Mutex<Seen>>,
}

impl ComponentFactory for Dedupe {
    fn name(&self) -> &'static str {
        "dedupe"
    }

    fn schema(&self) -> Option<Value> {
        schema::<Settings>()
    }

    fn build(
        &self,
        given: &Value,
        site: &StageSite,
    ) -> Result<Box<dyn AnyComponent>, Vec<Problem>> {
        one_way("dedupe", site)?;
        let settings: Settings = settings(given)?;
        if settings.period.0.is_zero() {
            let message = "`for` must be more than 0s: nothing would be remembered";
            return Err(vec![Problem::at("for", message).help("leave it out for 1h")]);
        }
        let wrong = |error: FieldPathError| vec![Problem::at("key", error.to_string())];
        let field = settings.key.parse().map_err(wrong)?;
        let (period, max) = (settings.period.0, settings.max.max(1));
        Ok(Box::new(Deduping { field, period, max, seen: Arc::default() }))
    }
}

impl Seen {
    fn insert(&mut self, key: String, id: MessageId, at: Timestamp) {
        self.keys.insert(key.clone(), (id, at));
        self.by_age.push_back((key, at));
    }
}

impl Deduping {
    async fn check(&self, key: String, cx: &Context) -> Result<Emit, HandleError> {
        let now = Timestamp::from(SystemTime::now());
        let before = self.seen.lock().keys.get(&key).copied();
        // What was seen here does not count if its message became a dead letter; what another
        // process has seen does.
        let known = kept(&key, cx).await?;
        if known.is_some_and(|known| self.is_of_another(known, cx.id(), now)) {
            return Ok(Emit::none());
        }
        let Some(forgotten) = self.remember(&key, cx.id(), now, before) else {
            return Ok(Emit::none());
        };
        let emit = Emit::from(forward(cx.message(), None));
        let mut emit = emit.put_state(key, encode_seen(cx.id(), now));
        for (key, own) in forgotten {
            // If another process has seen the key since, that process forgets it; what cannot be
            // read now is left to the next start.
            if kept(&key, cx).await.is_ok_and(|kept| kept == Some(own)) {
                emit = emit.delete_state(key);
            }
        }
        Ok(emit)
    }

    fn is_fresh(&self, at: Timestamp, now: Timestamp) -> bool {
        now.since(at) < self.period
    }

    /// Whether a sighting makes a message a duplicate; the message itself, handled again, does not
    /// count.
    fn is_of_another(&self, (id, at): Sighting, own: MessageId, now: Timestamp) -> bool {
        id != own && self.is_fresh(at, now)
    }

    /// Remembers a key; returns a few keys that are forgotten in exchange, as they are too old or
    /// too many. `None` if another worker has seen the key while the state was read; `before` is
    /// the sighting known until then.
    fn remember(
        &self,
        key: &str,
        id: MessageId,
        now: Timestamp,
        before: Option<Sighting>,
    ) -> Option<Vec<(String, Sighting)>> {
        let (mut seen, mut forgotten) = (self.seen.lock(), Vec::new());
        let meanwhile = seen.keys.get(key).copied().filter(|seen| before != Some(*seen));
        if meanwhile.is_some_and(|seen| self.is_of_another(seen, id, now)) {
            return None;
        }
        seen.insert(key.to_owned(), id, now);
        for _ in 0..FORGET_MAX {
            let Some((oldest, at)) = seen.by_age.front() else { break };
            let at = *at;
            if seen.keys.get(oldest).is_none_or(|(_, last)| *last != at) {
                seen.by_age.pop_front();
                continue;
            }
            if self.is_fresh(at, now) && seen.keys.len() <= self.max {
                break;
            }
            let Some((oldest, _)) = seen.by_age.pop_front() else { break };
            if let Some(own) = seen.keys.remove(&oldest) {
                forgotten.push((oldest, own));
            }
        }
        Some(forgotten)
    }

    /// Loads what was seen before this process started, so that it is forgotten in turn.
    async fn fill(&self, stage: &StageContext) -> Result<(), BoxError> {
        let Some(state) = stage.state.as_ref().filter(|_| !self.seen.lock().is_filled) else {
            return Ok(());
        };
        let kept = state.scan(&stage.state_space, "").await?;
        let kept = kept.into_iter().filter_map(|(key, value)| Some((key, decode_seen(&value)?)));
        let mut kept: Vec<_> = kept.collect();
        kept.sort_by_key(|(_, (_, at))| *at);
        let mut seen = self.seen.lock();
        if !std::mem::replace(&mut seen.is_filled, true) {
            kept.into_iter().for_each(|(key, (id, at))| seen.insert(key, id, at));
        }
        Ok(())
    }

    fn key(&self, parsed: Option<Parsed>, cx: &Context) -> Result<String, HandleError> {
        let payload = input(parsed, cx)?;
        let key = find(&self.field, &payload).filter(|key| **key != Val::Null).map(key_of);
        key.ok_or_else(|| reject(format!("the message has no `{}`", self.field)))
    }
}

/// The sighting of a key in the state.
async fn kept(key: &str, cx: &Context) -> Result<Option<Sighting>, HandleError> {
    let kept = cx.load_state(key).await;
    let kept = kept.map_err(|error| HandleError::Failed(Failure::retry(error)))?;
    Ok(kept.as_deref().and_then(decode_seen))
}

/// The message that brought a key, and when: 16 and 8 bytes, little-endian.
fn encode_seen(id: MessageId, at: Timestamp) -> Bytes {
    let mut bytes = id.0.to_le_bytes().to_vec();
    bytes.extend_from_slice(&at.0.to_le_bytes());
    bytes.into()
}

fn decode_seen(bytes: &[u8]) -> Option<Sighting> {
    let (id, at) = bytes.split_first_chunk::<16>()?;
    let at = i64::from_le_bytes(at.try_into().ok()?);
    Some((MessageId(u128::from_le_bytes(*id)), Timestamp(at)))
}

impl AnyComponent for Deduping {
    fn kind(&self) -> Kind {
        Kind::Async
    }

    fn init<'a>(&'a mut self, setup: &'a Setup) -> LocalBoxFuture<'a, Result<(), BoxError>> {
        Box::pin(self.fill(&setup.stage))
    }

    fn handle<'a>(&'a mut self, parsed: Option<Parsed>, cx: &'a Context) -> Handling<'a> {
        match self.key(parsed, cx) {
            Ok(key) => Handling::Pending(Box::pin(self.check(key, cx))),
            Err(error) => Handling::Done(Err(error)),
        }
    }

    fn fresh(&self) -> Box<dyn AnyComponent> {
        Box::new(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use brigade_core::Message;
    use brigade_core::component::StateWrite;
    use brigade_core::state::{StateStore, StoreOp};
    use brigade_embedded::{Options, Store};
    use futures_util::future::join;

    use super::*;

    #[test]
    fn a_key_that_is_seen_again_is_the_youngest() {
        let period = Duration::from_millis(10);
        let field = "id".parse().expect("a path");
        let dedupe = Deduping { field, period, max: 100, seen: Arc::default() };
        let remember = |key: &str, at: i64| {
            let forgotten = dedupe.remember(key, MessageId(0), Timestamp(at), None);
            forgotten.into_iter().flatten().map(|(key, _)| key).collect::<Vec<_>>()
        };
        assert!(remember("a", 0).is_empty());
        assert!(remember("b", 1).is_empty());
        assert!(remember("a", 10).is_empty(), "its period begins anew");
        assert_eq!(remember("c", 12), ["b"], "nothing stands before it any more");
        assert_eq!(remember("d", 20), ["a"]);
        assert_eq!(dedupe.seen.lock().keys.len(), 2);
    }

    #[test]
    fn numbers_are_told_apart_by_all_their_digits() {
        let (_directory, state) = state();
        let process = Process::on(&state);
        let key = |payload: &'static str| {
            let cx = Context::new(Arc::clone(&process.stage), Message::new(payload));
            process.dedupe.key(None, &cx)
        };
        let long = |last: &str| format!("12345678901234567890{last}");
        assert_eq!(key("{\"id\":123456789012345678901}").ok(), Some(long("1")));
        assert_eq!(key("{\"id\":123456789012345678902}").ok(), Some(long("2")));
        assert_eq!(key("{\"id\":12}").ok(), Some("12".to_owned()));
        assert_eq!(key("{\"id\":\"12345678901234567890\"}").ok(), Some(long("")));
        assert!(key("{\"id\":null,\"n\":12345678901234567890}").is_err());
    }

    /// One of several processes running the stage on one state.
    struct Process {
        dedupe: Deduping,
        stage: Arc<StageContext>,
    }

    fn state() -> (tempfile::TempDir, Arc<dyn StateStore>) {
        let directory = tempfile::tempdir().expect("a directory");
        let state = Store::open(directory.path(), Options::default()).expect("a state");
        (directory, state)
    }

    impl Process {
        fn on(state: &Arc<dyn StateStore>) -> Self {
            let (field, period) = ("id".parse().expect("a path"), Duration::from_secs(3600));
            let mut stage = StageContext::new("p", "s");
            stage.state = Some(Arc::clone(state));
            let dedupe = Deduping { field, period, max: 100, seen: Arc::default() };
            Self { dedupe, stage: Arc::new(stage) }
        }

        /// Whether a message with a key passes; what it writes is in the state afterwards.
        async fn passes(&self, key: &str, id: u128) -> bool {
            let message = Message::new("{}").with_id(MessageId(id));
            let cx = Context::new(Arc::clone(&self.stage), message);
            let emit = self.dedupe.check(key.to_owned(), &cx).await.expect("it is handled");
            let (outputs, writes) = emit.into_parts().expect("no value is written");
            let space = Arc::clone(&self.stage.state_space);
            let op = |StateWrite { key, value }| match value {
                Some(value) => StoreOp::Put { space: Arc::clone(&space), key, value },
                None => StoreOp::Delete { space: Arc::clone(&space), key },
            };
            self.state().commit(writes.into_iter().map(op).collect()).await.expect("it writes");
            !outputs.is_empty()
        }

        fn state(&self) -> &dyn StateStore {
            self.stage.state.as_deref().expect("there is one")
        }
    }

    /// Makes more than the period go by.
    async fn later(processes: &[&Process]) {
        let before = |at: Timestamp| Timestamp(at.0 - 2 * 3600 * 1000);
        for process in processes {
            let mut seen = process.dedupe.seen.lock();
            seen.keys.values_mut().for_each(|(_, at)| *at = before(*at));
            seen.by_age.iter_mut().for_each(|(_, at)| *at = before(*at));
        }
        let (state, space) = (processes[0].state(), &processes[0].stage.state_space);
        for (key, value) in state.scan(space, "").await.expect("it reads") {
            let (id, at) = decode_seen(&value).expect("it was seen");
            let (space, value) = (Arc::clone(space), encode_seen(id, before(at)));
            state.commit(vec![StoreOp::Put { space, key, value }]).await.expect("it writes");
        }
    }

    #[tokio::test]
    async fn what_another_process_saw_since_counts_though_it_was_seen_here_before() {
        let (_directory, state) = state();
        let [first, second] = [(); 2].map(|()| Process::on(&state));
        assert!(first.passes("x", 1).await);
        assert!(!second.passes("x", 2).await);
        later(&[&first, &second]).await;
        assert!(second.passes("x", 3).await);
        assert!(!first.passes("x", 4).await, "the other has seen it since");
    }

    #[tokio::test]
    async fn what_another_process_saw_since_is_not_forgotten_with_what_is_old() {
        let (_directory, state) = state();
        let [first, second, third] = [(); 3].map(|()| Process::on(&state));
        assert!(first.passes("x", 1).await && first.passes("y", 2).await);
        later(&[&first, &second]).await;
        assert!(second.passes("x", 3).await);
        assert!(first.passes("z", 4).await, "now it forgets what is old");
        let keys = state.scan(&first.stage.state_space, "").await.expect("it reads");
        let keys: Vec<_> = keys.into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["x", "z"]);
        assert!(!third.passes("x", 5).await);
    }

    #[tokio::test]
    async fn another_message_with_the_key_is_dropped_but_not_the_same_again() {
        let (_directory, state) = state();
        let process = Process::on(&state);
        assert!(process.passes("x", 1).await);
        assert!(!process.passes("x", 2).await);
        assert!(process.passes("x", 1).await);
        assert!(process.passes("y", 3).await);
    }

    #[tokio::test]
    async fn what_became_a_dead_letter_hides_none_that_comes_after_it() {
        let (_directory, state) = state();
        let process = Process::on(&state);
        let cx = Context::new(Arc::clone(&process.stage), Message::new("{}").with_id(MessageId(1)));
        // What it writes is dropped with it.
        drop(process.dedupe.check("x".to_owned(), &cx).await.expect("it is handled"));
        assert!(process.passes("x", 2).await);
        assert!(!process.passes("x", 3).await);
    }

    #[tokio::test]
    async fn of_two_workers_at_the_same_time_one_lets_its_message_pass() {
        let (_directory, state) = state();
        let process = Process::on(&state);
        let both = join(process.passes("x", 1), process.passes("x", 2)).await;
        assert!(both == (true, false) || both == (false, true), "{both:?}");
    }
}
