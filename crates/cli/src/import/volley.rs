//! Volley's file of queues as a pipeline file.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use brigade_runtime::Registry;
use serde_json::{Map, Value, json};

use super::checked::Rules;
use super::engines::Program;
use super::queue::Queue;
use super::secrets::Secrets;

/// A pipeline file, and notes on what could not be carried over from the other file.
pub(super) struct Imported {
    pub(super) text: String,
    pub(super) notes: Vec<String>,
}

/// Translates; `place` names the file in messages.
///
/// # Errors
/// It is not a file of Volley's, or one of its queues lacks something it needs.
pub(super) fn import(
    place: &str,
    config: &Value,
    program: &Program,
    pipeline: &str,
    registry: &Registry,
) -> anyhow::Result<Imported> {
    let (mut notes, mut secrets) = (Vec::new(), Secrets::default());
    let (mut names, mut translated) = (BTreeMap::new(), Vec::new());
    for (alias, keys) in entries(place, &merged(config))? {
        anyhow::ensure!(!names.contains_key(&alias), "{place}: two queues are called `{alias}`");
        let own = free(&name(&alias), |name| names.values().any(|taken| taken == name));
        if own != name(&alias) {
            let text = format!("it is `{own}` here, as another is `{}` already", name(&alias));
            notes.push(format!("queue `{alias}`: {text}"));
        }
        names.insert(alias.clone(), own.clone());
        let queue = Queue { alias: &alias, keys, notes: &mut notes, secrets: &mut secrets };
        if let Some(queue) = queue.translate(place)? {
            translated.push((alias, own, queue));
        }
    }
    let rules = Rules::new(registry, &secrets);
    if let Some(wrong) = rules.name(&name(pipeline)) {
        anyhow::bail!("{place}: the pipeline's name: {wrong}: give it another one with `--name`");
    }
    let mut queues: BTreeMap<String, Value> = BTreeMap::new();
    for (alias, own, queue) in translated {
        let note = |text: String| notes.push(format!("queue `{alias}`: {text}"));
        if let Some(queue) = rules.queue(&own, queue, note) {
            queues.insert(own, queue);
        }
    }
    let queue_of = |alias: &str| {
        let name = names.get(alias).filter(|name| queues.contains_key(*name));
        name.cloned()
    };
    let stages = stages(program, &queues, queue_of, &rules, &mut notes)?;
    notes.extend(without(program));
    notes.extend(rules.all(&queues, &stages));
    Ok(Imported { text: write(place, pipeline, &queues, &stages, &notes), notes })
}

/// The file with YAML's merge keys (`<<`) applied: a mapping's own keys take precedence.
fn merged(value: &Value) -> Value {
    match value {
        Value::Array(items) => items.iter().map(merged).collect(),
        Value::Object(keys) => {
            let mut all = Map::new();
            let own = keys.iter().filter(|(key, _)| *key != "<<");
            all.extend(own.map(|(key, value)| (key.clone(), merged(value))));
            let others = match keys.get("<<") {
                Some(Value::Array(others)) => others.iter().map(merged).collect(),
                Some(other) => vec![merged(other)],
                None => Vec::new(),
            };
            for other in others {
                for (key, value) in other.as_object().into_iter().flatten() {
                    all.entry(key.clone()).or_insert_with(|| value.clone());
                }
            }
            Value::Object(all)
        }
        other => other.clone(),
    }
}

/// A name that is not taken.
fn free(name: &str, is_taken: impl Fn(&String) -> bool) -> String {
    let numbered = (2..).map(|number: u32| format!("{name}-{number}"));
    let mut names = std::iter::once(name.to_owned()).chain(numbered);
    names.find(|name| !is_taken(name)).unwrap_or_else(|| name.to_owned())
}

