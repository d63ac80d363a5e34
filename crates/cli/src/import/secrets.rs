//! What must not appear in a file: each becomes an environment variable there.

use std::collections::BTreeMap;

/// The variables, and their values.
#[derive(Debug, Default)]
pub(super) struct Secrets(BTreeMap<String, String>);

impl Secrets {
    /// The variable for a value; a different name if this one already has another value.
    pub(super) fn variable(&mut self, name: &str, value: &str) -> String {
        let fits = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
        let plain: String = name.chars().map(fits).collect();
        let mut names = std::iter::once(plain.clone())
            .chain((2..).map(|number: u32| format!("{plain}_{number}")));
        let free = names.find(|name| self.0.get(name).is_none_or(|known| known == value));
        let name = free.unwrap_or(plain);
        self.0.insert(name.clone(), value.to_owned());
        name
    }

    /// The variables' names.
    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.0.keys()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_variable_stands_for_one_value() {
        let mut secrets = Secrets::default();
        assert_eq!(secrets.variable("KAFKA_password", "a"), "KAFKA_PASSWORD");
        assert_eq!(secrets.variable("KAFKA_password", "b"), "KAFKA_PASSWORD_2");
        assert_eq!(secrets.variable("KAFKA_password", "a"), "KAFKA_PASSWORD");
    }
}
