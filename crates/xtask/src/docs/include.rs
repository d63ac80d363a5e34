//! What pages of the documentation include from other files: between `<!-- include PATH:ANCHOR -->`
//! and `<!-- /include -->` is a file, or the part of it between `ANCHOR: name` and `ANCHOR_END:
//! name`, in a code block or as it is. It is there as text, so that a page can be read wherever it
//! is shown.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

const BEGIN: &str = "<!-- include ";
const END: &str = "<!-- /include -->";

/// A page in this folder, with everything it includes brought up to date.
///
/// # Errors
/// What it includes does not exist, or a part has no end.
pub(crate) fn renewed(page: &str, folder: &Path) -> Result<String, String> {
    let (mut renewed, mut lines) = (String::with_capacity(page.len()), page.lines());
    while let Some(line) = lines.next() {
        let _ = writeln!(renewed, "{line}");
        let what = line.strip_prefix(BEGIN).and_then(|rest| rest.strip_suffix(" -->"));
        let Some(what) = what else { continue };
        let old: Vec<&str> = lines.by_ref().take_while(|line| *line != END).collect();
        let block = old.first().filter(|line| line.starts_with("```"));
        let text = included(folder, what)?;
        match block {
            Some(fence) => drop(writeln!(renewed, "{fence}\n{text}```\n{END}")),
            None => drop(writeln!(renewed, "{text}{END}")),
        }
    }
    Ok(renewed)
}

/// The contents for `path` or `path:anchor`.
fn included(folder: &Path, what: &str) -> Result<String, String> {
    let (path, anchor) = match what.split_once(':') {
        Some((path, anchor)) => (path, Some(anchor)),
        None => (what, None),
    };
    let text = fs::read_to_string(folder.join(path)).map_err(|error| format!("{path}: {error}"))?;
    let mark = |line: &str| line.contains("ANCHOR: ") || line.contains("ANCHOR_END: ");
    let (mut kept, mut inside) = (String::new(), anchor.is_none());
    for line in text.lines() {
        let names = |word: &str| {
            let name = line.split_once(word).and_then(|(_, rest)| rest.split_whitespace().next());
            anchor.is_some() && name == anchor
        };
        inside = (inside || names("ANCHOR: ")) && !names("ANCHOR_END: ");
        if inside && !mark(line) {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    match kept.is_empty() {
        true => Err(format!("{what}: there is no such part")),
        false => Ok(kept),
    }
}
