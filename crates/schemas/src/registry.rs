//! Queries a registry for schemas, and interprets what its answers mean for a payload.

use std::collections::HashSet;
use std::error::Error as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use brigade_core::connector::{ConnectorError, QueueSpec, SchemaRegistry};
use schema_registry_converter::async_impl::schema_registry::{
    SrSettings, get_referenced_schema, get_schema_by_id, get_schema_by_subject, post_schema,
};
use schema_registry_converter::error::SRCError;
use schema_registry_converter::schema_registry_common::{
    RawError, RegisteredReference, RegisteredSchema, SchemaType, SubjectNameStrategy,
    SuppliedSchema,
};

/// How long the registry may take to answer.
const ASK: Duration = Duration::from_secs(10);
/// The most schemas that one schema may refer to, directly or indirectly; more are taken for a
/// mistake: real ones refer to some tens, and each is requested separately.
const REFERENCES_MAX: usize = 1000;

/// The result of a query; the inner error makes the payload unreadable, the outer one means that
/// this is not known yet.
pub(crate) type Answer<T> = Result<Result<T, String>, ConnectorError>;

/// A queue's registry.
pub(crate) struct Registry {
    queue: Arc<str>,
    url: String,
    subject: String,
    settings: SrSettings,
}

impl Registry {
    pub(crate) fn new(queue: &QueueSpec, keys: &SchemaRegistry) -> Result<Self, ConnectorError> {
        let topic = queue.settings["topic"].as_str().unwrap_or(&queue.name);
        let subject = keys.subject.clone().unwrap_or_else(|| format!("{topic}-value"));
        let mut builder = SrSettings::new_builder(keys.url.trim_end_matches('/').to_owned());
        builder.set_timeout(ASK);
        if let Some(user) = &keys.user {
            builder.set_basic_authorization(user, keys.password.as_deref());
        }
        let (queue, url) = (Arc::clone(&queue.name), keys.url.clone());
        let settings = builder
            .build()
            .map_err(|error| ConnectorError::permanent(told(&queue, &url, &error)))?;
        Ok(Self { queue, url, subject, settings })
    }

    pub(crate) fn queue(&self) -> &str {
        &self.queue
    }

    /// The subject that outputs are written with.
    pub(crate) fn subject(&self) -> &str {
        &self.subject
    }

    /// The settings for the client library, which makes requests of its own.
    pub(crate) fn settings(&self) -> SrSettings {
        self.settings.clone()
    }

    /// The only strategy that uses a subject verbatim.
    pub(crate) fn strategy(&self) -> SubjectNameStrategy {
        SubjectNameStrategy::RecordNameStrategy(self.subject.clone())
    }

    pub(crate) fn told(&self, error: &SRCError) -> String {
        told(&self.queue, &self.url, error)
    }

    /// Transient, since somebody may start the registry, correct the password, or register the
    /// schema.
    pub(crate) fn transient(&self, error: &SRCError, advice: &str) -> ConnectorError {
        ConnectorError::transient(format!("{}{advice}", self.told(error)))
    }

    /// Requests a schema that may or may not exist: only a registry can answer either way.
    pub(crate) async fn reach(&self) -> Result<(), ConnectorError> {
        /// The user may be denied this schema but allowed others.
        const DENIED: u32 = 40_301;
        match get_schema_by_id(1, &self.settings).await {
            Err(error) if !is_missing(&error) && code_of(&error) != Some(DENIED) => {
                let advice = match is_not_found(&error) {
                    true => "; `registry.url` is to be the address of a schema registry",
                    false => "",
                };
                Err(self.transient(&error, advice))
            }
            _ => Ok(()),
        }
    }

    /// Registers a file's schema under the subject.
    pub(crate) async fn register(&self, file: &str) -> Result<(), ConnectorError> {
        let Self { queue, subject, .. } = self;
        let schema_type = type_of(Path::new(file)).map_err(ConnectorError::permanent)?;
        let text = std::fs::read_to_string(file).map_err(|error| {
            ConnectorError::permanent(format!("queue `{queue}`, `register`: {file}: {error}"))
        })?;
        let supplied = SuppliedSchema::new(None, schema_type, text);
        let posted = post_schema(&self.settings, subject.clone(), supplied).await;
        let advice = format!("; {file} was to be registered as `{subject}`");
        posted.map(drop).map_err(|error| self.transient(&error, &advice))
    }

    /// The latest schema of the subject.
    pub(crate) async fn latest(&self) -> Result<RegisteredSchema, ConnectorError> {
        get_schema_by_subject(&self.settings, &self.strategy()).await.map_err(|error| {
            let advice = match is_missing(&error) {
                true => format!(
                    "; outputs are written with the subject `{}`: register a schema under it, or name a file with \
                     `register`",
                    self.subject
                ),
                false => String::new(),
            };
            self.transient(&error, &advice)
        })
    }

