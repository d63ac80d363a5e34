//! Payloads whose schemas are in a registry that speaks Confluent's HTTP API: Avro, Protobuf and JSON.
//!
//! # On the wire
//!
//! A zero byte, the schema's id (32 bits, the most significant byte first), for Protobuf the message's
//! place in its file, then the payload: what the serialisers of other languages write and read.
//!
//! # As JSON
//!
//! Avro's `bytes` and `fixed` are lists of numbers; its logical times are numbers. Protobuf's fields have
//! the names of the schema, 64-bit integers are numbers, and fields without a value have their default.

use std::collections::HashMap;
use std::error::Error as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use apache_avro::types::Value as AvroValue;
use async_trait::async_trait;
use brigade_core::connector::{
    ConnectorError, Format, Formats, Problem, QueueSpec, SchemaRegistry,
};
use bytes::Bytes;
use schema_registry_converter::async_impl::avro::{AvroDecoder, AvroEncoder};
use schema_registry_converter::async_impl::proto_decoder::ProtoDecoder;
use schema_registry_converter::async_impl::proto_encoder::ProtoEncoder;
use schema_registry_converter::async_impl::schema_registry::{
    SrSettings, get_schema_by_id, get_schema_by_subject, post_schema,
};
use schema_registry_converter::error::SRCError;
use schema_registry_converter::prost_reflect::{SerializeOptions, Value as ProtoValue};
use schema_registry_converter::schema_registry_common::{
    RawError, SchemaType, SubjectNameStrategy, SuppliedSchema,
};
use serde_json::Value;

/// How long the registry may take to answer.
const ASK: Duration = Duration::from_secs(10);
/// What stands before a payload: a zero byte and the schema's id.
const PREFIX: usize = 5;
/// How integers, names and defaults of Protobuf are told in JSON.
const PROTOBUF: SerializeOptions = SerializeOptions::new()
    .stringify_64_bit_integers(false)
    .use_proto_field_name(true)
    .skip_default_fields(false);

/// Opens queues' registries.
#[derive(Debug, Clone, Copy, Default)]
pub struct SchemaRegistries;

#[async_trait]
impl Formats for SchemaRegistries {
    fn check(&self, registry: &SchemaRegistry) -> Vec<Problem> {
        let mut problems = Vec::new();
        if !["http://", "https://"].iter().any(|scheme| registry.url.starts_with(scheme)) {
            let problem = Problem::at("url", "it is no address of a schema registry");
            problems.push(problem.help("write `http://host:8081`, or `https:`"));
        }
        // The address stands in errors and dead letters.
        if registry.url.split('/').nth(2).is_some_and(|host| host.contains('@')) {
            let problem = Problem::at("url", "the address has a user in it");
            problems.push(problem.help("write `user` and `password` beside `url`"));
        }
        if let Some(file) = &registry.register
            && let Err(why) = type_of(Path::new(file))
        {
            problems.push(Problem::at("register", why));
        }
        problems
    }

    async fn open(
        &self,
        queue: &QueueSpec,
        registry: &SchemaRegistry,
        writes: bool,
    ) -> Result<Arc<dyn Format>, ConnectorError> {
        let site = Site::new(queue, registry);
        let settings = settings(registry).map_err(|error| site.permanent(&error))?;
        let writer = match writes {
            true => Some(writer(&site, registry, &settings).await?),
            false => {
                reach(&site, &settings).await?;
                None
            }
        };
        let avro = AvroDecoder::new(settings.clone());
        let protobuf = ProtoDecoder::new(settings.clone());
        Ok(Arc::new(Registered { site, settings, avro, protobuf, known: Mutex::default(), writer }))
    }
}

/// What a schema's file is a schema of.
fn type_of(file: &Path) -> Result<SchemaType, String> {
    match file.extension().and_then(|extension| extension.to_str()) {
        Some("avsc") => Ok(SchemaType::Avro),
        Some("proto") => Ok(SchemaType::Protobuf),
        Some("json") => Ok(SchemaType::Json),
        _ => Err(format!("{}: expected a file .avsc, .proto or .json", file.display())),
    }
}

fn settings(registry: &SchemaRegistry) -> Result<SrSettings, SRCError> {
    let mut builder = SrSettings::new_builder(registry.url.trim_end_matches('/').to_owned());
    builder.set_timeout(ASK);
    if let Some(user) = &registry.user {
        builder.set_basic_authorization(user, registry.password.as_deref());
    }
    builder.build()
}

/// Which queue and registry, for errors.
struct Site {
    queue: Arc<str>,
    url: String,
    subject: String,
}

impl Site {
    fn new(queue: &QueueSpec, registry: &SchemaRegistry) -> Self {
        let topic = queue.settings["topic"].as_str().unwrap_or(&queue.name);
        let subject = registry.subject.clone().unwrap_or_else(|| format!("{topic}-value"));
        Self { queue: Arc::clone(&queue.name), url: registry.url.clone(), subject }
    }

