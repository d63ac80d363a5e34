//! What the built-in components do with messages, and what they say about wrong settings.
#![allow(clippy::unwrap_used, reason = "a test that stops says where")]

use std::sync::Arc;

use brigade_core::component::{
    AnyComponent, Context, Emit, HandleError, Handling, Setup, StageContext, StageSite,
};
use brigade_core::connector::Problem;
use brigade_core::{Failure, Message};
use serde_json::{Value, json};

fn build(settings: Value, outputs: &[&str]) -> Result<Box<dyn AnyComponent>, Vec<Problem>> {
    let (name, settings) = match &settings {
        Value::String(name) => (name.clone(), Value::Null),
        Value::Object(map) => map.iter().next().map(|(n, s)| (n.clone(), s.clone())).unwrap(),
        other => panic!("{other}"),
    };
    let factories = brigade_components::all();
    let factory = factories.iter().find(|factory| factory.name() == name).unwrap();
    let site = StageSite {
        stage: "s".into(),
        outputs: outputs.iter().map(|output| (*output).into()).collect(),
        copy: false,
        directory: ".".into(),
    };
    factory.build(&settings, &site)
}

async fn run(component: &mut dyn AnyComponent, message: Message) -> Result<Emit, HandleError> {
    let cx = Context::new(Arc::new(StageContext::new("p", "s")), message);
    match component.handle(None, &cx) {
        Handling::Done(answer) => answer,
        Handling::Pending(answer) => answer.await,
    }
}

async fn answers(settings: Value, outputs: &[&str], payload: &str) -> Result<Vec<String>, String> {
    let mut component = build(settings, outputs).map_err(|problems| problems[0].message.clone())?;
    match run(component.as_mut(), Message::new(payload.to_owned())).await {
        Ok(emit) => {
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            let output = |emitted: &brigade_core::component::Emitted| {
                let name =
                    emitted.output.as_deref().map_or(String::new(), |name| format!("{name}: "));
                format!("{name}{}", text(emitted.payload.as_deref().unwrap_or(b"null payload")))
            };
            Ok(emit.outputs().iter().map(output).collect())
        }
        Err(HandleError::Decode(error)) => Err(format!("decode: {error}")),
        Err(HandleError::Failed(Failure::Reject(error))) => Err(format!("reject: {error}")),
        Err(other) => Err(format!("{other:?}")),
    }
}

#[tokio::test]
async fn pass_passes_byte_for_byte() {
    assert_eq!(answers(json!("pass"), &["o"], "{ not json").await.unwrap(), ["{ not json"]);
}

#[tokio::test]
async fn filter_keeps_what_is_true_and_rejects_what_is_neither() {
    let filter = || json!({ "filter": ".delay > 15" });
    assert_eq!(answers(filter(), &["o"], "{\"delay\": 20}").await.unwrap(), ["{\"delay\": 20}"]);
    assert!(answers(filter(), &["o"], "{\"delay\": 5}").await.unwrap().is_empty());
    let neither = answers(json!({ "filter": ".delay" }), &["o"], "{\"delay\": 5}").await;
    assert_eq!(neither.unwrap_err(), "reject: `.delay`: expected true or false, found 5");
    assert!(answers(filter(), &["o"], "{").await.unwrap_err().starts_with("decode: "));
    assert!(
        answers(json!({ "filter": ".delay >" }), &["o"], "")
            .await
            .unwrap_err()
            .contains("is no jq")
    );
    assert!(answers(json!({ "filter": "nope" }), &["o"], "").await.unwrap_err().contains("`nope`"));
}

