use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
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
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use crate::shared::{forward, json, one_way, reject, schema, settings};

/// `dedupe`: drops messages whose key was seen before. What was seen is kept in the state, written
/// together with the ack, so it survives a restart; a message that is handled again after a crash is
/// no duplicate of itself.
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
    /// Where the key stands in the message.
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

/// What was seen: the keys with the message that brought them and the time, and the keys by age.
#[derive(Default)]
struct Seen {
    keys: HashMap<String, (MessageId, Timestamp)>,
    /// Each key once for each time that was remembered of it, of which only the last counts.
    by_age: VecDeque<(String, Timestamp)>,
    /// What was seen before this process began is among them.
    is_filled: bool,
}

/// How many keys are forgotten with one message, so that none has to wait for a great cleaning.
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
        let fresh = |at: Timestamp| now.since(at) < self.period;
        let known = self.lock().keys.get(&key).copied();
        let known = match known {
            Some(known) => Some(known),
            None => {
                let kept = cx.load_state(&key).await;
                let kept = kept.map_err(|error| HandleError::Failed(Failure::retry(error)))?;
                kept.as_deref().and_then(decode_seen)
            }
        };
        match known {
            // The message itself, handled again, is no duplicate.
            Some((id, at)) if fresh(at) && id != cx.id() => Ok(Emit::none()),
            _ => {
                let emit = Emit::from(forward(cx.message(), None));
                let emit = emit.put_state(key.clone(), encode_seen(cx.id(), now));
                Ok(self.remember(key, cx.id(), now, emit))
            }
        }
    }

    /// Remembers a key and forgets a few that are too old or too many.
    fn remember(&self, key: String, id: MessageId, now: Timestamp, mut emit: Emit) -> Emit {
        let mut seen = self.lock();
        seen.insert(key, id, now);
        for _ in 0..FORGET_MAX {
            let Some((oldest, at)) = seen.by_age.front() else { break };
            let at = *at;
            if seen.keys.get(oldest).is_none_or(|(_, last)| *last != at) {
                seen.by_age.pop_front();
                continue;
            }
            if now.since(at) < self.period && seen.keys.len() <= self.max {
                break;
            }
            let Some((oldest, _)) = seen.by_age.pop_front() else { break };
            seen.keys.remove(&oldest);
            emit = emit.delete_state(oldest);
        }
        emit
    }

    /// Takes over what was seen before this process began, so that it is forgotten in its turn.
    async fn fill(&self, stage: &StageContext) -> Result<(), BoxError> {
        let Some(state) = stage.state.as_ref().filter(|_| !self.lock().is_filled) else {
            return Ok(());
        };
        let kept = state.scan(&stage.state_space, "").await?;
        let kept = kept.into_iter().filter_map(|(key, value)| Some((key, decode_seen(&value)?)));
        let mut kept: Vec<_> = kept.collect();
        kept.sort_by_key(|(_, (_, at))| *at);
        let mut seen = self.lock();
        if !std::mem::replace(&mut seen.is_filled, true) {
            kept.into_iter().for_each(|(key, (id, at))| seen.insert(key, id, at));
        }
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The message that brought a key, and when: 16 and 8 bytes, little-endian.
fn encode_seen(id: MessageId, at: Timestamp) -> Bytes {
    let mut bytes = id.0.to_le_bytes().to_vec();
    bytes.extend_from_slice(&at.0.to_le_bytes());
    bytes.into()
}

fn decode_seen(bytes: &[u8]) -> Option<(MessageId, Timestamp)> {
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
        let key = json(parsed, cx).and_then(|payload| {
            let key =
                self.field.key(&payload).map(|key| String::from_utf8_lossy(&key).into_owned());
            key.ok_or_else(|| reject(format!("the message has no `{}`", self.field)))
        });
        match key {
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
    use super::*;

    #[test]
    fn a_key_that_is_seen_again_is_the_youngest() {
        let period = Duration::from_millis(10);
        let field = "id".parse().expect("a path");
        let dedupe = Deduping { field, period, max: 100, seen: Arc::default() };
        let remember = |key: &str, at: i64| {
            let emit = dedupe.remember(key.to_owned(), MessageId(0), Timestamp(at), Emit::none());
            let (_, writes) = emit.into_parts().expect("no value is written");
            writes.into_iter().map(|write| write.key).collect::<Vec<_>>()
        };
        assert!(remember("a", 0).is_empty());
        assert!(remember("b", 1).is_empty());
        assert!(remember("a", 10).is_empty(), "its period begins anew");
        assert_eq!(remember("c", 12), ["b"], "nothing stands before it any more");
        assert_eq!(remember("d", 20), ["a"]);
        assert_eq!(dedupe.lock().keys.len(), 2);
    }
}
