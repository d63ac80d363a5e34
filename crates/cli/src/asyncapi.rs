//! A pipeline as an AsyncAPI document: what its queues hold, and which stages receive and send.

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
    /// The version of the document: that of your messages.
    #[arg(long, default_value = "1.0.0")]
    api_version: String,
    /// How it is written; JSON is YAML too.
    #[arg(long, value_enum, default_value = "pretty")]
    format: Form,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Form {
    /// Over several lines.
    Pretty,
    /// In one line.
    Compact,
}

impl AsyncApi {
    pub(crate) fn run(&self, registry: &Registry) -> anyhow::Result<Exit> {
        let document = document(&self.file.load(registry)?.topology, &self.api_version);
        print(&match self.format {
            Form::Pretty => serde_json::to_string_pretty(&document)?,
            Form::Compact => document.to_string(),
        });
        Ok(Exit::Done)
    }
}

/// The document. Names are letters, digits, `.`, `-` and `_`, as the specification wants its keys.
fn document(topology: &Topology, version: &str) -> Value {
    let (mut channels, mut servers, mut messages) = (Map::new(), Map::new(), Map::new());
    for (name, queue) in &topology.queues {
        let server = server(queue);
        let mut channel = json!({
            "address": address(name, queue),
            "messages": { "message": { "$ref": format!("#/components/messages/{name}") } },
            "description": format!("queue `{name}` of type {}", queue.type_name),
        });
        if let Some((key, server)) = server {
            channel["servers"] = json!([{ "$ref": format!("#/servers/{key}") }]);
            servers.insert(key, server);
        }
        channels.insert(name.to_string(), channel);
        messages.insert(name.to_string(), message(name, queue));
    }
    let mut operations = Map::new();
    for (name, stage) in &topology.stages {
        operations.extend(receives(name, stage));
        operations.extend(sends(name, stage));
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

/// What the queue is called where it is.
fn address(name: &str, queue: &Queue) -> Value {
    let keys: &[&str] = match queue.type_name.as_str() {
        "kafka" => &["topic"],
        "redis_stream" => &["stream"],
        "rsmq" => &["queue"],
        "file" => &["path"],
        _ => &[],
    };
    let own = keys.iter().find_map(|key| queue.spec.settings.get(key)?.as_str());
    own.unwrap_or(name).into()
}

/// The server of a queue, under a name that tells it from others; nothing for queues without one.
fn server(queue: &Queue) -> Option<(String, Value)> {
    let settings = &queue.spec.settings;
    let (protocol, host) = match queue.type_name.as_str() {
        "kafka" => {
            let config = settings.get("config");
            let servers = config.and_then(|config| config.get("bootstrap.servers")?.as_str());
            ("kafka", servers.unwrap_or("localhost:9092").to_owned())
        }
        "redis_stream" | "rsmq" => {
            let url = settings.get("url").and_then(Value::as_str);
            ("redis", host_of(url.unwrap_or("redis://localhost:6379")))
        }
        _ => return None,
    };
    let fits = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let key = format!("{protocol}-{}", host.chars().map(fits).collect::<String>());
    Some((key, json!({ "host": host, "protocol": protocol })))
}

/// Host and port of an address: neither user nor password.
fn host_of(url: &str) -> String {
    let (_, rest) = url.split_once("://").unwrap_or(("", url));
    let authority = rest.split('/').next().unwrap_or(rest);
    let (_, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    host.to_owned()
}

fn message(name: &str, queue: &Queue) -> Value {
    let content = match queue.codec.as_str() {
        "messagepack" => "application/vnd.msgpack",
        "cbor" => "application/cbor",
        "text" => "text/plain; charset=utf-8",
        "bytes" => "application/octet-stream",
        _ => "application/json",
    };
    let mut message = json!({ "name": name, "contentType": content });
    if let Some(schema) = &queue.schema {
        message["payload"] = json!({
            "schemaFormat": "application/schema+json;version=draft-2020-12",
            "schema": &**schema,
        });
        if let Some(title) = schema.get("title").and_then(Value::as_str) {
            message["title"] = title.into();
        }
    }
    message
}

fn operation(action: &str, stage: &str, queue: &str, what: &str) -> (String, Value) {
    let channel = format!("#/channels/{queue}");
    let operation = json!({
        "action": action,
        "channel": { "$ref": channel },
        "summary": format!("stage `{stage}` {what} `{queue}`"),
        "messages": [{ "$ref": format!("{channel}/messages/message") }],
    });
    (format!("{stage}.{action}.{queue}"), operation)
}

fn receives(name: &str, stage: &Stage) -> Vec<(String, Value)> {
    match &stage.inputs {
        Inputs::Queues { names, .. } => {
            names.iter().map(|queue| operation("receive", name, queue, "reads queue")).collect()
        }
        Inputs::Direct(_) => Vec::new(),
    }
}

fn sends(name: &str, stage: &Stage) -> Vec<(String, Value)> {
    let outputs = stage.outputs.iter().map(|queue| (queue, "writes queue"));
    let dead = stage.dead_letter.iter().map(|queue| (queue, "keeps dead letters on queue"));
    outputs.chain(dead).map(|(queue, what)| operation("send", name, queue, what)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_told_without_its_secrets() {
        for url in
            ["redis://:se@cret@host:1/2", "rediss://user:secret@host:1", "host:1", "redis://host:1"]
        {
            assert_eq!(host_of(url), "host:1", "{url}");
        }
    }
}
