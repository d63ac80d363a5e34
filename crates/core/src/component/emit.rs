//! What a component emits: [`Emit`], made of [`Emitted`] outputs and [`StateWrite`]s.

use std::any::Any;
use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use smallvec::{SmallVec, smallvec};

use super::{Conversion, OutputError};
use crate::retry::DELAY_MAX;
use crate::{Headers, Message, Timestamp};

/// What a component emits: no output, one, or many, each for a named output of its stage.
///
/// An output inherits the input's key, headers and event time unless they are set here.
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
    rest: Option<Box<Rest>>,
}

/// What few messages need.
#[derive(Debug, Default)]
struct Rest {
    writes: Vec<StateWrite>,
    error: Option<OutputError>,
}

/// One output. It is moved several times per message, so what is rare is boxed.
#[derive(Default)]
pub struct Emitted {
    /// Which output; `None` is the stage's only one.
    pub output: Option<Cow<'static, str>>,
    /// The payload; `None` is a tombstone.
    pub payload: Option<Bytes>,
    /// What the payload was encoded from, for a direct edge.
    typed: Option<Box<dyn Any + Send>>,
    /// Whether the payload is a value encoded as JSON, as opposed to the component's own bytes.
    value: bool,
    changes: Option<Box<Changes>>,
}

/// What an output does not inherit from the input.
#[derive(Debug, Default)]
struct Changes {
    key: Option<Option<Bytes>>,
    headers: Option<Headers>,
    event_time: Option<Timestamp>,
    delay: Option<Duration>,
}

/// What is left of an [`Emitted`] once it has been applied to a message.
#[derive(Debug)]
pub struct Takeover {
    /// What the payload was encoded from.
    pub typed: Option<Box<dyn Any + Send>>,
    /// Whether the payload is a value encoded as JSON, as opposed to the component's own bytes.
    pub value: bool,
}

impl Emitted {
    /// An output with this payload, for the stage's only output.
    pub fn new(payload: Option<Bytes>) -> Self {
        Self { payload, ..Self::default() }
    }

    /// An output whose payload is already JSON. If its queue has another codec, the payload is
    /// converted, while the bytes of [`new`](Emitted::new) are taken to be in the input's codec.
    ///
    /// ```
    /// use brigade_core::component::Emitted;
    /// assert!(Emitted::json("{}").is_value());
    /// ```
    pub fn json(payload: impl Into<Bytes>) -> Self {
        Self { value: true, ..Self::new(Some(payload.into())) }
    }

    /// Sends this output to the output with this name.
    #[must_use]
    pub fn to(self, output: impl Into<Cow<'static, str>>) -> Self {
        Self { output: Some(output.into()), ..self }
    }

    /// Sets the key, in place of the input's.
    #[must_use]
    pub fn with_key(mut self, key: Option<Bytes>) -> Self {
        self.changes().key = Some(key);
        self
    }

    /// Sets the headers, in place of the input's.
    #[must_use]
    pub fn with_headers(mut self, headers: Headers) -> Self {
        self.changes().headers = Some(headers);
        self
    }

    /// Sets the event time, in place of the input's.
    #[must_use]
    pub fn with_event_time(mut self, event_time: Timestamp) -> Self {
        self.changes().event_time = Some(event_time);
        self
    }

    /// Delays this output: it is handed out after `delay` at the earliest (capped at a hundred
    /// years).
    #[must_use]
    pub fn with_delay(mut self, delay: Duration) -> Self {
        self.changes().delay = Some(delay.min(DELAY_MAX));
        self
    }

    /// Whether the payload is a value encoded as JSON, as opposed to the component's own bytes.
    pub fn is_value(&self) -> bool {
        self.value
    }

    /// The delay before it is handed out, if one was set.
    pub fn delay(&self) -> Option<Duration> {
        self.changes.as_ref()?.delay
    }

    /// Whether it has a delay longer than zero.
    pub fn is_delayed(&self) -> bool {
        self.delay().is_some_and(|delay| !delay.is_zero())
    }

    /// Takes the value that the payload was encoded from, if it is known.
    pub fn take_typed(&mut self) -> Option<Box<dyn Any + Send>> {
        self.typed.take()
    }

    /// By how many bytes the message is larger once this output has been [applied](Emitted::turn) to
    /// it.
    pub fn grows(&self, message: &Message) -> usize {
        let length = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
        let mut before = length(&message.payload);
        let mut after = length(&self.payload);
        if let Some(changes) = &self.changes {
            if let Some(key) = &changes.key {
                before += length(&message.key);
                after += length(key);
            }
            if let Some(headers) = &changes.headers {
                before += message.headers.size();
                after += headers.size();
            }
        }
        after.saturating_sub(before)
    }

    /// Applies this output to the input message: sets everything but its id and its delay.
    pub fn turn(self, message: &mut Message) -> Takeover {
        message.payload = self.payload;
        let changes = self.changes.map_or_else(Changes::default, |changes| *changes);
        if let Some(key) = changes.key {
            message.key = key;
        }
        if let Some(headers) = changes.headers {
            message.headers = headers;
        }
        message.event_time = changes.event_time.or(message.event_time);
        Takeover { typed: self.typed, value: self.value }
    }

    /// The output as a new message with this payload, with what it inherits from `input`;
    /// everything but its id.
    pub fn message(&self, input: &Message, payload: Option<Bytes>) -> Message {
        let changes = self.changes.as_deref();
        let key = changes.and_then(|changes| changes.key.as_ref()).unwrap_or(&input.key);
        let headers = changes.and_then(|changes| changes.headers.as_ref());
        Message {
            id: input.id,
            key: key.clone(),
            headers: headers.unwrap_or(&input.headers).clone(),
            payload,
            event_time: changes.and_then(|changes| changes.event_time).or(input.event_time),
        }
    }

