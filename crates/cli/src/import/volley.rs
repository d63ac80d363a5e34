//! Volley's file of queues as a pipeline file.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::engines::Engine;

/// A pipeline file, and what it does not say that the other file did.
pub(super) struct Imported {
    pub(super) text: String,
    pub(super) notes: Vec<String>,
}

/// What stands for "any model" in Volley.
const ANY_MODEL: [&str; 2] = ["GenericMessage", "ComponentMessage"];

/// Translates; `place` is the file, for people.
///
/// # Errors
/// It is no file of Volley, or one of its queues lacks what it needs.
pub(super) fn import(
    place: &str,
    config: &Value,
    engines: &[Engine],
    pipeline: &str,
) -> anyhow::Result<Imported> {
    let mut notes = Vec::new();
    let mut queues: BTreeMap<String, Value> = BTreeMap::new();
    for (alias, keys) in entries(place, config)? {
        let mut queue = Queue { alias: &alias, keys: &keys, notes: &mut notes };
        let translated = queue.translate(place)?;
        if let Some(translated) = translated {
            queues.insert(name(&alias), translated);
        }
    }
    let stages = stages(engines, &queues, &mut notes)?;
    if engines.is_empty() {
        notes.push(
            "no stages: which component stands between which queues is in the Python code; name its \
             files too"
                .to_owned(),
        );
    }
    Ok(Imported { text: write(place, pipeline, &queues, &stages, &notes), notes })
}

/// The queues by their aliases, of either form.
fn entries(place: &str, config: &Value) -> anyhow::Result<Vec<(String, Map<String, Value>)>> {
    let keys = |alias: &str, keys: &Value| match keys {
        Value::Object(keys) => Ok(keys.clone()),
        _ => anyhow::bail!("{place}: queue `{alias}`: expected a mapping"),
    };
    match config.get("queues") {
        Some(Value::Object(queues)) => {
            queues.iter().map(|(alias, queue)| Ok((alias.clone(), keys(alias, queue)?))).collect()
        }
        Some(Value::Array(queues)) => {
            let named = queues.iter().enumerate().map(|(at, queue)| {
                let alias = queue.get("name").and_then(Value::as_str).ok_or_else(|| {
                    anyhow::anyhow!("{place}: the queue at place {} has no `name`", at + 1)
                })?;
                Ok((alias.to_owned(), keys(alias, queue)?))
            });
            named.collect()
        }
        _ => anyhow::bail!("{place}: expected the key `queues` with a list or a mapping of queues"),
    }
}

/// A name that pipeline files take.
fn name(alias: &str) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    alias.chars().map(|c| if fits(c) { c } else { '-' }).collect()
}

struct Queue<'q> {
    alias: &'q str,
    keys: &'q Map<String, Value>,
    notes: &'q mut Vec<String>,
}

