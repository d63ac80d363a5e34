//! The meaning of a file: names are resolved, and requirements compared with what queues and
//! components can do.

mod queues;
mod rules;
mod stages;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use brigade_core::Period;
use brigade_core::restart::RestartPolicy;
use indexmap::IndexMap;

use crate::changes::fingerprint;
use crate::diagnostic::{Findings, Severity, did_you_mean};
use crate::file::{MetricsChoice, PipelineFile};
use crate::load::Catalog;
use crate::node::Node;
use crate::topology::{Inputs, Queue, Stage, Topology};

pub(crate) use stages::check_settings;

/// How far a check goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    /// Names only: the rest may look wrong because of what is left out.
    Names,
    /// Everything.
    All,
}

/// Everything a check works with.
pub(crate) struct Lint<'l> {
    root: &'l Node,
    catalog: &'l dyn Catalog,
    directory: &'l Path,
    /// Stages whose components' settings were already found wrong and reported.
    unsettled: &'l BTreeSet<String>,
    depth: Depth,
    findings: &'l mut Findings,
}

/// Checks a file's meaning. Goes as far as it can, so that everything wrong is reported at once.
pub(crate) fn lint(
    root: &mut Node,
    file: Option<&PipelineFile>,
    unsettled: &BTreeSet<String>,
    depth: Depth,
    directory: &Path,
    catalog: &dyn Catalog,
    findings: &mut Findings,
) -> Option<Topology> {
    let queues = queues::check_keys(root, catalog, findings);
    let mut lint = Lint { root, catalog, directory, unsettled, depth, findings };
    let count = |kind| lint.root.child(kind).map_or(0, |node| node.entries().len());
    if let Some(message) = too_many(count("queues"), count("stages")) {
        // With too many of them, nothing else is checked.
        let help = Some("make several pipelines of it".to_owned());
        lint.error("too_many", &["stages"], message, help);
        return None;
    }
    lint.name(&["pipeline".to_owned()], root.child("pipeline").and_then(text));
    for kind in ["queues", "stages"] {
        for entry in root.child(kind).map_or(&[][..], Node::entries) {
            lint.name(&[kind.to_owned(), entry.key.clone()], Some(&entry.key));
        }
    }
    lint.one_namespace();
    let file = file?;
    lint.metrics(file);
    lint.log_level(file);
    let restart = &file.restart;
    lint.back_off(&["restart"], restart.min, restart.max);
    lint.not_zero(&["restart", "period"], Some(restart.period), "leave it out for 1m");
    let pipeline: Arc<str> = file.pipeline.as_str().into();
    let queues = lint.queues(&pipeline, &queues);
    let stages = lint.stages(file);
    if depth == Depth::Names {
        return None;
    }
    let (queues, stages) = lint.rules(queues, stages);
    if lint.findings.has_errors() {
        return None;
    }
    Some(topology(file, pipeline, directory, queues, stages))
}

fn topology(
    file: &PipelineFile,
    pipeline: Arc<str>,
    directory: &Path,
    queues: IndexMap<Arc<str>, Queue>,
    stages: IndexMap<Arc<str>, Stage>,
) -> Topology {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let restart = RestartPolicy {
        max_restarts: file.restart.max_restarts,
        period: file.restart.period.0,
        min: file.restart.min.0,
        max: file.restart.max.0,
    };
    Topology {
        pipeline,
        directory: directory.to_path_buf(),
        state: file.state.as_ref().map(PathBuf::from),
        lanes: file.lanes.map_or(cores, usize::from),
        restart,
        stop_deadline: file.stop_deadline.0,
        log_format: file.log.format,
        log_level: file.log.level.clone(),
        log_stats: Some(file.log.stats.map_or(STATS, |period| period.0)).filter(|p| !p.is_zero()),
        metrics: file.metrics.as_ref().and_then(|metrics| metrics.address().parse().ok()),
        metric_names: file.metrics.as_ref().map(MetricsChoice::names).unwrap_or_default(),
        upstream: upstream(&stages),
        fingerprint: fingerprint(&queues, &stages),
        queues,
        stages,
    }
}

