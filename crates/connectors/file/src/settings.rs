use std::path::{Component, Path, PathBuf};

use brigade_core::ByteSize;
use brigade_core::connector::ConnectorError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What makes a path a glob.
pub(crate) const GLOB: [char; 3] = ['*', '?', '['];
/// As files are looked for: what stands for characters stands for no `/`.
pub(crate) const BY_COMPONENT: glob::MatchOptions = glob::MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: false,
};

/// The keys of a file queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// The file. `-` is standard input or output; for reading, a glob such as `in/*.jsonl`.
    pub(crate) path: String,
    /// How messages stand in it. Default: by extension: `.csv`; everything else lines.
    #[serde(default)]
    pub(crate) format: Option<FileFormat>,
    /// Compression. Default: by extension: `.gz`, `.zst`.
    #[serde(default)]
    pub(crate) compression: Option<Compression>,
    /// Whether to wait for more at the end, across rotation and truncation.
    #[serde(default)]
    pub(crate) follow: bool,
    /// Longer lines become dead letters with their beginning, length, hash and byte range.
    #[serde(default = "max_message_bytes")]
    pub(crate) max_message_bytes: ByteSize,
}

/// How messages stand in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FileFormat {
    /// A JSON value a line.
    JsonLines,
    /// A header line, then a record a line; each becomes a JSON object of texts. Reading only.
    Csv,
    /// A message a line, whatever stands in it. It becomes a text with the queue's `codec: text`;
    /// without that components read it as JSON.
    Lines,
}

/// Compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Compression {
    /// None.
    None,
    /// gzip, of one or more members.
    Gzip,
    /// Zstandard, of one or more frames.
    Zstd,
}

/// As what a file is read: what its records' numbers and positions hang on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Form {
    pub(crate) csv: bool,
    pub(crate) compression: Compression,
}

impl std::fmt::Display for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.csv { "CSV" } else { "lines" })?;
        f.write_str(match self.compression {
            Compression::None => "",
            Compression::Gzip => " with gzip",
            Compression::Zstd => " with zstd",
        })
    }
}

impl Form {
    pub(crate) const LINES: Self = Self { csv: false, compression: Compression::None };
}

fn max_message_bytes() -> ByteSize {
    ByteSize(16 << 20)
}

impl Settings {
    pub(crate) fn is_standard(&self) -> bool {
        self.path == "-"
    }

    /// Whether it may name several files.
    pub(crate) fn is_glob(&self) -> bool {
        self.path.contains(GLOB)
    }

    /// Whether a file may be one of both, as far as paths say it.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        if self.is_standard() || other.is_standard() {
            return self.is_standard() && other.is_standard();
        }
        let (one, other) = (self.place(), other.place());
        one.names(other) || other.names(one)
    }

    fn place(&self) -> Place<'_> {
        Place { path: Path::new(&self.path), is_glob: self.is_glob() }
    }

    pub(crate) fn max_message_bytes(&self) -> usize {
        usize::try_from(self.max_message_bytes.0).unwrap_or(usize::MAX).max(1)
    }

    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(&self.path)
    }

    pub(crate) fn compression_of(&self, path: &Path) -> Compression {
        self.compression.unwrap_or_else(|| match extension(path).as_deref() {
            Some("gz") => Compression::Gzip,
            Some("zst") => Compression::Zstd,
            _ => Compression::None,
        })
    }

    /// Whether what is appended to a file can be read as it comes: only plain lines have no beginning that
    /// is needed for it.
    pub(crate) fn can_follow(&self, path: &Path) -> bool {
        self.compression_of(path) == Compression::None && self.format_of(path) != FileFormat::Csv
    }

    pub(crate) fn form_of(&self, path: &Path) -> Form {
        let csv = self.format_of(path) == FileFormat::Csv;
        Form { csv, compression: self.compression_of(path) }
    }

    pub(crate) fn format_of(&self, path: &Path) -> FileFormat {
        self.format.unwrap_or_else(|| {
            let inner = match extension(path).as_deref() {
                Some("gz" | "zst") => path.with_extension(""),
                _ => path.to_path_buf(),
            };
            match extension(&inner).as_deref() {
                Some("csv") => FileFormat::Csv,
                _ => FileFormat::JsonLines,
            }
        })
    }
}

/// What a path names, for telling whether two may name the same.
#[derive(Clone, Copy)]
struct Place<'p> {
    path: &'p Path,
    is_glob: bool,
}