#[tokio::test]
async fn map_makes_any_number_of_messages_and_keeps_integers_exact() {
    let map = |jq: &str| json!({ "map": jq });
    let split = answers(map(".items[]"), &["o"], "{\"items\": [1, \"ä\", null]}").await;
    assert_eq!(split.unwrap(), ["1", "\"ä\"", "null"]);
    let large = answers(map(". + {b: 1}"), &["o"], "{\"a\": 9007199254740993}").await;
    assert_eq!(large.unwrap(), ["{\"a\":9007199254740993,\"b\":1}"]);
    let beyond = answers(map("[.a, .a + 1]"), &["o"], "{\"a\": 18446744073709551616}").await;
    assert_eq!(beyond.unwrap(), ["[18446744073709551616,18446744073709551617]"]);
    let decimal = answers(map(".a"), &["o"], "{\"a\": 0.12345678901234567890123}").await;
    assert_eq!(decimal.unwrap(), ["0.12345678901234567890123"]);
    let deep = ["[".repeat(100_000), "12345678901234567890".to_owned()].concat();
    let deep = answers(map("."), &["o"], &deep).await.unwrap_err();
    assert!(deep.starts_with("decode: "), "{deep}");
    let more = answers(map("."), &["o"], "[12345678901234567890, nan]").await.unwrap_err();
    assert!(more.starts_with("decode: "), "what is not JSON is not taken: {more}");
    let endless = answers(map("range(1000000)"), &["o"], "1").await.unwrap_err();
    assert!(endless.contains("more than 10000 values"), "{endless}");
    assert!(answers(map("."), &["a", "b"], "1").await.unwrap_err().contains("several outputs"));
}

#[tokio::test]
async fn map_writes_what_it_computes_as_jq_and_what_passes_as_it_came() {
    let halves = json!({ "map": "{ half: (.n / 2), same: .n }" });
    let made = answers(halves.clone(), &["o"], "{\"n\":10}").await;
    assert_eq!(made.unwrap(), ["{\"half\":5,\"same\":10}"]);
    let made = answers(halves, &["o"], "{\"n\":10.0}").await;
    assert_eq!(made.unwrap(), ["{\"half\":5,\"same\":10.0}"]);
    let mut map = build(json!({ "map": { "jq": ".n / 2", "key": "." } }), &["o"]).unwrap();
    let input = Message::new("{\"n\":10}");
    let emit = run(map.as_mut(), input.clone()).await.unwrap();
    assert_eq!(emit.outputs()[0].message(&input, None).key.as_deref(), Some(&b"5"[..]));
    let mut keyed = build(json!({ "map": { "jq": ".", "key": ".n" } }), &["o"]).unwrap();
    for (written, key) in
        [("1.50", "1.5"), ("1.5", "1.5"), ("1e3", "1000.0"), ("1000.0", "1000.0"), ("7", "7")]
    {
        let input = Message::new(format!("{{\"n\":{written}}}"));
        let emit = run(keyed.as_mut(), input.clone()).await.unwrap();
        let made = emit.outputs()[0].message(&input, None).key;
        assert_eq!(made.as_deref(), Some(key.as_bytes()), "{written}");
    }
    let told = answers(json!({ "filter": ".n / 2" }), &["o"], "{\"n\":10}").await.unwrap_err();
    assert!(told.ends_with("expected true or false, found 5"), "{told}");
}

#[tokio::test]
async fn a_key_that_is_null_is_none() {
    let mut map = build(json!({ "map": { "jq": ".", "key": ".customer" } }), &["o"]).unwrap();
    for (payload, key) in [("{\"customer\":\"Ada\"}", Some("Ada")), ("{}", None)] {
        let input = Message::new(payload).with_key("before");
        let emit = run(map.as_mut(), input.clone()).await.unwrap();
        let [output] = emit.outputs() else { panic!("one output") };
        let output = output.message(&input, None);
        assert_eq!(output.key.as_deref(), key.map(str::as_bytes));
    }
}

#[tokio::test]
async fn map_writes_nothing_that_is_no_json() {
    for (jq, what) in [
        (".n / 0", "the number Infinity"),
        ("[-1/0, 0/0]", "the number -Infinity"),
        ("{a: [nan]}", "the number NaN"),
        ("{(null): 1}", "the key null, which is no text"),
        ("{(.n|tostring|tonumber): 1}", "the key 1, which is no text"),
        (". as $n | [\"a\"] | tobytes", "bytes"),
        ("reduce range(200) as $n (1; [.])", "more than 127 levels"),
    ] {
        let rejected = answers(json!({ "map": jq }), &["o"], "{\"n\": 1}").await.unwrap_err();
        assert!(rejected.starts_with("reject: makes what JSON has not: "), "{jq}: {rejected}");
        assert!(rejected.contains(what), "{jq}: {rejected}");
    }
}