impl Queue<'_> {
    fn note(&mut self, text: impl std::fmt::Display) {
        self.notes.push(format!("queue `{}`: {text}", self.alias));
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.keys.get(key).and_then(Value::as_str)
    }

    /// The queue in Brigade's words; nothing if Brigade has no such queues.
    fn translate(&mut self, place: &str) -> anyhow::Result<Option<Value>> {
        let Some(value) = self.text("value").map(str::to_owned) else {
            anyhow::bail!("{place}: queue `{}` has no `value`", self.alias);
        };
        let kind = self.kind();
        let config = self.keys.get("config").and_then(Value::as_object).cloned();
        let config = config.unwrap_or_default();
        let mut queue = match kind.as_str() {
            "kafka" => self.kafka(&value, config),
            "rsmq" => self.rsmq(&value, config),
            other => {
                let plugin = self.text("consumer").or(self.text("producer")).unwrap_or(other);
                let plugin = plugin.to_owned();
                self.note(format!(
                    "left out: `{plugin}` is a connector of its own; write it as a Connector in Rust \
                     and enter it with `Registry::connector`"
                ));
                return Ok(None);
            }
        };
        if let Some(codec) = self.codec() {
            queue.insert("codec".to_owned(), codec.into());
        }
        self.model();
        const KNOWN: [&str; 10] = [
            "name",
            "value",
            "type",
            "profile",
            "schema",
            "data_model",
            "serializer",
            "model_handler",
            "config",
            "consumer",
        ];
        let unknown: Vec<String> = self
            .keys
            .keys()
            .filter(|key| !KNOWN.contains(&key.as_str()) && *key != "producer")
            .cloned()
            .collect();
        for key in unknown {
            self.note(format!("`{key}` means nothing to Volley and is left out"));
        }
        Ok(Some(Value::Object(queue)))
    }

    /// `type` of the list, or what the profile or the classes say.
    fn kind(&self) -> String {
        if let Some(kind) = self.text("type") {
            return kind.to_lowercase();
        }
        let classes = [self.text("profile"), self.text("consumer"), self.text("producer")];
        let says =
            |word: &str| classes.iter().flatten().any(|class| class.to_lowercase().contains(word));
        match () {
            () if says("confluent") || says("kafka") => "kafka".to_owned(),
            () if says("rsmq") => "rsmq".to_owned(),
            () if says("zmq") => "zmq".to_owned(),
            () => self.text("profile").unwrap_or("a queue without profile").to_owned(),
        }
    }

    fn kafka(&mut self, value: &str, mut config: Map<String, Value>) -> Map<String, Value> {
        let mut queue = Map::new();
        queue.insert("type".to_owned(), "kafka".into());
        let topics: Vec<&str> = value.split(',').map(str::trim).collect();
        match topics[..] {
            [topic] => queue.insert("topic".to_owned(), topic.into()),
            _ => queue.insert("topics".to_owned(), json!(topics)),
        };
        if let Some(group) = config.remove("group.id") {
            queue.insert("group".to_owned(), group);
        }
        for (key, why) in [
            ("poll_interval", "Brigade polls by itself"),
            ("stop_on_failure", "a failing message is tried again and then kept as a dead letter"),
            ("poll_thread_timeout", "a stop waits as long as `stop_deadline` says"),
            ("enable.auto.offset.store", "Brigade commits what is resolved"),
            ("enable.auto.commit", "Brigade commits what is resolved"),
            ("auto.commit.interval.ms", "Brigade commits what is resolved"),
            ("batch_size", "it is the stage's `batch.size`, with a batch component"),
            ("batch_time_seconds", "it is the stage's `batch.age`, with a batch component"),
        ] {
            if config.remove(key).is_some() {
                self.note(format!("`config.{key}` is left out: {why}"));
            }
        }
        if self.text("profile").is_some_and(|profile| profile.contains("batch")) {
            self.note("its messages come one by one: use a batch component in the stage");
        }
        if !config.is_empty() {
            queue.insert("config".to_owned(), Value::Object(config));
        }
        queue
    }

    fn rsmq(&mut self, value: &str, mut config: Map<String, Value>) -> Map<String, Value> {
        let mut queue = Map::new();
        queue.insert("type".to_owned(), "rsmq".into());
        queue.insert("queue".to_owned(), value.into());
        let options = config.remove("options").unwrap_or_default();
        let plain =
            |value: Option<Value>| value.map(|v| v.as_str().map_or(v.to_string(), str::to_owned));
        let (host, port) = (plain(config.remove("host")), plain(config.remove("port")));
        let option = |key: &str| plain(options.get(key).cloned());
        if host.is_some() || port.is_some() || options.as_object().is_some_and(|o| !o.is_empty()) {
            let host = host.unwrap_or_else(|| "127.0.0.1".to_owned());
            let tls = option("ssl").is_some_and(|ssl| ssl.eq_ignore_ascii_case("true"));
            let user = option("username").unwrap_or_default();
            let secret = option("password").map(|_| ":${REDIS_PASSWORD}@");
            if secret.is_some() {
                self.note("the password is not carried over: set REDIS_PASSWORD");
            }
            let database = option("db").map(|db| format!("/{db}")).unwrap_or_default();
            let url = format!(
                "{}://{user}{}{host}:{}{database}",
                if tls { "rediss" } else { "redis" },
                secret.unwrap_or(if user.is_empty() { "" } else { "@" }),
                port.unwrap_or_else(|| "6379".to_owned())
            );
            queue.insert("url".to_owned(), url.into());
        }
        if let Some(vt) = config.remove("vt") {
            queue.insert("vt".to_owned(), format!("{vt}s").into());
        }
        if let Some(namespace) = config.remove("ns") {
            queue.insert("namespace".to_owned(), namespace);
        }
        if let Some(size) = config.remove("maxsize") {
            queue.insert("maxsize".to_owned(), size);
        }
        for key in config.keys() {
            self.note(format!("`config.{key}` is left out: it has no effect here"));
        }
        queue
    }

    /// The codec, where it is not JSON.
    fn codec(&mut self) -> Option<&'static str> {
        let profile = self.text("profile").unwrap_or_default();
        let serializer = match self.keys.get("serializer") {
            None if profile.contains("msgpack") => "msgpack".to_owned(),
            None if profile.ends_with("-dlq") => return None,
            None => "json".to_owned(),
            Some(Value::Null) => "none".to_owned(),
            Some(other) => other.as_str().unwrap_or_default().to_lowercase(),
        };
        if serializer.contains("msgpack") {
            return Some("messagepack");
        }
        if ["json", "none", "disabled"].iter().any(|known| serializer.contains(known)) {
            return None;
        }
        self.note(format!("the serializer `{serializer}` has no codec here; JSON is taken"));
        None
    }

    /// What is checked of payloads is in Python.
    fn model(&mut self) {
        let model = self.text("data_model").or(self.text("schema")).map(str::to_owned);
        let Some(model) = model.filter(|model| !ANY_MODEL.iter().any(|any| model.ends_with(any)))
        else {
            return;
        };
        self.note(format!(
            "`{model}` is a Python class: give the queue a `schema`, a JSON Schema \
             (`{}.model_json_schema()`) or a Rust type",
            model.rsplit('.').next().unwrap_or_default()
        ));
    }
}

