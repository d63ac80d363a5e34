//! Texts whose type was not written by hand: those from `${VARIABLES}` and the environment. And
//! whole numbers written with a point or an exponent.

use jsonschema::error::ValidationErrorKind;
use jsonschema::{ValidationError, Validator};
use serde_json::{Number, Value};

use crate::diagnostic::{Findings, Severity};
use crate::node::{Node, NodeValue, Origin, plain};
use crate::schema::{of_the_type, steps};

/// Converts loose texts to the type that the schema expects, where they can be parsed as such.
pub(crate) fn coerce(node: &mut Node, validator: &Validator) {
    let value = node.to_json();
    let errors: Vec<ValidationError<'_>> = validator.iter_errors(&value).collect();
    let mut changed = Vec::new();
    wrong_types(&errors, node, &mut changed);
    for path in changed {
        if let Some(leaf) = node.at_mut(&path)
            && let (true, NodeValue::Text(text)) = (leaf.loose, &leaf.value)
        {
            leaf.value = plain(text);
        }
    }
    make_whole(node, validator);
}

/// Finds where the type is wrong. For a value that may have several forms, the form that was meant
/// counts.
fn wrong_types(errors: &[ValidationError<'_>], node: &Node, found: &mut Vec<Vec<String>>) {
    for error in errors {
        match error.kind() {
            ValidationErrorKind::Type { .. } => found.push(steps(error.instance_path().as_str())),
            ValidationErrorKind::AnyOf { context }
            | ValidationErrorKind::OneOfNotValid { context } => {
                if matches!(error.kind(), ValidationErrorKind::AnyOf { .. }) {
                    found.push(steps(error.instance_path().as_str()));
                }
                let meant = context.iter().find(|errors| only_loose(errors, node));
                if let Some(meant) = meant.or_else(|| of_the_type(error, context)) {
                    wrong_types(meant, node, found);
                }
            }
            _ => {}
        }
    }
}

/// Whether the types of loose texts are all that is wrong.
fn only_loose(errors: &[ValidationError<'_>], node: &Node) -> bool {
    errors.iter().all(|error| {
        let path = steps(error.instance_path().as_str());
        let leaf = path.iter().try_fold(node, |node, step| node.child(step));
        let loose = leaf.is_some_and(|leaf| leaf.loose && matches!(leaf.value, NodeValue::Text(_)));
        match error.kind() {
            ValidationErrorKind::Type { .. } => loose,
            ValidationErrorKind::AnyOf { context }
            | ValidationErrorKind::OneOfNotValid { context } => {
                context.iter().any(|errors| only_loose(errors, node))
            }
            _ => false,
        }
    })
}

/// Turns `1e3` and `10.0` into whole numbers where the schema expects those: the schema accepts
/// them as whole, but the Rust types do not.
fn make_whole(node: &mut Node, validator: &Validator) {
    let mut written = Vec::new();
    fractions(node, &mut Vec::new(), &mut written);
    if written.is_empty() {
        return;
    }
    let value = node.to_json();
    for (path, whole) in written {
        let pointer: String = path.iter().map(|step| format!("/{}", escaped(step))).collect();
        let fits = |value: &Value| {
            !validator.iter_errors(value).any(|error| error.instance_path().as_str() == pointer)
        };
        let mut other = value.clone();
        let Some(place) = other.pointer_mut(&pointer) else { continue };
        // If one half does not fit, a whole number is expected.
        *place = 0.5.into();
        let half = fits(&other);
        *other.pointer_mut(&pointer).expect("it was there") = Value::Number(whole.clone());
        if !half
            && fits(&other)
            && let Some(leaf) = node.at_mut(&path)
        {
            leaf.value = NodeValue::Number(whole);
        }
    }
}

/// The numbers that are written with a point or an exponent and are whole: their paths and values.
fn fractions(node: &Node, path: &mut Vec<String>, found: &mut Vec<(Vec<String>, Number)>) {
    let mut below = |step: String, child: &Node| {
        path.push(step);
        fractions(child, path, found);
        path.pop();
    };
    match &node.value {
        NodeValue::Number(number) => found.extend(whole(number).map(|whole| (path.clone(), whole))),
        NodeValue::List(items) => {
            items.iter().enumerate().for_each(|(at, item)| below(at.to_string(), item));
        }
        NodeValue::Map(entries) => {
            entries.iter().for_each(|entry| below(entry.key.clone(), &entry.node));
        }
        _ => {}
    }
}

/// A number with a point or an exponent, as the whole number that it is.
fn whole(number: &Number) -> Option<Number> {
    let float = number.as_f64().filter(|float| number.is_f64() && float.fract() == 0.0)?;
    // Without its exponent it parses like any other.
    let text = format!("{float:.0}");
    text.parse::<i64>().map(Number::from).or_else(|_| text.parse::<u64>().map(Number::from)).ok()
}

/// Escapes a step of a JSON pointer.
fn escaped(step: &str) -> String {
    step.replace('~', "~0").replace('/', "~1")
}

/// Returns a variable's value, if it is set, or what is wrong with it.
type Lookup<'a> = dyn Fn(&str) -> Result<Option<String>, String> + 'a;

/// Substitutes variables in the string leaves of a tree: `${NAME}`, `${NAME:-default}`; `$$` is a
/// `$`.
pub(crate) fn substitute(
    node: &mut Node,
    path: &mut Vec<String>,
    lookup: &Lookup<'_>,
    findings: &mut Findings,
) {
    match &mut node.value {
        // A variable that sets a key is taken verbatim: it may contain a secret.
        NodeValue::Text(_) if matches!(node.origin, Origin::Variable(_)) => {}
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

/// A text with its variables substituted, and whether there were any.
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
    use super::{expand, whole};

    #[test]
    fn numbers_with_a_point_can_be_whole() {
        let of = |text: &str| whole(&serde_json::from_str(text).unwrap()).map(|n| n.to_string());
        assert_eq!(of("1e3").as_deref(), Some("1000"));
        assert_eq!(of("-2.0").as_deref(), Some("-2"));
        assert_eq!(of("1e19").as_deref(), Some("10000000000000000000"));
        for other in ["1", "1.5", "1e30", "1e-3"] {
            assert_eq!(of(other), None, "{other}");
        }
    }

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
