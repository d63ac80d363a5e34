//! The payloads of a queue that has a registry.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use brigade_core::connector::{ConnectorError, Format, SchemaRegistry};
use brigade_core::long_integer;
use bytes::Bytes;
use parking_lot::Mutex;
use schema_registry_converter::async_impl::proto_decoder::ProtoDecoder;
use schema_registry_converter::async_impl::proto_encoder::ProtoEncoder;
use schema_registry_converter::error::SRCError;
use schema_registry_converter::prost_reflect::{SerializeOptions, Value as ProtoValue};
use schema_registry_converter::schema_registry_common::{RegisteredSchema, SchemaType};
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::avro::Avro;
use crate::registry::{Answer, Registry, is_missing, is_of_the_registry};

/// What precedes a payload: a zero byte and the schema's id.
const PREFIX: usize = 5;
/// The most schemas that are kept. A topic has a few, or some hundreds if each of many types has
/// its versions; and as each takes some 10 to 100 KB, all of them take some 100 MB at most.
const SCHEMAS_MAX: usize = 1000;
/// How integers, names and defaults of Protobuf appear in JSON.
const PROTOBUF: SerializeOptions = SerializeOptions::new()
    .stringify_64_bit_integers(false)
    .use_proto_field_name(true)
    .skip_default_fields(false);

pub(crate) struct Registered {
    registry: Registry,
    protobuf: ProtoDecoder,
    /// By id: the schema under an id never changes in a registry.
    known: Mutex<HashMap<u32, Arc<Schema>>>,
    writer: Option<Writer>,
}

/// What payloads are decoded with.
enum Schema {
    Avro(Avro),
    Protobuf,
    Json,
    /// Why payloads written with it cannot be read.
    Unreadable(String),
}

impl Registered {
    pub(crate) fn new(registry: Registry, writer: Option<Writer>) -> Self {
        let protobuf = ProtoDecoder::new(registry.settings());
        Self { registry, protobuf, known: Mutex::default(), writer }
    }

    async fn schema(&self, id: u32) -> Answer<Arc<Schema>> {
        let known = || self.known.lock();
        if let Some(known) = known().get(&id) {
            return Ok(Ok(Arc::clone(known)));
        }
        let found = match self.registry.schema(id).await? {
            Ok(found) => found,
            Err(why) => return Ok(Err(why)),
        };
        let schema = match &found.schema_type {
            SchemaType::Avro => match avro_of(&self.registry, found).await? {
                Ok(parsed) => parsed.map_or_else(Schema::Unreadable, Schema::Avro),
                Err(why) => return Ok(Err(why)),
            },
            SchemaType::Protobuf => Schema::Protobuf,
            SchemaType::Json => Schema::Json,
            other => Schema::Unreadable(format!("schemas of type {other:?} cannot be read")),
        };
        let (schema, mut known) = (Arc::new(schema), known());
        if known.len() >= SCHEMAS_MAX
            && let Some(any) = known.keys().next().copied()
        {
            known.remove(&any);
        }
        known.insert(id, Arc::clone(&schema));
        Ok(Ok(schema))
    }

    async fn read_protobuf(&self, payload: &Bytes) -> Answer<Bytes> {
        match self.protobuf.decode(Some(payload)).await {
            Ok(value) => Ok(json_of(value)),
            // It would return the error for ever, whatever the registry says later.
            Err(error) if is_missing(&error) => {
                self.protobuf.remove_errors_from_cache();
                Ok(Err(self.registry.told(&error)))
            }
            Err(error) if is_of_the_registry(&error) => {
                self.protobuf.remove_errors_from_cache();
                Err(self.registry.transient(&error, ""))
            }
            Err(error) => Ok(Err(in_words(error))),
        }
    }
}

/// A schema with everything it refers to, parsed; the innermost error is a permanent one.
async fn avro_of(registry: &Registry, found: RegisteredSchema) -> Answer<Result<Avro, String>> {
    let (id, text) = (found.id, found.schema.clone());
    Ok(registry.references(found).await?.map(|references| {
        Avro::parse(&text, &references).map_err(|why| format!("schema {id} of the registry: {why}"))
    }))
}

fn in_words(error: SRCError) -> String {
    match error.cause {
        Some(cause) => format!("{}: {cause}", error.error),
        None => error.error,
    }
}

fn json_of(value: ProtoValue) -> Result<Bytes, String> {
    let ProtoValue::Message(message) = value else {
        return Err("the payload is no Protobuf message".to_owned());
    };
    let mut bytes = Vec::new();
    let mut json = serde_json::Serializer::new(&mut bytes);
    let written = message.serialize_with_options(&mut json, &PROTOBUF);
    written.map(|()| bytes.into()).map_err(|error| error.to_string())
}

fn json_behind_prefix(payload: &Bytes) -> Result<Bytes, String> {
    let json = payload.slice(PREFIX..);
    match serde_json::from_slice::<IgnoredAny>(&json) {
        Ok(_) => Ok(json),
        Err(error) => Err(format!("what stands behind the schema's id is no JSON: {error}")),
    }
}

fn with_prefix(id: u32, payload: &[u8]) -> Bytes {
    [&[0][..], &id.to_be_bytes(), payload].concat().into()
}

