//! The edge between a queue and a component: where payloads are decoded and checked.

use std::sync::Arc;

use brigade_core::component::{Conversion, Input, Parsed};
use brigade_core::delivery::Delivery;
use brigade_core::{Cause, CauseKind, Codec, DeadLetter, Message, Timestamp};
use serde_json::Value;

use crate::codec;
use crate::plan::{QueueKeeper, QueuePlan, StagePlan};

/// How many of a payload's schema violations are reported at most.
const VIOLATIONS_MAX: usize = 5;
/// How many bytes of each are reported at most: a violation includes the value, which may be the
/// whole payload.
const VIOLATION_BYTES_MAX: usize = 200;

/// Checks messages that are put on a queue from outside its pipeline's stages.
pub struct Entry(pub(crate) QueuePlan);

impl Entry {
    /// Checks a message whose payload is in the queue's codec, and fills in what the queue's `key`
    /// and `event_time` define, as for the outputs of stages.
    ///
    /// # Errors
    /// Why it does not belong on the queue.
    pub fn receive(&self, message: &mut Message) -> Result<(), Cause> {
        self.0.read_output(message, self.0.codec)
    }
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Entry({})", self.0.spec.name)
    }
}

impl QueuePlan {
    /// Checks a delivery that came from this queue, and fills in what the queue's `key` and
    /// `event_time` define: values in the payload take precedence over those that the message
    /// already has.
    fn receive(&self, delivery: &mut Delivery) -> Result<(), Cause> {
        self.read_key(delivery)?;
        self.hold_to_schema(delivery)
    }

    /// The same without the key.
    fn hold_to_schema(&self, delivery: &mut Delivery) -> Result<(), Cause> {
        // A tombstone says that something is gone: it has no contents.
        let wants = self.schema.is_some() || self.event_time.is_some();
        if !wants || delivery.message.payload.is_none() {
            return Ok(());
        }
        let value = parse(delivery)?;
        if let Some(schema) = &self.schema {
            self.check(schema, value)?;
        }
        if let Some(time) = self.event_time(value) {
            delivery.message.event_time = Some(time);
        }
        Ok(())
    }

    /// Fills in the key that the queue's `key` names; if the payload has none, or is a tombstone,
    /// the message keeps its own.
    pub(crate) fn read_key(&self, delivery: &mut Delivery) -> Result<(), Cause> {
        let Some(path) = &self.spec.key else { return Ok(()) };
        if delivery.message.payload.is_some()
            && let Some(key) = path.key(parse(delivery)?)
        {
            delivery.message.key = Some(key.into());
        }
        Ok(())
    }

    /// Checks a message that is to go on this queue, fills in what the queue's `key` and
    /// `event_time` define, and converts its payload from the codec `from` to the queue's own.
    pub(crate) fn send(&self, message: &mut Message, from: Codec) -> Result<(), Cause> {
        self.read_output(message, from)?;
        if let Some(payload) = message.payload.as_ref().filter(|_| from != self.codec) {
            let transcode = || codec::transcode(from, self.codec, payload);
            let written = Conversion::Serialize.timed(transcode);
            message.payload = Some(written.map_err(|error| self.unfit(&error))?);
        }
        Ok(())
    }

    fn read_output(&self, message: &mut Message, from: Codec) -> Result<(), Cause> {
        let wants = self.schema.is_some() || self.spec.key.is_some() || self.event_time.is_some();
        if !wants || message.payload.is_none() {
            return Ok(());
        }
        // Bytes go on the queue as they are: they are taken to be in its codec.
        let from = if from == Codec::Bytes { self.codec } else { from };
        let value = decoded(message, from).map_err(|error| self.unfit(&error))?;
        if let Some(schema) = &self.schema {
            self.check(schema, &value)
                .map_err(|cause| Cause { kind: CauseKind::Output, ..cause })?;
        }
        if let Some(key) = self.spec.key.as_ref().and_then(|path| path.key(&value)) {
            message.key = Some(key.into());
        }
        message.event_time = self.event_time(&value).or(message.event_time);
        Ok(())
    }

    fn unfit(&self, error: &str) -> Cause {
        let message = format!("output for queue `{}`: {error}", self.spec.name);
        Cause::new(CauseKind::Output, message)
    }

