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

    /// The strings within this part.
    pub(super) fn texts(&self, part: Range<usize>) -> Vec<String> {
        let within = self.strings.iter().filter(|string| part.contains(&string.start));
        within.map(|string| self.text[string.clone()].to_owned()).collect()
    }
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
