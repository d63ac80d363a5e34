//! The JSON Schema of pipeline files, out of the Rust types, and holding a file against it.

use jsonschema::ValidationError;
use jsonschema::error::{TypeKind, ValidationErrorKind};
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use crate::coerce::coerce;
use crate::diagnostic::{Findings, Severity, did_you_mean};
use crate::file::{PipelineFile, QueueKeys};
use crate::load::{Catalog, CatalogComponent};
use crate::node::{Node, NodeValue};

/// The complete schema, for editors: the keys of every queue type and of every component that this
/// program knows.
pub fn json_schema(catalog: &dyn Catalog) -> Value {
    let mut schema = file_schema();
    let queues: Vec<Value> = (catalog.connector_types().into_iter())
        .filter_map(|kind| {
            let mut schema = queue_schema(catalog, kind)?;
            schema["properties"]["type"] = json!({ "const": kind });
            Some(schema)
        })
        .collect();
    let components =
        catalog.component_names().into_iter().filter_map(|name| match catalog.component(name)? {
            CatalogComponent::Factory(factory) => Some((name.to_owned(), factory.schema()?)),
            CatalogComponent::Registered(_) => None,
        });
    let properties: Map<String, Value> = components.collect();
    let settings = json!({
        "type": "object", "properties": properties, "additionalProperties": false,
        "minProperties": 1, "maxProperties": 1,
    });
    let names = json!({ "enum": catalog.component_names() });
    schema["properties"]["queues"]["additionalProperties"] = json!({ "oneOf": queues });
    let stage = &mut schema["properties"]["stages"]["additionalProperties"]["properties"];
    stage["component"]["anyOf"] = json!([names, settings]);
    schema
}

/// The schema of the file as a whole; queues are held against schemas of their own.
pub(crate) fn file_schema() -> Value {
    schema_of::<PipelineFile>()
}

/// The schema of a queue of this type.
pub(crate) fn queue_schema(catalog: &dyn Catalog, kind: &str) -> Option<Value> {
    let mut schema = schema_of::<QueueKeys>();
    let own = catalog.connector(kind)?.schema();
    if let (Some(all), Some(own)) =
        (schema["properties"].as_object_mut(), own["properties"].as_object())
    {
        all.extend(own.clone());
    }
    if let (Some(all), Some(own)) = (schema["required"].as_array_mut(), own["required"].as_array())
    {
        all.extend(own.clone());
    }
    if let Some(definitions) = own.get("$defs") {
        schema["$defs"] = definitions.clone();
    }
    schema["additionalProperties"] = Value::Bool(false);
    Some(schema)
}

pub(crate) fn schema_of<T: schemars::JsonSchema>() -> Value {
    let settings =
        SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    settings.into_generator().into_root_schema_for::<T>().to_value()
}

/// Holds the node at a path against a schema. Texts that came from variables become numbers or
/// booleans where those are expected. `what` names the thing for messages: "stage `check`".
pub(crate) fn validate(
    schema: &Value,
    root: &mut Node,
    path: &[String],
    what: &str,
    findings: &mut Findings,
) -> bool {
    let validator = jsonschema::validator_for(schema).expect("our own schemas are valid");
    if let Some(node) = root.at_mut(path) {
        coerce(node, &validator);
    }
    let Some(node) = root.at_mut(path) else { return true };
    let value = node.to_json();
    let mut valid = true;
    for error in validator.iter_errors(&value) {
        valid = false;
        tell(&error, schema, root, path, what, findings);
    }
    valid
}

