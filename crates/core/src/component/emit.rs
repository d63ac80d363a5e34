use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use smallvec::{SmallVec, smallvec};

use super::OutputError;
use crate::{Headers, Timestamp};

/// What a component emits: no output, one, or many, each for a named output of its stage.
///
/// An output takes over the input's key, headers and event time unless they are set here.
///
/// ```
/// use brigade_core::component::Emit;
/// use std::time::Duration;
/// let emit = Emit::to("delayed", 17).delay(Duration::from_secs(5)).and("checked", "ok").key("k");
/// assert_eq!(emit.outputs().len(), 2);
/// ```
#[derive(Debug, Default)]
pub struct Emit {
    outputs: SmallVec<[Emitted; 1]>,
    writes: Vec<StateWrite>,
    error: Option<OutputError>,
}

/// One output.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Emitted {
    /// Which output; without it the stage's only one.
    pub output: Option<Cow<'static, str>>,
    /// The payload; `None` is a tombstone.
    pub payload: Option<Bytes>,
    /// Another key than the input's.
    pub key: Option<Option<Bytes>>,
    /// Other headers than the input's.
    pub headers: Option<Headers>,
    /// Another event time than the input's.
    pub event_time: Option<Timestamp>,
    /// Not to be handed out before this long.
    pub delay: Option<Duration>,
}

/// A change of the stage's own state, written together with the ack of the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateWrite {
    /// The key.
    pub key: String,
    /// Its value; `None` removes it.
    pub value: Option<Bytes>,
}

impl Emit {
    /// Nothing: the message is filtered, on purpose.
    pub fn none() -> Self {
        Self::default()
    }

    /// A value, as JSON, for the stage's only output (or for all, where the stage says `copy`).
    pub fn value(value: impl Serialize) -> Self {
        Self::none().push(None, value)
    }

    /// A value, as JSON, for the output of this name.
    pub fn to(output: impl Into<Cow<'static, str>>, value: impl Serialize) -> Self {
        Self::none().push(Some(output.into()), value)
    }

    /// One value more, for the output of this name.
    #[must_use]
    pub fn and(self, output: impl Into<Cow<'static, str>>, value: impl Serialize) -> Self {
        self.push(Some(output.into()), value)
    }

    /// Bytes as they are, for the stage's only output.
    pub fn bytes(payload: impl Into<Bytes>) -> Self {
        Self::from(Emitted { payload: Some(payload.into()), ..Emitted::default() })
    }

    /// Bytes as they are, for the output of this name.
    pub fn bytes_to(output: impl Into<Cow<'static, str>>, payload: impl Into<Bytes>) -> Self {
        Self::bytes(payload).rename(output.into())
    }

    /// One output more, built by hand.
    #[must_use]
    pub fn with(mut self, emitted: Emitted) -> Self {
        self.outputs.push(emitted);
        self
    }

    /// Sets the key of the last output.
    #[must_use]
    pub fn key(self, key: impl Into<Bytes>) -> Self {
        let key = key.into();
        self.last(|output| output.key = Some(Some(key)))
    }

    /// Adds a header to the last output; it then has none of the input's.
    #[must_use]
    pub fn header(self, name: &str, value: impl Into<Bytes>) -> Self {
        let value = value.into();
        self.last(|output| output.headers.get_or_insert_default().push(name, Some(value)))
    }

    /// Delays the last output; its queue must be able to.
    #[must_use]
    pub fn delay(self, delay: Duration) -> Self {
        self.last(|output| output.delay = Some(delay))
    }

    /// Stores a value in the stage's own state, in one transaction with the ack where input and
    /// state are one store, before it elsewhere.
    #[must_use]
    pub fn put_state(mut self, key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.writes.push(StateWrite { key: key.into(), value: Some(value.into()) });
        self
    }

    /// Removes a value from the stage's own state, as [`put_state`](Emit::put_state) stores it.
    #[must_use]
    pub fn delete_state(mut self, key: impl Into<String>) -> Self {
        self.writes.push(StateWrite { key: key.into(), value: None });
        self
    }

    /// Everything of `other` after everything of this.
    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        self.outputs.extend(other.outputs);
        self.writes.extend(other.writes);
        self.error = self.error.or(other.error);
        self
    }

    /// The outputs so far.
    pub fn outputs(&self) -> &[Emitted] {
        &self.outputs
    }

    /// The outputs and the changes of state.
    ///
    /// # Errors
    /// A value did not encode.
    pub fn into_parts(self) -> Result<(SmallVec<[Emitted; 1]>, Vec<StateWrite>), OutputError> {
        match self.error {
            Some(error) => Err(error),
            None => Ok((self.outputs, self.writes)),
        }
    }

    fn push(mut self, output: Option<Cow<'static, str>>, value: impl Serialize) -> Self {
        match serde_json::to_vec(&value) {
            Ok(json) => {
                let payload = Some(json.into());
                self.outputs.push(Emitted { output, payload, ..Emitted::default() });
            }
            Err(error) => self.error = self.error.or(Some(OutputError::new(output, error))),
        }
        self
    }

    fn rename(self, name: Cow<'static, str>) -> Self {
        self.last(|output| output.output = Some(name))
    }

    fn last(mut self, change: impl FnOnce(&mut Emitted)) -> Self {
        if let Some(output) = self.outputs.last_mut() {
            change(output);
        }
        self
    }
}

impl From<Emitted> for Emit {
    fn from(emitted: Emitted) -> Self {
        Self { outputs: smallvec![emitted], writes: Vec::new(), error: None }
    }
}
