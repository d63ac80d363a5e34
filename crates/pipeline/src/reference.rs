//! The reference pages of the documentation, generated from the schemas that files are validated
//! against.
//!
//! Parts that are included in other pages are enclosed in mdBook's anchors.

use std::fmt::Write;

use brigade_core::ByteSize;
use serde_json::{Value, json};

use crate::load::{Catalog, CatalogComponent};
use crate::schema::{file_schema, queue_schema, schema_of};

/// How the units of `core` describe what is expected; the page says it once.
const PERIOD: &str = "a length of time such as `200ms`";
const SIZE: &str = "a number of bytes";

/// One key, as a table shows it.
struct Row {
    key: String,
    value: String,
    default: String,
    meaning: String,
}

/// Every key of a pipeline file, in Markdown: those of the file, of every queue, of every stage,
/// and of each queue type and component that this program knows.
pub fn keys(catalog: &dyn Catalog) -> String {
    let file = file_schema();
    let mut page = String::from(
        "# Every key\n\n\
         Generated from the types that files are read into, by `cargo xtask docs`. The value in \
         **bold** is the default; a key without one may be left out unless it says *required*. A \
         dot is a step into a mapping: `retry.attempts` is the key `attempts` below `retry`.\n\n\
         A time is a whole number and a unit: `ms`, `s`, `m`, `h` or `d`. A size is a whole number \
         of bytes, or one with a unit: `KiB`, `MiB`, `GiB`, `KB`, `MB` or `GB`.\n\n",
    );
    section(&mut page, "The file", "file", &file, &["queues", "stages"]);
    let stage = &file["properties"]["stages"]["additionalProperties"];
    section(&mut page, "Every stage", "stage", stage, &[]);
    section(&mut page, "Every queue", "queue", &schema_of::<crate::file::QueueKeys>(), &[]);
    for kind in catalog.connector_types() {
        let Some(schema) = catalog.connector(kind).map(|connector| connector.schema()) else {
            continue;
        };
        let title = format!("Queues of type `{kind}`");
        section(&mut page, &title, &format!("queue-{kind}"), &schema, &[]);
    }
    for name in catalog.component_names() {
        let Some(CatalogComponent::Factory(factory)) = catalog.component(name) else { continue };
        let schema = factory.schema().unwrap_or(Value::Null);
        section(
            &mut page,
            &format!("Component `{name}`"),
            &format!("component-{name}"),
            &schema,
            &[],
        );
    }
    page
}

/// What queues of each type can do, in Markdown, as their connectors declare it.
pub fn features(catalog: &dyn Catalog) -> String {
    let kinds: Vec<(&str, Value)> = (catalog.connector_types().into_iter())
        .filter_map(|kind| {
            let settings = fewest(&queue_schema(catalog, kind)?);
            let features = catalog.connector(kind)?.features(&settings);
            Some((kind, serde_json::to_value(features).ok()?))
        })
        .collect();
    let schema = schema_of::<brigade_core::connector::Features>();
    let mut page = String::from(
        "# What each queue type can do\n\n\
         Generated from what the connectors declare, by `cargo xtask docs`, for queues with the \
         fewest keys. The conformance suite tests what is declared here, of all types but \
         `generator`, and `brigade check` refuses what is not.\n\n",
    );
    let names: Vec<String> = kinds.iter().map(|(kind, _)| format!("`{kind}`")).collect();
    let _ = writeln!(page, "| | {} |\n|---|{}", names.join(" | "), "---|".repeat(kinds.len()));
    let all = schema["properties"].as_object().into_iter().flatten();
    for (feature, _) in all.clone() {
        let cells: Vec<String> = kinds.iter().map(|(_, has)| cell(&has[feature])).collect();
        let _ = writeln!(page, "| `{feature}` | {} |", cells.join(" | "));
    }
    page.push_str("\n## What they mean\n\n| feature | meaning |\n|---|---|\n");
    for (feature, schema) in all.clone() {
        let _ = writeln!(page, "| `{feature}` | {} |", line(schema["description"].as_str()));
    }
    page.push_str("\n## Type by type\n");
    for (kind, has) in &kinds {
        let names = |wanted: bool| {
            let names = all.clone().map(|(feature, _)| feature);
            let names = names.filter(|feature| *feature != "max_message_bytes");
            let names = names.filter(|feature| has[*feature] == json!(wanted));
            names.map(|feature| format!("`{feature}`")).collect::<Vec<_>>().join(", ")
        };
        let _ = writeln!(page, "\n### `{kind}`\n\n<!-- ANCHOR: {kind} -->");
        let _ = writeln!(page, "| can | cannot | longest payload |\n|---|---|---|");
        let longest = cell(&has["max_message_bytes"]);
        let _ = writeln!(page, "| {} | {} | {longest} |", names(true), names(false));
        let _ = writeln!(page, "<!-- ANCHOR_END: {kind} -->");
    }
    page
}

