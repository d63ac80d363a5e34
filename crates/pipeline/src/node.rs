//! The file as a tree in which every value knows where it came from.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde_json::{Map, Number, Value};

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// From a file; line and column count from 1, columns in characters.
    File {
        /// The file's name.
        file: Arc<str>,
        /// The line.
        line: usize,
        /// The column.
        column: usize,
    },
    /// From an environment variable.
    Variable(String),
    /// From a `--set`, as given.
    Set(String),
    /// From the choice of stages that run here.
    Stages,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { file, line, column } => write!(f, "{file}:{line}:{column}"),
            Self::Variable(name) => write!(f, "environment variable {name}"),
            // The value may be a secret.
            Self::Set(text) => write!(f, "--set {}", text.split('=').next().unwrap_or_default()),
            Self::Stages => f.write_str("--stage"),
        }
    }
}

/// A value and where it came from.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) value: NodeValue,
    pub(crate) origin: Origin,
    /// A text whose type was not written by hand (a variable's value): it becomes a number or a
    /// boolean where one is expected.
    pub(crate) loose: bool,
    /// The text in the file before variables were substituted.
    pub(crate) written: Option<Arc<str>>,
}

#[derive(Debug, Clone)]
pub(crate) enum NodeValue {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key, its position, and its value.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) origin: Origin,
    pub(crate) node: Node,
}

impl Node {
    pub(crate) fn new(value: NodeValue, origin: Origin) -> Self {
        Self { value, origin, loose: false, written: None }
    }

    /// The value as JSON; a duplicate key has its last value.
    pub(crate) fn to_json(&self) -> Value {
        match &self.value {
            NodeValue::Null => Value::Null,
            NodeValue::Bool(bool) => Value::Bool(*bool),
            NodeValue::Number(number) => Value::Number(number.clone()),
            NodeValue::Text(text) => Value::String(text.clone()),
            NodeValue::List(items) => items.iter().map(Self::to_json).collect(),
            NodeValue::Map(entries) => {
                let pairs = entries.iter().map(|e| (e.key.clone(), e.node.to_json()));
                Value::Object(pairs.collect::<Map<_, _>>())
            }
        }
    }

    pub(crate) fn entry(&self, key: &str) -> Option<&Entry> {
        match &self.value {
            NodeValue::Map(entries) => entries.iter().rev().find(|entry| entry.key == key),
            _ => None,
        }
    }

    pub(crate) fn entries(&self) -> &[Entry] {
        match &self.value {
            NodeValue::Map(entries) => entries,
            _ => &[],
        }
    }

    /// One step down: a key, or an index in a list.
    pub(crate) fn child(&self, step: &str) -> Option<&Self> {
        match &self.value {
            NodeValue::Map(_) => self.entry(step).map(|entry| &entry.node),
            NodeValue::List(items) => items.get(step.parse::<usize>().ok()?),
            _ => None,
        }
    }

    pub(crate) fn child_mut(&mut self, step: &str) -> Option<&mut Self> {
        match &mut self.value {
            NodeValue::Map(entries) => {
                entries.iter_mut().rev().find(|entry| entry.key == step).map(|e| &mut e.node)
            }
            NodeValue::List(items) => items.get_mut(step.parse::<usize>().ok()?),
            _ => None,
        }
    }

    /// The node at a path, or the nearest one above it.
    pub(crate) fn nearest(&self, path: &[String]) -> &Self {
        let mut node = self;
        for step in path {
            match node.child(step) {
                Some(child) => node = child,
                None => break,
            }
        }
        node
    }

    pub(crate) fn at_mut(&mut self, path: &[String]) -> Option<&mut Self> {
        path.iter().try_fold(self, |node, step| node.child_mut(step))
    }

    /// The position of the key at the end of a path, or of the nearest thing above it.
    pub(crate) fn key_origin(&self, path: &[String]) -> &Origin {
        let Some((last, above)) = path.split_last() else { return &self.origin };
        let parent = self.nearest(above);
        parent.entry(last).map_or(&self.nearest(path).origin, |entry| &entry.origin)
    }

    /// What kind of value it is, in readable form.
    pub(crate) fn kind(&self) -> String {
        let kind = self.plain_kind();
        match &self.written {
            Some(written) => format!("{kind}, out of `{}`", shortened(written)),
            None => kind,
        }
    }

    fn plain_kind(&self) -> String {
        match &self.value {
            NodeValue::Null => "nothing".to_owned(),
            NodeValue::Bool(bool) => format!("`{bool}`"),
            NodeValue::Number(number) => format!("the number {number}"),
            NodeValue::Text(text) => format!("the text `{}`", shortened(text)),
            NodeValue::List(_) => "a list".to_owned(),
            NodeValue::Map(_) => "a mapping".to_owned(),
        }
    }
}

/// The first characters of a text, escaped, for messages; the password in a URL is left out.
pub(crate) fn shortened(text: &str) -> String {
    const SHOWN_MAX: usize = 40;
    let text = &without_password(text);
    let mut shown: String = text.chars().take(SHOWN_MAX).flat_map(char::escape_debug).collect();
    if text.chars().count() > SHOWN_MAX {
        shown.push('…');
    }
    shown
}

/// A URL with `***` in place of its password; any other text unchanged.
fn without_password(text: &str) -> Cow<'_, str> {
    let parts = || {
        let (scheme, rest) = text.split_once("://")?;
        // A password may itself contain an `@`.
        let (user, host) = rest.rsplit_once('@')?;
        let (user, _) = user.split_once(':')?;
        Some(format!("{scheme}://{user}:***@{host}"))
    };
    parts().map_or(Cow::Borrowed(text), Cow::Owned)
}

/// A plain word as YAML's core schema reads it: null, a boolean, a number, or text.
pub(crate) fn plain(text: &str) -> NodeValue {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return NodeValue::Null,
        "true" | "True" | "TRUE" => return NodeValue::Bool(true),
        "false" | "False" | "FALSE" => return NodeValue::Bool(false),
        _ => {}
    }
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let numeric = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    if numeric {
        let unsigned = text.strip_prefix('+').unwrap_or(text);
        if let Ok(number) = unsigned.parse::<i64>() {
            return NodeValue::Number(number.into());
        }
        if let Ok(number) = unsigned.parse::<u64>() {
            return NodeValue::Number(number.into());
        }
        if let Some(number) = unsigned.parse().ok().and_then(Number::from_f64) {
            return NodeValue::Number(number);
        }
    }
    NodeValue::Text(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_password_is_shown() {
        for (text, shown) in [
            ("redis://bob:hunter2@h/0", "redis://bob:***@h/0"),
            ("rediss://:hun@ter2@h", "rediss://:***@h"),
            ("redis://bob@h", "redis://bob@h"),
            ("redis://h:1", "redis://h:1"),
            ("many", "many"),
        ] {
            assert_eq!(shortened(text), shown);
        }
        let set = Origin::Set("queues.in.url=redis://bob:hunter2@h?a=b".to_owned());
        assert_eq!(set.to_string(), "--set queues.in.url");
    }
}
