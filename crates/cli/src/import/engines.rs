//! Volley's engines, found in Python files by their calls of `Engine(...)`: what stands there as
//! texts and lists of texts. A program that computes them is not run.

/// An engine: one component between queues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Engine {
    /// Where it stands, for people.
    pub(super) place: String,
    /// The function that it decorates, or its `app_name`.
    pub(super) name: String,
    pub(super) input: String,
    pub(super) outputs: Vec<String>,
    pub(super) dead_letters: Option<String>,
}

/// Finds the engines of a file.
///
/// # Errors
/// One names no input queue in a way that can be read.
pub(super) fn find(file: &str, text: &str) -> anyhow::Result<Vec<Engine>> {
    const CALL: &str = "Engine(";
    let mut engines = Vec::new();
    for (at, _) in text.match_indices(CALL) {
        let before = text[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let place = format!("{file}:{}", text[..at].matches('\n').count() + 1);
        let arguments = balanced(&text[at + CALL.len()..]);
        let texts = |name: &str| argument(arguments, name).map(texts).unwrap_or_default();
        let Some(input) = texts("input_queue").into_iter().next() else {
            anyhow::bail!(
                "{place}: the engine's `input_queue` is no text: write it as one, as \"in\""
            );
        };
        let rest = &text[at + CALL.len() + arguments.len()..];
        let name = decorated(rest).map(str::to_owned);
        let name = name.or_else(|| texts("app_name").into_iter().next());
        engines.push(Engine {
            place,
            name: name.unwrap_or_else(|| "component".to_owned()),
            input,
            outputs: texts("output_queues"),
            dead_letters: texts("dead_letter_queue").into_iter().next(),
        });
    }
    Ok(engines)
}

/// What stands before the bracket that closes the call.
fn balanced(text: &str) -> &str {
    let (mut open, mut quote) = (1_usize, None);
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(c),
            (None, '(' | '[' | '{') => open += 1,
            (None, ')' | ']' | '}') => open -= 1,
            _ => {}
        }
        if open == 0 {
            return &text[..at];
        }
    }
    text
}

/// What follows `name=`, up to the comma that ends it.
fn argument<'t>(arguments: &'t str, name: &str) -> Option<&'t str> {
    let at = arguments.match_indices(name).find_map(|(at, _)| {
        let own = !arguments[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let value = arguments[at + name.len()..].trim_start().strip_prefix('=')?;
        (own && !value.starts_with('=')).then(|| arguments.len() - value.len())
    })?;
    let value = &arguments[at..];
    let (mut open, mut quote) = (0_usize, None);
    for (at, c) in value.char_indices() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(c),
            (None, '(' | '[' | '{') => open += 1,
            (None, ')' | ']' | '}') => open = open.saturating_sub(1),
            (None, ',') if open == 0 => return Some(&value[..at]),
            _ => {}
        }
    }
    Some(value)
}

/// The texts that stand in a value.
fn texts(value: &str) -> Vec<String> {
    let mut texts = Vec::new();
    let mut rest = value;
    while let Some(at) = rest.find(['"', '\'']) {
        let quote = &rest[at..=at];
        let Some(end) = rest[at + 1..].find(quote) else { break };
        texts.push(rest[at + 1..at + 1 + end].to_owned());
        rest = &rest[at + end + 2..];
    }
    texts
}

/// The function below the next `@....stream_app`.
fn decorated(text: &str) -> Option<&str> {
    let (_, below) = text.split_once("stream_app")?;
    let (_, function) = below.split_once("def ")?;
    let end = function.find('(')?;
    Some(function[..end].trim())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn engines_are_found_with_their_queues_and_functions() {
        let text = r#"
class MyEngine(Base): pass
eng = Engine(
    app_name="app", input_queue = 'in',
    output_queues=["a", "b"],  # two
    dead_letter_queue="dead",
    queue_config={"x": ("y", 1)},
)

@eng.stream_app
async def hello(msg): ...

other = volley.Engine(input_queue="b", output_queues=[])
"#;
        let engines = find("app.py", text).unwrap();
        assert_eq!(engines.len(), 2);
        let first = Engine {
            place: "app.py:3".into(),
            name: "hello".into(),
            input: "in".into(),
            outputs: vec!["a".into(), "b".into()],
            dead_letters: Some("dead".into()),
        };
        assert_eq!(engines[0], first);
        assert_eq!((&*engines[1].name, &*engines[1].input), ("component", "b"));
        let error = find("app.py", "Engine(input_queue=NAME)").unwrap_err();
        assert!(error.to_string().starts_with("app.py:1: "), "{error}");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[Engine(input_queue=\"'\\[\\]),ü@stream_app def\n]{0,200}") {
            let _ = find("x.py", &format!("Engine({text}"));
        }
    }
}
