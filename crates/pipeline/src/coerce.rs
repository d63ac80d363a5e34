//! Texts whose type was not written by hand: from `${VARIABLES}` and the environment.

use jsonschema::Validator;
use jsonschema::error::ValidationErrorKind;

use crate::diagnostic::{Findings, Severity};
use crate::node::{Node, NodeValue, plain};

/// Gives loose texts the type that the schema expects, where they can be read so.
pub(crate) fn coerce(node: &mut Node, validator: &Validator) {
    let value = node.to_json();
    let mut changed = Vec::new();
    for error in validator.iter_errors(&value) {
        let typed = matches!(
            error.kind(),
            ValidationErrorKind::Type { .. } | ValidationErrorKind::AnyOf { .. }
        );
        if typed {
            changed.push(error.instance_path().as_str().to_owned());
        }
    }
    for pointer in changed {
        let steps: Vec<String> = pointer.split('/').skip(1).map(str::to_owned).collect();
        if let Some(leaf) = node.at_mut(&steps)
            && let (true, NodeValue::Text(text)) = (leaf.loose, &leaf.value)
        {
            leaf.value = plain(text);
        }
    }
}

/// Answers with a variable's value, if it is set, or with what is wrong with it.
type Lookup<'a> = dyn Fn(&str) -> Result<Option<String>, String> + 'a;

/// Puts variables into the string leaves of a tree: `${NAME}`, `${NAME:-default}`; `$$` is a `$`.
pub(crate) fn substitute(
    node: &mut Node,
    path: &mut Vec<String>,
    lookup: &Lookup<'_>,
    findings: &mut Findings,
) {
    match &mut node.value {
        NodeValue::Text(text) if text.contains('$') => match expand(text, lookup) {
            Ok((expanded, loose)) => {
                let written = std::mem::replace(text, expanded);
                node.written = loose.then(|| written.into());
                node.loose |= loose;
            }
            Err((message, help)) => {
                findings.add(Severity::Error, "variable", &node.origin, path, message).help =
                    Some(help);
            }
        },
        NodeValue::List(items) => {
            for (at, item) in items.iter_mut().enumerate() {
                path.push(at.to_string());
                substitute(item, path, lookup, findings);
                path.pop();
            }
        }
        NodeValue::Map(entries) => {
            for entry in entries {
                path.push(entry.key.clone());
                substitute(&mut entry.node, path, lookup, findings);
                path.pop();
            }
        }
        _ => {}
    }
}

/// A text with its variables put in, and whether there were any.
fn expand(text: &str, lookup: &Lookup<'_>) -> Result<(String, bool), (String, String)> {
    let (mut expanded, mut rest, mut any) = (String::new(), text, false);
    while let Some(at) = rest.find('$') {
        expanded.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            expanded.push('$');
            rest = after;
            continue;
        }
        let Some(inside) = rest.strip_prefix('{') else {
            expanded.push('$');
            continue;
        };
        let Some(end) = inside.find('}') else {
            let help = "write `$$` for a dollar sign".to_owned();
            return Err(("`${` without `}`".to_owned(), help));
        };
        let (name, default) = match inside[..end].split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (&inside[..end], None),
        };
        let value = lookup(name).map_err(|message| (message, "write it in UTF-8".to_owned()))?;
        let value = value.filter(|value| default.is_none() || !value.is_empty());
        let value = value.or_else(|| default.map(str::to_owned)).ok_or_else(|| {
            let help = format!("set it, or give a default: `${{{name}:-default}}`");
            (format!("the variable `{name}` is not set"), help)
        })?;
        expanded.push_str(&value);
        any = true;
        rest = &inside[end + 1..];
    }
    expanded.push_str(rest);
    Ok((expanded, any))
}

#[cfg(test)]
mod tests {
    use super::expand;

    #[test]
    fn variables_are_put_in_and_dollars_can_be_written() {
        let lookup = |name: &str| match name {
            "A" => Ok(Some("1".to_owned())),
            "C" => Err("no Unicode".to_owned()),
            _ => Ok(None),
        };
        assert_eq!(expand("x${A}y", &lookup), Ok(("x1y".to_owned(), true)));
        assert_eq!(expand("${B:-z}", &lookup), Ok(("z".to_owned(), true)));
        assert_eq!(expand("$${A} $5", &lookup), Ok(("${A} $5".to_owned(), false)));
        assert!(expand("${B}", &lookup).is_err());
        assert!(expand("${B", &lookup).is_err());
        assert_eq!(expand("${C:-z}", &lookup).unwrap_err().0, "no Unicode");
    }
}
