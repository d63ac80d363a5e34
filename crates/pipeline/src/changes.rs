//! What a changed file means for messages that are already stored.

use std::collections::BTreeMap;
use std::sync::Arc;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::topology::{Queue, Stage};

/// What is remembered of a pipeline from one start to the next. Version 1.
#[derive(Debug, Serialize, Deserialize)]
struct Fingerprint {
    version: u32,
    queues: BTreeMap<String, QueuePrint>,
    stages: BTreeMap<String, Vec<String>>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct QueuePrint {
    #[serde(rename = "type")]
    type_name: String,
    groups: Vec<String>,
    schema: Option<Value>,
    /// Path of the key, empty if there is none. The first programs that wrote version 1 left it
    /// out.
    #[serde(default)]
    key: Option<String>,
}

const VERSION: u32 = 1;

/// What has to be remembered of a pipeline to detect changes at the next start.
pub(crate) fn fingerprint(
    queues: &IndexMap<Arc<str>, Queue>,
    stages: &IndexMap<Arc<str>, Stage>,
) -> Value {
    let text = |name: &Arc<str>| name.to_string();
    let queues = queues.iter().map(|(name, queue)| {
        let print = QueuePrint {
            type_name: queue.type_name.clone(),
            groups: queue.spec.groups.iter().map(text).collect(),
            schema: queue.schema.as_deref().cloned(),
            key: Some(queue.spec.key.as_ref().map(ToString::to_string).unwrap_or_default()),
        };
        (name.to_string(), print)
    });
    let stages = stages
        .iter()
        .map(|(name, stage)| (name.to_string(), stage.input_queues().iter().map(text).collect()));
    let print =
        Fingerprint { version: VERSION, queues: queues.collect(), stages: stages.collect() };
    serde_json::to_value(print).expect("names and numbers always encode")
}

/// What has changed between two starts that concerns stored messages, one sentence each.
pub fn changes(before: &Value, now: &Value) -> Vec<String> {
    let read = |value: &Value| serde_json::from_value::<Fingerprint>(value.clone()).ok();
    let (Some(before), Some(now)) = (read(before), read(now)) else { return Vec::new() };
    let mut said = Vec::new();
    for (name, old) in &before.queues {
        let Some(new) = now.queues.get(name) else {
            said.push(format!(
                "queue `{name}` is gone: what it holds stays where it is until a queue of that \
                 name and type is back"
            ));
            continue;
        };
        if new.type_name != old.type_name {
            said.push(format!(
                "queue `{name}` was of type {} and is of type {} now: what the old one holds stays \
                 there",
                old.type_name, new.type_name
            ));
        }
        if new.schema != old.schema {
            said.push(format!(
                "queue `{name}` has another schema: stored messages that do not fit it become dead \
                 letters"
            ));
        }
        said.extend(other_key(name, old.key.as_deref(), new.key.as_deref()));
        for group in old.groups.iter().filter(|group| !new.groups.contains(group)) {
            let who = if group.is_empty() {
                "its only reader".to_owned()
            } else {
                format!("stage `{group}`")
            };
            said.push(format!(
                "queue `{name}` is no longer read by {who} as such: what is stored for it is taken over \
                 when a stage of it begins, or is told by `queues list`"
            ));
        }
    }
    for stage in before.stages.keys().filter(|stage| !now.stages.contains_key(*stage)) {
        said.push(format!(
            "stage `{stage}` is gone or has another name: its dead letters and redrives stay under \
             the old name"
        ));
    }
    said
}

/// A message if the path of a queue's key has changed, as far as that is known.
fn other_key(name: &str, old: Option<&str>, new: Option<&str>) -> Option<String> {
    let (old, new) = old.zip(new).filter(|(old, new)| old != new)?;
    let told = |key: &str| match key {
        "" => "none".to_owned(),
        key => format!("`{key}`"),
    };
    Some(format!(
        "the `key` of queue `{name}` was {} and is {} now: stored messages keep the key that they were put \
         with, so `order: key` may not hold between them and others",
        told(old),
        told(new)
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn with_key(key: Value) -> Value {
        let mut queue = json!({ "type": "embedded", "groups": [""], "schema": null });
        if !key.is_null() {
            queue["key"] = key;
        }
        json!({ "version": 1, "queues": { "orders": queue }, "stages": {} })
    }

    #[test]
    fn a_key_that_stands_elsewhere_is_told() {
        let said = |before, now| changes(&with_key(before), &with_key(now));
        let told = said(json!(""), json!("customer.id"));
        assert_eq!(told.len(), 1);
        assert!(told[0].contains("was none and is `customer.id` now"), "{told:?}");
        assert!(said(json!("a"), json!(""))[0].contains("was `a` and is none now"));
        assert!(said(json!("a"), json!("a")).is_empty());
        // The program that wrote this did not remember it.
        assert!(said(Value::Null, json!("a")).is_empty());
    }
}
