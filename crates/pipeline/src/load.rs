//! From a text to a topology.

use std::path::{Path, PathBuf};

use brigade_core::component::{AnyComponent, ComponentFactory};
use brigade_core::connector::{Connector, Formats};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::coerce::substitute;
use crate::diagnostic::{Diagnostic, Diagnostics, Findings, Severity};
use crate::file::PipelineFile;
use crate::format::Format;
use crate::layers::{lay_environment, lay_set};
use crate::lint::{Depth, check_settings, lint};
use crate::node::{Node, NodeValue, Origin};
use crate::schema::{file_schema, validate, without_wrong};
use crate::topology::Topology;

/// What a pipeline file can name.
pub trait Catalog {
    /// The connector of a queue type.
    fn connector(&self, type_name: &str) -> Option<&dyn Connector>;
    /// The queue types there are.
    fn connector_types(&self) -> Vec<&str>;
    /// The component with this name.
    fn component(&self, name: &str) -> Option<CatalogComponent<'_>>;
    /// The components there are.
    fn component_names(&self) -> Vec<&str>;
    /// Those that the user wrote, for which a warning is given if no stage uses them.
    fn user_components(&self) -> Vec<&str>;
    /// The JSON Schema of a registered Rust type.
    fn schema(&self, name: &str) -> Option<&Value>;
    /// What opens schema registries, if supported.
    fn formats(&self) -> Option<&dyn Formats> {
        None
    }
}

/// A component in the catalog.
#[expect(missing_debug_implementations, reason = "components have none")]
pub enum CatalogComponent<'c> {
    /// Code.
    Registered(&'c dyn AnyComponent),
    /// Something that makes code from settings.
    Factory(&'c dyn ComponentFactory),
}

/// What overrides a file's keys, and where its variables come from.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// Environment variables: names and values.
    pub variables: Vec<(String, String)>,
    /// Overrides of the form `key.path=value`.
    pub sets: Vec<String>,
    /// Names of variables whose values are not Unicode: using one is an error.
    pub no_unicode: Vec<String>,
}

impl Overrides {
    /// This process's environment.
    pub fn from_env() -> Self {
        let mut overrides = Self::default();
        for (name, value) in std::env::vars_os() {
            // No file can name a variable whose name is not Unicode.
            let Ok(name) = name.into_string() else { continue };
            match value.into_string() {
                Ok(value) => overrides.variables.push((name, value)),
                Err(_) => overrides.no_unicode.push(name),
            }
        }
        overrides
    }

    /// The value of a variable, if it is set.
    fn variable(&self, wanted: &str) -> Result<Option<String>, String> {
        if self.no_unicode.iter().any(|name| name == wanted) {
            return Err(format!("the value of the variable `{wanted}` is no Unicode text"));
        }
        let found = self.variables.iter().find(|(name, _)| name == wanted);
        Ok(found.map(|(_, value)| value.clone()))
    }
}

/// A file that can run.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// Its graph.
    pub topology: Topology,
    /// What looks wrong but does not prevent running.
    pub warnings: Vec<Diagnostic>,
}

/// The largest file that is read.
const FILE_MAX: u64 = 16 << 20;

impl PipelineFile {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn load(
        path: &Path,
        overrides: &Overrides,
        catalog: &dyn Catalog,
    ) -> Result<Loaded, Diagnostics> {
        let (name, format, text) = text_of(path)?;
        let directory = path.parent().unwrap_or(Path::new("")).to_path_buf();
        load_str(&name, format, &text, &directory, overrides, catalog)
    }
}

/// Parses a YAML, TOML or JSON file as it is: no variables, no overrides, no checks except syntax.
///
/// # Errors
/// It cannot be read or parsed, or has a duplicate key.
pub fn read(path: &Path) -> Result<Value, Diagnostics> {
    let (name, format, text) = text_of(path)?;
    let mut findings = Findings::default();
    match format.parse(&name, &text, &mut findings) {
        Some(node) if !findings.has_errors() => Ok(node.to_json()),
        _ => Err(Diagnostics(findings.into_sorted())),
    }
}

/// A file's name, format and text.
pub(crate) fn text_of(path: &Path) -> Result<(String, Format, String), Diagnostics> {
    let name = path.display().to_string();
    let refuse = |code, message: String, help: Option<&str>| {
        let origin = Origin::File { file: name.as_str().into(), line: 1, column: 1 };
        let mut findings = Findings::default();
        findings.add(Severity::Error, code, &origin, &[], message).help = help.map(str::to_owned);
        Diagnostics(findings.into_sorted())
    };
    let format = Format::of(path).ok_or_else(|| {
        let help = Some("name it .yaml, .yml, .toml or .json");
        refuse("format", "the file's extension says no format".to_owned(), help)
    })?;
    let unreadable =
        |error: std::io::Error| refuse("unreadable", format!("it cannot be read: {error}"), None);
    let length = std::fs::metadata(path).map_err(unreadable)?.len();
    if length > FILE_MAX {
        return Err(refuse("too_large", format!("{length} bytes; at most {FILE_MAX}"), None));
    }
    let bytes = std::fs::read(path).map_err(unreadable)?;
    let text = String::from_utf8(bytes).map_err(|error| not_unicode(&name, &error))?;
    Ok((name, format, text))
}

