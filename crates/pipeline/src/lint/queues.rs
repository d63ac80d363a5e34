//! Queues: the keys of their types, schemas, and what their connectors report.

use std::collections::BTreeMap;
use std::sync::Arc;

use brigade_core::connector::{Features, Limit, QueueSpec, SchemaRegistry};
use brigade_core::field::{FieldPath, FieldPathError};
use brigade_core::{Codec, Message};
use indexmap::IndexMap;
use jsonschema::ReferencingError;
use jsonschema::error::ValidationErrorKind;
use serde_json::{Map, Value};

use super::{Lint, path, text};
use crate::diagnostic::{Findings, Severity, did_you_mean};
use crate::file::{QueueKeys, SchemaChoice};
use crate::load::{Catalog, beside};
use crate::node::Node;
use crate::payload_schema::payload_validator;
use crate::schema::{newly_named, queue_schema, validate};
use crate::topology::Queue;

/// The common keys, which are not the connector's.
const COMMON: [&str; 8] =
    ["type", "codec", "registry", "schema", "key", "event_time", "guarantee", "limit"];

/// Queues whose keys are correct, by name: the common keys and the connector's own.
pub(super) type Decoded = BTreeMap<String, (QueueKeys, Value)>;

/// Validates each queue against the keys of its type.
pub(super) fn check_keys(
    root: &mut Node,
    catalog: &dyn Catalog,
    findings: &mut Findings,
) -> Decoded {
    let names: Vec<String> =
        root.child("queues").map_or(&[][..], Node::entries).iter().map(|e| e.key.clone()).collect();
    let mut decoded = Decoded::new();
    for name in names {
        let at = path(&["queues", &name]);
        let node = root.nearest(&at);
        let what = format!("queue `{name}`");
        if !matches!(node.value, crate::node::NodeValue::Map(_)) {
            let message = format!("{what}: expected a mapping, found {}", node.kind());
            let types = catalog.connector_types();
            let help = text(node).filter(|text| types.contains(text));
            let help = help.map(|kind| format!("write `{{ type: {kind} }}`"));
            findings.add(Severity::Error, "wrong_type", &node.origin, &at, message).help = help;
            continue;
        }
        if let Some(kind) = node.child("type").filter(|kind| text(kind).is_none()) {
            let message = format!("`type` of {what}: expected a text, found {}", kind.kind());
            let at = path(&["queues", &name, "type"]);
            findings.add(Severity::Error, "wrong_type", &kind.origin, &at, message).help =
                did_you_mean("", catalog.connector_types());
            continue;
        }
        let Some(kind) = node.child("type").and_then(text).map(str::to_owned) else {
            let message = format!("{what} lacks the key `type`");
            let origin = root.key_origin(&at);
            let help = newly_named(root, &at, origin);
            let help = help.or_else(|| did_you_mean("", catalog.connector_types()));
            findings.add(Severity::Error, "missing_key", origin, &at, message).help = help;
            continue;
        };
        let Some(schema) = queue_schema(catalog, &kind) else {
            let at = path(&["queues", &name, "type"]);
            let message = format!("no queue type `{kind}`");
            let origin = &root.nearest(&at).origin;
            findings.add(Severity::Error, "unknown_type", origin, &at, message).help =
                did_you_mean(&kind, catalog.connector_types());
            continue;
        };
        if !validate(&schema, root, &at, &what, findings) {
            continue;
        }
        if let Some(keys) = decode(root.nearest(&at).to_json(), &what, root, &at, findings) {
            decoded.insert(name, keys);
        }
    }
    decoded
}

fn decode(
    value: Value,
    what: &str,
    root: &Node,
    at: &[String],
    findings: &mut Findings,
) -> Option<(QueueKeys, Value)> {
    let Value::Object(all) = value else { return None };
    let (common, own): (Map<_, _>, Map<_, _>) =
        all.into_iter().partition(|(key, _)| COMMON.contains(&key.as_str()));
    match serde_json::from_value(Value::Object(common)) {
        Ok(keys) => Some((keys, Value::Object(own))),
        Err(error) => {
            let message = format!("{what}: {error}");
            findings.add(Severity::Error, "wrong_value", root.key_origin(at), at, message);
            None
        }
    }
}

