//! TOML, with spans.

use serde_json::Number;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Places, SyntaxError};
use crate::node::{Entry, Node, NodeValue};

pub(super) fn parse(text: &str, places: &Places<'_>) -> Result<Node, SyntaxError> {
    let table = DeTable::parse(text).map_err(|error| {
        let span = error.span().unwrap_or_default();
        let message = match (error.message(), text.get(span.clone())) {
            ("duplicate key", Some(key)) => format!("key `{key}` stands twice"),
            (message, _) => format!("not valid TOML: {message}"),
        };
        SyntaxError::new(places.at_byte(span.start), message)
    })?;
    let origin = places.at(1, 1);
    Ok(Node::new(map(table.get_ref(), places)?, origin))
}

fn map(table: &DeTable<'_>, places: &Places<'_>) -> Result<NodeValue, SyntaxError> {
    // The parser sorts its tables; the file's order is kept.
    let mut pairs: Vec<_> = table.iter().collect();
    pairs.sort_by_key(|(key, _)| key.span().start);
    let mut entries = Vec::with_capacity(pairs.len());
    for (key, value) in pairs {
        let origin = places.at_byte(key.span().start);
        let node = node(value, places)?;
        entries.push(Entry { key: key.get_ref().to_string(), origin, node });
    }
    Ok(NodeValue::Map(entries))
}

fn node(value: &Spanned<DeValue<'_>>, places: &Places<'_>) -> Result<Node, SyntaxError> {
    let origin = places.at_byte(value.span().start);
    let wrong = |what: &str| SyntaxError::new(origin.clone(), what);
    let value = match value.get_ref() {
        DeValue::String(text) => NodeValue::Text(text.to_string()),
        DeValue::Integer(integer) => {
            let digits = integer.as_str();
            let number = i64::from_str_radix(digits, integer.radix());
            NodeValue::Number(number.map_err(|_| wrong("an integer out of range"))?.into())
        }
        DeValue::Float(float) => {
            let number = float.as_str().parse().ok().and_then(Number::from_f64);
            NodeValue::Number(number.ok_or_else(|| wrong("a number that is not finite"))?)
        }
        DeValue::Boolean(bool) => NodeValue::Bool(*bool),
        DeValue::Datetime(time) => NodeValue::Text(time.to_string()),
        DeValue::Array(items) => {
            let items = items.iter().map(|item| node(item, places));
            NodeValue::List(items.collect::<Result<_, _>>()?)
        }
        DeValue::Table(table) => map(table, places)?,
    };
    Ok(Node::new(value, origin))
}
