//! The JSON Schema of pipeline files, generated from the Rust types, and validation of files
//! against it.

use jsonschema::ValidationError;
use jsonschema::error::{TypeKind, ValidationErrorKind};
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use crate::coerce::coerce;
use crate::diagnostic::{Findings, Severity, did_you_mean};
use crate::file::{PipelineFile, QueueKeys};
use crate::load::{Catalog, CatalogComponent};
use crate::node::{Entry, Node, NodeValue, Origin};

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

/// The schema of the file as a whole; queues are validated against schemas of their own.
pub(crate) fn file_schema() -> Value {
    schema_of::<PipelineFile>()
}

/// The schema of a queue of this type.
pub(crate) fn queue_schema(catalog: &dyn Catalog, kind: &str) -> Option<Value> {
    let mut schema = schema_of::<QueueKeys>();
    let own = inlined(catalog.connector(kind)?.schema());
    if let (Some(all), Some(own)) =
        (schema["properties"].as_object_mut(), own["properties"].as_object())
    {
        all.extend(own.clone());
    }
    if let (Some(all), Some(own)) = (schema["required"].as_array_mut(), own["required"].as_array())
    {
        all.extend(own.clone());
    }
    schema["additionalProperties"] = Value::Bool(false);
    Some(schema)
}

/// A schema with its definitions inlined, so that every error has a place in it.
pub(crate) fn inlined(mut schema: Value) -> Value {
    /// Recursive definitions stay as they are beyond this depth.
    const DEPTH_MAX: usize = 16;
    fn put(value: &mut Value, definitions: &Value, depth: usize) {
        let named = |value: &Value| {
            let name = value.get("$ref")?.as_str()?.strip_prefix("#/$defs/")?;
            definitions.get(name).cloned()
        };
        if let (Some(definition), true) = (named(value), depth < DEPTH_MAX) {
            if let (Some(own), Value::Object(all)) = (value.as_object_mut(), definition) {
                own.remove("$ref");
                for (key, value) in all {
                    own.entry(key).or_insert(value);
                }
            }
            return put(value, definitions, depth + 1);
        }
        match value {
            Value::Object(all) => all.values_mut().for_each(|v| put(v, definitions, depth)),
            Value::Array(all) => all.iter_mut().for_each(|v| put(v, definitions, depth)),
            _ => {}
        }
    }
    let definitions = schema.get("$defs").cloned().unwrap_or_default();
    put(&mut schema, &definitions, 0);
    schema
}

pub(crate) fn schema_of<T: schemars::JsonSchema>() -> Value {
    let settings =
        SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    settings.into_generator().into_root_schema_for::<T>().to_value()
}

/// A schema in which whole numbers have the bounds of their Rust types: schemars names those types
/// as formats, which nothing else looks at.
fn bounded(mut schema: Value) -> Value {
    fn bound(value: &mut Value) {
        let format = value.get("format").and_then(Value::as_str);
        let bounds: Option<(Value, Value)> = match format {
            Some("uint8") => Some((0.into(), u8::MAX.into())),
            Some("uint16") => Some((0.into(), u16::MAX.into())),
            Some("uint32") => Some((0.into(), u32::MAX.into())),
            Some("uint64" | "uint") => Some((0.into(), u64::MAX.into())),
            Some("int32") => Some((i32::MIN.into(), i32::MAX.into())),
            Some("int64" | "int") => Some((i64::MIN.into(), i64::MAX.into())),
            _ => None,
        };
        match value {
            Value::Object(all) => {
                if let Some((minimum, maximum)) = bounds {
                    all.entry("minimum").or_insert(minimum);
                    all.entry("maximum").or_insert(maximum);
                }
                all.values_mut().for_each(bound);
            }
            Value::Array(all) => all.iter_mut().for_each(bound),
            _ => {}
        }
    }
    bound(&mut schema);
    schema
}

