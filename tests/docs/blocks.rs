//! Blocks of a page between three backticks.

/// A block.
pub(crate) struct Block {
    /// The line on which it begins.
    pub(crate) line: usize,
    /// What stands behind the backticks.
    pub(crate) words: Vec<String>,
    /// What is in it.
    pub(crate) text: String,
    /// Whether it is taken over from a file.
    pub(crate) included: bool,
}

impl Block {
    /// The value of `NAME=VALUE` behind the backticks.
    pub(crate) fn word(&self, name: &str) -> Option<&str> {
        self.words.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    }
}

/// The blocks of a page.
pub(crate) fn blocks(page: &str) -> Vec<Block> {
    let (mut blocks, mut open): (Vec<Block>, Option<Block>) = (Vec::new(), None);
    let mut before = "";
    for (number, line) in page.lines().enumerate() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(words), None) => {
                let words = words.split([' ', ',']).filter(|word| !word.is_empty());
                let words = words.map(str::to_owned).collect();
                let included = before.starts_with("<!-- include ");
                open = Some(Block { line: number + 1, words, text: String::new(), included });
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (None, None) => {}
            (None, Some(block)) => {
                block.text.push_str(line);
                block.text.push('\n');
            }
        }
        before = line;
    }
    assert!(open.is_none(), "a block has no end");
    blocks
}
