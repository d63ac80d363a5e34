//! The documentation holds: generated pages are what the code says, links lead somewhere, pipeline
//! files in it are good, code in it is code of the examples, and commands do what is shown.
//!
//! Conventions of a page, in the words behind the three backticks:
//!
//! - `yaml pipeline` is a whole pipeline file, `yaml queues` and `yaml stages` are what stands below
//!   these keys; `toml pipeline` and `json pipeline` are files too. `yaml cases` are test files, and
//!   `yaml custom` is a file of an example that has a test of its own. There is no other `yaml`.
//!   `kafka` and `registry` among the words say what cargo feature the file needs.
//! - `file=NAME` writes the block to a file, for the commands after it.
//! - `console` are commands after `$ `, run by one shell for a page, each with lines that it prints:
//!   in order, others may stand between them, `…` is any text. `console norun` is not run; it has no
//!   command of Brigade's own.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

#[path = "docs/blocks.rs"]
mod blocks;
#[path = "docs/commands.rs"]
mod commands;
#[path = "../crates/xtask/src/docs/include.rs"]
mod include;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use blocks::{Block, blocks};
use brigade::pipeline_file::{Catalog, Format, Overrides, load_str, reference};
use brigade::prelude::*;

/// Queue types that a program may be built without.
const OPTIONAL: [&str; 1] = ["kafka"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The pages of the book, relative to the project.
fn book() -> Vec<PathBuf> {
    let (mut pages, mut folders) = (Vec::new(), vec![PathBuf::from("docs/src")]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root().join(&folder)).unwrap() {
            let path = folder.join(entry.unwrap().file_name());
            match root().join(&path).is_dir() {
                true => folders.push(path),
                false if path.extension().is_some_and(|kind| kind == "md") => pages.push(path),
                false => {}
            }
        }
    }
    pages.sort();
    pages
}

fn all_pages() -> Vec<PathBuf> {
    let mut pages = book();
    pages.extend(["README.md", "ARCHITECTURE.md"].map(PathBuf::from));
    pages
}

/// The parts of a generated page, by their titles.
fn parts(page: &str) -> Vec<(&str, &str)> {
    page.split("\n## ").map(|part| part.split_once('\n').unwrap_or((part, ""))).collect()
}

#[test]
fn the_page_of_all_keys_is_what_the_types_say() {
    let (now, kept) = (reference::keys(&brigade::registry()), read("docs/src/reference/keys.md"));
    let stale = "docs/src/reference/keys.md is stale: `cargo xtask docs`";
    let (now, kept) = (parts(now.trim_end()), parts(kept.trim_end()));
    for (title, part) in &now {
        let found = kept.iter().find(|(kept, _)| kept == title);
        assert_eq!(found.map(|(_, part)| part.trim()), Some(part.trim()), "{stale}: {title}");
    }
    for (title, _) in &kept {
        let optional = OPTIONAL.iter().any(|kind| title.contains(kind));
        assert!(optional || now.iter().any(|(now, _)| now == title), "{stale}: {title}");
    }
}

/// The cells of a page's tables: row, column, cell.
fn cells(page: &str) -> BTreeSet<(String, String, String)> {
    let (mut cells, mut head) = (BTreeSet::new(), Vec::new());
    for line in page.lines() {
        let Some(row) = line.strip_prefix('|').map(|row| row.trim_end_matches('|')) else {
            head.clear();
            continue;
        };
        let row: Vec<String> = row.split('|').map(|cell| cell.trim().to_owned()).collect();
        if head.is_empty() {
            head = row;
        } else {
            let all = head.iter().zip(&row);
            cells.extend(all.map(|(head, cell)| (row[0].clone(), head.clone(), cell.clone())));
        }
    }
    cells
}

#[test]
fn the_page_of_features_is_what_the_connectors_declare() {
    let now = reference::features(&brigade::registry());
    let kept = read("docs/src/reference/features.md");
    let (now_cells, kept_cells) = (cells(&now), cells(&kept));
    let missing: Vec<_> = now_cells.difference(&kept_cells).collect();
    let stale = "docs/src/reference/features.md is stale: `cargo xtask docs`";
    assert!(missing.is_empty(), "{stale}: {missing:?}");
    if brigade::registry().connector_types().iter().any(|kind| OPTIONAL.contains(kind)) {
        assert_eq!(now.trim_end(), kept.trim_end(), "{stale}");
    }
}

