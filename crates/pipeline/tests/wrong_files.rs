//! Wrong pipeline files, and what is said about them.
#![allow(clippy::unwrap_used, reason = "a test that stops says where")]

mod catalog;

use std::path::Path;

use brigade_pipeline::{Format, Overrides, load_str};
use catalog::Fake;

fn said(format: Format, text: &str, overrides: &Overrides) -> String {
    let name = match format {
        Format::Yaml => "p.yaml",
        Format::Toml => "p.toml",
        Format::Json => "p.json",
    };
    match load_str(name, format, text, Path::new("."), overrides, &Fake) {
        Ok(loaded) => {
            let warnings: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
            format!("good\n{}", warnings.join("\n"))
        }
        Err(diagnostics) => diagnostics.to_string(),
    }
}

fn yaml(text: &str) -> String {
    said(Format::Yaml, text, &Overrides::default())
}

/// A good file but for what is put into it.
fn stage(keys: &str) -> String {
    yaml(&format!(
        "pipeline: p\nqueues:\n  in: {{ type: rich }}\n  out: {{ type: rich }}\nstages:\n  check: {{ component: code, input: in, outputs: [out]{keys} }}\n"
    ))
}

#[test]
fn a_good_file_is_good() {
    assert_eq!(stage(""), "good\n");
}

macro_rules! wrong {
    ($($name:ident: $said:expr, $($expected:literal),+;)*) => {
        $(
            #[test]
            fn $name() {
                let said = $said;
                $(assert!(said.contains($expected), "expected `{}` in:\n{said}", $expected);)+
            }
        )*
    };
}

