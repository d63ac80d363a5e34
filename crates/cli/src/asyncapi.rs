//! A pipeline as an AsyncAPI document: what its queues hold, and which stages receive and send.

mod schema;

use std::collections::BTreeMap;
use std::path::Path;

use brigade_core::connector::{QueuePlace, SchemaRegistry};
use brigade_pipeline::{Inputs, Queue, Stage, Topology};
use brigade_runtime::Registry;
use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};

use crate::Exit;
use crate::common::{FileArguments, print};

/// The version of the specification.
const VERSION: &str = "3.0.0";

/// Describe a pipeline's queues as an AsyncAPI 3 document.
#[derive(Debug, Args)]
pub(crate) struct AsyncApi {
    #[command(flatten)]
    file: FileArguments,
    /// The version of the document, which is that of your messages.
    #[arg(long, default_value = "1.0.0")]
    api_version: String,
    /// The layout; JSON is also valid YAML.
    #[arg(long, value_enum, default_value = "pretty")]
    format: Form,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Form {
    /// On several lines.
    Pretty,
    /// On one line.
    Compact,
}

impl AsyncApi {
    pub(crate) fn run(&self, registry: &Registry) -> anyhow::Result<Exit> {
        let topology = self.file.load(registry)?.topology;
        let place = |queue: &Queue| {
            let connector = registry.connector_of(&queue.type_name);
            connector.map(|connector| connector.place(&queue.spec)).unwrap_or_default()
        };
        let document = document(&topology, place, &self.api_version);
        print(&match self.format {
            Form::Pretty => serde_json::to_string_pretty(&document)?,
            Form::Compact => document.to_string(),
        })?;
        Ok(Exit::Done)
    }
}

/// The document. Names consist of letters, digits, `.`, `-` and `_`, as the specification requires
/// of keys.
fn document(topology: &Topology, place: impl Fn(&Queue) -> QueuePlace, version: &str) -> Value {
    let (mut channels, mut servers, mut messages) = (Map::new(), Map::new(), Map::new());
    let mut channels_of = BTreeMap::new();
    for (name, queue) in &topology.queues {
        let QueuePlace { protocol, hosts, names, patterns } = place(queue);
        let servers: Vec<Value> = hosts
            .iter()
            .map(|host| {
                let server = json!({ "host": host, "protocol": protocol });
                let key = enter(&mut servers, &format!("{protocol}-{host}"), server);
                json!({ "$ref": format!("#/servers/{key}") })
            })
            .collect();
        // What a pattern matches has no address of its own.
        let known = names.iter().map(|own| (own, json!(own)));
        let addresses: Vec<_> =
            known.chain(patterns.iter().map(|own| (own, Value::Null))).collect();
        let keys = addresses.iter().map(|(own, address)| {
            let mut channel = json!({
                "address": address,
                "messages": { "message": { "$ref": format!("#/components/messages/{name}") } },
                "description": description(name, queue, own, address.is_null()),
            });
            if !servers.is_empty() {
                channel["servers"] = json!(servers);
            }
            let key = match addresses.len() {
                1 => name.to_string(),
                _ => format!("{name}.{own}"),
            };
            enter(&mut channels, &key, channel)
        });
        channels_of.insert(name.to_string(), keys.collect::<Vec<String>>());
        messages.insert(name.to_string(), message(name, queue));
    }
    let mut operations = Map::new();
    for (name, stage) in &topology.stages {
        operations.extend(receives(name, stage, &channels_of));
        operations.extend(sends(name, stage, &channels_of));
    }
    let mut document = json!({
        "asyncapi": VERSION,
        "info": { "title": &*topology.pipeline, "version": version },
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": { "messages": messages },
    });
    if !servers.is_empty() {
        document["servers"] = Value::Object(servers);
    }
    document
}

/// Adds a value under a key that the specification accepts, or under a numbered one if that key has
/// a different value.
fn enter(map: &mut Map<String, Value>, key: &str, value: Value) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let plain: String = key.chars().map(|c| if fits(c) { c } else { '-' }).collect();
    let numbered = (2..).map(|number| format!("{plain}-{number}"));
    let mut keys = std::iter::once(plain.clone()).chain(numbered);
    let free = keys.find(|key| map.get(key).is_none_or(|there| *there == value));
    let key = free.unwrap_or(plain);
    map.insert(key.clone(), value);
    key
}

