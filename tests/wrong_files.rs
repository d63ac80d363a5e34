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
    // Neither is each key compared with each, nor a line counted anew for each of them.
    let many: String = (0..100_000).map(|n| format!("\"k{n}\":0,")).collect();
    let said = said_of("p.json", format!("{{\"a\":{{{many}\n\"k0\":0}}}}").as_bytes());
    let twice =
        "error[duplicate_key]: key `k0` stands twice; first at p.json:1:7\n  --> p.json:2:1 (a.k0)";
    assert!(said.contains(twice), "{said}");
    let many: String = (0..100_000).rev().map(|n| format!("k{n} = 0, ")).collect();
    let said = said_of("p.toml", format!("a = {{ {many}z = 0 }}").as_bytes());
    assert!(said.contains("  --> p.toml:1:1 (a)"), "{said}");
    let large = vec![b' '; (16 << 20) + 1];
    let said = said_of("p.yaml", &large);
    assert_eq!(said, "error[too_large]: 16777217 bytes; at most 16777216\n  --> p.yaml:1:1");
}

#[test]
fn a_pipeline_of_more_queues_than_can_be_numbered_is_refused() {
    let yaml = "pipeline: p\nqueues: { in: { type: memory } }\nstages:\n";
    let toml = "pipeline = \"p\"\n[queues]\nin = { type = \"memory\" }\n[stages]\n";
    let json = "{ \"pipeline\": \"p\",\n\"queues\": { \"in\": { \"type\": \"memory\" } },\n\
        \"stages\": {\n";
    let [in_yaml, in_toml, in_json] = [
        "  sN: { component: log, input: in }\n",
        "sN = { component = \"log\", input = \"in\" }\n",
        "\"sN\": { \"component\": \"log\", \"input\": \"in\" },\n",
    ];
    for (name, head, stage, end, place) in [
        ("p.yaml", yaml, in_yaml, "", "4:3"),
        ("p.toml", toml, in_toml, "", "4:1"),
        ("p.json", json, in_json, " } }", "3:11"),
    ] {
        let stages: String = (0..1 << 15).map(|n| stage.replace('N', &n.to_string())).collect();
        let said = said_of(name, [head, stages.trim_end_matches(",\n"), end].concat().as_bytes());
        let expected = format!(
            "error[too_many]: 1 queues and 32768 stages, with two queues of its own for each \
             stage, are more than 65536 queues\n  --> {name}:{place} (stages)\n  help: make \
             several pipelines of it"
        );
        assert_eq!(said, expected);
    }
}

#[test]
fn stages_that_cannot_be_in_a_process_of_their_own_are_told_in_full() {
    let text = "
pipeline: p
queues: { in: { type: embedded }, mid: { type: memory } }
stages:
  first: { component: pass, input: in, outputs: [mid] }
  second: { component: pass, input: mid }
  third: { component: log, input: second }
";
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("p.yaml");
    fs::write(&path, text).unwrap();
    let loaded = PipelineFile::load(&path, &Overrides::default(), &brigade::registry()).unwrap();
    let wrong = loaded.topology.split(&["second".to_owned(), "thrid".to_owned()]).unwrap_err();
    let expected = "\
error[split]: no stage `thrid`
  --> --stage
  help: did you mean `third`?

error[split]: stage `third` is fed directly by `second`, which would be elsewhere
  --> --stage
  help: name a queue between them, or run both here

error[split]: queue `mid` of type memory ends with its process, but stage `first` writes it and \
stage `second`, which would be in another, reads it
  --> --stage
  help: use a durable queue there, as of type `embedded`, or run both here";
    assert_eq!(wrong.to_string(), expected);
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