    pub(crate) async fn schema(&self, id: u32) -> Answer<RegisteredSchema> {
        match get_schema_by_id(id, &self.settings).await {
            Ok(found) => Ok(Ok(found)),
            Err(error) if is_missing(&error) => {
                Ok(Err(format!("the registry at {} has no schema {id}", self.url)))
            }
            Err(error) => Err(self.transient(&error, "")),
        }
    }

    /// The texts of all schemas that one refers to, directly or indirectly, in order of dependency.
    pub(crate) async fn references(&self, schema: RegisteredSchema) -> Answer<Vec<String>> {
        enum Step {
            Ask(RegisteredReference),
            /// Everything that this text refers to precedes it.
            Take(String),
        }
        let asked =
            |references: Vec<RegisteredReference>| references.into_iter().rev().map(Step::Ask);
        let mut steps: Vec<Step> = asked(schema.references).collect();
        // Two schemas may refer to the same one, even under another name, and it is defined once.
        let (mut names, mut places, mut texts) = (HashSet::new(), HashSet::new(), Vec::new());
        while let Some(step) = steps.pop() {
            let reference = match step {
                Step::Ask(reference) => reference,
                Step::Take(text) => {
                    texts.push(text);
                    continue;
                }
            };
            let place = (reference.subject.clone(), reference.version);
            if !names.insert(reference.name.clone()) || !places.insert(place) {
                continue;
            }
            if names.len() > REFERENCES_MAX {
                let id = schema.id;
                return Ok(Err(format!("schema {id} refers to more than {REFERENCES_MAX} others")));
            }
            match get_referenced_schema(&self.settings, &reference).await {
                Ok(found) => {
                    steps.push(Step::Take(found.schema));
                    steps.extend(asked(found.references));
                }
                // The schema was found, but one that it refers to is missing and may come back.
                Err(error) if is_missing(&error) => {
                    let RegisteredReference { name, subject, version, .. } = &reference;
                    let told = self.told(&error);
                    return Ok(Err(format!("{told} (`{name}`, version {version} of `{subject}`)")));
                }
                Err(error) => return Err(self.transient(&error, "")),
            }
        }
        Ok(Ok(texts))
    }
}

fn told(queue: &str, url: &str, error: &SRCError) -> String {
    let cause = error.cause.as_deref().map_or_else(String::new, |cause| format!(": {cause}"));
    format!("queue `{queue}`, schema registry at {url}: {}{cause}", error.error)
}

/// The type of schema in a schema's file.
pub(crate) fn type_of(file: &Path) -> Result<SchemaType, String> {
    match file.extension().and_then(|extension| extension.to_str()) {
        Some("avsc") => Ok(SchemaType::Avro),
        Some("proto") => Ok(SchemaType::Protobuf),
        Some("json") => Ok(SchemaType::Json),
        _ => Err(format!("{}: expected a file .avsc, .proto or .json", file.display())),
    }
}

/// Whether the registry says that it has no such thing. A proxy in front of it, or a URL that is
/// not a registry's, answers 404 as well, which says nothing about schemas.
pub(crate) fn is_missing(error: &SRCError) -> bool {
    /// The registry's codes for a missing subject, version and schema.
    const MISSING: [u32; 3] = [40_401, 40_402, 40_403];
    code_of(error).is_some_and(|code| MISSING.contains(&code))
}

/// Whether the answer is "not found", whoever gave it.
fn is_not_found(error: &SRCError) -> bool {
    innermost(error).error.contains("status 404")
}

/// The registry's own code for what went wrong; 0 if the answer is not a registry's.
fn code_of(error: &SRCError) -> Option<u32> {
    let answer = innermost(error).source()?.downcast_ref::<RawError>()?;
    Some(answer.error_code)
}

/// Whether the registry did not answer the request, so that it is unknown what is wrong with the
/// payload: it is away, refuses the user or is overloaded, or its answer was truncated.
pub(crate) fn is_of_the_registry(error: &SRCError) -> bool {
    const ANSWERS: [&str; 2] =
        ["HTTP request to schema registry failed", "could not parse to RawRegisteredSchema"];
    let error = innermost(error);
    error.retriable || ANSWERS.iter().any(|answer| error.error.starts_with(answer))
}

/// An error with a schema that the requested one refers to is nested in another error.
fn innermost(error: &SRCError) -> &SRCError {
    let within = error.source().and_then(|within| within.downcast_ref::<SRCError>());
    within.map_or(error, innermost)
}