fn description(name: &str, queue: &Queue, own: &str, is_pattern: bool) -> String {
    let of = format!("queue `{name}` of type {}", queue.type_name);
    match is_pattern {
        true => format!("{of}: all that `{own}` finds"),
        false => of,
    }
}

fn message(name: &str, queue: &Queue) -> Value {
    let mut message = json!({ "name": name, "contentType": content_type(queue) });
    if let Some(schema) = &queue.schema {
        let at = format!("#/components/messages/{name}/payload");
        message["payload"] = schema::payload(schema, &at);
        if let Some(title) = schema.get("title").and_then(Value::as_str) {
            message["title"] = title.into();
        }
    }
    message
}

/// What the payloads of a queue are.
fn content_type(queue: &Queue) -> &'static str {
    match (&queue.spec.registry, queue.codec.as_str()) {
        (Some(registry), _) => registered_type(registry),
        (None, "messagepack") => "application/vnd.msgpack",
        (None, "cbor") => "application/cbor",
        (None, "text") => "text/plain; charset=utf-8",
        (None, "bytes") => "application/octet-stream",
        (None, _) => "application/json",
    }
}

/// The content type of payloads written with a registry, as far as the file tells: only the
/// registry knows the rest.
fn registered_type(registry: &SchemaRegistry) -> &'static str {
    let file = registry.register.as_deref().map(Path::new).and_then(Path::extension);
    match file.and_then(|end| end.to_str()) {
        Some("avsc") => "application/avro",
        Some("proto") => "application/protobuf",
        Some("json") => "application/json",
        _ if registry.message.is_some() => "application/protobuf",
        _ => "application/octet-stream",
    }
}

/// The channels of each queue.
type Channels = BTreeMap<String, Vec<String>>;

/// What a stage does with a queue: one operation per channel of the queue.
fn operations(
    action: &str,
    stage: &str,
    queue: &str,
    what: &str,
    channels: &Channels,
) -> Vec<(String, Value)> {
    let operation = |key: &String| {
        let channel = format!("#/channels/{key}");
        let operation = json!({
            "action": action,
            "channel": { "$ref": channel },
            "summary": format!("stage `{stage}` {what} `{queue}`"),
            "messages": [{ "$ref": format!("{channel}/messages/message") }],
        });
        (format!("{stage}.{action}.{key}"), operation)
    };
    channels.get(queue).into_iter().flatten().map(operation).collect()
}

fn receives(name: &str, stage: &Stage, channels: &Channels) -> Vec<(String, Value)> {
    let Inputs::Queues { names, .. } = &stage.inputs else { return Vec::new() };
    let reads = |queue| operations("receive", name, queue, "reads queue", channels);
    names.iter().flat_map(|queue| reads(queue)).collect()
}

fn sends(name: &str, stage: &Stage, channels: &Channels) -> Vec<(String, Value)> {
    let outputs = stage.outputs.iter().map(|queue| (queue, "writes queue"));
    let dead = stage.dead_letter.iter().map(|queue| (queue, "keeps dead letters on queue"));
    let each = outputs.chain(dead);
    each.flat_map(|(queue, what)| operations("send", name, queue, what, channels)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_have_one_key_has_two() {
        let mut map = Map::new();
        assert_eq!(enter(&mut map, "kafka-a:1", json!(1)), "kafka-a-1");
        assert_eq!(enter(&mut map, "kafka-a-1", json!(2)), "kafka-a-1-2");
        assert_eq!(enter(&mut map, "kafka-a:1", json!(1)), "kafka-a-1");
    }

    #[test]
    fn what_is_registered_is_told_by_its_file() {
        let of = |keys: Value| registered_type(&serde_json::from_value(keys).unwrap());
        assert_eq!(of(json!({ "url": "x", "register": "a.avsc" })), "application/avro");
        assert_eq!(of(json!({ "url": "x", "message": "a.B" })), "application/protobuf");
        assert_eq!(of(json!({ "url": "x" })), "application/octet-stream");
    }
}
