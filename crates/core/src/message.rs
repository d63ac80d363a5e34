//! Messages, their headers and timestamps.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::MessageId;

/// The unit of work. Immutable once emitted; cloning shares the bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    /// Derived from where the message comes from: see [`MessageId`].
    pub id: MessageId,
    /// Shared by messages that belong together; `order: key` keeps their order.
    pub key: Option<Bytes>,
    /// Names and values, in order.
    pub headers: Headers,
    /// `None` is a tombstone (Kafka), which is not the same as empty.
    pub payload: Option<Bytes>,
    /// When the event that the message describes took place.
    pub event_time: Option<Timestamp>,
}

impl Message {
    /// A message with this payload and nothing else.
    ///
    /// ```
    /// let message = brigade_core::Message::new("{\"id\":1}");
    /// assert_eq!(message.payload.as_deref(), Some(&b"{\"id\":1}"[..]));
    /// ```
    pub fn new(payload: impl Into<Bytes>) -> Self {
        Self { payload: Some(payload.into()), ..Self::default() }
    }

    /// The same message with this id.
    #[must_use]
    pub fn with_id(self, id: MessageId) -> Self {
        Self { id, ..self }
    }

    /// The same message with this key.
    #[must_use]
    pub fn with_key(self, key: impl Into<Bytes>) -> Self {
        Self { key: Some(key.into()), ..self }
    }

    /// The same message with one more header.
    #[must_use]
    pub fn with_header(mut self, name: &str, value: impl Into<Bytes>) -> Self {
        self.headers.push(name, Some(value.into()));
        self
    }

    /// The message's size where bytes are limited: payload, key and headers, plus a flat 64 for
    /// overhead, so that a million empty messages are not free.
    pub fn size(&self) -> usize {
        const AROUND: usize = 64;
        let length = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
        AROUND + length(&self.payload) + length(&self.key) + self.headers.size()
    }
}

/// A message's headers: ordered; names may repeat, values may be null.
///
/// Cloning shares them; [`push`](Headers::push) copies them first if they are shared.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers(Option<Arc<Vec<Header>>>);

/// A name and its value.
type Header = (Box<str>, Option<Bytes>);

impl Headers {
    /// No headers.
    pub const fn new() -> Self {
        Self(None)
    }

    /// Appends a header; names may repeat.
    pub fn push(&mut self, name: &str, value: Option<Bytes>) {
        let list = self.0.get_or_insert_with(Arc::default);
        Arc::make_mut(list).push((name.into(), value));
    }

    /// The first value with that name; `Some(None)` is a header whose value is null.
    pub fn get(&self, name: &str) -> Option<Option<&Bytes>> {
        self.iter().find(|(have, _)| *have == name).map(|(_, value)| value)
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Option<&Bytes>)> {
        self.0
            .iter()
            .flat_map(|list| list.iter())
            .map(|(name, value)| (name.as_ref(), value.as_ref()))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |list| list.len())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of all names and values together.
    pub fn size(&self) -> usize {
        self.iter().map(|(name, value)| name.len() + value.map_or(0, Bytes::len)).sum()
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<N: AsRef<str>> FromIterator<(N, Option<Bytes>)> for Headers {
    fn from_iter<I: IntoIterator<Item = (N, Option<Bytes>)>>(items: I) -> Self {
        let mut headers = Self::new();
        for (name, value) in items {
            headers.push(name.as_ref(), value);
        }
        headers
    }
}

/// A point in time: milliseconds since 1970-01-01T00:00:00Z, by the wall clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// This many milliseconds later.
    #[must_use]
    pub fn after(self, period: std::time::Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(period.as_millis()).unwrap_or(i64::MAX)))
    }

    /// The time since `earlier`; zero if this is not later.
    pub fn since(self, earlier: Self) -> std::time::Duration {
        let ms = self.0.saturating_sub(earlier.0).max(0);
        std::time::Duration::from_millis(ms.unsigned_abs())
    }
}

impl From<std::time::SystemTime> for Timestamp {
    fn from(time: std::time::SystemTime) -> Self {
        let since = |duration: std::time::Duration| i64::try_from(duration.as_millis());
        match time.duration_since(std::time::UNIX_EPOCH) {
            Ok(after) => Self(since(after).unwrap_or(i64::MAX)),
            Err(before) => Self(since(before.duration()).map_or(i64::MIN, |ms| -ms)),
        }
    }
}