/// The most queues of a pipeline, including those that the state keeps for its stages (dead
/// letters, redrives).
const QUEUES_MAX: usize = 1 << 16;

/// An error text if a pipeline has more queues and stages than can be numbered.
fn too_many(queues: usize, stages: usize) -> Option<String> {
    (queues + 2 * stages > QUEUES_MAX).then(|| {
        format!(
            "{queues} queues and {stages} stages, with two queues of its own for each stage, are more \
             than {QUEUES_MAX} queues"
        )
    })
}

/// How often stages log their counts if the file does not say.
const STATS: std::time::Duration = std::time::Duration::from_secs(60);

/// The stages, each with those that write what it reads.
fn upstream(stages: &IndexMap<Arc<str>, Stage>) -> BTreeMap<Arc<str>, Vec<Arc<str>>> {
    let writers = |queue: &Arc<str>| -> Vec<Arc<str>> {
        stages
            .values()
            .filter(|stage| stage.writes(queue))
            .map(|stage| Arc::clone(&stage.name))
            .collect()
    };
    let of = |stage: &Stage| match &stage.inputs {
        Inputs::Direct(up) => vec![Arc::clone(up)],
        Inputs::Queues { names, .. } => names.iter().flat_map(writers).collect(),
    };
    stages.iter().map(|(name, stage)| (Arc::clone(name), of(stage))).collect()
}

fn text(node: &Node) -> Option<&str> {
    match &node.value {
        crate::node::NodeValue::Text(text) => Some(text),
        _ => None,
    }
}

/// The path of a key, from the top.
pub(crate) fn path(steps: &[&str]) -> Vec<String> {
    steps.iter().map(|step| (*step).to_owned()).collect()
}