#[test]
fn every_page_is_in_the_summary_and_each_queue_type_and_component_has_its_place() {
    let summary = read("docs/src/SUMMARY.md");
    for page in book() {
        let page = page.strip_prefix("docs/src").unwrap().to_str().unwrap().to_owned();
        assert!(page == "SUMMARY.md" || summary.contains(&format!("({page})")), "{page}");
    }
    let (registry, components) = (brigade::registry(), read("docs/src/components.md"));
    for kind in registry.connector_types() {
        let page = read(format!("docs/src/queues/{kind}.md"));
        for part in [format!("features.md:{kind} -->"), format!("keys.md:queue-{kind} -->")] {
            assert!(page.contains(&part), "queues/{kind}.md lacks {part}");
        }
    }
    for name in registry.component_names() {
        let part = format!("keys.md:component-{name} -->");
        assert!(components.contains(&part), "components.md lacks {part}");
    }
}

/// What a link calls a heading.
fn slug(heading: &str) -> String {
    let kept = heading.to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn links_lead_somewhere() {
    let mut wrong = Vec::new();
    for page in all_pages() {
        let text = read(&page);
        let folder = root().join(page.parent().unwrap());
        let outside = text.split("```").step_by(2).collect::<String>();
        let targets = outside.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for target in targets.filter(|target| !target.contains("://") && !target.is_empty()) {
            let (path, heading) = target.split_once('#').unwrap_or((target, ""));
            let file = if path.is_empty() { root().join(&page) } else { folder.join(path) };
            let headed = || {
                let text = fs::read_to_string(&file).unwrap_or_default();
                let mut headings = text.lines().filter(|line| line.starts_with('#'));
                headings.any(|line| slug(line.trim_start_matches('#').trim()) == heading)
            };
            if !file.exists() || !heading.is_empty() && !headed() {
                wrong.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "these lead nowhere:\n{}", wrong.join("\n"));
}

/// A registry that has a stub for each component of a text that nobody has written.
fn with_stubs(text: &str) -> brigade::Registry {
    let mut registry = brigade::registry();
    let batches = text.contains("batch:");
    for rest in text.split("component: ").skip(1) {
        let name: String =
            rest.chars().take_while(|c| c.is_alphanumeric() || matches!(c, '_' | '-')).collect();
        if name.is_empty() || registry.component_names().contains(&name.as_str()) {
            continue;
        }
        let batch = async |all: Vec<serde_json::Value>| {
            all.into_iter().map(Ok::<_, Failure>).collect::<Vec<_>>()
        };
        let one = async |one: serde_json::Value| Ok::<_, Failure>(one);
        registry = match batches {
            true => registry.component(name, batch),
            false => registry.component(name, one),
        };
    }
    registry
}

/// What stands below `queues:` or `stages:`, as a whole file.
fn whole(block: &Block, part: &str) -> String {
    let indented: String = block.text.lines().map(|line| format!("  {line}\n")).collect();
    if part == "queues" {
        let reader = "stages: { reader: { component: log, input: ticks-of-the-test } }";
        let ticks = "  ticks-of-the-test: { type: generator }";
        return format!("pipeline: part\nqueues:\n{indented}{ticks}\n{reader}\n");
    }
    // The queues are embedded ones, with keys so that there is something to be ordered by.
    let (mut queues, mut stages) = (BTreeSet::new(), BTreeSet::new());
    let value = |line: &str, key: &str| {
        let (_, rest) = line.split_once(key)?;
        let end = if rest.starts_with('[') {
            rest.find(']')?
        } else {
            rest.find([',', '}']).unwrap_or(rest.len())
        };
        Some(rest[..end].trim_start_matches('[').trim().to_owned())
    };
    for line in block.text.lines() {
        if !line.starts_with([' ', '#']) {
            stages.insert(line.split(':').next().unwrap().to_owned());
        }
        for key in ["input: ", "outputs: ", "dead_letter: ", "queues: "] {
            let names = value(line, key).unwrap_or_default();
            let names = names.split(',').map(|name| name.trim().trim_start_matches("{ queues: ["));
            queues.extend(names.filter(|name| !name.is_empty()).map(str::to_owned));
        }
    }
    let queues: String = queues
        .difference(&stages)
        .map(|queue| format!("  {queue}: {{ type: embedded, key: id }}\n"))
        .collect();
    format!("pipeline: part\nqueues:\n{queues}stages:\n{indented}")
}

#[test]
fn every_pipeline_file_in_the_documentation_is_good() {
    let (mut checked, mut wrong) = (0, Vec::new());
    for page in all_pages() {
        for block in blocks(&read(&page)) {
            let place = format!("{}:{}", page.display(), block.line);
            let format = match block.words.first().map(String::as_str) {
                Some("yaml") => Format::Yaml,
                Some("toml") => Format::Toml,
                Some("json") => Format::Json,
                _ => continue,
            };
            let is = |word: &str| block.words.iter().any(|have| have == word);
            let text = match () {
                // Its queue type is behind a feature.
                () if is("kafka") && !cfg!(feature = "kafka") => continue,
                () if is("registry") && !cfg!(feature = "schema-registry") => continue,
                () if is("pipeline") => block.text.clone(),
                () if is("queues") => whole(&block, "queues"),
                () if is("stages") => whole(&block, "stages"),
                () if is("cases") || is("custom") || format != Format::Yaml => continue,
                () => {
                    wrong.push(format!(
                        "{place}: neither pipeline, queues, stages nor cases nor custom"
                    ));
                    continue;
                }
            };
            // Variables stand for something.
            let names = text.split("${").skip(1).filter_map(|rest| rest.split(['}', ':']).next());
            let variables = names.map(|name| (name.to_owned(), "x".to_owned())).collect();
            let overrides = Overrides { variables, ..Overrides::default() };
            let registry = with_stubs(&text);
            checked += 1;
            if let Err(error) = load_str(&place, format, &text, root(), &overrides, &registry) {
                wrong.push(format!("{error}\n{text}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    assert!(checked > 20, "only {checked} pipeline files were found");
}

#[test]
fn what_pages_take_over_from_files_is_what_stands_there() {
    for page in all_pages() {
        let (text, folder) = (read(&page), root().join(page.parent().unwrap()));
        let renewed = include::renewed(&text, &folder).unwrap_or_else(|why| panic!("{why}"));
        assert!(renewed == text, "{} is stale: `cargo xtask docs`", page.display());
    }
}

#[test]
fn rust_code_in_the_documentation_is_code_of_the_examples() {
    let mut examples = String::new();
    for entry in fs::read_dir(root().join("examples")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            examples.push_str(&fs::read_to_string(path).unwrap());
        }
    }
    for page in all_pages() {
        for block in blocks(&read(&page)) {
            if block.words.first().is_some_and(|word| word == "rust") && !block.included {
                let place = format!("{}:{}", page.display(), block.line);
                assert!(examples.contains(block.text.trim()), "{place}: in none of the examples");
            }
        }
    }
}

#[test]
fn commands_in_the_documentation_do_what_is_shown() {
    let mut ran = 0;
    for page in all_pages() {
        let found = blocks(&read(&page));
        ran += commands::run(&page.display().to_string(), &found);
    }
    assert!(ran > 20, "only {ran} commands were found");
}

/// What shows each of Volley's weaknesses and behaviours: tests, or the reason why there is none.
#[test]
fn each_of_volleys_weaknesses_and_behaviours_is_shown_or_told() {
    let page = read(Path::new("docs/src/from-volley.md"));
    let tests = test_names();
    let weaknesses = (1..=23).map(|n| format!("W{n}"));
    for number in weaknesses.chain((1..=62).map(|n| n.to_string())) {
        let start = format!("| {number} | ");
        let mut rows = page.lines().filter(|line| line.starts_with(&start));
        let row = rows.next().unwrap_or_else(|| panic!("{number} is missing"));
        assert!(rows.next().is_none(), "{number} is there twice");
        let shown = row.trim_end_matches('|').rsplit('|').next().unwrap().trim();
        assert!(!shown.is_empty(), "{number} is neither shown nor told");
        // Words in backquotes that look like a test's name are one.
        let named =
            shown.split('`').skip(1).step_by(2).filter(|word| word.matches('_').count() > 2);
        for name in named {
            assert!(tests.contains(name), "{number}: there is no test `{name}`");
        }
    }
}

/// The names of all functions in the project's Rust files.
fn test_names() -> std::collections::BTreeSet<String> {
    let (mut names, mut left) = (std::collections::BTreeSet::new(), Vec::new());
    left.extend(["crates", "tests"].map(|directory| root().join(directory)));
    while let Some(path) = left.pop() {
        if path.is_dir() {
            left.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|end| end == "rs") {
            let text = fs::read_to_string(path).unwrap();
            let functions = text.split("fn ").skip(1);
            let name = |f: &str| {
                f.split(|c: char| !c.is_alphanumeric() && c != '_').next().map(str::to_owned)
            };
            names.extend(functions.filter_map(name));
        }
    }
    names
}