impl Lint<'_> {
    pub(super) fn queues(
        &mut self,
        pipeline: &Arc<str>,
        decoded: &Decoded,
    ) -> IndexMap<Arc<str>, Queue> {
        let order = self.root.child("queues").map_or(&[][..], Node::entries);
        let mut queues = IndexMap::new();
        for entry in order {
            let Some((keys, own)) = decoded.get(&entry.key) else { continue };
            if let Some(queue) = self.queue(pipeline, &entry.key, keys, own) {
                queues.insert(Arc::clone(&queue.spec.name), queue);
            }
        }
        queues
    }

    fn queue(
        &mut self,
        pipeline: &Arc<str>,
        name: &str,
        keys: &QueueKeys,
        own: &Value,
    ) -> Option<Queue> {
        let connector = self.catalog.connector(&keys.kind)?;
        let mut spec = QueueSpec::new(pipeline, name, own.clone());
        spec.groups = Vec::new();
        spec.key = self.field(&["queues", name, "key"], keys.key.as_deref());
        spec.limit = keys.limit.clone();
        spec.guarantee = keys.guarantee;
        let event_time = self.field(&["queues", name, "event_time"], keys.event_time.as_deref());
        let schema = keys.schema.as_ref().and_then(|choice| self.schema(name, choice));
        let problems = connector.check(&spec);
        let features = connector.features(own);
        // If the settings cannot be parsed, it is not known what the queue can do.
        let unread = !problems.is_empty() && features == Features::NONE;
        for problem in problems {
            let mut at = vec!["queues", name];
            at.extend(problem.path.iter().map(String::as_str));
            let who = format!("queue `{name}`: ");
            let what = problem.message.strip_prefix(&who).unwrap_or(&problem.message);
            self.error("queue_setting", &at, format!("{who}{what}"), problem.help);
        }
        if unread {
            return None;
        }
        if spec.limit != Limit::default() && !features.limit {
            let message = format!("queues of type `{}` have no `limit`", keys.kind);
            let help = Some("remove `limit`, or use an `embedded` queue".to_owned());
            self.error("queue_setting", &["queues", name, "limit"], message, help);
        }
        // What a message counts in addition to its contents.
        let least = Message::default().size();
        if spec.limit.bytes.is_some_and(|bytes| bytes.0 <= least as u64) {
            let message = format!("queue `{name}`: with this limit it takes no message");
            let help = format!("each message counts {least} bytes beside what is in it");
            self.error("queue_setting", &["queues", name, "limit", "bytes"], message, Some(help));
        }
        self.read_as_bytes(name, keys);
        spec.registry = self.registry(name, keys);
        let (type_name, store) = (keys.kind.clone(), connector.store_name(own));
        let (codec, schema) = (keys.codec, schema.map(Arc::new));
        Some(Queue { spec, type_name, codec, schema, event_time, features, store })
    }

    fn registry(&mut self, name: &str, keys: &QueueKeys) -> Option<SchemaRegistry> {
        let mut registry = keys.registry.clone()?;
        let at = ["queues", name, "registry"];
        let Some(formats) = self.catalog.formats() else {
            let message =
                format!("queue `{name}`: this program was built without schema registries");
            let help = "build it with the feature `schema-registry`".to_owned();
            self.error("queue_setting", &at, message, Some(help));
            return None;
        };
        for problem in formats.check(&registry) {
            let at: Vec<&str> =
                at.iter().copied().chain(problem.path.iter().map(String::as_str)).collect();
            let message = format!("queue `{name}`: {}", problem.message);
            self.error("queue_setting", &at, message, problem.help);
        }
        if !keys.codec.is_json() {
            let message =
                format!("queue `{name}`: with a `registry`, its schemas say what is written");
            let help = "remove `codec`, or `registry`".to_owned();
            self.error("queue_setting", &["queues", name, "codec"], message, Some(help));
        }
        registry.register =
            registry.register.map(|file| beside(self.directory, &file).display().to_string());
        Some(registry)
    }

    /// Refuses keys that need to read values, for a queue whose payloads are bytes.
    fn read_as_bytes(&mut self, name: &str, keys: &QueueKeys) {
        if keys.codec != Codec::Bytes {
            return;
        }
        let asked = [
            ("schema", keys.schema.is_some()),
            ("key", keys.key.is_some()),
            ("event_time", keys.event_time.is_some()),
        ];
        for (key, _) in asked.into_iter().filter(|(_, asked)| *asked) {
            let message = format!(
                "queue `{name}`: `{key}` reads payloads, and with `codec: bytes` they are no values"
            );
            let help = format!("remove `{key}`, or name the codec");
            self.error("queue_setting", &["queues", name, key], message, Some(help));
        }
    }

    fn field(&mut self, at: &[&str], text: Option<&str>) -> Option<FieldPath> {
        let wrong = |error: FieldPathError| {
            self.error("wrong_value", at, format!("`{}`: {error}", at[at.len() - 1]), None);
        };
        text?.parse().map_err(wrong).ok()
    }

    fn schema(&mut self, queue: &str, choice: &SchemaChoice) -> Option<Value> {
        let at = ["queues", queue, "schema"];
        let schema = match choice {
            SchemaChoice::Inline(schema) => Value::Object(schema.clone()),
            SchemaChoice::Name(name) => match self.catalog.schema(name) {
                Some(schema) => schema.clone(),
                None => self.schema_file(&at, name)?,
            },
        };
        match payload_validator(&schema) {
            Ok(_) => Some(schema),
            Err(error) => {
                let place = error.instance_path().as_str();
                let steps: Vec<&str> = match choice {
                    SchemaChoice::Inline(_) => place.split('/').skip(1).collect(),
                    SchemaChoice::Name(_) => Vec::new(),
                };
                let at: Vec<&str> = at.iter().copied().chain(steps.iter().copied()).collect();
                let file = match choice {
                    SchemaChoice::Name(name) => format!("{name}{place}: "),
                    SchemaChoice::Inline(_) => String::new(),
                };
                let (what, help) = no_schema(&error);
                let message =
                    format!("the schema of queue `{queue}` is no JSON Schema: {file}{what}");
                self.error("schema", &at, message, help);
                None
            }
        }
    }

    fn schema_file(&mut self, at: &[&str], name: &str) -> Option<Value> {
        let path = beside(self.directory, name);
        let place = path.display();
        let (message, help) = match std::fs::read(&path) {
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(schema) => return Some(schema),
                Err(error) => {
                    let help = "a schema file is JSON, whatever the pipeline file is";
                    (format!("the schema file {place} is not JSON: {error}"), help)
                }
            },
            Err(error) => {
                let help = "name a type of `schemas: [..]`, or a file beside the pipeline file";
                (format!("no registered type `{name}`, and no schema file {place}: {error}"), help)
            }
        };
        self.error("schema", at, message, Some(help.to_owned()));
        None
    }
}

/// The types of JSON Schema.
const TYPES: [&str; 7] = ["array", "boolean", "integer", "null", "number", "object", "string"];

/// What is wrong with a schema, and what helps.
fn no_schema(error: &jsonschema::ValidationError<'_>) -> (String, Option<String>) {
    match error.kind() {
        ValidationErrorKind::Referencing(ReferencingError::UnknownSpecification { .. }) => {
            let help = "leave `$schema` out, or name a draft of https://json-schema.org";
            (error.to_string(), Some(help.to_owned()))
        }
        ValidationErrorKind::Referencing(_) => {
            let help =
                "a schema may refer to what stands in itself, as in `$ref: \"#/$defs/line\"`";
            (error.to_string(), Some(help.to_owned()))
        }
        ValidationErrorKind::AnyOf { .. } if error.instance_path().as_str().ends_with("/type") => {
            let given = error.instance();
            let help = given.as_str().and_then(|given| did_you_mean(given, TYPES));
            (format!("expected a type, or a list of types, found {given}"), help)
        }
        _ => (error.to_string(), None),
    }
}