impl Place<'_> {
    /// Whether this may be, or find, the file of another path.
    fn names(self, other: Self) -> bool {
        // Most names differ: only else it is worth to look where the directories are.
        let (Some(name), Some(other_name)) = (self.path.file_name(), other.path.file_name()) else {
            return false;
        };
        if !self.is_glob {
            return name == other_name && self.resolved() == other.resolved();
        }
        let matches = |pattern: &str, path: &Path| {
            let pattern = glob::Pattern::new(pattern);
            pattern.is_ok_and(|pattern| pattern.matches_path_with(path, BY_COMPONENT))
        };
        let (Some(name), other_name) = (name.to_str(), Path::new(other_name)) else { return false };
        if name != "**" && !matches(name, other_name) {
            return false;
        }
        let ((base, wildcards), (base_of_other, rest_of_other)) =
            (self.resolved(), other.resolved());
        let pattern = base.join("").to_str().map(glob::Pattern::escape);
        let pattern = pattern.zip(wildcards.to_str()).map(|(base, rest)| base + rest);
        pattern.is_some_and(|pattern| matches(&pattern, &base_of_other.join(rest_of_other)))
    }

    /// The directory, without `..` and links, and from the first wildcard, or the name of the file,
    /// on the rest. A directory that is not there yet is none that a link leads to.
    fn resolved(self) -> (PathBuf, PathBuf) {
        let whole = std::path::absolute(self.path).unwrap_or_default();
        let (mut base, mut rest) = (PathBuf::new(), PathBuf::new());
        let mut parts = whole.components().peekable();
        while let Some(part) = parts.next() {
            let text = part.as_os_str().to_str().unwrap_or_default();
            let is_wildcard = self.is_glob && text.contains(GLOB);
            if part == Component::ParentDir {
                let _ = rest.pop() || base.pop();
            } else if is_wildcard || !rest.as_os_str().is_empty() || parts.peek().is_none() {
                rest.push(part);
            } else {
                base.push(part);
                base = base.canonicalize().unwrap_or(base);
            }
        }
        (base, rest)
    }
}

fn extension(path: &Path) -> Option<String> {
    Some(path.extension()?.to_str()?.to_ascii_lowercase())
}

/// Refuses pipes and devices: they cannot be read from a position, and what was appended to them
/// cannot be cut off again. Opening one might wait for its other end.
pub(crate) fn refuse_special(path: &Path, standard: &str) -> Result<(), ConnectorError> {
    let special = |found: std::fs::Metadata| !found.is_file() && !found.is_dir();
    match std::fs::metadata(path).is_ok_and(special) {
        true => Err(ConnectorError::permanent(format!(
            "{} is not a regular file: give a file's path, or `-` for standard {standard}",
            path.display()
        ))),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlap(one: &str, other: &str) -> bool {
        let settings =
            |path| serde_json::from_value::<Settings>(serde_json::json!({ "path": path }));
        let (one, other) = (settings(one).expect("a path"), settings(other).expect("a path"));
        assert_eq!(one.overlaps(&other), other.overlaps(&one), "either way");
        one.overlaps(&other)
    }

    #[test]
    fn a_glob_overlaps_with_what_it_finds() {
        assert!(overlap("data/*.jsonl", "data/all.jsonl"));
        assert!(overlap("data/*.jsonl", "./data/all.jsonl"));
        assert!(overlap("data/**/*.jsonl", "data/out/all.jsonl"));
        assert!(overlap("data/*/all.jsonl", "data/out/all.jsonl"));
        assert!(overlap("data/out/../all.jsonl", "data/all.jsonl"));
        assert!(overlap("data/./../data//all.jsonl", "data/all.jsonl"));
        assert!(overlap("data/out/../*.jsonl", "data/all.jsonl"));
        assert!(overlap("data/*/../all.jsonl", "data/all.jsonl"));
        assert!(
            overlap("../../../../../../../../../../x", "/x"),
            "there is nothing above the root"
        );
        // It looks into no directory that it does not name.
        assert!(!overlap("data/*.jsonl", "data/out/all.jsonl"));
        assert!(!overlap("data/*", "data/out/all.jsonl"));
        assert!(!overlap("data?all.jsonl", "data/all.jsonl"));
        assert!(!overlap("data/../all.jsonl", "data/all.jsonl"));
    }

    #[test]
    fn a_directory_is_where_its_links_lead() {
        let place = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(place.path().join("there/below")).unwrap();
        std::os::unix::fs::symlink("there/below", place.path().join("link")).unwrap();
        let path = |name: &str| place.path().join(name).display().to_string();
        assert!(overlap(&path("link/all.jsonl"), &path("there/below/all.jsonl")));
        assert!(overlap(&path("link/../all.jsonl"), &path("there/all.jsonl")));
        assert!(!overlap(&path("link/../all.jsonl"), &path("all.jsonl")));
        assert!(overlap(&path("link/new/all.jsonl"), &path("there/below/new/all.jsonl")));
        assert!(overlap(&path("link/../*.jsonl"), &path("there/all.jsonl")));
    }
}
