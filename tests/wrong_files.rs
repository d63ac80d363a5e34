//! Wrong pipeline files, and all that is said about them: each file in `wrong_files` has what is
//! expected beside it. Lines `# env: NAME=VALUE` and `# set: KEY=VALUE` at a file's beginning are laid
//! over it. `UPDATE_EXPECTED=1 cargo test --test wrong_files` writes what is said now; read it.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test that stops says where")]

use std::fs;
use std::path::{Path, PathBuf};

use brigade::pipeline_file::{Overrides, PipelineFile};
use brigade::{Failure, Registry};
use serde_json::Value;

/// Everything there is, and the code of a user's own that the file names.
fn registry(text: &str) -> Registry {
    let mut registry = brigade::registry();
    if text.contains("cod") {
        registry = registry.component("code", |_: Value| Ok::<(), Failure>(()));
    }
    if text.contains("component: batch") {
        registry = registry.component("batch", async |values: Vec<Value>| {
            values.into_iter().map(|_| Ok::<(), Failure>(())).collect::<Vec<_>>()
        });
    }
    registry
}

/// The files whose names do not end in `.expected`. Of queues on Kafka only a build with that can tell.
fn files() -> Vec<PathBuf> {
    let names = fs::read_dir(".").unwrap().map(|entry| entry.unwrap().file_name().into());
    let is_here = |name: &PathBuf| {
        let told = name.extension().is_none_or(|extension| extension != "expected");
        told && (cfg!(feature = "kafka") || !name.display().to_string().starts_with("kafka_"))
    };
    let mut files: Vec<PathBuf> = names.filter(is_here).collect();
    files.sort();
    files
}

/// What the lines at the beginning of a file lay over it.
fn overrides(text: &str) -> Overrides {
    let mut overrides = Overrides::default();
    for line in text.lines() {
        if let Some(set) = line.strip_prefix("# set: ") {
            overrides.sets.push(set.to_owned());
        } else if let Some((name, value)) =
            line.strip_prefix("# env: ").and_then(|variable| variable.split_once('='))
        {
            overrides.variables.push((name.to_owned(), value.to_owned()));
        }
    }
    overrides
}

fn said(path: &Path) -> String {
    let text = String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned();
    match PipelineFile::load(path, &overrides(&text), &registry(&text)) {
        Ok(loaded) => {
            let warnings = loaded.warnings.iter().map(ToString::to_string);
            std::iter::once("good".to_owned()).chain(warnings).collect::<Vec<_>>().join("\n")
        }
        Err(diagnostics) => diagnostics.to_string(),
    }
}

#[test]
fn every_wrong_file_is_told_in_full() {
    // So that messages name files by their names alone.
    std::env::set_current_dir("tests/wrong_files").unwrap();
    let update = std::env::var_os("UPDATE_EXPECTED").is_some();
    let mut different = Vec::new();
    for path in files() {
        // Not all builds have it.
        let said = said(&path).replace("`kafka`, ", "") + "\n";
        let expected = PathBuf::from(format!("{}.expected", path.display()));
        if update {
            fs::write(&expected, &said).unwrap();
        } else if fs::read_to_string(&expected).ok().as_deref() != Some(&said) {
            eprintln!("{}:\n{said}", path.display());
            different.push(path);
        }
    }
    assert!(different.is_empty(), "said something else than expected: {different:?}");
}

/// What is said about a file that is made for the test.
fn said_of(name: &str, text: &[u8]) -> String {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(name);
    fs::write(&path, text).unwrap();
    let wrong = PipelineFile::load(&path, &Overrides::default(), &brigade::registry()).unwrap_err();
    wrong.to_string().replace(&format!("{}/", directory.path().display()), "")
}

#[test]
fn no_depth_and_no_size_is_too_much_to_be_refused() {
    const DEEP: usize = 1_000_000;
    for (name, before) in [("p.yaml", "a: "), ("p.toml", "a = "), ("p.json", "{\"a\": ")] {
        for bracket in ["[", "{\"a\":"] {
            let text = [before, &bracket.repeat(DEEP)].concat();
            let said = said_of(name, text.as_bytes());
            assert!(said.starts_with("error[syntax]: "), "{name}, {bracket}: {said}");
        }
        let closed = [before, &"[".repeat(DEEP), &"]".repeat(DEEP), "}"].concat();
        let said = said_of(name, closed.as_bytes());
        assert!(said.starts_with("error[syntax]: "), "{name}: {said}");
    }
    let large = vec![b' '; (16 << 20) + 1];
    let said = said_of("p.yaml", &large);
    assert_eq!(said, "error[too_large]: 16777217 bytes; at most 16777216\n  --> p.yaml:1:1");
}

#[test]
fn files_that_cannot_be_read_are_told() {
    for (path, expected) in [
        (
            "missing.yaml",
            "error[unreadable]: it cannot be read: No such file or directory (os error 2)\n  \
             --> missing.yaml:1:1",
        ),
        (
            "/dev/null/p.toml",
            "error[unreadable]: it cannot be read: Not a directory (os error 20)\n  \
             --> /dev/null/p.toml:1:1",
        ),
    ] {
        let wrong =
            PipelineFile::load(Path::new(path), &Overrides::default(), &brigade::registry());
        assert_eq!(wrong.unwrap_err().to_string(), expected);
    }
}