/// Why there are no stages.
fn without(program: &Program) -> Vec<String> {
    if program.engines.is_empty() && program.without.is_empty() {
        let text = "no stages: which component stands between which queues is in the Python code; name \
                    its files too";
        return vec![text.to_owned()];
    }
    let without = program.without.iter().map(|file| {
        format!(
            "no stages out of {file}: no call of `Engine(..)` is there; one by another name is not \
             found"
        )
    });
    without.collect()
}

/// The queues by their aliases: a list or a mapping, under the key `queues` or alone.
fn entries(place: &str, config: &Value) -> anyhow::Result<Vec<(String, Map<String, Value>)>> {
    let keys = |alias: &str, keys: &Value| match keys {
        Value::Object(keys) => Ok(keys.clone()),
        _ => anyhow::bail!("{place}: queue `{alias}`: expected a mapping"),
    };
    // A mapping of queues has one that is called `value`, perhaps; what a queue's `value` is, is a text.
    let is_queue = |queue: &Value| queue.get("value").is_some_and(|value| !value.is_object());
    let alone = match config {
        Value::Array(_) => true,
        Value::Object(queues) => !queues.is_empty() && queues.values().all(is_queue),
        _ => false,
    };
    match if alone { Some(config) } else { config.get("queues") } {
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

/// A name that pipeline files accept.
fn name(alias: &str) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    alias.chars().map(|c| if fits(c) { c } else { '-' }).collect()
}

/// The stages made from engines.
fn stages(
    program: &Program,
    queues: &BTreeMap<String, Value>,
    queue_of: impl Fn(&str) -> Option<String>,
    rules: &Rules<'_>,
    notes: &mut Vec<String>,
) -> anyhow::Result<BTreeMap<String, Value>> {
    let mut stages = BTreeMap::new();
    for engine in &program.engines {
        let component = name(&engine.name);
        let key = match queues.contains_key(&component) {
            true => format!("{component}-stage"),
            false => component.clone(),
        };
        let mut known = |alias: &String, role: &str| {
            let queue = queue_of(alias);
            if queue.is_none() {
                notes.push(format!(
                    "stage `{key}`: its {role} `{alias}` is no queue of the file, or was left out"
                ));
            }
            queue
        };
        let Some(input) = known(&engine.input, "input") else { continue };
        let outputs: Vec<String> = engine
            .outputs
            .iter()
            .filter(|output| Some(*output) != engine.dead_letters.as_ref())
            .filter_map(|output| known(output, "output"))
            .collect();
        let dead = engine.dead_letters.as_ref();
        let dead = dead.and_then(|dead| known(dead, "dead-letter queue"));
        notes.extend(engine.notes.iter().map(|note| format!("stage `{key}`: {note}")));
        if rules.is_built_in(&component) {
            notes.push(format!(
                "stage `{key}`: there is a component `{component}` that is made from settings, which is taken \
                 until the program has one of this name, or the stage names another"
            ));
        }
        let mut stage = json!({ "component": component, "input": input });
        if !outputs.is_empty() {
            stage["outputs"] = json!(outputs);
        }
        if let Some(dead) = dead {
            stage["dead_letter"] = dead.into();
        }
        anyhow::ensure!(
            stages.insert(key.clone(), stage).is_none(),
            "{}: two engines are called `{key}`: give their functions different names",
            engine.place
        );
    }
    Ok(stages)
}

/// The pipeline file. JSON is valid YAML.
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
        // Writing to a string cannot fail.
        let _ = writeln!(text, "# - {}", one_line(note));
    }
    let _ = writeln!(text, "pipeline: {}", written(&name(pipeline)));
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

/// A name as YAML reads it as text: unquoted only if it cannot be taken for anything else.
fn written(name: &str) -> String {
    let is_word = name.starts_with(|c: char| c.is_ascii_alphabetic());
    let is_value = ["true", "false", "null"].iter().any(|value| name.eq_ignore_ascii_case(value));
    if is_word && !is_value { name.to_owned() } else { Value::from(name).to_string() }
}

fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}
