//! Stages: names resolved, components built.

use std::collections::BTreeSet;
use std::sync::Arc;

use brigade_core::component::{ComponentFactory, Kind, StageSite};
use brigade_core::retry::RetryPolicy;
use brigade_core::throttle::default_burst;
use indexmap::IndexMap;
use serde_json::Value;

use super::{Depth, Lint, path};
use crate::diagnostic::{Findings, Severity};
use crate::file::{ComponentKeys, ExpireKeys, ExpireThen, InputKeys, PipelineFile, StageKeys};
use crate::load::{Catalog, CatalogComponent};
use crate::node::{Entry, Node};
use crate::schema::{inlined, validate};
use crate::topology::{Batch, ComponentChoice, Expire, Inputs, MaxInFlight, Stage, Throttle};

/// Validates the settings of the stages' components against their schemas; returns the stages whose
/// settings are wrong.
pub(crate) fn check_settings(
    root: &mut Node,
    catalog: &dyn Catalog,
    findings: &mut Findings,
) -> BTreeSet<String> {
    let given = |stage: &Entry| match stage.node.child("component")?.entries() {
        [only] => Some((stage.key.clone(), only.key.clone())),
        _ => None,
    };
    let stages = root.child("stages").map_or(&[][..], Node::entries);
    let given: Vec<(String, String)> = stages.iter().filter_map(given).collect();
    let mut wrong = BTreeSet::new();
    for (stage, component) in given {
        let Some(CatalogComponent::Factory(factory)) = catalog.component(&component) else {
            continue;
        };
        let Some(schema) = factory.schema().map(inlined) else { continue };
        let at = path(&["stages", &stage, "component", &component]);
        if !validate(&schema, root, &at, &format!("component `{component}`"), findings) {
            wrong.insert(stage);
        }
    }
    wrong
}

/// A stage, and what is known of its code.
pub(super) struct Placed {
    pub(super) stage: Stage,
    pub(super) kind: Option<Kind>,
    pub(super) delays: bool,
}