/// Stages out of engines.
fn stages(
    engines: &[Engine],
    queues: &BTreeMap<String, Value>,
    notes: &mut Vec<String>,
) -> anyhow::Result<BTreeMap<String, Value>> {
    let mut stages = BTreeMap::new();
    for engine in engines {
        let mut known = |alias: &String, role: &str| {
            let is = queues.contains_key(&name(alias));
            if !is {
                notes.push(format!(
                    "stage `{}`: its {role} `{alias}` is no queue of the file, or was left out",
                    engine.name
                ));
            }
            is
        };
        if !known(&engine.input, "input") {
            continue;
        }
        let outputs: Vec<String> = engine
            .outputs
            .iter()
            .filter(|output| {
                Some(*output) != engine.dead_letters.as_ref() && known(output, "output")
            })
            .map(|output| name(output))
            .collect();
        let dead = engine.dead_letters.as_ref().filter(|dead| known(dead, "dead-letter queue"));
        let mut stage = json!({ "component": name(&engine.name), "input": name(&engine.input) });
        if !outputs.is_empty() {
            stage["outputs"] = json!(outputs);
        }
        if let Some(dead) = dead {
            stage["dead_letter"] = name(dead).into();
        }
        let mut key = name(&engine.name);
        if queues.contains_key(&key) {
            key += "-stage";
        }
        anyhow::ensure!(
            stages.insert(key.clone(), stage).is_none(),
            "{}: two engines are called `{key}`: give their functions different names",
            engine.place
        );
    }
    Ok(stages)
}

/// The pipeline file. What is JSON is YAML too.
fn write(
    place: &str,
    pipeline: &str,
    queues: &BTreeMap<String, Value>,
    stages: &BTreeMap<String, Value>,
    notes: &[String],
) -> String {
    let mut text = format!("# From {}, by `brigade import volley`.\n", one_line(place));
    if !notes.is_empty() {
        text += "#\n# Not carried over:\n";
    }
    for note in notes {
        // A string takes whatever is written to it.
        let _ = writeln!(text, "# - {}", one_line(note));
    }
    let _ = writeln!(text, "pipeline: {}", name(pipeline));
    for (title, entries) in [("queues", queues), ("stages", stages)] {
        if entries.is_empty() {
            continue;
        }
        let _ = writeln!(text, "{title}:");
        for (key, value) in entries {
            let _ = writeln!(text, "  {}: {value}", Value::from(key.as_str()));
        }
    }
    text
}

fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}
