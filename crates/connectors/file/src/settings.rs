use std::path::{Path, PathBuf};

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
    /// A text a line.
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
        let whole = |settings: &Self| std::path::absolute(settings.path()).unwrap_or_default();
        let (one, other_one) = (whole(self), whole(other));
        let names = |settings: &Self, pattern: &Path, path: &Path| {
            let pattern = settings.is_glob().then(|| glob::Pattern::new(pattern.to_str()?).ok());
            pattern.flatten().is_some_and(|found| found.matches_path_with(path, BY_COMPONENT))
        };
        one == other_one || names(self, &one, &other_one) || names(other, &other_one, &one)
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
        // It looks into no directory that it does not name.
        assert!(!overlap("data/*.jsonl", "data/out/all.jsonl"));
        assert!(!overlap("data/*", "data/out/all.jsonl"));
        assert!(!overlap("data?all.jsonl", "data/all.jsonl"));
    }
}