/// Validates the node at a path against a schema. Texts that came from variables become numbers or
/// booleans where those are expected. `what` names the thing in messages: "queue `in`"; the file as
/// a whole needs no name.
pub(crate) fn validate(
    schema: &Value,
    root: &mut Node,
    path: &[String],
    what: &str,
    findings: &mut Findings,
) -> bool {
    let schema = &bounded(schema.clone());
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

/// A copy without what does not fit the schema; `None` if something is missing.
pub(crate) fn without_wrong(schema: &Value, root: &Node) -> Option<Node> {
    /// Leaving things out may uncover more errors.
    const ROUNDS: usize = 3;
    let schema = &bounded(schema.clone());
    let validator = jsonschema::validator_for(schema).expect("our own schemas are valid");
    let mut rest = root.clone();
    for _ in 0..ROUNDS {
        let value = rest.to_json();
        let mut wrong: Vec<Vec<String>> = Vec::new();
        for error in validator.iter_errors(&value) {
            let path = steps(error.instance_path().as_str());
            match error.kind() {
                ValidationErrorKind::Required { .. } => return None,
                ValidationErrorKind::AdditionalProperties { unexpected } => {
                    let below = |key: &String| path.iter().cloned().chain([key.clone()]).collect();
                    wrong.extend(unexpected.iter().map(below));
                }
                _ => wrong.push(path),
            }
        }
        if wrong.is_empty() {
            return Some(rest);
        }
        // Later items of a list first, so that the remaining positions stay valid.
        wrong.sort_by(|a, b| (b.len(), b).cmp(&(a.len(), a)));
        wrong.dedup();
        for path in wrong {
            let (last, above) = path.split_last()?;
            match &mut rest.at_mut(above)?.value {
                NodeValue::Map(entries) => entries.retain(|entry| entry.key != *last),
                NodeValue::List(items) => {
                    drop(items.remove(last.parse().ok().filter(|at| *at < items.len())?))
                }
                _ => return None,
            }
        }
    }
    None
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
    let inside = inside(&below, what);
    let mut wrong_value = |expected: &str| {
        let message = format!("{inside}: expected {expected}, found {}", node.kind());
        findings.add(Severity::Error, "wrong_value", &node.origin, &path, message);
    };
    match error.kind() {
        ValidationErrorKind::AdditionalProperties { unexpected } => {
            let known = sibling(schema, error, "properties").and_then(Value::as_object);
            let known: Vec<&str> = known.into_iter().flatten().map(|(k, _)| k.as_str()).collect();
            unknown_keys(unexpected, &known, root, &path, &inside, findings);
        }
        ValidationErrorKind::Required { property } => {
            let key = property.as_str().unwrap_or_default();
            missing_key(key, root, &path, &inside, findings);
        }
        ValidationErrorKind::Enum { options } => {
            let options = options.as_array().into_iter().flatten();
            let options: Vec<&str> = options.filter_map(Value::as_str).collect();
            one_of(&options, node, &path, &inside, findings);
        }
        // An enum whose variants have comments is written as `oneOf` of constants.
        ValidationErrorKind::OneOfNotValid { .. } if constants(schema, error).is_some() => {
            let options = constants(schema, error).unwrap_or_default();
            let options: Vec<&str> = options.iter().map(String::as_str).collect();
            one_of(&options, node, &path, &inside, findings);
        }
        ValidationErrorKind::Type { kind } => {
            let words = expected(schema, error);
            let expected = words.map_or_else(|| type_names(kind), str::to_owned);
            let message = format!("{inside}: expected {expected}, found {}", node.kind());
            // If there are words for what is expected, quotes alone would not help.
            let help = words.is_none().then(|| help_for_type(schema, error, kind, node)).flatten();
            findings.add(Severity::Error, "wrong_type", &node.origin, &path, message).help = help;
        }
        ValidationErrorKind::AnyOf { context } | ValidationErrorKind::OneOfNotValid { context } => {
            if let Some(meant) = meant(schema, error, context) {
                let tell = |error| tell(error, schema, root, above, what, findings);
                return meant.iter().for_each(tell);
            }
            wrong_value(&alternatives(schema, error, context));
        }
        ValidationErrorKind::Pattern { .. } => {
            wrong_value(expected(schema, error).unwrap_or("something else"));
        }
        ValidationErrorKind::Minimum { limit } => wrong_value(&format!("at least {limit}")),
        ValidationErrorKind::Maximum { limit } => wrong_value(&format!("at most {limit}")),
        _ => wrong_value(&format!("something else ({error})")),
    }
}

/// How messages refer to a value: by its keys, and by what it is part of.
fn inside(below: &[String], what: &str) -> String {
    match (below.is_empty(), what) {
        (true, "") => "the pipeline".to_owned(),
        (true, what) => what.to_owned(),
        (false, "") => format!("`{}`", below.join(".")),
        (false, what) => format!("`{}` of {what}", below.join(".")),
    }
}

fn missing_key(key: &str, root: &Node, path: &[String], inside: &str, findings: &mut Findings) {
    let message = format!("{inside} lacks the key `{key}`");
    let origin = root.key_origin(path);
    let help = newly_named(root, path, origin);
    findings.add(Severity::Error, "missing_key", origin, path, message).help = help;
}

/// Reports unknown keys, each at its own position.
fn unknown_keys(
    unexpected: &[String],
    known: &[&str],
    root: &Node,
    path: &[String],
    inside: &str,
    findings: &mut Findings,
) {
    for key in unexpected {
        let path: Vec<String> = path.iter().cloned().chain([key.clone()]).collect();
        let message = format!("unknown key `{key}` in {inside}");
        let origin = root.key_origin(&path);
        findings.add(Severity::Error, "unknown_key", origin, &path, message).help =
            did_you_mean(key, known.iter().copied());
    }
}

/// The errors of the only alternative of the value's type: the others were not meant.
pub(crate) fn of_the_type<'e>(
    error: &ValidationError<'_>,
    context: &'e [Vec<ValidationError<'static>>],
) -> Option<&'e Vec<ValidationError<'static>>> {
    let here = error.instance_path().as_str();
    let mut fitting = context.iter().filter(|errors| {
        !errors.iter().any(|error| {
            matches!(error.kind(), ValidationErrorKind::Type { .. })
                && error.instance_path().as_str() == here
        })
    });
    let (meant, None) = (fitting.next()?, fitting.next()) else { return None };
    Some(meant)
}