wrong! {
    an_unknown_key_names_the_nearest_right_one: stage(", wokers: 2"),
        "error[unknown_key]: unknown key `wokers`", "p.yaml:6:", "did you mean `workers`?",
        "(stages.check.wokers)";
    an_unknown_key_at_the_top: yaml("pipeline: p\nstagess: {}"),
        "unknown key `stagess` in the pipeline", "p.yaml:2:1", "did you mean `stages`?";
    a_wrong_type: stage(", workers: many"),
        "error[wrong_type]: `stages.check.workers` of the pipeline: expected a whole number, found the text `many`";
    a_number_out_of_range: stage(", workers: 0"),
        "expected at least 1, found the number 0";
    a_number_too_large: stage(", workers: 5000"),
        "expected at most 1024, found the number 5000";
    a_period_without_a_unit: stage(", timeout: '30'"),
        "expected a length of time such as `200ms`", "found the text `30`";
    a_period_that_is_a_number: stage(", timeout: 30"),
        "expected a length of time", "found the number 30";
    a_word_that_is_none_of_those_there_are: stage(", order: kye"),
        "expected `none` or `key` or `queue`, found the text `kye`", "did you mean `key`?";
    a_list_where_a_text_belongs: yaml("pipeline: [a]"),
        "`pipeline` of the pipeline: expected a text, found a list";
    a_missing_key: yaml("pipeline: p\nstages:\n  check: { component: code }"),
        "error[missing_key]: `stages.check` of the pipeline lacks the key `input`", "p.yaml:3:3";
    no_name: yaml("stages: {}"), "the pipeline lacks the key `pipeline`";
    a_name_that_is_none: yaml("pipeline: 'a b'"), "error[name]: `a b` is no name";
    a_name_that_is_kept: yaml("pipeline: p\nqueues: { ~dead: { type: rich } }"), "`~dead` is no name";
    a_component_that_is_not_there: stage("").replace("good", "") + &yaml(
        "pipeline: p\nqueues: { in: { type: rich } }\nstages: { s: { component: cod, input: in } }"),
        "error[unknown_component]: no component `cod`", "did you mean `code`?";
    a_queue_that_is_not_there: yaml(
        "pipeline: p\nqueues: { in: { type: rich } }\nstages: { s: { component: code, input: inn } }"),
        "no queue or stage `inn`", "did you mean `in`?";
    an_output_that_is_not_declared: yaml(
        "pipeline: p\nqueues: { in: { type: rich } }\nstages: { s: { component: code, input: in, outputs: [nowhere] } }"),
        "no queue `nowhere`", "p.yaml:3:";
    an_output_that_is_a_stage: yaml(
        "pipeline: p\nqueues: { in: { type: rich } }\nstages:\n  a: { component: code, input: in, outputs: [b] }\n  b: { component: code, input: a }"),
        "`b` is a stage, not a queue", "for a direct edge set `input: a` in stage `b`";
    a_queue_type_that_is_not_there: yaml("pipeline: p\nqueues: { in: { type: kafca } }\nstages: {}"),
        "error[unknown_type]: no queue type `kafca`", "p.yaml:2:";
    a_queue_without_a_type: yaml("pipeline: p\nqueues: { in: { } }"), "queue `in` lacks the key `type`";
    a_queue_that_is_no_mapping: yaml("pipeline: p\nqueues: { in: 5 }"), "queue `in`: expected a mapping, found the number 5";
    a_key_that_the_queue_type_does_not_have: yaml("pipeline: p\nqueues: { in: { type: rich, pth: x } }"),
        "unknown key `pth` in queue `in`", "did you mean `path`?";
    a_setting_that_its_connector_refuses: yaml("pipeline: p\nqueues: { in: { type: rich, path: bad } }"),
        "error[queue_setting]: queue `in`: a bad path", "(queues.in.path)", "another one";
    one_name_for_two_things: yaml(
        "pipeline: p\nqueues: { x: { type: rich } }\nstages: { x: { component: code, input: x } }"),
        "error[name_twice]: `x` is a stage and, at p.yaml:2:11, also a queue";
    a_key_that_stands_twice: yaml("pipeline: p\npipeline: q"),
        "error[duplicate_key]: key `pipeline` stands twice; first at p.yaml:1:1", "p.yaml:2:1";
    a_circle_of_direct_edges: yaml(
        "pipeline: p\nstages:\n  a: { component: code, input: b }\n  b: { component: code, input: a }"),
        "error[cycle]: direct edges form a circle: a -> b -> a";
    a_stage_among_several_inputs: yaml(
        "pipeline: p\nqueues: { in: { type: rich } }\nstages:\n  a: { component: code, input: in }\n  b: { component: code, input: [in, a] }"),
        "stage `a` stands among several inputs";
    no_stages: yaml("pipeline: p"), "error[empty]: the pipeline has no stages";
    an_order_that_the_queue_cannot_keep: yaml(
        "pipeline: p\nqueues: { in: { type: poor } }\nstages: { s: { component: code, input: in, order: key } }"),
        "queue `in` of type poor cannot keep keys in order";
    an_order_without_keys: yaml(
        "pipeline: p\nqueues: { in: { type: alone } }\nstages: { s: { component: code, input: in, order: key } }"),
        "messages of queue `in` have no key", "set `key:` of queue `in`";
    queue_order_with_several_workers: stage(", order: queue, workers: 2"),
        "`order: queue` allows only one worker";
    several_stages_on_a_queue_without_groups: yaml(
        "pipeline: p\nqueues: { in: { type: poor } }\nstages:\n  a: { component: code, input: in }\n  b: { component: code, input: in }"),
        "stages a, b all read queue `in`";
    exactly_once_over_two_stores: yaml(
        "pipeline: p\nqueues: { in: { type: rich, guarantee: exactly_once }, out: { type: poor } }\nstages: { s: { component: code, input: in, outputs: [out] } }"),
        "error[guarantee]", "stage `s` also uses queue `out`";
    a_timeout_that_cannot_end_anything: stage(", timeout: 1s"),
        "error[timeout]: stage `check`: a timeout cannot end component `code`", "blocking: true";
    a_batch_of_what_handles_no_batches: stage(", batch: { size: 5 }"), "error[batch]";
    settings_for_what_takes_none: yaml(
        "pipeline: p\nqueues: { in: { type: rich } }\nstages: { s: { component: { code: 5 }, input: in } }"),
        "component `code` takes no settings";
    settings_that_the_component_refuses: yaml(
        "pipeline: p\nqueues: { in: { type: rich } }\nstages: { s: { component: { made: 5 }, input: in } }"),
        "error[component_setting]: component `made`: not that";
    a_back_off_that_ends_before_it_begins: stage(", retry: { min: 2s, max: 1s }"),
        "the back-off begins at 2s but ends at 1s";
    a_schema_that_is_none: yaml("pipeline: p\nqueues: { in: { type: rich, schema: { type: 5 } } }\nstages: { s: { component: code, input: in } }"),
        "the schema of queue `in` is no JSON Schema";
    a_schema_that_is_not_there: yaml("pipeline: p\nqueues: { in: { type: rich, schema: Flight } }\nstages: { s: { component: code, input: in } }"),
        "no registered type `Flight`, and no schema file";
    a_field_path_that_is_none: yaml("pipeline: p\nqueues: { in: { type: rich, key: 'a..b' } }\nstages: { s: { component: code, input: in } }"),
        "expected a field path such as `customer.id`, found `a..b`";
    a_variable_that_is_not_set: yaml("pipeline: p\nqueues: { in: { type: rich, path: '${NOWHERE}' } }"),
        "error[variable]: the environment variable `NOWHERE` is not set", "${NOWHERE:-default}";
    a_variable_without_an_end: yaml("pipeline: '${P'"), "`${` without `}`";
    broken_yaml: yaml("pipeline: [a"), "error[syntax]: not valid YAML";
    two_documents: yaml("pipeline: p\n---\npipeline: q"), "a second document in one file";
    a_list_at_the_top: yaml("- a"), "expected a mapping with `pipeline`";
    broken_toml: said(Format::Toml, "pipeline = ", &Overrides::default()), "error[syntax]: not valid TOML", "p.toml:1:";
    broken_json: said(Format::Json, "{\n  \"pipeline\": }", &Overrides::default()), "error[syntax]: not valid JSON", "p.json:2:15";
    comments_in_json: said(Format::Json, "{ // no\n}", &Overrides::default()), "not valid JSON";
    an_unknown_key_in_toml: said(Format::Toml, "pipeline = \"p\"\nwokers = 2", &Overrides::default()),
        "unknown key `wokers`", "p.toml:2:1";
    an_unknown_key_in_json: said(Format::Json, "{\"pipeline\": \"p\",\n \"wokers\": 2}", &Overrides::default()),
        "unknown key `wokers`", "p.json:2:2";
    an_unused_queue_is_a_warning: yaml(
        "pipeline: p\nqueues: { in: { type: rich }, spare: { type: rich } }\nstages: { s: { component: code, input: in } }"),
        "good", "warning[unused_queue]: no stage uses queue `spare`";
    a_wrong_value_of_the_environment: said(Format::Yaml,
        "pipeline: p\nqueues: { in: { type: rich } }\nstages: { s: { component: code, input: in } }",
        &Overrides { variables: vec![("BRIGADE__STAGES__S__WORKERS".into(), "many".into())], sets: vec![] }),
        "expected a whole number, found the text `many`", "--> environment variable BRIGADE__STAGES__S__WORKERS";
    a_wrong_value_of_a_set: said(Format::Yaml,
        "pipeline: p\nqueues: { in: { type: rich } }\nstages: { s: { component: code, input: in } }",
        &Overrides { variables: vec![], sets: vec!["stages.s.workers=many".into()] }),
        "found the text `many`", "--> --set stages.s.workers=many";
    a_set_that_is_none: said(Format::Yaml, "pipeline: p", &Overrides { variables: vec![], sets: vec!["x".into()] }),
        "expected `key=value`";
}

