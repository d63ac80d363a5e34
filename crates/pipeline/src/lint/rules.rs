//! Rules over the whole graph: circles, order, guarantees, and what queues and components can do.

use std::sync::Arc;

use brigade_core::component::Kind;
use brigade_core::connector::{Guarantee, Order, Problem, Used};
use indexmap::IndexMap;

use super::stages::Placed;
use super::{Lint, path};
use crate::file::Exhausted;
use crate::topology::{Inputs, Queue, Stage};

type Queues = IndexMap<Arc<str>, Queue>;
type Stages = IndexMap<Arc<str>, Stage>;

impl Lint<'_> {
    pub(super) fn rules(
        &mut self,
        mut queues: Queues,
        placed: IndexMap<Arc<str>, Placed>,
    ) -> (Queues, Stages) {
        for placed in placed.values() {
            self.code_rules(placed);
            self.queue_rules(placed, &queues);
        }
        let stages: Stages =
            placed.into_iter().map(|(name, placed)| (name, placed.stage)).collect();
        if stages.is_empty() {
            let help = "add one: `stages: { name: { component: log, input: queue } }`".to_owned();
            self.error("empty", &["stages"], "the pipeline has no stages".to_owned(), Some(help));
        }
        for name in stages.keys() {
            self.direct_circle(name, &stages);
        }
        self.readers(&mut queues, &stages);
        self.conflicts(&queues, &stages);
        for stage in stages.values() {
            self.exactly_once(stage, &stages, &queues);
            self.own_dead_letters(stage, &stages);
            self.order_along_edges(stage, &stages);
            self.credit_of_fed(stage);
            self.dead_letters_are_json(stage, &queues);
        }
        (queues, stages)
    }

    /// What a stage requires of its code.
    fn code_rules(&mut self, placed: &Placed) {
        let Placed { stage, kind, .. } = placed;
        let name: &str = &stage.name;
        let Some(kind) = *kind else { return };
        if stage.timeout.is_some() && kind == Kind::Sync && !stage.blocking {
            let message = format!(
                "stage `{name}`: a timeout cannot end component `{}`, which runs inline",
                stage.component.name
            );
            let help = "set `blocking: true`, or make the function async";
            self.error("timeout", &["stages", name, "timeout"], message, Some(help.to_owned()));
        }
        if stage.timeout.is_some() && kind == Kind::Batch && stage.blocking {
            let message = format!("stage `{name}`: a blocking batch cannot be ended by a timeout");
            let help = Some("remove `timeout`, or `blocking`".to_owned());
            self.error("timeout", &["stages", name, "timeout"], message, help);
        }
        if stage.batch.is_some() && kind != Kind::Batch {
            let message = format!(
                "stage `{name}`: component `{}` handles one message at a time, not batches",
                stage.component.name
            );
            let help = "remove `batch`, or make it a function of `Vec<..>`";
            self.error("batch", &["stages", name, "batch"], message, Some(help.to_owned()));
        }
        if kind == Kind::Batch && stage.order != Order::None {
            let message = format!(
                "stage `{name}`: a batch holds several messages of a key, so a retry would break \
                 their order"
            );
            let help = "remove `order`, or make it a function of one message".to_owned();
            self.error("order", &["stages", name, "order"], message, Some(help));
        }
        if stage.on_exhausted == Exhausted::Park && matches!(stage.inputs, Inputs::Direct(_)) {
            let message = format!("stage `{name}` has no queue in which messages can be parked");
            let help = "name a queue on the edge before it".to_owned();
            self.error("order", &["stages", name, "on_exhausted"], message, Some(help));
        } else if stage.on_exhausted == Exhausted::Park && stage.order != Order::Key {
            let message = format!("stage `{name}`: a message can only be parked with `order: key`");
            let help = "set `order: key`, or use `on_exhausted: dead_letter`".to_owned();
            self.error("order", &["stages", name, "on_exhausted"], message, Some(help));
        }
        if stage.order == Order::Queue && stage.workers > 1 {
            let message = format!("stage `{name}`: `order: queue` allows only one worker");
            let help = "remove `workers`, or use `order: key`".to_owned();
            self.error("order", &["stages", name, "workers"], message, Some(help));
        }
        if stage.copy && stage.outputs.len() + stage.direct.len() < 2 {
            let message =
                format!("stage `{name}`: `copy` is of no use with fewer than two outputs");
            self.warning("copy", &["stages", name, "copy"], message, None);
        }
    }

    /// What a stage requires of its queues.
    fn queue_rules(&mut self, placed: &Placed, queues: &Queues) {
        let stage = &placed.stage;
        let name: &str = &stage.name;
        for input in stage.input_queues() {
            let Some(queue) = queues.get(input) else { continue };
            let kind = &queue.type_name;
            if !queue.features.consume {
                let message = format!("nothing can be read from queue `{input}` of type {kind}");
                self.error("input", &["stages", name, "input"], message, None);
            }
            self.order_rules(stage, input, queue);
        }
        if placed.delays {
            for down in &stage.direct {
                let message = format!(
                    "component `{}` delays, but stage `{down}` is fed directly, where nothing can wait",
                    stage.component.name
                );
                let help = Some("name an `embedded` queue between them".to_owned());
                self.error("delay", &["stages", down, "input"], message, help);
            }
            for (index, output) in stage.outputs.iter().enumerate() {
                let Some(queue) = queues.get(output).filter(|queue| !queue.features.delay) else {
                    continue;
                };
                let message = format!(
                    "component `{}` delays, but queue `{output}` of type {} cannot",
                    stage.component.name, queue.type_name
                );
                let help = Some("use an `embedded` queue there".to_owned());
                self.error(
                    "delay",
                    &["stages", name, "outputs", &index.to_string()],
                    message,
                    help,
                );
            }
        }
        let outputs = stage.outputs.iter().enumerate();
        let outputs = outputs.map(|(index, queue)| (format!("outputs/{index}"), queue));
        let dead = stage.dead_letter.iter().map(|queue| ("dead_letter".to_owned(), queue));
        for (key, output) in outputs.chain(dead) {
            if let Some(queue) = queues.get(output).filter(|queue| !queue.features.produce) {
                let kind = &queue.type_name;
                let message = format!("nothing can be put on queue `{output}` of type {kind}");
                let help = "with its settings it can only be read: use another queue".to_owned();
                let at: Vec<&str> = ["stages", name].into_iter().chain(key.split('/')).collect();
                self.error("output", &at, message, Some(help));
            }
        }
    }

    fn order_rules(&mut self, stage: &Stage, input: &Arc<str>, queue: &Queue) {
        let (name, kind): (&str, _) = (&stage.name, &queue.type_name);
        let at = ["stages", name, "order"];
        let features = &queue.features;
        if stage.on_exhausted == Exhausted::Park && !features.park {
            let message = format!("queue `{input}` of type {kind} cannot park messages");
            let help = Some("use an `embedded` queue there".to_owned());
            self.error("order", &["stages", name, "on_exhausted"], message, help);
        }
        match stage.order {
            Order::None => {}
            Order::Key => {
                if features.competing && !features.key_order {
                    let message =
                        format!("queue `{input}` of type {kind} cannot keep keys in order");
                    let help = "use an `embedded` queue there, or remove `order`".to_owned();
                    self.error("order", &at, message, Some(help));
                } else if queue.spec.key.is_none() && !features.key {
                    let message =
                        format!("messages of queue `{input}` have no key to be ordered by");
                    let help = format!("set `key:` of queue `{input}` to a field of the payload");
                    self.error("order", &at, message, Some(help));
                }
            }
            Order::Queue if !features.order => {
                let message = format!("queue `{input}` of type {kind} keeps no order");
                let help = "use an `embedded` queue there, or remove `order`".to_owned();
                self.error("order", &at, message, Some(help));
            }
            Order::Queue => {}
        }
    }

    /// Whether a direct edge keeps the order that a stage on either side of it asks for: a stage
    /// without an order mixes its messages by its workers and retries.
    fn order_along_edges(&mut self, stage: &Stage, stages: &Stages) {
        let name: &str = &stage.name;
        if let Inputs::Direct(up) = &stage.inputs
            && let Some(feeding) = stages.get(up)
            && strictness(feeding.order) < strictness(stage.order)
        {
            let message = format!(
                "stage `{name}` gets its messages from stage `{up}`, which does not keep this order: its \
                 workers and retries change it"
            );
            let help = match stage.order {
                Order::Queue => format!("set `order: queue` in stage `{up}` too"),
                _ => format!("set `order: key` in stage `{up}` too"),
            };
            self.warning("order", &["stages", name, "order"], message, Some(help));
        }
        if stage.order != Order::Key || stage.outputs.is_empty() {
            return;
        }
        let Some(root) = root(stage, stages) else { return };
        // With `order: queue` nothing else is in flight beside a message and what it became; and what
        // feeds the stage is looked at above.
        if root.order == Order::Queue {
            return;
        }
        let all = line(root, stages);
        let feeds = |other: &&&Stage| line(other, stages).iter().any(|fed| fed.name == stage.name);
        let other = all.iter().filter(|other| other.order == Order::None).find(|o| !feeds(o));
        if let Some(other) = other.map(|other| &other.name) {
            let message = format!(
                "the outputs of stage `{name}` leave once stage `{other}`, which gets the same messages over direct \
                 edges, is done with them too; `{other}` has no order, so outputs of a key may leave in a different one"
            );
            let help =
                format!("set `order: key` in stage `{other}` too, or name a queue before it");
            self.warning("order", &["stages", name, "order"], message, Some(help));
        }
    }

    /// What is in flight on a direct edge is counted where it was taken from a queue.
    fn credit_of_fed(&mut self, stage: &Stage) {
        let name: &str = &stage.name;
        let Inputs::Direct(up) = &stage.inputs else { return };
        let at = ["stages", name, "max_in_flight"];
        let given = at.iter().try_fold(self.root, |node, step| node.child(step));
        if given.is_none() {
            return;
        }
        let message = format!(
            "stage `{name}` is fed directly by stage `{up}`: what both have in flight together is bounded by \
             the `max_in_flight` of the stage that reads a queue"
        );
        let help =
            "set it there; here it bounds only what comes back from the dead letters".to_owned();
        self.warning("max_in_flight", &at, message, Some(help));
    }

    /// Direct edges may not form a circle: nothing would ever be resolved.
    fn direct_circle(&mut self, name: &Arc<str>, stages: &Stages) {
        if self.findings.has("name_twice", &path(&["stages", name])) {
            return; // The queue of that name may be meant.
        }
        let up = |stage: &Arc<str>| match stages.get(stage).map(|stage| &stage.inputs) {
            Some(Inputs::Direct(up)) => Some(Arc::clone(up)),
            _ => None,
        };
        let mut walked = vec![Arc::clone(name)];
        while let Some(next) = up(&walked[walked.len() - 1]) {
            walked.push(Arc::clone(&next));
            if next == *name {
                // Reported once per circle: at the stage whose name comes first.
                if walked.iter().all(|stage| name <= stage) {
                    walked.reverse();
                    let message = format!("direct edges form a circle: {}", walked.join(" -> "));
                    let help = "name a queue on one of these edges".to_owned();
                    self.error("cycle", &["stages", name, "input"], message, Some(help));
                }
                return;
            }
            if walked.len() > stages.len() {
                return;
            }
        }
    }

    /// Which groups a queue has, and whether several stages may read it.
    fn readers(&mut self, queues: &mut Queues, stages: &Stages) {
        for (name, queue) in queues {
            let reads = |stage: &&Stage| stage.input_queues().contains(name);
            let readers: Vec<Arc<str>> =
                stages.values().filter(reads).map(|stage| Arc::clone(&stage.name)).collect();
            if readers.is_empty() && !stages.values().any(|stage| stage.writes(name)) {
                let message = format!("no stage uses queue `{name}`");
                self.warning("unused_queue", &["queues", name], message, None);
            }
            if readers.len() > 1 && !queue.features.groups {
                let message = format!(
                    "stages {} all read queue `{name}`, but a queue of type {} gives each message \
                     to one of them only",
                    readers.join(", "),
                    queue.type_name
                );
                let help = "give each stage a queue of its own, with `copy: true` before them";
                self.error("groups", &["queues", name], message, Some(help.to_owned()));
            }
            queue.spec.groups = match readers.len() {
                0 => Vec::new(),
                1 => vec!["".into()],
                _ => readers,
            };
        }
    }

    /// Queues that are the same thing under two names, and queues that cannot be both read and
    /// written.
    fn conflicts(&mut self, queues: &Queues, stages: &Stages) {
        let used = |(name, queue): (&'_ Arc<str>, &'_ Queue)| {
            let read = stages.values().any(|stage| stage.input_queues().contains(name));
            let written = stages.values().any(|stage| stage.writes(name));
            (read, written, queue.spec.clone())
        };
        let uses: Vec<_> = queues.iter().map(used).collect();
        let of = |at: usize| {
            let (read, written, queue) = &uses[at];
            Used { queue, settings: &queue.settings, read: *read, written: *written }
        };
        for (at, (name, queue)) in queues.iter().enumerate() {
            let Some(connector) = self.catalog.connector(&queue.type_name) else { continue };
            let whole = of(at);
            if whole.read && whole.written {
                let (reads, writes) =
                    (Used { written: false, ..whole }, Used { read: false, ..whole });
                if let Some(problem) = connector.conflict(reads, writes) {
                    self.conflict(name, format!("queue `{name}`"), problem);
                }
            }
            for (before, (other, first)) in queues.iter().enumerate().take(at) {
                if first.type_name != queue.type_name {
                    continue;
                }
                if let Some(problem) = connector.conflict(of(before), whole) {
                    let origin = self.root.key_origin(&path(&["queues", other]));
                    let both = format!("queues `{other}`, at {origin}, and `{name}`");
                    self.conflict(name, both, problem);
                }
            }
        }
    }

    fn conflict(&mut self, name: &str, who: String, problem: Problem) {
        let mut at = vec!["queues", name];
        at.extend(problem.path.iter().map(String::as_str));
        self.error("conflict", &at, format!("{who}: {}", problem.message), problem.help);
    }

    fn dead_letters_are_json(&mut self, stage: &Stage, queues: &Queues) {
        let dead = stage.dead_letter.as_ref().and_then(|name| queues.get_key_value(name));
        if let Some((name, _)) = dead.filter(|(_, queue)| queue.spec.registry.is_some()) {
            let message = format!(
                "stage `{}` keeps its dead letters on queue `{name}`, which has a `registry`; they are JSON",
                stage.name
            );
            let help = "remove `registry`, or use another queue".to_owned();
            self.error("queue_setting", &["queues", name, "registry"], message, Some(help));
        }
        if let Some((name, queue)) = dead.filter(|(_, queue)| !queue.codec.is_json()) {
            let message = format!(
                "stage `{}` keeps its dead letters on queue `{name}`, whose codec is {}; they are JSON",
                stage.name,
                queue.codec.as_str()
            );
            let help = "remove `codec`, or use another queue".to_owned();
            self.error("queue_setting", &["queues", name, "codec"], message, Some(help));
        }
    }

    /// A dead letter that comes back to its stage would become the payload of the next one,
    /// endlessly.
    fn own_dead_letters(&mut self, root: &Stage, stages: &Stages) {
        for stage in line(root, stages) {
            let Some(dead) = &stage.dead_letter else { continue };
            if root.input_queues().contains(dead) {
                let message = format!(
                    "stage `{}` would get its own dead letters: stage `{}` reads queue `{dead}`",
                    stage.name, root.name
                );
                let help = "name another queue, or none: then the state keeps them".to_owned();
                let at = ["stages", &*stage.name, "dead_letter"];
                self.error("dead_letter", &at, message, Some(help));
            }
        }
    }

    /// `guarantee: exactly_once` on an input requires outputs and acks in one transaction: the
    /// outputs of the stage that reads it, and of the stages that it feeds directly.
    fn exactly_once(&mut self, root: &Stage, stages: &Stages, queues: &Queues) {
        let asked = |name: &&Arc<str>| {
            queues.get(*name).is_some_and(|q| q.spec.guarantee == Guarantee::ExactlyOnce)
        };
        let inputs = root.input_queues();
        let Some(who) = inputs.iter().find(asked) else { return };
        let Some(Queue { store, type_name, .. }) = queues.get(who) else { return };
        let at = ["queues", who, "guarantee"];
        for stage in line(root, stages) {
            let fed = match stage.name == root.name {
                true => String::new(),
                false => format!(", on direct edges from stage `{}`,", root.name),
            };
            let used = stage.input_queues().iter().chain(&stage.outputs).chain(&stage.dead_letter);
            for name in used {
                let Some(queue) = queues.get(name) else { continue };
                let why = match queue.features.settle_together {
                    false => "which cannot be part of one transaction",
                    true if queue.store != *store => "which is in another store",
                    true => continue,
                };
                let message = format!(
                    "queue `{who}` asks for exactly once, but stage `{}`{fed} also uses queue `{name}` \
                     of type {}, {why}",
                    stage.name, queue.type_name
                );
                let help = "use queues that live in one store".to_owned();
                self.error("guarantee", &at, message, Some(help));
            }
            if !store.is_empty() && stage.dead_letter.is_none() {
                let message = format!(
                    "queue `{who}` asks for exactly once, but the dead letters of stage `{}`{fed} go to the \
                     state, which is another store",
                    stage.name
                );
                let help = format!("name a queue of type {type_name} as `dead_letter:`");
                self.error("guarantee", &at, message, Some(help));
            }
        }
    }
}

/// The stage at whose queue the direct edges to this one begin; `None` on a circle.
fn root<'s>(stage: &'s Stage, stages: &'s Stages) -> Option<&'s Stage> {
    let mut at = stage;
    for _ in 0..=stages.len() {
        match &at.inputs {
            Inputs::Direct(up) => at = stages.get(up)?,
            Inputs::Queues { .. } => return Some(at),
        }
    }
    None
}

/// How much an order promises: the more, the greater.
fn strictness(order: Order) -> u8 {
    match order {
        Order::None => 0,
        Order::Key => 1,
        Order::Queue => 2,
    }
}

/// A stage that reads queues, and those that it feeds directly, whose outputs go with its acks.
fn line<'s>(root: &'s Stage, stages: &'s Stages) -> Vec<&'s Stage> {
    let (mut line, mut at) = (vec![root], 0);
    while let Some(stage) = line.get(at) {
        let fed: Vec<&Stage> = stage.direct.iter().filter_map(|name| stages.get(name)).collect();
        let known = |stage: &&Stage| !line.iter().any(|known| known.name == stage.name);
        let new: Vec<&Stage> = fed.into_iter().filter(known).collect();
        line.extend(new);
        at += 1;
    }
    line
}