impl Lint<'_> {
    fn error(&mut self, code: &'static str, at: &[&str], message: String, help: Option<String>) {
        let path = path(at);
        let origin = match self.root.nearest(&path) {
            node if self
                .root
                .nearest(&path[..path.len().saturating_sub(1)])
                .child(at[at.len() - 1])
                .is_some() =>
            {
                &node.origin
            }
            _ => self.root.key_origin(&path),
        };
        self.findings.add(Severity::Error, code, origin, &path, message).help = help;
    }

    fn metrics(&mut self, file: &PipelineFile) {
        let Some(metrics) = &file.metrics else { return };
        let address = metrics.address();
        if address.parse::<SocketAddr>().is_err() {
            let at: &[&str] = match metrics {
                MetricsChoice::Address(_) => &["metrics"],
                MetricsChoice::Keys(_) => &["metrics", "address"],
            };
            let message = format!("`{}`: `{address}` is no address", at.join("."));
            let help = "write an IP address and a port, as in `127.0.0.1:9090`".to_owned();
            self.error("wrong_value", at, message, Some(help));
        }
    }

    /// Reports words that are not levels, and bare targets that look like a misspelt level: the
    /// logger would take those as targets and silence all others. The logger itself parses the
    /// rest.
    fn log_level(&mut self, file: &PipelineFile) {
        const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];
        let directives = file.log.level.as_deref().unwrap_or_default().split(',').map(str::trim);
        let directives = directives.filter(|directive| !directive.contains('['));
        for directive in directives.filter(|directive| !directive.is_empty()) {
            let (target, word) = match directive.rsplit_once('=') {
                Some((target, word)) => (Some(target), word.trim()),
                None if directive.contains("::") || directive.contains('_') => continue,
                None => (None, directive),
            };
            if LEVELS.contains(&word.to_lowercase().as_str()) {
                continue;
            }
            let mut help = did_you_mean(word, LEVELS);
            if let (None, Some(help)) = (target, help.as_mut().filter(|h| !h.starts_with("did"))) {
                help.push_str(&format!("; a target has a level too, as in `{word}=debug`"));
            }
            let message = format!("`log.level`: `{word}` is no level");
            self.error("wrong_value", &["log", "level"], message, help);
        }
    }

    /// Refuses a zero length of time where zero would mean the opposite of what it seems to.
    fn not_zero(&mut self, at: &[&str], period: Option<Period>, help: &str) {
        if period.is_some_and(|period| period.0.is_zero()) {
            let message = format!("`{}`: expected more than 0s", at.join("."));
            self.error("wrong_value", at, message, Some(help.to_owned()));
        }
    }

    /// Checks a back-off whose limits are in the keys `min` and `max`.
    fn back_off(&mut self, at: &[&str], min: Period, max: Period) {
        if min > max {
            let message = format!("the back-off begins at {min} but ends at {max}");
            let help = Some("make `min` at most `max`".to_owned());
            let at: Vec<&str> = at.iter().copied().chain(["min"]).collect();
            self.error("wrong_value", &at, message, help);
        }
    }

    fn warning(&mut self, code: &'static str, at: &[&str], message: String, help: Option<String>) {
        let path = path(at);
        let origin = self.root.key_origin(&path);
        self.findings.add(Severity::Warning, code, origin, &path, message).help = help;
    }

    /// A name: letters, digits, `_`, `-` and `.`, at most 100.
    fn name(&mut self, path: &[String], name: Option<&str>) {
        const NAME_MAX: usize = 100;
        let Some(name) = name else { return };
        if self.findings.has("variable", path) {
            return; // It is not known what the name is.
        }
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        if name.is_empty() || name.len() > NAME_MAX || !name.chars().all(fits) {
            let subject = match name {
                "" => "a name cannot be empty".to_owned(),
                name => format!("`{}` is no name", crate::node::shortened(name)),
            };
            let message =
                format!("{subject}: expected 1 to {NAME_MAX} letters, digits, `_`, `-` or `.`");
            // The pipeline's name is a value, those of queues and stages are keys.
            let origin = match path {
                [_] => &self.root.nearest(path).origin,
                _ => self.root.key_origin(path),
            };
            self.findings.add(Severity::Error, "name", origin, path, message);
        }
    }

    /// Stages and queues share one namespace.
    fn one_namespace(&mut self) {
        let queues = self.root.child("queues").map_or(&[][..], Node::entries);
        let stages = self.root.child("stages").map_or(&[][..], Node::entries);
        for stage in stages {
            if let Some(queue) = queues.iter().find(|queue| queue.key == stage.key) {
                let name = &stage.key;
                let message = format!("`{name}` is a stage and, at {}, also a queue", queue.origin);
                let path = path(&["stages", name]);
                self.findings.add(Severity::Error, "name_twice", &stage.origin, &path, message);
            }
        }
    }

    /// Reports a name that is not declared anywhere.
    fn unknown(&mut self, what: &str, at: &[&str], name: &str, known: &[&str]) {
        let help = did_you_mean(name, known.iter().copied());
        let help = match (what, help) {
            ("component", help) if self.catalog.user_components().is_empty() => Some(format!(
                "{}; components of your own are in your program: run its command, not `brigade`",
                help.unwrap_or_default()
            )),
            (_, help) => help,
        };
        let code = match what {
            "component" => "unknown_component",
            "queue type" => "unknown_type",
            _ => "unknown_name",
        };
        self.error(code, at, format!("no {what} `{name}`"), help);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_no_more_queues_than_can_be_numbered() {
        assert_eq!(too_many(2, 32_767), None);
        let said = too_many(1, 32_768).expect("65,537 queues");
        assert!(said.starts_with("1 queues and 32768 stages, with two queues"), "{said}");
        let last = u16::try_from(QUEUES_MAX - 1).expect("it fits into the numbers");
        assert_eq!(last, u16::MAX);
    }
}
