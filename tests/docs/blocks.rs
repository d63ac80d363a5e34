//! Blocks of a page between three backticks, and includes.

use std::fs;
use std::path::Path;

/// A block.
pub(crate) struct Block {
    /// The line on which it begins.
    pub(crate) line: usize,
    /// What stands behind the backticks.
    pub(crate) words: Vec<String>,
    /// What is in it, its includes put in.
    pub(crate) text: String,
    /// Whether it is nothing but includes.
    pub(crate) included: bool,
}

impl Block {
    /// The value of `NAME=VALUE` behind the backticks.
    pub(crate) fn word(&self, name: &str) -> Option<&str> {
        self.words.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    }
}

/// The blocks of a page in this folder.
pub(crate) fn blocks(page: &str, folder: &Path) -> Vec<Block> {
    let (mut blocks, mut open): (Vec<Block>, Option<Block>) = (Vec::new(), None);
    for (number, line) in page.lines().enumerate() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(words), None) => {
                let words = words.split([' ', ',']).filter(|word| !word.is_empty());
                let words = words.map(str::to_owned).collect();
                open = Some(Block { line: number + 1, words, text: String::new(), included: true });
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (None, None) => {}
            (None, Some(block)) => {
                let include = line.strip_prefix("{{#include ").and_then(|l| l.strip_suffix("}}"));
                match include {
                    Some(include) => {
                        let text = included(folder, include).unwrap_or_else(|why| panic!("{why}"));
                        block.text.push_str(&text);
                    }
                    None => {
                        block.included = false;
                        block.text.push_str(line);
                        block.text.push('\n');
                    }
                }
            }
        }
    }
    assert!(open.is_none(), "a block has no end");
    blocks
}

/// What an include `path` or `path:anchor` stands for.
pub(crate) fn included(folder: &Path, include: &str) -> Result<String, String> {
    let (path, anchor) = match include.split_once(':') {
        Some((path, anchor)) => (path, Some(anchor)),
        None => (include, None),
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
        true => Err(format!("{include}: there is no such part")),
        false => Ok(kept),
    }
}
