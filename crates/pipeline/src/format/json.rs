//! JSON: serde_json says whether it is valid, a second parser where everything stands.

use jsonc_parser::ast::Value;
use jsonc_parser::common::Ranged;
use jsonc_parser::{CollectOptions, ParseOptions, parse_to_ast};
use serde::de::IgnoredAny;

use super::{Places, SyntaxError};
use crate::node::{Entry, Node, NodeValue};

pub(super) fn parse(text: &str, places: &Places<'_>) -> Result<Node, SyntaxError> {
    serde_json::from_str::<IgnoredAny>(text).map_err(|error| {
        let origin = places.at(error.line().max(1), error.column().max(1));
        (origin, format!("not valid JSON: {error}"))
    })?;
    let wrong = |error: jsonc_parser::errors::ParseError| {
        (places.at_byte(error.range().start), format!("not valid JSON: {error}"))
    };
    let parsed = parse_to_ast(text, &CollectOptions::default(), &ParseOptions::default());
    match parsed.map_err(wrong)?.value {
        Some(value) => node(&value, places),
        None => Ok(Node::new(NodeValue::Null, places.at(1, 1))),
    }
}

fn node(value: &Value<'_>, places: &Places<'_>) -> Result<Node, SyntaxError> {
    let origin = places.at_byte(value.start());
    let value = match value {
        Value::StringLit(text) => NodeValue::Text(text.value.to_string()),
        Value::NumberLit(number) => {
            let parsed = serde_json::from_str(number.value);
            let wrong = |_| (origin.clone(), format!("a number out of range: {}", number.value));
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