/// What payloads are encoded with: the schema that was the subject's latest when the queue was
/// opened.
pub(crate) enum Writer {
    Avro(u32, Avro),
    /// With the message's full name.
    Protobuf(ProtoEncoder, String),
    Json(u32),
}

impl Writer {
    /// Opens what the keys name, so that from then on only a payload can be wrong.
    pub(crate) async fn open(
        registry: &Registry,
        keys: &SchemaRegistry,
    ) -> Result<Self, ConnectorError> {
        if let Some(file) = &keys.register {
            registry.register(file).await?;
        }
        let found = registry.latest().await?;
        let (queue, subject, id) = (registry.queue(), registry.subject(), found.id);
        match (&found.schema_type, &keys.message) {
            (SchemaType::Avro, _) => match avro_of(registry, found).await? {
                Ok(Ok(avro)) => Ok(Self::Avro(id, avro)),
                Ok(Err(why)) => Err(ConnectorError::permanent(format!(
                    "queue `{queue}`: outputs cannot be written with the subject `{subject}`: {why}"
                ))),
                Err(why) => Err(ConnectorError::transient(why)),
            },
            (SchemaType::Json, _) => Ok(Self::Json(id)),
            (SchemaType::Protobuf, Some(message)) => protobuf(registry, id, message).await,
            (SchemaType::Protobuf, None) => Err(ConnectorError::permanent(format!(
                "queue `{queue}`: the subject `{subject}` is Protobuf: name the message that outputs are with \
                 `registry: {{ message: .. }}`"
            ))),
            (other, _) => Err(ConnectorError::permanent(format!(
                "queue `{queue}`: the subject `{subject}` is {other:?}; Avro, Protobuf and JSON can be written"
            ))),
        }
    }
}

async fn protobuf(registry: &Registry, id: u32, message: &str) -> Result<Writer, ConnectorError> {
    let encoder = ProtoEncoder::new(registry.settings());
    let error = match encoder.get_message_descriptor(message, &registry.strategy()).await {
        Ok(_) => return Ok(Writer::Protobuf(encoder, message.to_owned())),
        Err(error) => error,
    };
    if is_missing(&error) || is_of_the_registry(&error) {
        return Err(registry.transient(&error, ""));
    }
    let (queue, subject) = (registry.queue(), registry.subject());
    let names = match messages(registry, id).await {
        Some(names) => format!("; it has the messages {names}"),
        None => String::new(),
    };
    Err(ConnectorError::permanent(format!(
        "queue `{queue}`: outputs cannot be written as `{message}` with the subject `{subject}`: {}{names}",
        in_words(error)
    )))
}

/// The full names of the top-level messages of a schema, if it can be read.
async fn messages(registry: &Registry, id: u32) -> Option<String> {
    // Only decoding reveals what a schema contains: an empty message, which is the first one.
    let first = with_prefix(id, &[0]);
    let decoder = ProtoDecoder::new(registry.settings());
    let read = decoder.decode_with_context(Some(&first)).await.ok()??;
    let messages = read.context.file_descriptor.messages();
    let names: Vec<String> = messages.map(|message| format!("`{}`", message.full_name())).collect();
    Some(names.join(", "))
}

#[async_trait]
impl Format for Registered {
    async fn read(&self, payload: &Bytes) -> Answer<Bytes> {
        let [0, a, b, c, d, ..] = payload[..] else {
            let text =
                "the payload does not begin with a schema's id, as the queue's `registry` asks";
            return Ok(Err(text.to_owned()));
        };
        let schema = match self.schema(u32::from_be_bytes([a, b, c, d])).await? {
            Ok(schema) => schema,
            Err(why) => return Ok(Err(why)),
        };
        match &*schema {
            Schema::Avro(avro) => Ok(avro.read(&payload[PREFIX..]).map(Bytes::from)),
            Schema::Protobuf => self.read_protobuf(payload).await,
            Schema::Json => Ok(json_behind_prefix(payload)),
            Schema::Unreadable(why) => Ok(Err(why.clone())),
        }
    }

    async fn write(&self, json: &Bytes) -> Answer<Bytes> {
        let Some(writer) = &self.writer else {
            return Err(ConnectorError::unsupported("writing: it was opened to read"));
        };
        let value: Value = match serde_json::from_slice(json) {
            Ok(value) => value,
            Err(error) => return Ok(Err(format!("the output is no JSON: {error}"))),
        };
        // JSON is emitted with all its digits.
        if !matches!(writer, Writer::Json(_))
            && let Some(number) = long_integer(json)
        {
            return Ok(Err(format!(
                "the integer {number} of the output is beyond 64 bits: write it as a text, or in a queue of JSON"
            )));
        }
        match writer {
            Writer::Json(id) => Ok(Ok(with_prefix(*id, json))),
            Writer::Avro(id, avro) => {
                Ok(avro.write(&value).map(|payload| with_prefix(*id, &payload)))
            }
            Writer::Protobuf(encoder, message) => {
                let strategy = self.registry.strategy();
                match encoder.encode_json(&value, message, &strategy).await {
                    Ok(payload) => Ok(Ok(payload.into())),
                    // Its schema has been known since it was opened.
                    Err(error) => Ok(Err(in_words(error))),
                }
            }
        }
    }
}