fn not_unicode(name: &str, error: &std::string::FromUtf8Error) -> Diagnostics {
    let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
    let line = good.iter().filter(|byte| **byte == b'\n').count() + 1;
    let last = good.rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
    let column = String::from_utf8_lossy(last).chars().count() + 1;
    let origin = Origin::File { file: name.into(), line, column };
    let mut findings = Findings::default();
    let message = "the file is not UTF-8 from here on".to_owned();
    findings.add(Severity::Error, "unreadable", &origin, &[], message).help =
        Some("save it as UTF-8".to_owned());
    Diagnostics(findings.into_sorted())
}

/// Checks a text as if it were a file with this name in this directory.
///
/// # Errors
/// Everything that is wrong with it.
pub fn load_str(
    name: &str,
    format: Format,
    text: &str,
    directory: &Path,
    overrides: &Overrides,
    catalog: &dyn Catalog,
) -> Result<Loaded, Diagnostics> {
    let mut findings = Findings::default();
    let topology = check(name, format, text, directory, overrides, catalog, &mut findings);
    let wrong = findings.has_errors();
    let mut found = findings.into_sorted();
    match topology {
        Some(topology) if !wrong => Ok(Loaded { topology, warnings: found }),
        _ => {
            // What only looks wrong may do so because of the errors.
            found.retain(|finding| finding.severity == Severity::Error);
            Err(Diagnostics(found))
        }
    }
}

fn check(
    name: &str,
    format: Format,
    text: &str,
    directory: &Path,
    overrides: &Overrides,
    catalog: &dyn Catalog,
    findings: &mut Findings,
) -> Option<Topology> {
    let mut root = format.parse(name, text, findings)?;
    if matches!(root.value, NodeValue::Null) {
        let help = "begin with `pipeline`, its name; then come `queues` and `stages`".to_owned();
        let message = "nothing is in the file".to_owned();
        findings.add(Severity::Error, "empty", &root.origin, &[], message).help = Some(help);
        return None;
    }
    if !matches!(root.value, NodeValue::Map(_)) {
        let message = format!(
            "expected a mapping with `pipeline`, `queues` and `stages`, found {}",
            root.kind()
        );
        findings.add(Severity::Error, "wrong_type", &root.origin, &[], message);
        return None;
    }
    lay_environment(&mut root, overrides, findings);
    for set in &overrides.sets {
        lay_set(&mut root, set, findings);
    }
    substitute(&mut root, &mut Vec::new(), &|name| overrides.variable(name), findings);
    drop_nulls(&mut root, 0);
    let valid = validate(&file_schema(), &mut root, &[], "", findings);
    let settled = check_settings(&mut root, catalog, findings);
    if valid {
        let file: Option<PipelineFile> = decode(&root, findings);
        return lint(&mut root, file.as_ref(), &settled, Depth::All, directory, catalog, findings);
    }
    // To report wrong names as well, what was already reported is left out.
    let rest = without_wrong(&file_schema(), &root);
    let file: Option<PipelineFile> = rest.and_then(|rest| decode(&rest, &mut Findings::default()));
    lint(&mut root, file.as_ref(), &settled, Depth::Names, directory, catalog, findings)
}

/// Treats a key without a value as missing (`stages:` with nothing under it), except inside
/// free-form values, which are left alone: certain keys of queues and stages, two steps down.
fn drop_nulls(node: &mut Node, depth: usize) {
    let free_form = |key: &str| depth == 2 && matches!(key, "schema" | "component" | "template");
    if let NodeValue::Map(entries) = &mut node.value {
        entries.retain(|entry| !matches!(entry.node.value, NodeValue::Null));
        for entry in entries {
            if !free_form(&entry.key) {
                drop_nulls(&mut entry.node, depth + 1);
            }
        }
    }
}

/// Converts what was read to a type; reports what does not fit.
pub(crate) fn decode<T: DeserializeOwned>(root: &Node, findings: &mut Findings) -> Option<T> {
    match serde_path_to_error::deserialize(root.to_json()) {
        Ok(value) => Some(value),
        Err(error) => {
            let path: Vec<String> = error.path().iter().map(ToString::to_string).collect();
            let origin = root.nearest(&path).origin.clone();
            let message = format!("`{}`: {}", path.join("."), error.inner());
            findings.add(Severity::Error, "wrong_value", &origin, &path, message);
            None
        }
    }
}

/// A path in a file: relative ones start at the file's directory.
pub(crate) fn beside(directory: &Path, path: &str) -> PathBuf {
    directory.join(path)
}