#[tokio::test]
async fn an_expression_neither_ends_the_process_nor_sees_its_environment() {
    for jq in ["halt", "halt(1)", "halt_error", "env"] {
        let refused = answers(json!({ "map": jq }), &["o"], "1").await.unwrap_err();
        assert!(refused.contains("uses what is not defined"), "{jq}: {refused}");
    }
}

#[tokio::test]
async fn route_takes_the_first_rule_that_applies() {
    let rules =
        || json!({ "route": [{ "when": ". < 0", "to": "low" }, { "when": ". < 9", "to": "mid" }] });
    assert_eq!(answers(rules(), &["low", "mid"], "-1").await.unwrap(), ["low: -1"]);
    assert_eq!(answers(rules(), &["low", "mid"], "5").await.unwrap(), ["mid: 5"]);
    let none = answers(rules(), &["low", "mid"], "50").await;
    assert_eq!(none.unwrap_err(), "reject: no rule of `route` applies");
    let problems = build(rules(), &["low"]).unwrap_err();
    assert_eq!(problems[0].path, ["1", "to"]);
}

#[tokio::test]
async fn lookup_adds_fields_and_tells_of_a_wrong_table() {
    let directory = tempfile::tempdir().unwrap();
    let table = directory.path().join("t.csv");
    std::fs::write(&table, "id,city,lat\nA,Ulm,48.4\nB,Kiel,54.3\n").unwrap();
    let settings = |types: Value| {
        json!({ "lookup": {
            "file": table, "key": "id", "types": types,
            "match": [{ "field": "at", "add": { "city": "city", "lat": "lat" } }],
        } })
    };
    let stage = Arc::new(StageContext::new("p", "s"));
    let setup = Setup { stage, lane: 0, workers: 1 };
    let mut lookup = build(settings(json!({ "lat": "number" })), &["o"]).unwrap();
    lookup.init(&setup).await.unwrap();
    let emit = run(lookup.as_mut(), Message::new("{\"at\":\"B\",\"x\":1}")).await.unwrap();
    let found = emit.outputs()[0].payload.as_deref().unwrap();
    assert_eq!(found, &br#"{"at":"B","x":1,"city":"Kiel","lat":54.3}"#[..]);
    assert!(run(lookup.as_mut(), Message::new("{\"at\":\"C\"}")).await.is_err());
    let mut wrong = build(settings(json!({ "city": "number" })), &["o"]).unwrap();
    let said = wrong.init(&setup).await.unwrap_err().to_string();
    assert!(said.ends_with("t.csv:2: `Ulm` in column `city` is no number"), "{said}");
    // Lines are those of the file, whatever stands between rows and in them.
    for (name, rows) in [
        ("t.csv", "id,city,lat\n\nA,\"Ulm\n(Donau)\",48.4\n\r\n\nA,Kiel,54.3\n"),
        (
            "t.jsonl",
            "\n\n\n{\"id\":\"A\",\"city\":1,\"lat\":2}\n\n\n{\"id\":\"A\",\"city\":1,\"lat\":2}\n",
        ),
    ] {
        let table = directory.path().join(name);
        std::fs::write(&table, rows).unwrap();
        let mut settings = settings(json!({}));
        settings["lookup"]["file"] = json!(table);
        let said = build(settings, &["o"]).unwrap().init(&setup).await.unwrap_err().to_string();
        assert!(said.ends_with(&format!("{name}:7: the key `A` stands twice")), "{said}");
    }
}

/// Each number of the message as it came, and those of the table as they stand there.
#[tokio::test]
async fn lookup_changes_no_number() {
    let directory = tempfile::tempdir().unwrap();
    let long = "12345678901234567890123";
    for (name, rows) in [
        ("t.csv", format!("id,n\nA,{long}\n{long},1\n1.5,2\n")),
        (
            "t.jsonl",
            format!(
                "{{\"id\":\"A\",\"n\":{long}}}\n{{\"id\":{long},\"n\":1}}\n{{\"id\":1.5,\"n\":2}}"
            ),
        ),
    ] {
        let table = directory.path().join(name);
        std::fs::write(&table, rows).unwrap();
        let types = if name == "t.csv" { json!({ "n": "number" }) } else { json!({}) };
        let settings = json!({ "lookup": {
            "file": table, "key": "id", "types": types,
            "match": [{ "field": "at.0", "add": { "n": "n" } }],
        } });
        let mut lookup = build(settings, &["o"]).unwrap();
        let stage = Arc::new(StageContext::new("p", "s"));
        lookup.init(&Setup { stage, lane: 0, workers: 1 }).await.unwrap();
        for (payload, found) in [
            (format!("{{\"x\":{long},\"at\":[\"A\"]}}"), long),
            (format!("{{\"x\":0.{long},\"at\":[\"A\"],\"n\":0,\"z\":1.50}}"), long),
            (format!("{{\"at\":[{long}]}}"), "1"),
            ("{\"at\":[1.50]}".to_owned(), "2"),
            (format!("{{\"x\":{long},\"at\":[1.50]}}"), "2"),
        ] {
            let emit = run(lookup.as_mut(), Message::new(payload.clone())).await;
            let emit = emit.unwrap_or_else(|error| panic!("{name}: {payload}: {error:?}"));
            let made = String::from_utf8(emit.outputs()[0].payload.clone().unwrap().to_vec());
            let made = made.unwrap();
            assert!(made.contains(&format!("\"n\":{found}")), "{name}: {payload}: {made}");
            let x =
                payload.split("\"x\":").nth(1).map_or("", |rest| rest.split(',').next().unwrap());
            assert!(made.contains(x), "{name}: {payload}: {made}");
        }
        let other = "{\"at\":[12345678901234567890124]}";
        assert!(run(lookup.as_mut(), Message::new(other)).await.is_err(), "another number");
        let no_object = run(lookup.as_mut(), Message::new("[\"A\"]")).await;
        assert!(no_object.is_err());
    }
}

/// A `lookup` in a table with these contents.
fn lookup(
    name: &str,
    rows: &str,
    more: Value,
) -> (tempfile::TempDir, Result<Box<dyn AnyComponent>, Vec<Problem>>) {
    let directory = tempfile::tempdir().unwrap();
    let table = directory.path().join(name);
    std::fs::write(&table, rows).unwrap();
    let mut settings = json!({ "file": table, "key": "id", "match": [] });
    settings.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    (directory, build(json!({ "lookup": settings }), &["o"]))
}

async fn init(component: &mut dyn AnyComponent) -> Result<(), String> {
    let stage = Arc::new(StageContext::new("p", "s"));
    let setup = Setup { stage, lane: 0, workers: 1 };
    component.init(&setup).await.map_err(|error| error.to_string())
}

#[tokio::test]
async fn lookup_tells_what_is_wrong_with_its_table_and_which_columns_there_are() {
    let add = |column: &str| json!({ "match": [{ "field": "at", "add": { "x": column } }] });
    for (name, rows, settings, wrong) in [
        (
            "t.csv",
            "id,lat\nA,1\n",
            json!({ "types": { "latitud": "number" } }),
            "t.csv: no column `latitud`; there are `id`, `lat`",
        ),
        ("t.csv", "id,lat\n", add("city"), "t.csv: no column `city`; there are `id`, `lat`"),
        ("t.csv", "iata,lat\n", json!({}), "t.csv: no column `id`; there are `iata`, `lat`"),
        ("t.csv", "", json!({}), "t.csv: no column `id`: it has none"),
        (
            "t.csv",
            "id,x,x\nA,1,2\n",
            add("x"),
            "t.csv: its header has the column `x` twice: give each its own name",
        ),
        (
            "t.jsonl",
            "{\"id\":1,\"lat\":1}\n{\"id\":2}\n",
            add("lat"),
            "t.jsonl:2: no column `lat`; there are `id`",
        ),
        ("t.jsonl", "[1]", json!({}), "t.jsonl:1: expected a JSON object"),
    ] {
        let (_directory, built) = lookup(name, rows, settings);
        let told = init(built.unwrap().as_mut()).await.unwrap_err();
        assert!(told.ends_with(wrong), "{told}");
    }
    let (_directory, built) = lookup("t.jsonl", "", json!({ "types": { "id": "number" } }));
    assert_eq!(built.unwrap_err()[0].path, ["types"]);
    let (_directory, built) =
        lookup("t.csv", "", json!({ "match": [{ "field": "a", "add": { "b..c": "id" } }] }));
    assert_eq!(built.unwrap_err()[0].path, ["match", "0", "add", "b..c"]);
}

#[tokio::test]
async fn a_table_may_begin_with_a_byte_order_mark_and_end_in_any_case() {
    let add = json!({ "match": [{ "field": "at", "add": { "n": "n" } }] });
    for (name, rows) in [
        ("T.CSV", "\u{feff}id,n\nA,1\n"),
        ("t.csv", "\u{feff}\"id\",n\r\nA,1\r\n"),
        ("t.jsonl", "\u{feff}{\"id\":\"A\",\"n\":\"1\"}"),
    ] {
        let (_directory, built) = lookup(name, rows, add.clone());
        let mut lookup = built.unwrap();
        init(lookup.as_mut()).await.unwrap();
        let emit = run(lookup.as_mut(), Message::new("{\"at\":\"A\"}")).await.unwrap();
        let made = emit.outputs()[0].payload.as_deref().unwrap();
        assert_eq!(made, &br#"{"at":"A","n":"1"}"#[..], "{name}");
    }
}

#[tokio::test]
async fn lookup_adds_at_paths() {
    let add =
        json!({ "match": [{ "field": "c.id", "add": { "c.city": "city", "a.0.b": "city" } }] });
    let (_directory, built) = lookup("t.csv", "id,city\nA,Ulm\n", add);
    let mut lookup = built.unwrap();
    init(lookup.as_mut()).await.unwrap();
    for (payload, made) in [
        (r#"{"c":{"id":"A"},"a":[{}]}"#, r#"{"c":{"id":"A","city":"Ulm"},"a":[{"b":"Ulm"}]}"#),
        (r#"{"c":{"id":"A"},"a":null}"#, r#"{"c":{"id":"A","city":"Ulm"},"a":{"0":{"b":"Ulm"}}}"#),
    ] {
        let emit = run(lookup.as_mut(), Message::new(payload)).await.unwrap();
        assert_eq!(emit.outputs()[0].payload.as_deref().unwrap(), made.as_bytes());
    }
    for there in ["\"text\"", "[]", "[7]"] {
        let payload = format!("{{\"c\":{{\"id\":\"A\"}},\"a\":{there}}}");
        let told = format!("{:?}", run(lookup.as_mut(), Message::new(payload)).await.unwrap_err());
        assert!(told.contains("`a.0.b` cannot be added: `a"), "{told}");
    }
}

#[tokio::test]
async fn delay_delays_and_says_so() {
    let mut delay = build(json!({ "delay": { "for": "5m" } }), &["o"]).unwrap();
    assert!(delay.delays());
    let emit = run(delay.as_mut(), Message::new("x")).await.unwrap();
    assert_eq!(emit.outputs()[0].delay(), Some(std::time::Duration::from_secs(300)));
    assert!(build(json!({ "delay": {} }), &["o"]).is_err());
}

#[tokio::test]
async fn delay_takes_times_in_milliseconds_in_seconds_and_as_text() {
    let mut delay = build(json!({ "delay": { "until": "at" } }), &["o"]).unwrap();
    // In the year 2096.
    for at in ["4000000000000", "4000000000", "4000000000.5", "\"2096-10-02T07:06:40Z\""] {
        let emit = run(delay.as_mut(), Message::new(format!("{{\"at\":{at}}}"))).await.unwrap();
        let days = emit.outputs()[0].delay().unwrap().as_secs() / (24 * 60 * 60);
        assert!((365..30_000).contains(&days), "{at}: {days} days");
    }
    for over in ["1700000000000", "1700000000", "0", "-1"] {
        let emit = run(delay.as_mut(), Message::new(format!("{{\"at\":{over}}}"))).await.unwrap();
        assert_eq!(emit.outputs()[0].delay(), None, "{over}");
    }
    for wrong in ["\"soon\"", "1700000000000.5", "null"] {
        let emit = run(delay.as_mut(), Message::new(format!("{{\"at\":{wrong}}}"))).await;
        assert!(format!("{:?}", emit.unwrap_err()).contains("`at` is no time"), "{wrong}");
    }
}
