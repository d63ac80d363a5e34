//! What overrides the file: the environment, then `--set`.

use config::{Config, Environment, ValueKind};

use crate::diagnostic::{Findings, Severity};
use crate::format::Format;
use crate::load::Overrides;
use crate::node::{Entry, Node, NodeValue, Origin};

/// Environment variables that set keys begin with this; steps are joined by two underscores:
/// `BRIGADE__STAGES__CHECK__WORKERS=4`.
const PREFIX: &str = "BRIGADE";

/// Applies the environment to a tree. Names are matched case-insensitively, since variables are
/// written in capitals; a name that matches nothing becomes a new key, in lower case, but in a
/// stage's `env` as it is spelled: there it is no key of the file but a name of the component's.
/// Values are taken verbatim: a `$` in them is left to whoever sets the variable.
pub(crate) fn lay_environment(root: &mut Node, overrides: &Overrides, findings: &mut Findings) {
    let prefix = format!("{PREFIX}__");
    for variable in overrides.no_unicode.iter().filter(|name| name.starts_with(&prefix)) {
        let message = format!("the value of the variable `{variable}` is no Unicode text");
        let origin = Origin::Variable(variable.clone());
        findings.add(Severity::Error, "variable", &origin, &[], message);
    }
    let ours = overrides.variables.iter().filter(|(name, _)| name.starts_with(&prefix));
    for (variable, value) in ours {
        // `config` splits the name, so that it means the same as in other programs that use it.
        let one = [(variable.clone(), value.clone())].into_iter().collect();
        let environment = Environment::with_prefix(PREFIX)
            .prefix_separator("__")
            .separator("__")
            .source(Some(one));
        let layer = Config::builder().add_source(environment).build();
        let Ok(layer) = layer.and_then(Config::try_deserialize::<config::Value>) else { continue };
        let origin = Origin::Variable(variable.clone());
        let steps: Vec<&str> = variable[prefix.len()..].split("__").collect();
        lay(root, &layer.kind, &origin, &steps);
    }
}

/// `steps` are those of the variable's name, as it is spelled.
fn lay(root: &mut Node, layer: &ValueKind, origin: &Origin, steps: &[&str]) {
    let (mut node, mut layer) = (root, layer);
    let own = match steps {
        [stages, _, env, name]
            if stages.eq_ignore_ascii_case("stages") && env.eq_ignore_ascii_case("env") =>
        {
            Some(*name)
        }
        _ => None,
    };
    // One variable is one value: each table has one key.
    while let ValueKind::Table(table) = layer
        && let Some((key, value)) = table.iter().next()
    {
        let key =
            own.filter(|_| !matches!(value.kind, ValueKind::Table(_))).unwrap_or(key.as_str());
        node = child_of(node, key, origin, true);
        layer = &value.kind;
    }
    *node = Node::new(NodeValue::Text(layer.to_string()), origin.clone());
    node.loose = true;
}

/// Applies `key.path=value` to a tree; the value is parsed as YAML.
pub(crate) fn lay_set(root: &mut Node, set: &str, findings: &mut Findings) {
    let origin = Origin::Set(set.to_owned());
    let Some((path, text)) = set.split_once('=') else {
        let message = format!("`--set {set}`: expected `key=value`");
        findings.add(Severity::Error, "set", &origin, &[], message);
        return;
    };
    let steps = split_path(path);
    if steps.iter().any(String::is_empty) {
        let message = format!("`--set {path}=`: the key has an empty step: expected `key=value`");
        findings.add(Severity::Error, "set", &origin, &[], message).help =
            Some("a step is a key of the file, as in `stages.check.workers=4`".to_owned());
        return;
    }
    let mut own = Findings::default();
    let Some(mut value) = Format::Yaml.parse("--set", text, &mut own) else {
        let message = format!("`--set {path}`: the value is not valid YAML");
        findings.add(Severity::Error, "set", &origin, &[], message);
        return;
    };
    rebase(&mut value, &origin);
    let mut node = root;
    for step in &steps {
        node = child_of(node, step, &origin, false);
    }
    *node = value;
}

/// Splits at dots, except inside quotes: `queues."a.b".limit`.
fn split_path(path: &str) -> Vec<String> {
    let (mut steps, mut quoted) = (vec![String::new()], false);
    for c in path.chars() {
        match c {
            '"' => quoted = !quoted,
            '.' if !quoted => steps.push(String::new()),
            c => steps.last_mut().expect("there is always one").push(c),
        }
    }
    steps
}

fn rebase(node: &mut Node, origin: &Origin) {
    node.origin = origin.clone();
    match &mut node.value {
        NodeValue::List(items) => items.iter_mut().for_each(|item| rebase(item, origin)),
        NodeValue::Map(entries) => {
            for entry in entries {
                entry.origin = origin.clone();
                rebase(&mut entry.node, origin);
            }
        }
        _ => {}
    }
}

/// The child with that name, created if it does not exist.
fn child_of<'n>(node: &'n mut Node, key: &str, origin: &Origin, loosely: bool) -> &'n mut Node {
    if let NodeValue::List(items) = &node.value
        && key.parse::<usize>().is_ok_and(|at| at < items.len())
    {
        return node.child_mut(key).expect("the place is in the list");
    }
    if !matches!(node.value, NodeValue::Map(_)) {
        node.value = NodeValue::Map(Vec::new());
    }
    let NodeValue::Map(entries) = &mut node.value else { unreachable!("it was made one") };
    let like =
        |entry: &Entry| loosely && entry.key.replace(['-', '.'], "_").eq_ignore_ascii_case(key);
    // An exact match takes precedence over a similar name.
    let same = entries.iter().rposition(|entry| entry.key == key);
    let at = same.or_else(|| entries.iter().rposition(like)).unwrap_or_else(|| {
        let node = Node::new(NodeValue::Null, origin.clone());
        entries.push(Entry { key: key.to_owned(), origin: origin.clone(), node });
        entries.len() - 1
    });
    &mut entries[at].node
}