    fn check(&self, schema: &jsonschema::Validator, value: &Value) -> Result<(), Cause> {
        if schema.is_valid(value) {
            return Ok(());
        }
        let violations: Vec<String> = schema
            .iter_errors(value)
            .take(VIOLATIONS_MAX)
            .map(|error| match error.instance_path().as_str() {
                "" => error.to_string(),
                path => format!("{path}: {error}"),
            })
            .map(|violation| shortened(violation, VIOLATION_BYTES_MAX))
            .collect();
        let name = &self.spec.name;
        let message =
            format!("does not fit the schema of queue `{name}`: {}", violations.join("; "));
        Err(Cause::new(CauseKind::Schema, message))
    }

    /// The time at the queue's `event_time`.
    fn event_time(&self, value: &Value) -> Option<Timestamp> {
        self.event_time.as_ref()?.time(value)
    }
}

/// The beginning of a text, at most this many bytes and never within a character; it says how much
/// is cut off.
pub(crate) fn shortened(mut text: String, bytes_max: usize) -> String {
    if text.len() > bytes_max {
        let whole = (0..=bytes_max).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        let more = format!(".. ({} bytes more)", text.len() - whole);
        text.truncate(whole);
        text.push_str(&more);
    }
    text
}

/// A payload as a value.
fn decoded(message: &Message, from: Codec) -> Result<Value, String> {
    match (from, &message.payload) {
        (_, None) => Ok(Value::Null),
        (Codec::Json, _) => Value::decode(message, None).map_err(|error| error.to_string()),
        (codec, Some(payload)) => Conversion::Deserialize.timed(|| codec::decode(codec, payload)),
    }
}

/// A redriven message belongs to the queue it came from originally, as its header says.
pub(crate) fn take_home(stage: &StagePlan, queues: &[Arc<QueuePlan>], delivery: &mut Delivery) {
    let input = &queues[usize::from(delivery.input)];
    let sent_back = matches!(input.keeper, QueueKeeper::State)
        && delivery.belongs_to == delivery.input
        && stage.inputs.contains(&delivery.input);
    if sent_back
        && let Some(name) = DeadLetter::take_queue(&mut delivery.message)
        && let Some(queue) = queues.iter().find(|queue| *queue.spec.name == *name)
    {
        delivery.belongs_to = queue.index;
    }
}

/// Checks a delivery against what its queue requires of messages to this stage. A redriven one
/// already has its key, by which it was dealt; and a queue that the stage no longer reads requires
/// nothing.
pub(crate) fn receive(
    stage: &StagePlan,
    queues: &[Arc<QueuePlan>],
    delivery: &mut Delivery,
) -> Result<(), Cause> {
    let queue = &queues[usize::from(delivery.belongs_to)];
    match stage.upstream {
        Some(_) => Ok(()),
        None if delivery.belongs_to == delivery.input => queue.receive(delivery),
        None if stage.inputs.contains(&delivery.belongs_to) => queue.hold_to_schema(delivery),
        None => Ok(()),
    }
}

/// Decodes the payload for the component, unless it is JSON, which components decode themselves.
pub(crate) fn read_value(delivery: &mut Delivery) -> Result<(), Cause> {
    let reads = !matches!(delivery.codec, Codec::Json | Codec::Bytes);
    if reads && delivery.parsed.is_none() && delivery.message.payload.is_some() {
        parse(delivery)?;
    }
    Ok(())
}

/// Parses the payload once; the result is kept for later use.
fn parse(delivery: &mut Delivery) -> Result<&Value, Cause> {
    if !matches!(delivery.parsed, Some(Parsed::Json(_) | Parsed::Converted(_))) {
        let value = decoded(&delivery.message, delivery.codec)
            .map_err(|error| Cause::new(CauseKind::Decode, error))?;
        delivery.parsed = Some(match delivery.codec {
            Codec::Json => Parsed::Json(value),
            _ => Parsed::Converted(value),
        });
    }
    match &delivery.parsed {
        Some(Parsed::Json(value) | Parsed::Converted(value)) => Ok(value),
        _ => unreachable!("it was parsed just now"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_is_cut_between_characters() {
        assert_eq!(shortened("größe".into(), 7), "größe");
        assert_eq!(shortened("größe".into(), 6), "größ.. (1 bytes more)");
        assert_eq!(shortened("größe".into(), 3), "gr.. (5 bytes more)");
        assert_eq!(shortened("größe".into(), 0), ".. (7 bytes more)");
    }
}
