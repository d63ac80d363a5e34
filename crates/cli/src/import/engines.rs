//! Volley's engines, found in Python files by their calls of `Engine(...)`: their literal texts and
//! lists of texts. A program that computes them is not run.

use std::ops::Range;

use super::python::Python;

/// An engine: one component between queues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Engine {
    /// Its position, in readable form.
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
/// An engine's input queue cannot be read from the file.
pub(super) fn find(file: &str, text: &str) -> anyhow::Result<Vec<Engine>> {
    const CALL: &str = "Engine(";
    let python = Python::new(text);
    let code = python.code();
    let mut engines = Vec::new();
    let calls = code.match_indices(CALL).map(|(at, _)| at).filter(|at| is_call(&code[..*at]));
    let calls: Vec<usize> = calls.collect();
    for at in calls.iter().copied() {
        let place = format!("{file}:{}", code[..at].matches('\n').count() + 1);
        let begin = at + CALL.len();
        let end = begin + past_of(&code[begin..], false);
        let texts = |name: &str| {
            let value = argument(&code[begin..end], name);
            value.map_or_else(Vec::new, |part| python.texts(begin + part.start..begin + part.end))
        };
        let Some(input) = texts("input_queue").into_iter().next() else {
            anyhow::bail!(
                "{place}: the engine's `input_queue` is no text: write it as one, as \"in\""
            );
        };
        let name = match variable(&code[..at]) {
            Some(variable) => of_variable(&code[end..], variable),
            None => decorated(&code[end..]),
        };
        // If there is no other engine, it can only be this one's function.
        let name = name.or_else(|| decorated(&code[end..]).filter(|_| calls.len() == 1));
        let name = name.map(str::to_owned);
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

/// Whether the text before `Engine(` makes it a call of `Engine`: not the end of another name, and
/// not the definition of a class or function.
fn is_call(before: &str) -> bool {
    let is_whole = !before.ends_with(|c: char| c.is_alphanumeric() || c == '_');
    is_whole && !matches!(before.split_whitespace().next_back(), Some("class" | "def"))
}

/// The length up to the bracket that closes what is open, or to the comma that ends a value.
fn past_of(code: &str, is_value: bool) -> usize {
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

/// The range of what follows `name=`, up to the comma that ends it.
fn argument(arguments: &str, name: &str) -> Option<Range<usize>> {
    let begin = arguments.match_indices(name).find_map(|(at, _)| {
        let own = !arguments[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let value = arguments[at + name.len()..].trim_start().strip_prefix('=')?;
        (own && !value.starts_with('=')).then(|| arguments.len() - value.len())
    })?;
    Some(begin..begin + past_of(&arguments[begin..], true))
}

/// The variable, without its owner, that is assigned the value whose call begins after this.
fn variable(before: &str) -> Option<&str> {
    let target = before.trim_end_matches(|c| is_word(c) || c == '.').trim_end();
    let target = target.strip_suffix('=')?.trim_end();
    let line = target.rsplit('\n').next().unwrap_or(target);
    // `name: Type = ...`, but also `else: name = ...`.
    let annotated = line.split_once(':').map(|(name, _)| name.trim());
    let annotated = annotated.filter(|name| name.chars().all(|c| is_word(c) || c == '.'));
    let annotated = annotated.filter(|name| !matches!(*name, "else" | "try" | "finally"));
    let target = annotated.unwrap_or(line);
    let (at, _) = target.char_indices().rev().take_while(|(_, c)| is_word(*c)).last()?;
    Some(&target[at..])
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The function that an engine's variable decorates: below `@variable.stream_app`, or in
/// `variable.stream_app(function)`.
fn of_variable<'t>(text: &'t str, variable: &str) -> Option<&'t str> {
    let used = format!("{variable}.stream_app");
    text.match_indices(&used).find_map(|(at, used)| {
        let (before, after) = (&text[..at], &text[at + used.len()..]);
        if before.ends_with(is_word) || after.starts_with(is_word) {
            return None;
        }
        let line = before.rsplit('\n').next().unwrap_or(before);
        if line.trim_start().starts_with('@') {
            return decorated(&text[at..]);
        }
        let function = after.trim_start().strip_prefix('(')?.trim_start();
        let end = function.find(|c| !is_word(c))?;
        (end > 0).then_some(&function[..end])
    })
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

    #[test]
    fn each_engine_has_the_function_that_its_own_variable_decorates() {
        let text = r#"
a = Engine(input_queue="x", output_queues=[])
b: Engine = volley.Engine(input_queue="y", output_queues=[])
self.c = Engine(input_queue="z", app_name="third")
d = Engine(input_queue="w")

@a.stream_app
def first(m): ...

@b.stream_app
async def second(m): ...

d.stream_app(fourth)

a = Engine(input_queue="v")

@a.stream_app
def fifth(m): ...

if late: e = Engine(input_queue="u")
else: e = Engine(input_queue="t")
@self.e.stream_app
def sixth(m): ...
"#;
        let names: Vec<String> =
            find("app.py", text).unwrap().into_iter().map(|engine| engine.name).collect();
        assert_eq!(names, ["first", "second", "third", "fourth", "fifth", "sixth", "sixth"]);
    }

    /// What Python does not run is not an engine, and does not end a call.
    #[test]
    fn comments_docstrings_and_classes_are_no_engines() {
        let text = r##"
"""Runs an Engine(input_queue=NAME), as in

    engine = Engine(input_queue="example")
"""
# Engine( of our own: don't use it
class Engine(volley.Engine):
    'Not Engine(x).'

class  Engine (Base): pass

eng = Engine(
    # input_queue="old",  it's gone
    input_queue="in",  # the worker's (only) one
    output_queues=[
        "a",  # what's "new"
        # "b",
        'c',
    ],
    dead_letter_queue="""dead""",
)

# @eng.stream_app: def old(): don't
@eng.stream_app
def hello(msg):
    """Called by Engine(...)."""
    raise ValueError("no Engine(input_queue) here")
"##;
        let engine = Engine {
            place: "app.py:12".into(),
            name: "hello".into(),
            input: "in".into(),
            outputs: vec!["a".into(), "c".into()],
            dead_letters: Some("dead".into()),
        };
        assert_eq!(find("app.py", text).unwrap(), [engine]);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "([Engine(input_queue=#\\\\\"'\\[\\]),ü@.: def\n]|stream_app|eng = Engine\\(|@eng.stream_app){0,200}") {
            let _ = find("x.py", &format!("Engine({text}"));
        }
    }
}