    fn told(&self, error: &SRCError) -> String {
        let cause = error.cause.as_deref().map_or_else(String::new, |cause| format!(": {cause}"));
        format!("queue `{}`, schema registry at {}: {}{cause}", self.queue, self.url, error.error)
    }

    fn permanent(&self, error: &SRCError) -> ConnectorError {
        ConnectorError::permanent(self.told(error))
    }

    /// Somebody may start the registry, mend the password, or register the schema.
    fn transient(&self, error: &SRCError, advice: &str) -> ConnectorError {
        ConnectorError::transient(format!("{}{advice}", self.told(error)))
    }

    fn strategy(&self) -> SubjectNameStrategy {
        // The only one that takes a subject as it is.
        SubjectNameStrategy::RecordNameStrategy(self.subject.clone())
    }
}

/// Whether the registry says that it has no such thing. Anything that stands before it, or an address that is not a
/// registry's, answers 404 as well: that says nothing of schemas.
fn is_missing(error: &SRCError) -> bool {
    /// The registry's codes for a subject, a version and a schema that are not there.
    const MISSING: [u32; 3] = [40_401, 40_402, 40_403];
    code_of(error).is_some_and(|code| MISSING.contains(&code))
}

/// The registry's own code for what went wrong; 0 in an answer that is not a registry's.
fn code_of(error: &SRCError) -> Option<u32> {
    let answer = innermost(error).source()?.downcast_ref::<RawError>()?;
    Some(answer.error_code)
}

/// Asks for a schema, whether it is there or not: only a registry knows.
async fn reach(site: &Site, settings: &SrSettings) -> Result<(), ConnectorError> {
    /// Who asks may not see this one, and others nevertheless.
    const DENIED: u32 = 40_301;
    match get_schema_by_id(1, settings).await {
        Err(error) if !is_missing(&error) && code_of(&error) != Some(DENIED) => {
            Err(site
                .transient(&error, "; `registry.url` is to be the address of a schema registry"))
        }
        _ => Ok(()),
    }
}

/// Whether the registry did not give what it was asked for, so that nobody knows what is wrong with the payload: it is
/// away, refuses who asks or is overburdened, or its answer was cut short.
fn is_of_the_registry(error: &SRCError) -> bool {
    const ANSWERS: [&str; 2] =
        ["HTTP request to schema registry failed", "could not parse to RawRegisteredSchema"];
    let error = innermost(error);
    error.retriable || ANSWERS.iter().any(|answer| error.error.starts_with(answer))
}

/// What went wrong with a schema that the one asked for refers to is told within another error.
fn innermost(error: &SRCError) -> &SRCError {
    let within = error.source().and_then(|within| within.downcast_ref::<SRCError>());
    within.map_or(error, innermost)
}

/// What payloads are written with.
enum Writer {
    Avro(AvroEncoder),
    Protobuf(ProtoEncoder, String),
    /// With the schema's id.
    Json(u32),
}

async fn writer(
    site: &Site,
    registry: &SchemaRegistry,
    settings: &SrSettings,
) -> Result<Writer, ConnectorError> {
    let Site { queue, subject, .. } = site;
    if let Some(file) = &registry.register {
        let schema_type = type_of(Path::new(file)).map_err(ConnectorError::permanent)?;
        let text = std::fs::read_to_string(file).map_err(|error| {
            ConnectorError::permanent(format!("queue `{queue}`, `register`: {file}: {error}"))
        })?;
        let supplied = SuppliedSchema::new(None, schema_type, text);
        let posted = post_schema(settings, subject.clone(), supplied).await;
        let advice = format!("; {file} was to be registered as `{subject}`");
        posted.map_err(|error| site.transient(&error, &advice))?;
    }
    let found = get_schema_by_subject(settings, &site.strategy()).await.map_err(|error| {
        let advice = match is_missing(&error) {
            true => format!(
                "; outputs are written with the subject `{subject}`: register a schema under it, or name a \
                 file with `register`"
            ),
            false => String::new(),
        };
        site.transient(&error, &advice)
    })?;
    match found.schema_type {
        SchemaType::Avro => Ok(Writer::Avro(AvroEncoder::new(settings.clone()))),
        SchemaType::Json => Ok(Writer::Json(found.id)),
        SchemaType::Protobuf => match registry.message.clone() {
            Some(message) => Ok(Writer::Protobuf(ProtoEncoder::new(settings.clone()), message)),
            None => Err(ConnectorError::permanent(format!(
                "queue `{queue}`: the subject `{subject}` is Protobuf: name the message that outputs are \
                 with `registry: {{ message: .. }}`"
            ))),
        },
        other => Err(ConnectorError::permanent(format!(
            "queue `{queue}`: the subject `{subject}` is {other:?}; Avro, Protobuf and JSON can be written"
        ))),
    }
}

struct Registered {
    site: Site,
    settings: SrSettings,
    avro: AvroDecoder,
    protobuf: ProtoDecoder,
    /// What is known of schemas, by their ids.
    known: Mutex<HashMap<u32, SchemaType>>,
    writer: Option<Writer>,
}

