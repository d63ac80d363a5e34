//! JSON: serde_json decides whether it is valid, a second parser finds where everything is.

use jsonc_parser::ast::Value;
use jsonc_parser::common::Ranged;
use jsonc_parser::{CollectOptions, ParseOptions, parse_to_ast};
use serde::de::IgnoredAny;

use super::{DEPTH_MAX, Places, SyntaxError};
use crate::node::{Entry, Node, NodeValue};

pub(super) fn parse(text: &str, places: &Places<'_>) -> Result<Node, SyntaxError> {
    serde_json::from_str::<IgnoredAny>(text).map_err(|error| invalid(&error, text, places))?;
    refuse_depth(text, places)?;
    let wrong = |error: jsonc_parser::errors::ParseError| {
        SyntaxError::new(places.at_byte(error.range().start), format!("not valid JSON: {error}"))
    };
    let parsed = parse_to_ast(text, &CollectOptions::default(), &ParseOptions::default());
    match parsed.map_err(wrong)?.value {
        Some(value) => node(&value, places),
        None => Ok(Node::new(NodeValue::Null, places.at(1, 1))),
    }
}

/// What is wrong with the text, in readable words.
fn invalid(error: &serde_json::Error, text: &str, places: &Places<'_>) -> SyntaxError {
    let (line, column) = (error.line().max(1), error.column().max(1));
    let text = text.lines().nth(line - 1).unwrap_or_default();
    // Its columns count bytes.
    let before = text.get(..column - 1).unwrap_or(text);
    let rest = text.get(column - 1..).unwrap_or_default();
    let message = error.to_string();
    let message = message.split(" at line ").next().unwrap_or_default();
    let message = message.replace("EOF while parsing", "the file ends in the middle of");
    let help = match rest.chars().next() {
        Some('/' | '#') => Some("JSON has no comments: remove it, or use YAML or TOML"),
        Some('\'') => Some("write double quotes"),
        Some('}' | ']') if message.starts_with("key must") || message.starts_with("trailing") => {
            Some("remove the comma before it")
        }
        _ => None,
    };
    let origin = places.at(line, before.chars().count() + 1);
    SyntaxError::new(origin, format!("not valid JSON: {message}")).help(help)
}

/// The parser recurses into nested values; text that is valid JSON is safe to scan for depth.
fn refuse_depth(text: &str, places: &Places<'_>) -> Result<(), SyntaxError> {
    let (mut depth, mut quoted, mut escaped) = (0_usize, false, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'[' | b'{' if !quoted => depth += 1,
            b']' | b'}' if !quoted => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEPTH_MAX {
            let message = format!("nested more than {DEPTH_MAX} deep");
            return Err(SyntaxError::new(places.at_byte(at), message));
        }
    }
    Ok(())
}

fn node(value: &Value<'_>, places: &Places<'_>) -> Result<Node, SyntaxError> {
    let origin = places.at_byte(value.start());
    let value = match value {
        Value::StringLit(text) => NodeValue::Text(text.value.to_string()),
        Value::NumberLit(number) => {
            let parsed = serde_json::from_str(number.value);
            let message = format!("a number out of range: {}", number.value);
            let wrong = |_| SyntaxError::new(origin.clone(), message);
            NodeValue::Number(parsed.map_err(wrong)?)
        }
        Value::BooleanLit(bool) => NodeValue::Bool(bool.value),
        Value::NullKeyword(_) => NodeValue::Null,
        Value::Array(array) => {
            let items = array.elements.iter().map(|item| node(item, places));
            NodeValue::List(items.collect::<Result<_, _>>()?)
        }
        Value::Object(object) => {
            let mut entries = Vec::new();
            for property in &object.properties {
                let origin = places.at_byte(property.start());
                let node = node(&property.value, places)?;
                entries.push(Entry { key: property.name.as_str().to_owned(), origin, node });
            }
            NodeValue::Map(entries)
        }
    };
    Ok(Node::new(value, origin))
}