impl Lint<'_> {
    pub(super) fn stages(&mut self, file: &PipelineFile) -> IndexMap<Arc<str>, Placed> {
        let order = self.root.child("stages").map_or(&[][..], Node::entries);
        let mut placed = IndexMap::new();
        for entry in order {
            let Some(keys) = file.stages.get(&entry.key) else { continue };
            let stage = self.stage(&entry.key, keys, file);
            placed.insert(Arc::clone(&stage.name), Placed { stage, kind: None, delays: false });
        }
        join_direct(&mut placed);
        for index in 0..placed.len() {
            let (kind, delays) = self.code(&placed[index].stage);
            (placed[index].kind, placed[index].delays) = (kind, delays);
        }
        self.unused_code(&placed);
        placed
    }

    fn stage(&mut self, name: &str, keys: &StageKeys, file: &PipelineFile) -> Stage {
        let outputs = self.outputs(name, &keys.outputs, file);
        let dead_letter = keys.dead_letter.as_ref();
        let dead_letter =
            dead_letter.map(|queue| self.output(&["stages", name, "dead_letter"], queue, file));
        self.back_off(&["stages", name, "retry"], keys.retry.min, keys.retry.max);
        self.lengths_of_time(name, keys);
        let throttle = |keys: &crate::file::ThrottleKeys| Throttle {
            rate: keys.rate,
            per: keys.per.0,
            burst: keys.burst.unwrap_or_else(|| default_burst(keys.rate, keys.per.0)),
        };
        Stage {
            name: name.into(),
            component: self.component(name, &keys.component),
            inputs: self.inputs(name, &keys.input, file),
            outputs,
            direct: Vec::new(),
            copy: keys.copy,
            workers: usize::from(keys.workers),
            max_in_flight: MaxInFlight {
                messages: keys.max_in_flight.messages as usize,
                bytes: usize::try_from(keys.max_in_flight.bytes.0).unwrap_or(usize::MAX).max(1),
            },
            order: keys.order,
            batch: keys.batch.as_ref().map(|b| Batch { size: b.size as usize, age: b.age.0 }),
            retry: RetryPolicy {
                attempts: keys.retry.attempts,
                min: keys.retry.min.0,
                max: keys.retry.max.0,
            },
            timeout: keys.timeout.map(|timeout| timeout.0),
            throttle: keys.throttle.as_ref().map(throttle),
            expire: keys.expire.as_ref().map(|expire| match expire {
                ExpireKeys::After(after) => Expire { after: after.0, then: Default::default() },
                ExpireKeys::Then(ExpireThen { after, then }) => {
                    Expire { after: after.0, then: *then }
                }
            }),
            dead_letter,
            on_exhausted: keys.on_exhausted,
            blocking: keys.blocking,
            stuck_limit: usize::from(keys.stuck_limit),
            env: keys.env.clone(),
        }
    }

    /// Checks the lengths of time that must not be zero.
    fn lengths_of_time(&mut self, name: &str, keys: &StageKeys) {
        let at = |key| ["stages", name, key];
        self.not_zero(&at("timeout"), keys.timeout, "leave it out for no limit");
        let per = keys.throttle.as_ref().map(|throttle| throttle.per);
        let help = "leave it out for 1s, or `throttle` for no limit";
        self.not_zero(&["stages", name, "throttle", "per"], per, help);
        let help = "leave out `expire` for no limit";
        match &keys.expire {
            None => {}
            Some(ExpireKeys::After(after)) => self.not_zero(&at("expire"), Some(*after), help),
            Some(ExpireKeys::Then(ExpireThen { after, .. })) => {
                self.not_zero(&["stages", name, "expire", "after"], Some(*after), help);
            }
        }
    }

    fn outputs(&mut self, stage: &str, queues: &[String], file: &PipelineFile) -> Vec<Arc<str>> {
        let mut outputs: Vec<Arc<str>> = Vec::new();
        for (index, queue) in queues.iter().enumerate() {
            let at = ["stages", stage, "outputs", &index.to_string()];
            let queue = self.output(&at, queue, file);
            if outputs.contains(&queue) {
                let help = Some("remove one of the two".to_owned());
                self.error("output", &at, format!("output `{queue}` stands twice"), help);
            } else {
                outputs.push(queue);
            }
        }
        outputs
    }

    /// A queue that a stage writes to; reports a name that is not a queue.
    fn output(&mut self, at: &[&str], queue: &str, file: &PipelineFile) -> Arc<str> {
        if file.stages.contains_key(queue) {
            let message = format!("`{queue}` is a stage, not a queue");
            let help = match at {
                [.., "dead_letter"] => "name a queue, which that stage then reads".to_owned(),
                [_, stage, ..] => {
                    format!("for a direct edge set `input: {stage}` in stage `{queue}`")
                }
                _ => String::new(),
            };
            self.error("output", at, message, Some(help));
        } else if !file.queues.contains_key(queue) {
            let declared: Vec<&str> = file.queues.keys().map(String::as_str).collect();
            self.unknown("queue", at, queue, &declared);
        }
        Arc::from(queue)
    }

    fn component(&mut self, stage: &str, keys: &ComponentKeys) -> ComponentChoice {
        match keys {
            ComponentKeys::Name(name) => {
                ComponentChoice { name: name.clone(), settings: Value::Null }
            }
            ComponentKeys::Settings(map) => {
                let mut entries = map.iter();
                if let (Some((name, settings)), None) = (entries.next(), entries.next()) {
                    return ComponentChoice { name: name.clone(), settings: settings.clone() };
                }
                let names: Vec<String> = map.keys().map(|name| format!("`{name}`")).collect();
                let found = match names.as_slice() {
                    [] => "none".to_owned(),
                    names => names.join(" and "),
                };
                let message = format!("expected one component with its settings, found {found}");
                let help = "give each component a stage of its own".to_owned();
                let help = Some(help).filter(|_| !names.is_empty());
                self.error("wrong_value", &["stages", stage, "component"], message, help);
                ComponentChoice { name: String::new(), settings: Value::Null }
            }
        }
    }

    fn inputs(&mut self, stage: &str, keys: &InputKeys, file: &PipelineFile) -> Inputs {
        let known: Vec<&str> =
            file.queues.keys().chain(file.stages.keys()).map(String::as_str).collect();
        let at = ["stages", stage, "input"];
        let (names, priority) = match keys {
            InputKeys::One(name) if file.stages.contains_key(name) => {
                return Inputs::Direct(name.as_str().into());
            }
            InputKeys::One(name) => (vec![name.clone()], false),
            InputKeys::Several(names) => (names.clone(), false),
            InputKeys::Served(served) => (served.queues.clone(), served.priority),
        };
        if names.is_empty() {
            let help = Some("name a queue or a stage".to_owned());
            self.error("input", &at, format!("stage `{stage}` reads nothing"), help);
        }
        for (index, name) in names.iter().enumerate() {
            let index_text = index.to_string();
            let at: Vec<&str> = match keys {
                InputKeys::One(_) => at.to_vec(),
                InputKeys::Several(_) => at.iter().copied().chain([&*index_text]).collect(),
                InputKeys::Served(_) => {
                    at.iter().copied().chain(["queues", &*index_text]).collect()
                }
            };
            if names[..index].contains(name) {
                let help = Some("remove one of the two".to_owned());
                self.error("input", &at, format!("input `{name}` stands twice"), help);
            }
            if file.stages.contains_key(name) {
                let message = format!(
                    "stage `{name}` stands among several inputs: a stage is fed by queues, or by \
                     one stage directly"
                );
                self.error("input", &at, message, Some("name a queue between them".to_owned()));
            } else if !file.queues.contains_key(name) {
                self.unknown("queue or stage", &at, name, &known);
            }
        }
        Inputs::Queues { names: names.iter().map(|name| name.as_str().into()).collect(), priority }
    }

    /// Finds a stage's code, and builds it once to check its settings.
    fn code(&mut self, stage: &Stage) -> (Option<Kind>, bool) {
        let (name, catalog) = (&stage.component.name, self.catalog);
        let at = ["stages", &stage.name, "component"];
        if name.is_empty() {
            return (None, false); // Already reported: no component, or several.
        }
        match catalog.component(name) {
            None => {
                let known = catalog.component_names();
                self.unknown("component", &at, name, &known);
                (None, false)
            }
            Some(_) if self.depth == Depth::Names => (None, false),
            Some(CatalogComponent::Registered(component)) => {
                if !stage.component.settings.is_null() {
                    let message = format!("component `{name}` takes no settings");
                    let help = Some(format!("write `component: {name}`"));
                    self.error("component_setting", &at, message, help);
                }
                (Some(component.kind()), component.delays())
            }
            Some(CatalogComponent::Factory(_)) if self.unsettled.contains(&*stage.name) => {
                (None, false)
            }
            Some(CatalogComponent::Factory(factory)) => self.built(stage, factory),
        }
    }

    /// Builds a stage's component, and tells what is wrong with its settings.
    fn built(&mut self, stage: &Stage, factory: &dyn ComponentFactory) -> (Option<Kind>, bool) {
        let (name, settings) = (&stage.component.name, &stage.component.settings);
        let site = StageSite {
            stage: Arc::clone(&stage.name),
            outputs: stage.outputs.iter().chain(&stage.direct).cloned().collect(),
            copy: stage.copy,
            directory: self.directory.to_path_buf(),
        };
        let (built, problems, severity) = match factory.build(settings, &site) {
            Ok(component) => {
                let built = (Some(component.kind()), component.delays());
                (built, factory.warnings(settings, &site), Severity::Warning)
            }
            Err(problems) => ((None, false), problems, Severity::Error),
        };
        for problem in problems {
            let mut at = vec!["stages", &stage.name, "component", name];
            at.extend(problem.path.iter().map(String::as_str));
            let message = format!("component `{name}`: {}", problem.message);
            match severity {
                Severity::Error => self.error("component_setting", &at, message, problem.help),
                Severity::Warning => self.warning("component_setting", &at, message, problem.help),
            }
        }
        built
    }

    fn unused_code(&mut self, placed: &IndexMap<Arc<str>, Placed>) {
        let used = |name: &str| placed.values().any(|placed| placed.stage.component.name == name);
        let all = self.catalog.user_components();
        let unused: Vec<_> =
            all.iter().filter(|name| !used(name)).map(|n| format!("`{n}`")).collect();
        let message = match &unused[..] {
            [] => return,
            [one] => format!("no stage uses the component {one}"),
            several => format!("no stage uses the components {}", several.join(", ")),
        };
        self.warning("unused_component", &["stages"], message, None);
    }
}

/// Records for each stage that is fed directly the stage that feeds it.
fn join_direct(placed: &mut IndexMap<Arc<str>, Placed>) {
    let edges: Vec<(Arc<str>, Arc<str>)> = (placed.values())
        .filter_map(|placed| match &placed.stage.inputs {
            Inputs::Direct(up) => Some((Arc::clone(up), Arc::clone(&placed.stage.name))),
            Inputs::Queues { .. } => None,
        })
        .collect();
    for (up, down) in edges {
        if let Some(up) = placed.get_mut(&up) {
            up.stage.direct.push(down);
        }
    }
}
