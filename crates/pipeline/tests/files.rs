//! What files mean, and what is laid over them. Wrong ones are in `tests/wrong_files` at the top of
//! the tree.
#![allow(clippy::unwrap_used, reason = "a test that stops says where")]

mod catalog;

use std::path::Path;

use brigade_pipeline::{Format, Inputs, Overrides, load_str};
use catalog::Fake;

#[test]
fn values_of_the_environment_and_of_sets_take_the_type_that_is_expected() {
    let text = "pipeline: p\nqueues: { in: { type: rich } }\nstages: { s: { component: code, input: in, workers: \"${N:-3}\" } }";
    let overrides = Overrides {
        variables: vec![("BRIGADE__LANES".into(), "2".into())],
        sets: vec!["stages.s.max_in_flight={messages: 7}".into()],
        no_unicode: Vec::new(),
    };
    let loaded = load_str("p.yaml", Format::Yaml, text, Path::new("."), &overrides, &Fake);
    let topology = loaded.unwrap_or_else(|error| panic!("{error}")).topology;
    assert_eq!(topology.lanes, 2);
    assert_eq!(topology.stages["s"].workers, 3);
    assert_eq!(topology.stages["s"].max_in_flight.messages, 7);
}

#[test]
fn in_a_value_of_several_forms_texts_take_the_type_that_is_expected_too() {
    let text = "pipeline: p\nqueues: { a: { type: rich }, b: { type: rich } }\nstages:\n  s: { component: code, input: { queues: [a, b], priority: \"${P:-true}\" } }\n  t: { component: code, input: { queues: [a, b] } }";
    let variables = vec![("BRIGADE__STAGES__T__INPUT__PRIORITY".into(), "true".into())];
    let overrides = Overrides { variables, ..Overrides::default() };
    let loaded = load_str("p.yaml", Format::Yaml, text, Path::new("."), &overrides, &Fake);
    let topology = loaded.unwrap_or_else(|error| panic!("{error}")).topology;
    for stage in topology.stages.values() {
        let prior = matches!(stage.inputs, Inputs::Queues { priority: true, .. });
        assert!(prior, "{}: {:?}", stage.name, stage.inputs);
    }
}

/// A name as it is goes before one that is like it, wherever they stand.
#[test]
fn a_variable_sets_the_key_of_its_name_before_one_like_it() {
    for stages in ["a_b: S, a-b: S", "a-b: S, a_b: S"] {
        let stages = stages.replace('S', "{ component: code, input: in }");
        let text =
            format!("pipeline: p\nqueues: {{ in: {{ type: rich }} }}\nstages: {{ {stages} }}");
        let overrides = Overrides {
            variables: vec![("BRIGADE__STAGES__A_B__WORKERS".into(), "4".into())],
            ..Overrides::default()
        };
        let loaded = load_str("p.yaml", Format::Yaml, &text, Path::new("."), &overrides, &Fake);
        let topology = loaded.unwrap_or_else(|error| panic!("{error}")).topology;
        assert_eq!((topology.stages["a_b"].workers, topology.stages["a-b"].workers), (4, 1));
    }
}

#[test]
fn values_of_the_environment_are_taken_as_they_are() {
    let text = "pipeline: p\nqueues: { in: { type: rich } }\nstages: { s: { component: code, input: in, env: { FILE: 'a$$${X}' } } }";
    let overrides = Overrides {
        variables: vec![
            ("BRIGADE__STAGES__S__ENV__SECRET".into(), "pa$$w${X}${y".into()),
            ("X".into(), "x$$".into()),
        ],
        sets: vec!["stages.s.env.SET=b$$${X}".into()],
        ..Overrides::default()
    };
    let loaded = load_str("p.yaml", Format::Yaml, text, Path::new("."), &overrides, &Fake);
    let topology = loaded.unwrap_or_else(|error| panic!("{error}")).topology;
    let env = &topology.stages["s"].env;
    let of = |name: &str| &*env[name];
    assert_eq!((of("SECRET"), of("FILE"), of("SET")), ("pa$$w${X}${y", "a$x$$", "b$x$$"));
}

/// What a component reads by name is named as the variable names it, or as the file does.
#[test]
fn a_stages_variable_is_spelled_as_the_variable_that_sets_it() {
    let text = "pipeline: p\nqueues: { in: { type: rich } }\nstages: { s: { component: code, input: in, env: { lower: a, Mixed-Up: b } } }";
    let set = |name: &str| (format!("BRIGADE__{name}"), name.to_owned());
    let names = ["STAGES__S__ENV__NEW", "stages__s__env__Other", "STAGES__S__ENV__LOWER"];
    let more = ["STAGES__S__ENV__MIXED_UP", "STAGES__S__RETRY__ATTEMPTS"];
    let mut variables: Vec<(String, String)> = names.into_iter().chain(more).map(set).collect();
    variables[4].1 = "7".to_owned();
    let overrides = Overrides { variables, ..Overrides::default() };
    let loaded = load_str("p.yaml", Format::Yaml, text, Path::new("."), &overrides, &Fake);
    let topology = loaded.unwrap_or_else(|error| panic!("{error}")).topology;
    let stage = &topology.stages["s"];
    let env: Vec<(&str, &str)> =
        stage.env.iter().map(|(name, value)| (&**name, &**value)).collect();
    let expected =
        [("Mixed-Up", more[0]), ("NEW", names[0]), ("Other", names[1]), ("lower", names[2])];
    assert_eq!((env, stage.retry.attempts), (expected.to_vec(), 7));
}

