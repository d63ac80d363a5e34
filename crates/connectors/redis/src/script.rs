//! Scripts that know which commands are in each of their lines.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::LazyLock;

use parking_lot::Mutex;

/// The texts of all scripts, by the hash that a server gives in its errors.
static TEXTS: LazyLock<Mutex<HashMap<String, String>>> = LazyLock::new(Mutex::default);

/// A script whose text is kept. When a server refuses a command in a script, its error gives the
/// line, not the command.
pub(crate) struct Script(redis::Script);

impl Script {
    pub(crate) fn new(text: &str) -> Self {
        let script = redis::Script::new(text);
        let mut texts = TEXTS.lock();
        texts.insert(script.get_hash().to_owned(), text.to_owned());
        Self(script)
    }
}

impl Deref for Script {
    type Target = redis::Script;

    fn deref(&self) -> &redis::Script {
        &self.0
    }
}

/// The commands in the line that an error points at, in lower case; if that line names none, those
/// that may reach it as arguments.
pub(crate) fn commands_at(error: &str) -> Vec<String> {
    let texts = TEXTS.lock();
    let at = |(hash, rest): (&str, &str)| {
        let line = rest.split_once("user_script:")?.1;
        let digits = line.find(|c: char| !c.is_ascii_digit()).unwrap_or(line.len());
        let line: usize = line[..digits].parse().ok()?;
        let text = texts.get(hash)?;
        let own = commands(text.lines().nth(line.checked_sub(1)?)?, "call('");
        Some(if own.is_empty() { commands(text, "many('") } else { own })
    };
    let place = error.split_once("script: ").and_then(|(_, rest)| rest.split_once(','));
    place.and_then(at).unwrap_or_default()
}

/// The commands that directly follow `before`, each once.
fn commands(text: &str, before: &str) -> Vec<String> {
    let named = text.split(before).skip(1).filter_map(|rest| rest.split('\'').next());
    let mut found: Vec<String> = named.map(str::to_lowercase).collect();
    found.sort_unstable();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_of_a_line_is_known_by_its_script() {
        let script = Script::new("local a = 1\nredis.call('HGET', 'a')\nmany('ZADD')\nfoo()");
        let error = |line: u8| format!("no script: {}, on @user_script:{line}.", script.get_hash());
        assert_eq!(commands_at(&error(2)), ["hget"]);
        assert_eq!(commands_at(&error(4)), ["zadd"], "it was handed on");
        assert!(commands_at("script: unknown, on @user_script:1.").is_empty());
        assert!(commands_at("something else").is_empty());
    }
}
