//! What was imported is checked against the rules of pipeline files before it is written.

use std::collections::BTreeMap;
use std::path::Path;

use brigade_pipeline::{Catalog as _, CatalogComponent, Diagnostic, Format, Overrides, load_str};
use brigade_runtime::Registry;
use serde_json::{Value, json};

use super::secrets::Secrets;

/// Kafka properties that are kept although they cannot be checked here: files that may exist where
/// the pipeline runs.
const FILE: &str = ".location";

/// The rules, and the environment that will apply.
pub(super) struct Rules<'r> {
    registry: &'r Registry,
    variables: Vec<(String, String)>,
}

impl<'r> Rules<'r> {
    pub(super) fn new(registry: &'r Registry, secrets: &Secrets) -> Self {
        let secret = |name: &String| (name.clone(), "secret".to_owned());
        Self { registry, variables: secrets.names().map(secret).collect() }
    }

    /// What is wrong with a file of these queues and stages, whose components do not exist yet.
    fn wrong(
        &self,
        queues: &BTreeMap<String, Value>,
        stages: &BTreeMap<String, Value>,
    ) -> Vec<Diagnostic> {
        let queues: BTreeMap<&String, Value> =
            queues.iter().map(|(name, queue)| (name, complete(queue))).collect();
        let mut stages = stages.clone();
        for stage in stages.values_mut() {
            let outputs = stage.get("outputs").and_then(Value::as_array).map_or(0, Vec::len);
            stage["component"] = if outputs == 0 { "log" } else { "pass" }.into();
            if outputs > 1 {
                // Which message goes to which output is in the component.
                stage["copy"] = true.into();
            }
        }
        let file = json!({ "pipeline": "imported", "queues": queues, "stages": stages });
        let overrides = Overrides { variables: self.variables.clone(), ..Overrides::default() };
        let (text, here) = (file.to_string(), Path::new(""));
        let loaded = load_str("imported", Format::Json, &text, here, &overrides, self.registry);
        loaded.map_or_else(|wrong| wrong.0, |_| Vec::new())
    }

    /// Whether a stage of this name's component would be one of Brigade's own, not one that the
    /// program registers.
    pub(super) fn is_built_in(&self, component: &str) -> bool {
        matches!(self.registry.component(component), Some(CatalogComponent::Factory(_)))
    }

    /// What is wrong with the name of the pipeline.
    pub(super) fn name(&self, pipeline: &str) -> Option<String> {
        let text = json!({ "pipeline": pipeline, "queues": {}, "stages": {} }).to_string();
        let (overrides, here) = (Overrides::default(), Path::new(""));
        let loaded = load_str("imported", Format::Json, &text, here, &overrides, self.registry);
        let wrong = loaded.err()?.0.into_iter().find(|one| one.path == "pipeline")?;
        Some(wrong.message)
    }

    /// Removes from a queue what is wrong with it. Returns `None` if nothing is left.
    pub(super) fn queue(
        &self,
        name: &str,
        mut queue: Value,
        mut note: impl FnMut(String),
    ) -> Option<Value> {
        let stages = BTreeMap::from([(format!("{name}-stage"), json!({ "input": name }))]);
        for missing in missing_files(&queue) {
            note(format!(
                "`config.{missing}` names a file that is not here: it has to be where it runs"
            ));
        }
        loop {
            let alone = BTreeMap::from([(name.to_owned(), queue.clone())]);
            let wrong = self.wrong(&alone, &stages);
            let top = format!("queues.{name}.");
            let mut at = wrong.iter().filter_map(|one| Some((one.path.strip_prefix(&top)?, one)));
            let Some((key, one)) = at.next() else {
                return Some(queue);
            };
            let message = one.message.strip_prefix(&format!("queue `{name}`: "));
            let message = message.unwrap_or(&one.message);
            if key == "type" {
                note(format!("not checked: {message}"));
                return Some(queue);
            }
            // Without its name in the other system it would be a different queue.
            let is_where = ["topic", "topics", "queue", "url"].iter().any(|of| {
                key.strip_prefix(of).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            });
            if is_where || !remove(&mut queue, key) {
                note(format!("left out: {message}"));
                return None;
            }
            note(format!("`{key}` is left out: {message}"));
        }
    }

    /// What is wrong with the whole, if its queues alone are right.
    pub(super) fn all(
        &self,
        queues: &BTreeMap<String, Value>,
        stages: &BTreeMap<String, Value>,
    ) -> Vec<String> {
        let is_known = |queue: &Value| {
            let kind = queue["type"].as_str().unwrap_or_default();
            self.registry.connector_of(kind).is_some()
        };
        // A queue of a type that this program lacks was already reported.
        if stages.is_empty() || !queues.values().all(is_known) {
            return Vec::new();
        }
        let wrong = self.wrong(queues, stages);
        wrong.iter().map(|one| format!("to be mended: `{}`: {}", one.path, one.message)).collect()
    }
}

/// A queue with what its environment will provide, and without what exists only there.
fn complete(queue: &Value) -> Value {
    let (mut queue, missing) = (queue.clone(), missing_files(queue));
    if queue["type"] == "kafka" {
        if queue.get("config").is_none() {
            queue["config"] = json!({});
        }
        if let Some(config) = queue["config"].as_object_mut() {
            missing.iter().for_each(|name| drop(config.shift_remove(name)));
            if ["bootstrap.servers", "metadata.broker.list"]
                .iter()
                .all(|key| !config.contains_key(*key))
            {
                config.insert("bootstrap.servers".to_owned(), "localhost:9092".into());
            }
        }
    }
    queue
}

/// The properties that name files which do not exist on this machine.
fn missing_files(queue: &Value) -> Vec<String> {
    let config = queue.get("config").and_then(Value::as_object);
    // `probe` is not a file: it means wherever the system has it.
    let is_there = |path: &str| path == "probe" || Path::new(path).exists();
    let is_missing = |value: &Value| value.as_str().is_some_and(|path| !is_there(path));
    let files = config.into_iter().flatten().filter(|(name, _)| name.ends_with(FILE));
    files.filter(|(_, path)| is_missing(path)).map(|(name, _)| name.clone()).collect()
}

/// Removes a key from the queue, or from a mapping in it.
fn remove(queue: &mut Value, key: &str) -> bool {
    let Some(keys) = queue.as_object_mut() else { return false };
    if keys.shift_remove(key).is_some() {
        return true;
    }
    keys.iter_mut().any(|(above, below)| {
        let Some(below) = below.as_object_mut() else { return false };
        let key = key.strip_prefix(above).and_then(|key| key.strip_prefix('.'));
        key.is_some_and(|key| below.shift_remove(key).is_some())
    })
}
