//! Files other than pipeline files, read with the same care.

use std::path::Path;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;

use crate::diagnostic::{Diagnostics, Findings, Severity, did_you_mean};
use crate::load::{decode, text_of};
use crate::node::{Node, NodeValue};
use crate::schema::{schema_of, validate};

/// A YAML, TOML or JSON file that was parsed into a type, and knows where its values are. Variables
/// are not substituted, and nothing overrides its keys.
#[derive(Debug)]
pub struct Document<T> {
    value: T,
    root: Node,
    findings: Findings,
}

impl<T: DeserializeOwned + JsonSchema> Document<T> {
    /// Reads a file; `what` names it in messages: "the test file".
    ///
    /// # Errors
    /// It cannot be read or parsed, or does not fit the type: everything that is wrong with it.
    pub fn read(path: &Path, what: &str) -> Result<Self, Diagnostics> {
        let (name, format, text) = text_of(path)?;
        let mut findings = Findings::default();
        let read = format.parse(&name, &text, &mut findings).and_then(|mut root| {
            if matches!(root.value, NodeValue::Null) {
                let message = format!("nothing is in {what}");
                findings.add(Severity::Error, "empty", &root.origin, &[], message);
                return None;
            }
            if !validate(&schema_of::<T>(), &mut root, &[], what, &mut findings) {
                return None;
            }
            Some((decode(&root, &mut findings)?, root))
        });
        match read {
            Some((value, root)) if !findings.has_errors() => Ok(Self { value, root, findings }),
            _ => Err(Diagnostics(findings.into_sorted())),
        }
    }

    /// The parsed value.
    pub fn value(&self) -> &T {
        &self.value
    }

    /// Reports that something at a path is wrong.
    pub fn wrong(&mut self, path: &[String], message: String) {
        let origin = &self.root.nearest(path).origin;
        self.findings.add(Severity::Error, "wrong_value", origin, path, message);
    }

    /// Reports that the key at the end of a path is not the name of anything known.
    pub fn unknown<'n>(
        &mut self,
        path: &[String],
        what: &str,
        known: impl IntoIterator<Item = &'n str>,
    ) {
        let name = path.last().map_or("", String::as_str);
        let origin = self.root.key_origin(path);
        let message = format!("no {what} `{name}`");
        self.findings.add(Severity::Error, "unknown_name", origin, path, message).help =
            did_you_mean(name, known);
    }

    /// The parsed value, if nothing was reported.
    ///
    /// # Errors
    /// Everything that was reported.
    pub fn finish(self) -> Result<T, Diagnostics> {
        match self.findings.has_errors() {
            true => Err(Diagnostics(self.findings.into_sorted())),
            false => Ok(self.value),
        }
    }
}