#[test]
fn everything_that_is_wrong_is_told_at_once_in_the_order_of_the_lines() {
    let said = yaml(
        "pipeline: p\nqueues:\n  in: { type: rich, pth: x }\nstages:\n  s: { component: code, input: in, wokers: 1, timeout: 5 }\n",
    );
    let places: Vec<&str> = said.lines().filter(|line| line.contains("-->")).collect();
    assert_eq!(places.len(), 3, "{said}");
    assert!(places[0].contains("p.yaml:3:"), "{said}");
}

#[test]
fn values_of_the_environment_and_of_sets_take_the_type_that_is_expected() {
    let text = "pipeline: p\nqueues: { in: { type: rich } }\nstages: { s: { component: code, input: in, workers: \"${N:-3}\" } }";
    let overrides = Overrides {
        variables: vec![("BRIGADE__LANES".into(), "2".into())],
        sets: vec!["stages.s.max_in_flight={messages: 7}".into()],
    };
    let loaded = load_str("p.yaml", Format::Yaml, text, Path::new("."), &overrides, &Fake);
    let topology = loaded.unwrap_or_else(|error| panic!("{error}")).topology;
    assert_eq!(topology.lanes, 2);
    assert_eq!(topology.stages["s"].workers, 3);
    assert_eq!(topology.stages["s"].max_in_flight.messages, 7);
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