fn cell(value: &Value) -> String {
    match value {
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) | Value::Null => "-".to_owned(),
        Value::Number(bytes) => ByteSize(bytes.as_u64().unwrap_or_default()).to_string(),
        other => other.to_string(),
    }
}

/// Settings that have a value for each required key, and no other keys.
fn fewest(schema: &Value) -> Value {
    let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let value = |key: &str| match schema["properties"][key]["type"].as_str() {
        Some("object") => json!({}),
        Some("array") => json!([]),
        Some("integer" | "number") => json!(1),
        _ => json!("x"),
    };
    let keys = required.filter(|key| *key != "type").map(|key| (key.to_owned(), value(key)));
    Value::Object(keys.collect())
}

/// A heading and the table of a schema's keys, between anchors.
fn section(page: &mut String, title: &str, anchor: &str, schema: &Value, without: &[&str]) {
    let _ = writeln!(page, "## {title}\n\n<!-- ANCHOR: {anchor} -->");
    let (form, schema) = object(schema, schema);
    if let Some(form) = form {
        let _ = writeln!(page, "{form}\n");
    }
    let mut rows = Vec::new();
    collect(schema, schema, "", &Value::Null, without, &mut rows);
    match (rows.is_empty(), schema) {
        (true, Value::Null) => page.push_str("It has no settings.\n"),
        (true, schema) => {
            let _ = match schema["type"].as_str() {
                Some("object") => writeln!(page, "It has no keys of its own."),
                _ => writeln!(page, "The setting is {}.", words(schema, schema)),
            };
        }
        (false, _) => {
            page.push_str("| key | value | meaning |\n|---|---|---|\n");
            for Row { key, value, default, meaning } in rows {
                let value = match default.as_str() {
                    "" => value,
                    "required" => format!("{value}; *required*"),
                    default => format!("{value}; **{default}**"),
                };
                let _ = writeln!(page, "| `{key}` | {value} | {meaning} |");
            }
        }
    }
    let _ = writeln!(page, "<!-- ANCHOR_END: {anchor} -->\n");
}

/// Where the keys of a setting with several forms are, and a sentence that says so.
fn object<'s>(root: &'s Value, schema: &'s Value) -> (Option<String>, &'s Value) {
    if let Some(items) = schema.get("items") {
        return (Some("A list; each item has:".to_owned()), resolve(root, items));
    }
    let forms = schema["anyOf"].as_array().into_iter().flatten();
    let keyed = forms.map(|form| resolve(root, form)).find(|form| form["properties"].is_object());
    match (keyed, schema["expected"].as_str()) {
        (Some(keyed), Some(expected)) => (Some(format!("Expected is {expected}.")), keyed),
        _ => (None, schema),
    }
}

/// A row for each key of an object, and for each key below it.
fn collect(
    root: &Value,
    schema: &Value,
    above: &str,
    defaults: &Value,
    without: &[&str],
    rows: &mut Vec<Row>,
) {
    let required: Vec<&str> =
        schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (key, given) in schema["properties"].as_object().into_iter().flatten() {
        if without.contains(&key.as_str()) {
            continue;
        }
        let inner = resolve(root, given);
        let meaning = given["description"].as_str().or(inner["description"].as_str());
        let default = defaults.get(key).or(given.get("default")).or(inner.get("default"));
        let default = default.unwrap_or(&Value::Null);
        let path = format!("{above}{key}");
        let below = form_with_keys(root, inner);
        let told = meaning.is_some_and(|text| text.contains("Default:"));
        let shown = match default {
            _ if required.contains(&key.as_str()) => "required".to_owned(),
            Value::Null | Value::Object(_) | Value::Array(_) => String::new(),
            _ if told => String::new(),
            Value::String(text) if text.is_empty() => String::new(),
            Value::String(text) => format!("`{text}`"),
            other => format!("`{other}`"),
        };
        let value = words(root, inner);
        let meaning = format!("{}{}", line(meaning), variants(root, inner));
        rows.push(Row { key: path.clone(), value, default: shown, meaning });
        if let Some(below) = below {
            collect(root, below, &format!("{path}."), default, &[], rows);
        }
        if let Some(items) = inner.get("items").map(|items| resolve(root, items)) {
            collect(root, items, &format!("{path}[]."), &Value::Null, &[], rows);
        }
    }
}