impl Registered {
    /// The type of a schema; the inner error is that there is none.
    async fn type_of(&self, id: u32) -> Result<Result<SchemaType, String>, ConnectorError> {
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known().get(&id) {
            return Ok(Ok(known.clone()));
        }
        match get_schema_by_id(id, &self.settings).await {
            Ok(found) => {
                known().insert(id, found.schema_type.clone());
                Ok(Ok(found.schema_type))
            }
            Err(error) if is_missing(&error) => {
                Ok(Err(format!("the registry at {} has no schema {id}", self.site.url)))
            }
            Err(error) => Err(self.site.transient(&error, "")),
        }
    }

    /// What went wrong with a payload; or that nobody knows.
    fn wrong(&self, error: SRCError) -> Result<String, ConnectorError> {
        if is_of_the_registry(&error) {
            self.forget_errors();
            return Err(self.site.transient(&error, ""));
        }
        Ok(match error.cause {
            Some(cause) => format!("{}: {cause}", error.error),
            None => error.error,
        })
    }

    /// Each of these answers with the error of a schema for ever, whatever the registry says later.
    fn forget_errors(&self) {
        self.avro.remove_errors_from_cache();
        self.protobuf.remove_errors_from_cache();
        match &self.writer {
            Some(Writer::Avro(avro)) => avro.remove_errors_from_cache(),
            Some(Writer::Protobuf(protobuf, _)) => protobuf.remove_errors_from_cache(),
            Some(Writer::Json(_)) | None => {}
        }
    }
}

fn json_of(value: AvroValue) -> Result<Bytes, String> {
    let value = Value::try_from(value).map_err(|error| error.to_string())?;
    serde_json::to_vec(&value).map(Bytes::from).map_err(|error| error.to_string())
}

fn json_of_protobuf(value: ProtoValue) -> Result<Bytes, String> {
    let ProtoValue::Message(message) = value else {
        return Err("the payload is no Protobuf message".to_owned());
    };
    let mut bytes = Vec::new();
    let mut json = serde_json::Serializer::new(&mut bytes);
    let written = message.serialize_with_options(&mut json, &PROTOBUF);
    written.map(|()| bytes.into()).map_err(|error| error.to_string())
}

#[async_trait]
impl Format for Registered {
    async fn read(&self, payload: &Bytes) -> Result<Result<Bytes, String>, ConnectorError> {
        let [0, a, b, c, d, ..] = payload[..] else {
            let text =
                "the payload does not begin with a schema's id, as the queue's `registry` asks";
            return Ok(Err(text.to_owned()));
        };
        let kind = match self.type_of(u32::from_be_bytes([a, b, c, d])).await? {
            Ok(kind) => kind,
            Err(why) => return Ok(Err(why)),
        };
        let read = match kind {
            SchemaType::Avro => self.avro.decode(Some(payload)).await.map(|v| json_of(v.value)),
            SchemaType::Protobuf => self.protobuf.decode(Some(payload)).await.map(json_of_protobuf),
            SchemaType::Json => Ok(Ok(payload.slice(PREFIX..))),
            other => Ok(Err(format!("schemas of type {other:?} cannot be read"))),
        };
        match read {
            Ok(read) => Ok(read),
            // The schema was found: one that it refers to is not there, and may come back.
            Err(error) if is_missing(&error) => {
                self.forget_errors();
                Ok(Err(self.site.told(&error)))
            }
            Err(error) => self.wrong(error).map(Err),
        }
    }

    async fn write(&self, json: &Bytes) -> Result<Result<Bytes, String>, ConnectorError> {
        let Some(writer) = &self.writer else {
            return Err(ConnectorError::unsupported("writing: it was opened to read"));
        };
        let value: Value = match serde_json::from_slice(json) {
            Ok(value) => value,
            Err(error) => return Ok(Err(format!("the output is no JSON: {error}"))),
        };
        let written = match writer {
            Writer::Json(id) => Ok([&[0][..], &id.to_be_bytes(), json].concat()),
            Writer::Avro(avro) => {
                let strategy = self.site.strategy();
                match avro.get_schema_and_id(&self.site.subject, strategy.clone()).await {
                    Err(error) => Err(error),
                    // JSON tells neither records from maps nor which of several types is meant.
                    Ok(schema) => {
                        let value = AvroValue::try_from(value);
                        match value.and_then(|value| value.resolve(&schema.parsed)) {
                            Ok(value) => avro.encode_value(value, &strategy).await,
                            Err(error) => return Ok(Err(error.to_string())),
                        }
                    }
                }
            }
            Writer::Protobuf(protobuf, message) => {
                protobuf.encode_json(&value, message, &self.site.strategy()).await
            }
        };
        match written {
            Ok(bytes) => Ok(Ok(bytes.into())),
            Err(error) => self.wrong(error).map(Err),
        }
    }
}
