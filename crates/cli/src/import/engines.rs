//! Volley's engines, found in Python files by their calls of `Engine(...)`: their literal texts and
//! lists of texts. A program that computes them is not run.

use std::ops::Range;

use super::python::{Python, parts, past_of};

/// What was found in Python files.
#[derive(Debug, Default)]
pub(super) struct Program {
    pub(super) engines: Vec<Engine>,
    /// The files in which no engine was found.
    pub(super) without: Vec<String>,
}

impl Program {
    /// Adds the engines of a file.
    ///
    /// # Errors
    /// An engine's input queue cannot be read from the file.
    pub(super) fn add(&mut self, file: &str, text: &str) -> anyhow::Result<()> {
        let found = find(file, text)?;
        if found.is_empty() {
            self.without.push(file.to_owned());
        }
        self.engines.extend(found);
        Ok(())
    }
}

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
    /// What could not be read of it, or has another place here.
    pub(super) notes: Vec<String>,
}

/// Arguments that have another place here, with that place.
const ELSEWHERE: [(&str, &str); 3] = [
    ("metrics_port", "the file's `metrics: { address, names: volley }` serves the same names"),
    ("poll_interval_seconds", "Brigade polls by itself"),
    (
        "queue_config",
        "Volley takes the queues from it, and not from the file, if it has both: compare them",
    ),
];

/// Finds the engines of a file.
///
/// # Errors
/// An engine's input queue cannot be read from the file.
fn find(file: &str, text: &str) -> anyhow::Result<Vec<Engine>> {
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
        let mut call = Call { python: &python, arguments: begin..end, notes: Vec::new() };
        let Some(input) = call.text("input_queue") else {
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
        let name = name.map(str::to_owned).or_else(|| call.text("app_name"));
        let outputs = call.outputs();
        let dead_letters = call.dead_letters();
        call.others();
        let name = name.unwrap_or_else(|| "component".to_owned());
        engines.push(Engine { place, name, input, outputs, dead_letters, notes: call.notes });
    }
    Ok(engines)
}

/// The arguments of an engine.
struct Call<'p> {
    python: &'p Python<'p>,
    arguments: Range<usize>,
    notes: Vec<String>,
}

impl Call<'_> {
    /// The range of an argument's value, unless that is missing or `None`.
    fn value(&self, name: &str) -> Option<Range<usize>> {
        let code = self.python.code();
        let part = argument(&code[self.arguments.clone()], name)?;
        let begin = self.arguments.start;
        let part = begin + part.start..begin + part.end;
        (code[part.clone()].trim() != "None").then_some(part)
    }

    /// An argument that is a literal text.
    fn text(&self, name: &str) -> Option<String> {
        self.python.literal(self.value(name)?)
    }

    fn outputs(&mut self) -> Vec<String> {
        let Some(part) = self.value("output_queues") else { return Vec::new() };
        self.python.literals(part).unwrap_or_else(|| {
            self.notes
                .push("its `output_queues` is no list of texts: name them in `outputs`".into());
            Vec::new()
        })
    }

    fn dead_letters(&mut self) -> Option<String> {
        let text = self.python.literal(self.value("dead_letter_queue")?);
        if text.is_none() {
            let note = "its `dead_letter_queue` is no text: name the queue in `dead_letter`";
            self.notes.push(note.to_owned());
        }
        text
    }

    /// Notes the arguments that are not read.
    fn others(&mut self) {
        for (name, place) in ELSEWHERE {
            if self.value(name).is_some() {
                self.notes.push(format!("its `{name}` is left out: {place}"));
            }
        }
        let code = &self.python.code()[self.arguments.clone()];
        if parts(code).any(|part| code[part].trim_start().starts_with("**")) {
            self.notes.push("its arguments after `**` are not read: compare them".to_owned());
        }
    }
}

/// Whether the text before `Engine(` makes it a call of `Engine`: not the end of another name, and
/// not the definition of a class or function.
fn is_call(before: &str) -> bool {
    let is_whole = !before.ends_with(|c: char| c.is_alphanumeric() || c == '_');
    is_whole && !matches!(before.split_whitespace().next_back(), Some("class" | "def"))
}

/// The range of what follows `name=`, up to the comma that ends it.
fn argument(arguments: &str, name: &str) -> Option<Range<usize>> {
    parts(arguments).find_map(|part| {
        let code = &arguments[part.clone()];
        let value = code.trim_start().strip_prefix(name)?.trim_start().strip_prefix('=')?;
        (!value.starts_with('=')).then(|| part.end - value.len()..part.end)
    })
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
            notes: vec![format!("its `queue_config` is left out: {}", ELSEWHERE[2].1)],
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

    #[test]
    fn arguments_that_are_no_literal_texts_are_told_and_not_guessed() {
        let of = |arguments: &str| {
            let found = find("app.py", &format!("Engine(input_queue='in', {arguments})"));
            let Engine { outputs, dead_letters, notes, .. } = found.unwrap().remove(0);
            (outputs, dead_letters, notes.join("; "))
        };
        for outputs in [
            "OUT",
            "['a'] + MORE",
            "['a', OTHER]",
            "['a'] + ['b']",
            "os.environ.get('OUT', 'a')",
            "[f'{stage}-a']",
            "['a' 'b']",
        ] {
            let (found, _, notes) = of(&format!("output_queues={outputs}"));
            assert_eq!(found, [""; 0], "{outputs}");
            assert_eq!(notes, "its `output_queues` is no list of texts: name them in `outputs`");
        }
        for outputs in ["[]", "None", "(\n)", "[ # 'a'\n]"] {
            let (found, _, notes) = of(&format!("output_queues={outputs}"));
            assert_eq!((found.len(), &*notes), (0, ""), "{outputs}");
        }
        for outputs in ["['a', r\"b\",]", "('a', 'b')", "{ 'a' , ('b') }"] {
            let (found, _, notes) = of(&format!("output_queues={outputs}"));
            assert_eq!((found, &*notes), (vec!["a".to_owned(), "b".to_owned()], ""), "{outputs}");
        }
        let (_, dead, notes) = of("dead_letter_queue=DEAD");
        assert_eq!(dead, None);
        assert_eq!(notes, "its `dead_letter_queue` is no text: name the queue in `dead_letter`");
        assert_eq!(of("dead_letter_queue=None"), (Vec::new(), None, String::new()));
        let (_, _, notes) = of("metrics_port=3000, poll_interval_seconds=1, **more");
        for said in ["`metrics_port`", "`poll_interval_seconds`", "after `**`"] {
            assert!(notes.contains(said), "{notes}");
        }
        // What is within another value is not the engine's.
        let inner = "queue_config=dict(output_queues=['x'], dead_letter_queue='y')";
        assert_eq!((of(inner).0, of(inner).1), (Vec::new(), None));
        for input in ["os.environ['IN']", "f'{name}'", "'a' + B"] {
            assert!(find("app.py", &format!("Engine(input_queue={input})")).is_err(), "{input}");
        }
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
            notes: Vec::new(),
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