/// The form of a value that has keys of its own.
fn form_with_keys<'s>(root: &'s Value, schema: &'s Value) -> Option<&'s Value> {
    if schema["properties"].is_object() {
        return Some(schema);
    }
    let mut forms = schema["anyOf"].as_array().into_iter().flatten();
    forms.find_map(|form| form_with_keys(root, resolve(root, form)))
}

fn resolve<'s>(root: &'s Value, schema: &'s Value) -> &'s Value {
    let name = schema["$ref"].as_str().and_then(|path| path.strip_prefix("#/$defs/"));
    name.and_then(|name| root["$defs"].get(name)).unwrap_or(schema)
}

/// A value's type, in words.
fn words(root: &Value, schema: &Value) -> String {
    if let Some(expected) = schema["expected"].as_str() {
        let short = [(PERIOD, "a time, as `30s`"), (SIZE, "a size, as `16MiB`")];
        let short = short.iter().find(|(begins, _)| expected.starts_with(begins));
        return short.map_or_else(|| escaped(expected), |(_, words)| (*words).to_owned());
    }
    let constants = constants(root, schema);
    if !constants.is_empty() {
        let names: Vec<String> = constants.iter().map(|(name, _)| format!("`{name}`")).collect();
        return names.join(", ");
    }
    for forms in ["anyOf", "oneOf"] {
        let forms = schema[forms].as_array().into_iter().flatten();
        let forms = forms.map(|form| resolve(root, form)).filter(|form| form["type"] != "null");
        let forms: Vec<String> = forms.map(|form| words(root, form)).collect();
        if !forms.is_empty() {
            return forms.join(", or ");
        }
    }
    let kind = match &schema["type"] {
        Value::Array(kinds) => {
            kinds.iter().filter_map(Value::as_str).find(|kind| *kind != "null").unwrap_or_default()
        }
        other => other.as_str().unwrap_or_default(),
    };
    match kind {
        "string" => "a text".to_owned(),
        "boolean" => "`true` or `false`".to_owned(),
        "object" => "a mapping".to_owned(),
        "array" => match resolve(root, &schema["items"])["properties"].is_object() {
            true => "a list of mappings".to_owned(),
            false => "a list of texts".to_owned(),
        },
        "integer" | "number" => {
            let kind = if kind == "integer" { "a whole number" } else { "a number" };
            let whole = |limit: &Value| limit.as_f64().map(|limit| format!("{limit:.0}"));
            match (whole(&schema["minimum"]), whole(&schema["maximum"])) {
                (Some(least), Some(most)) => format!("{kind}, {least} to {most}"),
                (Some(least), None) if least != "0" => format!("{kind}, at least {least}"),
                _ => kind.to_owned(),
            }
        }
        _ => "any value".to_owned(),
    }
}

/// The values of an enumeration, with what each means.
fn constants<'s>(root: &'s Value, schema: &'s Value) -> Vec<(&'s str, &'s str)> {
    let forms = schema["anyOf"].as_array().into_iter().flatten();
    let forms = forms.map(|form| resolve(root, form)).chain([schema]);
    let mut found = Vec::new();
    for form in forms {
        for name in form["enum"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            found.push((name, ""));
        }
        for option in form["oneOf"].as_array().into_iter().flatten() {
            if let Some(name) = option["const"].as_str() {
                found.push((name, option["description"].as_str().unwrap_or_default()));
            }
            let plain = option["enum"].as_array().into_iter().flatten().filter_map(Value::as_str);
            found.extend(plain.map(|name| (name, "")));
        }
    }
    found
}

fn variants(root: &Value, schema: &Value) -> String {
    let told = constants(root, schema).into_iter().filter(|(_, meaning)| !meaning.is_empty());
    told.map(|(name, meaning)| format!(" `{name}`: {}", line(Some(meaning)))).collect()
}

/// A comment as one line of a table.
fn line(text: Option<&str>) -> String {
    escaped(&text.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" "))
}

fn escaped(text: &str) -> String {
    text.replace('|', "\\|")
}