/// The errors of the alternative that was meant, if they say more than the words for the whole.
fn meant<'e>(
    schema: &Value,
    error: &ValidationError<'_>,
    context: &'e [Vec<ValidationError<'static>>],
) -> Option<&'e [ValidationError<'static>]> {
    let here = error.instance_path().as_str();
    let meant = of_the_type(error, context)?;
    let precise = |error: &ValidationError<'_>| {
        let keys = matches!(
            error.kind(),
            ValidationErrorKind::AdditionalProperties { .. } | ValidationErrorKind::Required { .. }
        );
        keys || error.instance_path().as_str() != here
    };
    // The words for the whole say more than those for one of its parts.
    let told = expected(schema, error).is_none() || meant.iter().any(precise);
    told.then_some(meant.as_slice())
}

/// What is expected if none of several alternatives is of the value's type.
fn alternatives(
    schema: &Value,
    error: &ValidationError<'_>,
    context: &[Vec<ValidationError<'static>>],
) -> String {
    if let Some(expected) = expected(schema, error) {
        return expected.to_owned();
    }
    let of = |error: &ValidationError<'static>| match error.kind() {
        ValidationErrorKind::Type { kind } => {
            let words = expected(schema, error);
            Some(words.map_or_else(|| type_names(kind), str::to_owned))
        }
        ValidationErrorKind::AnyOf { context } | ValidationErrorKind::OneOfNotValid { context } => {
            Some(alternatives(schema, error, context))
        }
        _ => None,
    };
    let mut found: Vec<String> = context.iter().flatten().filter_map(of).collect();
    found.retain(|name| name != "null");
    match found.is_empty() {
        true => "something else".to_owned(),
        false => found.join(" or "),
    }
}

/// Advice for a stage or queue that only the environment or a `--set` names: one of the file's was
/// probably meant.
pub(crate) fn newly_named(root: &Node, path: &[String], origin: &Origin) -> Option<String> {
    let [kind, name] = path else { return None };
    if matches!(origin, Origin::File { .. }) {
        return None;
    }
    let in_file = |entry: &&Entry| matches!(entry.origin, Origin::File { .. });
    let known = root.child(kind)?.entries().iter().filter(in_file).map(|entry| entry.key.as_str());
    let help = did_you_mean(name, known)?;
    Some(format!("the file has no `{name}` among its {kind}; {help}"))
}

/// Advice for a value of the wrong type.
fn help_for_type(
    schema: &Value,
    error: &ValidationError<'_>,
    kind: &TypeKind,
    node: &Node,
) -> Option<String> {
    as_text_or_list(kind, node).or_else(|| keys_of_mapping(schema, error))
}

/// Advice for a number where a text is expected, and for a single value where a list is expected.
fn as_text_or_list(kind: &TypeKind, node: &Node) -> Option<String> {
    let wants = |wanted: &str| match kind {
        TypeKind::Single(kind) => kind.to_string() == wanted,
        TypeKind::Multiple(kinds) => kinds.iter().any(|kind| kind.to_string() == wanted),
    };
    match &node.value {
        NodeValue::Number(number) if wants("string") => {
            Some(format!("write it in quotes: `\"{number}\"`"))
        }
        NodeValue::Bool(bool) if wants("string") => {
            Some(format!("write it in quotes: `\"{bool}\"`"))
        }
        NodeValue::Text(text) if wants("array") => Some(match &node.origin {
            // The text of a variable is a single value, whatever it contains.
            Origin::Variable(name) => format!(
                "a variable sets one value: name a place of the file's list, as in `{name}__0`, or set the \
                 list with `--set`"
            ),
            _ => format!("write it in brackets: `[{}]`", crate::node::shortened(text)),
        }),
        _ => None,
    }
}

/// Advice for a value that should be a mapping with known keys.
fn keys_of_mapping(schema: &Value, error: &ValidationError<'_>) -> Option<String> {
    let keys = sibling(schema, error, "properties")?.as_object()?;
    let keys: Vec<String> = keys.keys().map(|key| format!("`{key}`")).collect();
    Some(format!("its keys are {}", keys.join(", ")))
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

/// What the schema itself says is expected, in words: a keyword of Brigade's own.
fn expected<'s>(schema: &'s Value, error: &ValidationError<'_>) -> Option<&'s str> {
    sibling(schema, error, "expected").and_then(Value::as_str)
}

/// Another keyword of the schema that an error refers to.
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
pub(crate) fn steps(pointer: &str) -> Vec<String> {
    let steps = pointer.split('/').skip(1);
    steps.map(|step| step.replace("~1", "/").replace("~0", "~")).collect()
}