fn tell(
    error: &ValidationError<'_>,
    schema: &Value,
    root: &Node,
    above: &[String],
    what: &str,
    findings: &mut Findings,
) {
    let below = steps(error.instance_path().as_str());
    let path: Vec<String> = above.iter().cloned().chain(below.clone()).collect();
    let node = root.nearest(&path);
    let inside = match below.last() {
        Some(_) => format!("`{}` of {what}", below.join(".")),
        None => what.to_owned(),
    };
    let found = || node.kind();
    match error.kind() {
        ValidationErrorKind::AdditionalProperties { unexpected } => {
            let known = sibling(schema, error, "properties");
            let known: Vec<&str> = known
                .and_then(Value::as_object)
                .into_iter()
                .flatten()
                .map(|(k, _)| k.as_str())
                .collect();
            for key in unexpected {
                let path: Vec<String> = path.iter().cloned().chain([key.clone()]).collect();
                let message = format!("unknown key `{key}` in {inside}");
                let origin = root.key_origin(&path);
                findings.add(Severity::Error, "unknown_key", origin, &path, message).help =
                    did_you_mean(key, known.iter().copied());
            }
        }
        ValidationErrorKind::Required { property } => {
            let key = property.as_str().unwrap_or_default();
            let message = format!("{inside} lacks the key `{key}`");
            findings.add(Severity::Error, "missing_key", root.key_origin(&path), &path, message);
        }
        ValidationErrorKind::Enum { options } => {
            let options: Vec<&str> =
                options.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            one_of(&options, node, &path, &inside, findings);
        }
        // An enum whose variants have comments is written as `oneOf` of constants.
        ValidationErrorKind::OneOfNotValid { .. } if constants(schema, error).is_some() => {
            let options = constants(schema, error).unwrap_or_default();
            let options: Vec<&str> = options.iter().map(String::as_str).collect();
            one_of(&options, node, &path, &inside, findings);
        }
        ValidationErrorKind::Type { kind } => {
            let expected = expected(schema, error).map_or_else(|| type_names(kind), str::to_owned);
            let message = format!("{inside}: expected {expected}, found {}", found());
            findings.add(Severity::Error, "wrong_type", &node.origin, &path, message);
        }
        ValidationErrorKind::Pattern { .. }
        | ValidationErrorKind::AnyOf { .. }
        | ValidationErrorKind::OneOfNotValid { .. } => {
            let expected = expected(schema, error).unwrap_or("something else");
            let message = format!("{inside}: expected {expected}, found {}", found());
            findings.add(Severity::Error, "wrong_value", &node.origin, &path, message);
        }
        other => {
            let message = match other {
                ValidationErrorKind::Minimum { limit } => format!("at least {limit}"),
                ValidationErrorKind::Maximum { limit } => format!("at most {limit}"),
                _ => format!("something else ({error})"),
            };
            let message = format!("{inside}: expected {message}, found {}", found());
            findings.add(Severity::Error, "wrong_value", &node.origin, &path, message);
        }
    }
}

fn one_of(options: &[&str], node: &Node, path: &[String], inside: &str, findings: &mut Findings) {
    let listed: Vec<String> = options.iter().map(|option| format!("`{option}`")).collect();
    let message = format!("{inside}: expected {}, found {}", listed.join(" or "), node.kind());
    let finding = findings.add(Severity::Error, "wrong_value", &node.origin, path, message);
    if let NodeValue::Text(text) = &node.value {
        let help = did_you_mean(text, options.iter().copied());
        finding.help = help.filter(|help| help.starts_with("did"));
    }
}

/// The constants of the `oneOf` that an error is about.
fn constants(schema: &Value, error: &ValidationError<'_>) -> Option<Vec<String>> {
    let options = schema.pointer(error.schema_path().as_str())?.as_array()?;
    let text = |option: &Value| option.get("const")?.as_str().map(str::to_owned);
    options.iter().map(text).collect()
}

/// What the schema itself says is expected, in words: a keyword of our own.
fn expected<'s>(schema: &'s Value, error: &ValidationError<'_>) -> Option<&'s str> {
    sibling(schema, error, "expected").and_then(Value::as_str)
}

/// Another keyword of the schema that an error is about.
fn sibling<'s>(schema: &'s Value, error: &ValidationError<'_>, keyword: &str) -> Option<&'s Value> {
    let path = error.schema_path().as_str();
    let (parent, _) = path.rsplit_once('/')?;
    schema.pointer(parent)?.get(keyword)
}

fn type_names(kind: &TypeKind) -> String {
    let name = |kind: &str| match kind {
        "object" => "a mapping".to_owned(),
        "array" => "a list".to_owned(),
        "string" => "a text".to_owned(),
        "integer" => "a whole number".to_owned(),
        "number" => "a number".to_owned(),
        "boolean" => "`true` or `false`".to_owned(),
        other => other.to_owned(),
    };
    match kind {
        TypeKind::Single(kind) => name(&kind.to_string()),
        TypeKind::Multiple(kinds) => {
            let names = kinds.iter().map(|kind| kind.to_string()).filter(|kind| kind != "null");
            names.map(|kind| name(&kind)).collect::<Vec<_>>().join(" or ")
        }
    }
}

/// A JSON pointer's steps.
fn steps(pointer: &str) -> Vec<String> {
    let steps = pointer.split('/').skip(1);
    steps.map(|step| step.replace("~1", "/").replace("~0", "~")).collect()
}