#[test]
fn whole_numbers_may_be_written_as_others_are() {
    let text = "pipeline: p\nqueues: { in: { type: rich, limit: { messages: 1e3 } } }\nstages: { s: { component: code, input: in, max_in_flight: { messages: 7.0 } } }";
    let overrides = Overrides {
        variables: vec![("BRIGADE__STAGES__S__WORKERS".into(), "2e0".into())],
        ..Overrides::default()
    };
    let loaded = load_str("p.yaml", Format::Yaml, text, Path::new("."), &overrides, &Fake);
    let said = loaded.map_or_else(|error| error.to_string(), |_| String::new());
    // All that is wrong is that such a queue has no limit.
    assert!(said.starts_with("error[queue_setting]: queues of type `rich`"), "{said}");
    assert_eq!(said.matches("error[").count(), 1, "{said}");
    let text = text.replace(", limit: { messages: 1e3 }", "");
    let loaded = load_str("p.yaml", Format::Yaml, &text, Path::new("."), &overrides, &Fake);
    let topology = loaded.unwrap_or_else(|error| panic!("{error}")).topology;
    assert_eq!(topology.stages["s"].workers, 2);
    assert_eq!(topology.stages["s"].max_in_flight.messages, 7);
}

#[test]
fn variables_that_are_no_unicode_are_told_where_they_are_used() {
    let text = "pipeline: p\nqueues: { in: { type: rich } }\nstages: { s: { component: code, input: in, workers: \"${N:-3}\" } }";
    let said = |no_unicode: &str| {
        let overrides =
            Overrides { no_unicode: vec![no_unicode.to_owned()], ..Overrides::default() };
        let loaded = load_str("p.yaml", Format::Yaml, text, Path::new("."), &overrides, &Fake);
        loaded.map_or_else(|error| error.to_string(), |_| String::new())
    };
    for name in ["N", "BRIGADE__LANES"] {
        assert!(said(name).contains(&format!("variable `{name}` is no Unicode")), "{}", said(name));
    }
    assert_eq!(said("OTHER"), "");
}

#[test]
fn the_three_formats_mean_the_same() {
    let yaml = "pipeline: p\nqueues:\n  in: { type: rich }\nstages:\n  s: { component: code, input: in, retry: { attempts: 2 } }\n";
    let toml = "pipeline = \"p\"\n[queues]\nin = { type = \"rich\" }\n[stages.s]\ncomponent = \"code\"\ninput = \"in\"\nretry = { attempts = 2 }\n";
    let json = r#"{"pipeline":"p","queues":{"in":{"type":"rich"}},"stages":{"s":{"component":"code","input":"in","retry":{"attempts":2}}}}"#;
    let debug = |format, text| {
        let loaded = load_str("p", format, text, Path::new("."), &Overrides::default(), &Fake);
        format!("{:?}", loaded.unwrap_or_else(|error| panic!("{error}")).topology)
    };
    let meant = debug(Format::Yaml, yaml);
    assert_eq!(meant, debug(Format::Toml, toml));
    assert_eq!(meant, debug(Format::Json, json));
}

#[test]
fn a_split_that_cuts_a_direct_edge_is_refused() {
    let text = "pipeline: p\nqueues: { in: { type: rich } }\nstages:\n  a: { component: code, input: in }\n  b: { component: code, input: a }";
    let loaded = load_str("p", Format::Yaml, text, Path::new("."), &Overrides::default(), &Fake);
    let topology = loaded.unwrap().topology;
    let said = topology.clone().split(&["a".to_owned()]).unwrap_err().to_string();
    assert!(said.contains("stage `b` is fed directly by `a`"), "{said}");
    assert!(said.contains("name a queue between them"), "{said}");
    assert!(topology.split(&["a".to_owned(), "b".to_owned()]).is_ok());
}

#[test]
fn a_split_that_cuts_a_queue_in_memory_is_refused() {
    let text = "pipeline: p\nqueues: { in: { type: rich }, mid: { type: rich }, dead: { type: rich } }\nstages:\n  a: { component: code, input: in, outputs: [mid] }\n  b: { component: code, input: mid, dead_letter: dead }\n  c: { component: code, input: dead }";
    let loaded = load_str("p", Format::Yaml, text, Path::new("."), &Overrides::default(), &Fake);
    let topology = loaded.unwrap().topology;
    let said = |stages: &[&str]| {
        let stages: Vec<String> = stages.iter().map(|stage| (*stage).to_owned()).collect();
        topology.clone().split(&stages).map_or_else(|error| error.to_string(), |_| String::new())
    };
    let mid =
        "queue `mid` of type rich ends with its process, but stage `a` writes it and stage `b`";
    assert!(said(&["a"]).contains(mid), "{}", said(&["a"]));
    assert!(said(&["b"]).contains(mid), "{}", said(&["b"]));
    // Dead letters are read as well.
    let dead =
        "queue `dead` of type rich ends with its process, but stage `b` writes it and stage `c`";
    assert!(said(&["a", "b"]).contains(dead), "{}", said(&["a", "b"]));
    assert_eq!(said(&["a", "b", "c"]), "");
    let mut durable = topology.clone();
    durable.queues.values_mut().for_each(|queue| queue.features.durable = true);
    assert!(durable.split(&["a".to_owned()]).is_ok());
}
