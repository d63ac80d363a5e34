//! What is wrong with a file, and where: [`Diagnostic`] and [`Diagnostics`].

use std::fmt;

use crate::node::Origin;

/// One thing that is wrong, or that looks wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Whether it makes the file be refused.
    pub severity: Severity,
    /// A short, stable word for the kind.
    pub code: &'static str,
    /// What is wrong and what was expected.
    pub message: String,
    /// Where the value came from.
    pub origin: Origin,
    /// The key, from the top: `stages.check.workers`.
    pub path: String,
    /// What to do, if there is something to say.
    pub help: Option<String>,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The file is refused.
    Error,
    /// The file runs, but perhaps not as intended.
    Warning,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(f, "{severity}[{}]: {}\n  --> {}", self.code, self.message, self.origin)?;
        if !self.path.is_empty() {
            write!(f, " ({})", self.path)?;
        }
        match &self.help {
            Some(help) => write!(f, "\n  help: {help}"),
            None => Ok(()),
        }
    }
}

/// Everything that is wrong with a file, in the order of the file's lines.
#[derive(Clone, PartialEq, Eq)]
pub struct Diagnostics(pub Vec<Diagnostic>);

/// Formatted for people: this is how `main` and `unwrap` show an error.
impl fmt::Debug for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\n{self}")
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&texts.join("\n\n"))
    }
}

impl std::error::Error for Diagnostics {}

/// Collects diagnostics and puts them in order.
#[derive(Debug, Default)]
pub(crate) struct Findings(Vec<Diagnostic>);

impl Findings {
    pub(crate) fn add(
        &mut self,
        severity: Severity,
        code: &'static str,
        origin: &Origin,
        path: &[String],
        message: String,
    ) -> &mut Diagnostic {
        let (origin, path) = (origin.clone(), path.join("."));
        self.0.push(Diagnostic { severity, code, message, origin, path, help: None });
        self.0.last_mut().expect("it was pushed just now")
    }

    /// Whether this kind of error was found at a key.
    pub(crate) fn has(&self, code: &str, path: &[String]) -> bool {
        let path = path.join(".");
        self.0.iter().any(|finding| finding.code == code && finding.path == path)
    }

    pub(crate) fn has_errors(&self) -> bool {
        self.0.iter().any(|finding| finding.severity == Severity::Error)
    }

    pub(crate) fn into_sorted(mut self) -> Vec<Diagnostic> {
        let place = |finding: &Diagnostic| match &finding.origin {
            Origin::File { line, column, .. } => (0, *line, *column),
            Origin::Variable(_) => (1, 0, 0),
            Origin::Set(_) | Origin::Stages => (2, 0, 0),
        };
        self.0.sort_by_key(place);
        self.0.dedup();
        self.0
    }
}

/// Advice with the closest correct spelling, or with all available names.
pub(crate) fn did_you_mean<'n>(
    wrong: &str,
    right: impl IntoIterator<Item = &'n str>,
) -> Option<String> {
    const CLOSE_ENOUGH: f64 = 0.75;
    const LISTED_MAX: usize = 24;
    let right: Vec<&str> = right.into_iter().collect();
    let score = |name: &str| {
        let (wrong, name) = (wrong.to_lowercase(), name.to_lowercase());
        // Two swapped letters make a short word look like a different one.
        match strsim::damerau_levenshtein(&wrong, &name) {
            0 | 1 => 1.0,
            _ => strsim::jaro_winkler(&wrong, &name),
        }
    };
    let best = right.iter().map(|name| (score(name), *name)).max_by(|a, b| a.0.total_cmp(&b.0));
    match best {
        Some((score, name)) if score >= CLOSE_ENOUGH => Some(format!("did you mean `{name}`?")),
        Some(_) if right.len() <= LISTED_MAX => {
            let names: Vec<String> = right.iter().map(|name| format!("`{name}`")).collect();
            Some(format!("there are: {}", names.join(", ")))
        }
        _ => None,
    }
}
