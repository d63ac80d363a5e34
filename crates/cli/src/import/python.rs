//! As much of Python as is needed to distinguish calls from comments and strings.

use std::ops::Range;

/// A Python file, and which parts of it are code.
pub(super) struct Python<'t> {
    text: &'t str,
    /// Has the same length and lines as the text; comments and the contents of strings are blank.
    code: String,
    /// The contents of strings.
    strings: Vec<Range<usize>>,
}

impl<'t> Python<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        let mut python =
            Self { text, code: String::with_capacity(text.len()), strings: Vec::new() };
        while let Some(found) = text[python.code.len()..].find(['#', '"', '\'']) {
            let begin = python.code.len() + found;
            python.code.push_str(&text[python.code.len()..begin]);
            let rest = &text[begin..];
            let quotes = ["\"\"\"", "'''", "\"", "'"];
            match quotes.iter().find(|quote| rest.starts_with(**quote)) {
                None => python.blank(begin + rest.find('\n').unwrap_or(rest.len())),
                Some(quote) => python.string(begin, quote),
            }
        }
        python.code.push_str(&text[python.code.len()..]);
        python
    }

    /// Marks everything up to `end` as not code.
    fn blank(&mut self, end: usize) {
        let bytes = self.text[self.code.len()..end].bytes();
        self.code.extend(bytes.map(|byte| if byte == b'\n' { '\n' } else { ' ' }));
    }

    fn string(&mut self, begin: usize, quote: &str) {
        let inner = begin + quote.len();
        let end = inner + length(&self.text[inner..], quote);
        self.code.push_str(quote);
        self.blank(end);
        self.strings.push(inner..end);
        // An unterminated string ends with the line or the file.
        if self.text[end..].starts_with(quote) {
            self.code.push_str(quote);
        }
    }

    pub(super) fn code(&self) -> &str {
        &self.code
    }

    /// The text that this part is, if it is nothing but one string.
    pub(super) fn literal(&self, part: Range<usize>) -> Option<String> {
        let code = self.code[part.clone()].trim();
        let code = code.strip_prefix(['r', 'R', 'u', 'U']).unwrap_or(code);
        let is_string = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '(' | ')');
        match &mut self.texts(part)[..] {
            [text] if code.chars().all(is_string) => Some(std::mem::take(text)),
            _ => None,
        }
    }

    /// The texts of this part, if it is nothing but a list, tuple or set of strings.
    pub(super) fn literals(&self, part: Range<usize>) -> Option<Vec<String>> {
        let code = self.code[part.clone()].trim_end();
        let begin = part.start + code.len() - code.trim_start().len() + 1;
        let inner = [('[', ']'), ('(', ')'), ('{', '}')]
            .into_iter()
            .find_map(|(open, close)| code.trim_start().strip_prefix(open)?.strip_suffix(close))?;
        // After the last one there may be a comma, too.
        let items = parts(inner).filter(|item| !inner[item.clone()].trim().is_empty());
        items.map(|item| self.literal(begin + item.start..begin + item.end)).collect()
    }

    /// The strings within this part.
    fn texts(&self, part: Range<usize>) -> Vec<String> {
        let within = self.strings.iter().filter(|string| part.contains(&string.start));
        within.map(|string| self.text[string.clone()].to_owned()).collect()
    }
}

/// The length up to the bracket that closes what is open, or to the comma that ends a value.
pub(super) fn past_of(code: &str, is_value: bool) -> usize {
    let mut open = 0_usize;
    for (at, c) in code.char_indices() {
        match c {
            '(' | '[' | '{' => open += 1,
            ')' | ']' | '}' if open == 0 => return at,
            ')' | ']' | '}' => open -= 1,
            ',' if open == 0 && is_value => return at,
            _ => {}
        }
    }
    code.len()
}

/// The ranges of what commas separate, outside of any bracket.
pub(super) fn parts(code: &str) -> impl Iterator<Item = Range<usize>> {
    let mut begin = 0;
    std::iter::from_fn(move || {
        let rest = code.get(begin..).filter(|rest| !rest.is_empty())?;
        let part = begin..begin + past_of(rest, true);
        begin = part.end + 1;
        Some(part)
    })
}

/// The length up to the quote that ends a string. A quote after a backslash does not end it, even
/// in raw strings.
fn length(text: &str, quote: &str) -> usize {
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => drop(chars.next()),
            '\n' if quote.len() == 1 => return at,
            _ if text[at..].starts_with(quote) => return at,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_texts_are_no_code_and_lines_stay() {
        let text = "a = 'it''s' # don't\nb = \"\"\"\"ü'\n#\"\"\" + r'\\'' + \"\n'''";
        let python = Python::new(text);
        let code = "a = '  '' '        \nb = \"\"\"    \n \"\"\" + r'  ' + \"\n'''";
        assert_eq!(python.code(), code);
        assert_eq!(python.texts(0..text.len()), ["it", "s", "\"ü'\n#", "\\'", ""]);
    }
}