    fn changes(&mut self) -> &mut Changes {
        self.changes.get_or_insert_default()
    }
}

impl fmt::Debug for Emitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Emitted")
            .field("output", &self.output)
            .field("payload", &self.payload)
            .field("changes", &self.changes)
            .finish_non_exhaustive()
    }
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

    /// A value, as JSON, for the stage's only output (or for all, if the stage has `copy`).
    pub fn value(value: impl Serialize) -> Self {
        Self::none().push(None, value)
    }

    /// A value, as JSON, for the output with this name.
    pub fn to(output: impl Into<Cow<'static, str>>, value: impl Serialize) -> Self {
        Self::none().push(Some(output.into()), value)
    }

    /// Adds a value for the output with this name.
    #[must_use]
    pub fn and(self, output: impl Into<Cow<'static, str>>, value: impl Serialize) -> Self {
        self.push(Some(output.into()), value)
    }

    /// A value, as JSON, for the stage's only output. Over a direct edge to a component that takes
    /// this type the value itself is passed on; the JSON is kept for retries and dead letters.
    pub fn typed(value: impl Serialize + Send + 'static) -> Self {
        let mut emit = Self::none().push(None, &value);
        if let Some(output) = emit.outputs.last_mut() {
            output.typed = Some(Box::new(value));
        }
        emit
    }

    /// Raw bytes, for the stage's only output.
    pub fn bytes(payload: impl Into<Bytes>) -> Self {
        Self::from(Emitted::new(Some(payload.into())))
    }

    /// Raw bytes, for the output with this name.
    pub fn bytes_to(output: impl Into<Cow<'static, str>>, payload: impl Into<Bytes>) -> Self {
        Self::bytes(payload).rename(output.into())
    }

    /// Adds an output built by hand.
    #[must_use]
    pub fn with(mut self, emitted: Emitted) -> Self {
        self.outputs.push(emitted);
        self
    }

    /// Sets the key of the last output.
    #[must_use]
    pub fn key(self, key: impl Into<Bytes>) -> Self {
        let key = key.into();
        self.last(|output| output.changes().key = Some(Some(key)))
    }

    /// Adds a header to the last output, which then inherits none of the input's headers.
    #[must_use]
    pub fn header(self, name: &str, value: impl Into<Bytes>) -> Self {
        let value = value.into();
        self.last(|output| {
            output.changes().headers.get_or_insert_default().push(name, Some(value));
        })
    }

    /// Delays the last output, by at most a hundred years. If its queue does not have the feature
    /// `delay`, or the output goes over a direct edge, the input becomes a dead letter (`output`).
    #[must_use]
    pub fn delay(self, delay: Duration) -> Self {
        self.last(|output| output.changes().delay = Some(delay.min(DELAY_MAX)))
    }

    /// Stores a value in the stage's own state: in one transaction with the ack if input and state
    /// are in one store, otherwise before the ack.
    #[must_use]
    pub fn put_state(mut self, key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.rest().writes.push(StateWrite { key: key.into(), value: Some(value.into()) });
        self
    }

    /// Removes a value from the stage's own state; see [`put_state`](Emit::put_state).
    #[must_use]
    pub fn delete_state(mut self, key: impl Into<String>) -> Self {
        self.rest().writes.push(StateWrite { key: key.into(), value: None });
        self
    }

    /// Appends everything in `other`.
    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        self.outputs.extend(other.outputs);
        if let Some(other) = other.rest {
            let rest = self.rest();
            rest.writes.extend(other.writes);
            rest.error = rest.error.take().or(other.error);
        }
        self
    }

    /// The outputs so far.
    pub fn outputs(&self) -> &[Emitted] {
        &self.outputs
    }

    /// Splits it into the outputs and the changes of state.
    ///
    /// # Errors
    /// A value did not encode.
    pub fn into_parts(self) -> Result<(SmallVec<[Emitted; 1]>, Vec<StateWrite>), OutputError> {
        match self.rest {
            None => Ok((self.outputs, Vec::new())),
            Some(rest) => match rest.error {
                Some(error) => Err(error),
                None => Ok((self.outputs, rest.writes)),
            },
        }
    }

    fn rest(&mut self) -> &mut Rest {
        self.rest.get_or_insert_default()
    }

    fn push(mut self, output: Option<Cow<'static, str>>, value: impl Serialize) -> Self {
        match to_json(&value) {
            Ok(json) => {
                let payload = Some(json);
                self.outputs.push(Emitted { output, payload, value: true, ..Emitted::default() });
            }
            Err(error) => {
                self.rest().error.get_or_insert_with(|| OutputError::new(output, error));
            }
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

/// The largest buffer that is kept for the next value.
const SCRATCH_MAX: usize = 16 << 10;

thread_local! {
    /// The buffer of the last value, so that the next allocation has the right size.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

fn to_json(value: &impl Serialize) -> serde_json::Result<Bytes> {
    let mut scratch = SCRATCH.take();
    scratch.clear();
    Conversion::Serialize.timed(|| serde_json::to_writer(&mut scratch, value))?;
    if scratch.capacity() > SCRATCH_MAX {
        return Ok(scratch.into());
    }
    let json = Bytes::copy_from_slice(&scratch);
    SCRATCH.set(scratch);
    Ok(json)
}

impl From<Emitted> for Emit {
    fn from(emitted: Emitted) -> Self {
        Self { outputs: smallvec![emitted], rest: None }
    }
}
