//! YAML, TOML and JSON, parsed into one kind of tree.

mod json;
mod toml;
mod yaml;

use std::cell::Cell;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use crate::diagnostic::{Findings, Severity};
use crate::node::{Entry, Node, NodeValue, Origin};

/// A pipeline file's format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// YAML 1.2.
    Yaml,
    /// TOML 1.1.
    Toml,
    /// JSON.
    Json,
}

impl Format {
    /// The format for a file's extension: `.yaml`, `.yml`, `.toml`, `.json`.
    pub fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "yaml" | "yml" => Some(Self::Yaml),
            "toml" => Some(Self::Toml),
            "json" => Some(Self::Json),
            _ => None,
        }
    }

    /// Parses a text; a syntax error is one finding.
    pub(crate) fn parse(self, file: &str, text: &str, findings: &mut Findings) -> Option<Node> {
        // Some editors put a byte order mark before the text.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let places = Places::new(file, text);
        if text.trim().is_empty() {
            return Some(Node::new(NodeValue::Null, places.at(1, 1)));
        }
        let result = match self {
            Self::Yaml => yaml::parse(text, &places),
            Self::Toml => toml::parse(text, &places),
            Self::Json => json::parse(text, &places),
        };
        match result {
            Ok(node) => {
                refuse_duplicates(&node, &mut Vec::new(), findings);
                Some(node)
            }
            Err(SyntaxError { origin, message, help }) => {
                findings.add(Severity::Error, "syntax", &origin, &[], message).help = help;
                None
            }
        }
    }
}

/// A syntax error.
struct SyntaxError {
    origin: Origin,
    message: String,
    help: Option<String>,
}

impl SyntaxError {
    fn new(origin: Origin, message: impl Into<String>) -> Self {
        Self { origin, message: message.into(), help: None }
    }

    fn help(self, help: Option<&str>) -> Self {
        Self { help: help.map(str::to_owned), ..self }
    }
}

/// The deepest nesting that is read, so that no file can exhaust the stack.
const DEPTH_MAX: usize = 64;

/// Finds lines and columns.
pub(crate) struct Places<'t> {
    file: Arc<str>,
    text: &'t str,
    /// Where lines begin, in bytes.
    lines: Vec<usize>,
    /// The last place queried, in bytes, and the number of characters before it in its line.
    last: Cell<(usize, usize)>,
}

impl<'t> Places<'t> {
    fn new(file: &str, text: &'t str) -> Self {
        let breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        let lines = std::iter::once(0).chain(breaks.map(|(at, _)| at + 1)).collect();
        Self { file: file.into(), text, lines, last: Cell::new((0, 0)) }
    }

    fn at_byte(&self, byte: usize) -> Origin {
        let byte = byte.min(self.text.len());
        let line = self.lines.partition_point(|start| *start <= byte).max(1);
        let start = self.lines[line - 1];
        // Lines may be long, and places are queried one after the other.
        let last = self.last.get();
        let (from, before) = if (start..=byte).contains(&last.0) { last } else { (start, 0) };
        let Some(since) = self.text.get(from..byte) else { return self.at(line, 1) };
        let before = before + since.chars().count();
        self.last.set((byte, before));
        self.at(line, before + 1)
    }

    fn at(&self, line: usize, column: usize) -> Origin {
        Origin::File { file: Arc::clone(&self.file), line, column }
    }
}

fn refuse_duplicates(node: &Node, path: &mut Vec<String>, findings: &mut Findings) {
    if let NodeValue::List(items) = &node.value {
        for (at, item) in items.iter().enumerate() {
            path.push(at.to_string());
            refuse_duplicates(item, path, findings);
            path.pop();
        }
    }
    let entries: &[Entry] = node.entries();
    let mut firsts = HashMap::with_capacity(entries.len());
    for entry in entries {
        path.push(entry.key.clone());
        let first: &Entry = firsts.entry(&*entry.key).or_insert(entry);
        if !std::ptr::eq(first, entry) {
            let message = format!("key `{}` stands twice; first at {}", entry.key, first.origin);
            findings.add(Severity::Error, "duplicate_key", &entry.origin, path, message);
        }
        refuse_duplicates(&entry.node, path, findings);
        path.pop();
    }
}
