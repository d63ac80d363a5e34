//! What a changed file means for messages that are stored already.

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
}

const VERSION: u32 = 1;

/// What has to be remembered of a pipeline to tell at the next start what has changed.
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

/// What has changed between two starts that concerns stored messages, a sentence each.
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
