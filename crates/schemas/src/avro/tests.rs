use std::sync::LazyLock;

use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::types::Value as AvroValue;
use apache_avro::writer::datum::GenericDatumWriter;
use proptest::prelude::*;
use serde_json::json;

use super::*;

fn avro(schema: &Value) -> Avro {
    Avro::parse(&schema.to_string(), &[]).expect("a schema")
}

fn there_and_back(schema: &Value, json: &Value) -> Value {
    let avro = avro(schema);
    let bytes = avro.write(json).expect("it fits");
    serde_json::from_slice(&avro.read(&bytes).expect("it was written so")).expect("JSON")
}

fn refused(schema: &Value, json: &Value) -> String {
    avro(schema).write(json).expect_err("it does not fit")
}

fn unread(schema: &Value, bytes: &[u8]) -> String {
    avro(schema).read(bytes).expect_err("it is not of the schema")
}

/// The value as the library reads it.
fn their_value(schema: &Schema, mut bytes: &[u8]) -> AvroValue {
    let reader = GenericDatumReader::builder(schema).build().expect("a schema");
    reader.read_value(&mut bytes).expect("they read it")
}

fn their_bytes(schema: &Schema, value: AvroValue) -> Vec<u8> {
    let writer = GenericDatumWriter::builder(schema).build().expect("a schema");
    writer.write_value_to_vec(value).expect("they write it")
}

/// A record of one field.
fn one(of: Value) -> Value {
    json!({ "type": "record", "name": "One", "fields": [{ "name": "it", "type": of }] })
}

fn node() -> Value {
    let next = json!({ "name": "next", "type": ["null", "Node"], "default": null });
    json!({ "type": "record", "name": "Node", "fields": [next] })
}

fn nested(depth: usize) -> Value {
    (0..depth).fold(json!({ "next": null }), |node, _| json!({ "next": node }))
}

#[test]
fn every_type_comes_back_as_it_was() {
    let fixed = json!({ "type": "fixed", "name": "Four", "size": 4 });
    let decimal = json!({ "type": "bytes", "logicalType": "decimal", "precision": 10, "scale": 2 });
    let in_fixed = json!({ "type": "fixed", "name": "Amount", "size": 8, "logicalType": "decimal",
        "precision": 10, "scale": 2 });
    let duration =
        json!({ "type": "fixed", "name": "Time", "size": 12, "logicalType": "duration" });
    let id = json!({ "type": "fixed", "name": "Id", "size": 16, "logicalType": "uuid" });
    let symbols = json!({ "type": "enum", "name": "State", "symbols": ["NEW", "PAID"] });
    let uuid = "8c1b8a7e-4c65-4f6b-9d3f-1d2f5a7a9b10";
    for (of, value) in [
        (json!("null"), json!(null)),
        (json!("boolean"), json!(true)),
        (json!("int"), json!(i32::MIN)),
        (json!({ "type": "int", "logicalType": "date" }), json!(20_000)),
        (json!("long"), json!(i64::MIN)),
        (json!("long"), json!(i64::MAX)),
        (json!({ "type": "long", "logicalType": "timestamp-micros" }), json!(-1)),
        (json!("float"), json!(0.5)),
        (json!("double"), json!(-1e300)),
        (json!("string"), json!("ä\u{0}🦀")),
        (json!({ "type": "string", "logicalType": "uuid" }), json!(uuid)),
        (json!("bytes"), json!([0, 255])),
        (fixed, json!([1, 2, 3, 4])),
        (duration, json!([1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0])),
        (id, json!(uuid)),
        (decimal.clone(), json!("12.50")),
        (decimal.clone(), json!("-0.05")),
        (decimal, json!("99999999.99")),
        (in_fixed.clone(), json!("-12.50")),
        (in_fixed, json!("0.00")),
        (symbols, json!("PAID")),
        (json!({ "type": "array", "items": "int" }), json!([])),
        (json!({ "type": "array", "items": "int" }), json!([1, 2, 3])),
        (json!({ "type": "map", "values": "long" }), json!({ "a": 1, "b": 2 })),
        (json!(["null", "string"]), json!(null)),
        (json!(["null", "string"]), json!("x")),
    ] {
        let json = json!({ "it": value });
        assert_eq!(there_and_back(&one(of.clone()), &json), json, "{of}");
    }
}

#[test]
fn what_a_schema_has_a_default_for_may_be_missing() {
    let schema = json!({ "type": "record", "name": "R", "fields": [
        { "name": "n", "type": "int", "default": 7 },
        { "name": "text", "type": ["null", "string"], "default": null },
        { "name": "raw", "type": "bytes", "default": "\u{ff}\u{0}" },
        { "name": "all", "type": { "type": "array", "items": "int" }, "default": [] },
    ] });
    let full = json!({ "n": 7, "text": null, "raw": [255, 0], "all": [] });
    assert_eq!(there_and_back(&schema, &json!({})), full);
}

#[test]
fn an_object_is_the_record_of_a_union_that_has_its_fields() {
    let deleted = json!({ "type": "record", "name": "Deleted",
        "fields": [{ "name": "id", "type": "long" }] });
    let created = json!({ "type": "record", "name": "Created",
        "fields": [{ "name": "id", "type": "long" }, { "name": "total", "type": "double" }] });
    let union = json!([deleted, created]);
    for event in [json!({ "id": 1 }), json!({ "id": 1, "total": 5.5 })] {
        assert_eq!(there_and_back(&union, &event), event);
    }
    let why = refused(&union, &json!({ "id": 1, "sum": 5 }));
    assert!(why.contains("`Deleted`") && why.contains("`Created`"), "{why}");
    let fields = json!([{ "name": "n", "type": ["null", "int"], "default": null }]);
    let one = |name: &str| json!({ "type": "record", "name": name, "fields": fields });
    let why = refused(&json!([one("A"), one("B")]), &json!({ "n": 1 }));
    assert_eq!(why, "it may be a `A` or a `B`");
}

#[test]
fn a_number_of_a_union_is_of_the_first_type_that_has_it() {
    for (union, number) in [
        (json!(["null", "int", "long"]), json!(1_i64 << 40)),
        (json!(["float", "long"]), json!(16_777_217)),
        (json!(["long", "double"]), json!(0.1)),
        (json!(["float", "double"]), json!(1e300)),
        (json!(["int", "double"]), json!(2.0)),
    ] {
        let json = json!({ "it": number });
        assert_eq!(there_and_back(&one(union.clone()), &json), json, "{union}");
    }
}

#[test]
fn what_does_not_fit_is_refused_and_told_where() {
    let decimal = json!({ "type": "bytes", "logicalType": "decimal", "precision": 4, "scale": 2 });
    let symbols = json!({ "type": "enum", "name": "State", "symbols": ["NEW", "PAID"],
        "default": "NEW" });
    let fixed = json!({ "type": "fixed", "name": "Four", "size": 4 });
    for (of, value, told) in [
        (json!("int"), json!(1_i64 << 40), "`it`: expected an int, found 1099511627776"),
        (json!("long"), json!(u64::MAX), "`it`: expected a long, found 18446744073709551615"),
        (json!("long"), json!(1.5), "`it`: expected a long, found 1.5"),
        (json!("float"), json!(1e300), "`it`: expected a float, found 1e+300"),
        (json!("string"), json!(null), "`it`: expected a text, found null"),
        (symbols, json!("CANCELLED"), "`it`: expected one of NEW, PAID, found \"CANCELLED\""),
        (decimal.clone(), json!("1.234"), "expected a decimal(4,2), as \"12.50\", found \"1.234\""),
        (decimal.clone(), json!("123.00"), "expected a decimal(4,2)"),
        (decimal.clone(), json!("12,50"), "expected a decimal(4,2)"),
        (decimal, json!([49, 50]), "expected a decimal(4,2)"),
        (json!("bytes"), json!([256]), "expected a list of bytes, 0 to 255 each, found [256]"),
        (fixed, json!([1]), "expected 4 bytes, found [1]"),
        (json!(["null", "int"]), json!("x"), "expected null or an int, found \"x\""),
        (json!({ "type": "array", "items": "int" }), json!([1, "x"]), "`it.1`: expected an int"),
    ] {
        let why = refused(&one(of.clone()), &json!({ "it": value }));
        assert!(why.contains(told), "{of}: {why}");
    }
    let why = refused(&one(json!("int")), &json!({ "it": 1, "that": 2 }));
    assert_eq!(why, "`One` has no field `that`");
    let why = refused(&one(json!("int")), &json!({}));
    assert_eq!(why, "`it`: it is missing, and has no default");
    let optional = json!(["null", one(json!("int"))]);
    assert_eq!(refused(&optional, &json!({ "that": 2 })), "`One` has no field `that`");
    let long = "x".repeat(10_000);
    assert!(refused(&one(json!("int")), &json!({ "it": long })).len() < 200);
}

#[test]
fn deep_values_take_no_more_time_than_they_have_values_and_have_a_limit() {
    let schema = node();
    let deep = nested(DEPTH_MAX - 1);
    assert_eq!(there_and_back(&schema, &deep), deep);
    let why = refused(&schema, &nested(DEPTH_MAX));
    assert!(why.contains("nested deeper than 127"), "{why}");
    let mut endless = vec![2; 100_000];
    endless.push(0);
    assert!(unread(&schema, &endless).contains("nested deeper than 127"));
    let itself = json!([{ "name": "it", "type": "Loop" }]);
    let itself = json!({ "type": "record", "name": "Loop", "fields": itself });
    if let Ok(avro) = Avro::parse(&itself.to_string(), &[]) {
        assert!(avro.read(&[]).is_err());
    }
}

#[test]
fn what_is_cut_short_or_has_more_behind_it_is_not_read() {
    let schema = json!({ "type": "record", "name": "R", "fields": [
        { "name": "n", "type": "long" },
        { "name": "note", "type": ["null", "string"] },
        { "name": "ok", "type": "boolean" },
    ] });
    let whole = avro(&schema).write(&json!({ "n": 7, "note": "ab", "ok": true })).expect("it fits");
    for length in 0..whole.len() {
        let why = unread(&schema, &whole[..length]);
        assert!(why.starts_with("the payload is not of its schema: byte "), "{why}");
    }
    let longer = [&whole[..], &[0, 255]].concat();
    assert!(unread(&schema, &longer).contains("2 bytes stand behind the value"));
}

#[test]
fn a_length_in_the_payload_is_not_believed() {
    let list = |of: Value| json!({ "type": "array", "items": of });
    let many = [0x80, 0xd1, 0xca, 0x08];
    let why = unread(&list(json!(["null", "string"])), &many);
    assert!(why.contains("1 bytes are to follow, and 0 do"), "{why}");
    assert!(unread(&list(json!("null")), &many).contains("more than 100000 values take no byte"));
    let endless = [0xff; 20];
    for of in [json!("string"), json!("bytes"), json!("long"), list(json!("int"))] {
        assert!(unread(&of, &endless).contains("more than 64 bits"));
    }
    assert!(unread(&json!("string"), &[0x01]).contains("-1 is no length"));
    assert!(unread(&json!("boolean"), &[2]).contains("expected a boolean"));
    assert!(unread(&json!(["null", "int"]), &[4]).contains("expected one of 2 types"));
    assert!(unread(&json!("string"), &[2, 0xff]).contains("not UTF-8"));
}

#[test]
fn a_type_of_another_schema_may_be_used_twice() {
    let address = json!({ "type": "record", "name": "Address", "namespace": "shop",
        "fields": [{ "name": "city", "type": "string" }] });
    let order = json!({ "type": "record", "name": "Order", "namespace": "shop", "fields": [
        { "name": "billing", "type": "Address" },
        { "name": "shipping", "type": ["null", "shop.Address"], "default": null },
    ] });
    let avro = Avro::parse(&order.to_string(), &[address.to_string()]).expect("a schema");
    let json = json!({ "billing": { "city": "Köln" }, "shipping": { "city": "Lübeck" } });
    let read = avro.read(&avro.write(&json).expect("it fits")).expect("it was written so");
    assert_eq!(serde_json::from_slice::<Value>(&read).expect("JSON"), json);
    let why = Avro::parse(&order.to_string(), &[]).expect_err("a part is missing");
    assert!(why.contains("Address"), "{why}");
}

#[test]
fn a_type_within_another_schema_may_be_meant_by_its_name() {
    let city = json!({ "type": "record", "name": "City", "namespace": "shop",
        "fields": [{ "name": "name", "type": "string" }] });
    let address = json!({ "type": "record", "name": "Address", "namespace": "shop",
        "fields": [{ "name": "city", "type": city }] });
    let order = json!({ "type": "record", "name": "Order", "namespace": "shop", "fields": [
        { "name": "to", "type": "shop.Address" },
        { "name": "from", "type": "shop.City" },
    ] });
    let avro = Avro::parse(&order.to_string(), &[address.to_string()]).expect("a schema");
    let json = json!({ "to": { "city": { "name": "Köln" } }, "from": { "name": "Bonn" } });
    let read = avro.read(&avro.write(&json).expect("it fits")).expect("it was written so");
    assert_eq!(serde_json::from_slice::<Value>(&read).expect("JSON"), json);
}

/// A schema that both implementations support.
static ORDER: LazyLock<Value> = LazyLock::new(|| {
    let line = json!({ "type": "record", "name": "Line", "fields": [
        { "name": "article", "type": "string" },
        { "name": "pieces", "type": "int" },
    ] });
    json!({ "type": "record", "name": "Order", "fields": [
        { "name": "id", "type": "long" },
        { "name": "ok", "type": "boolean" },
        { "name": "sum", "type": "double" },
        { "name": "raw", "type": "bytes" },
        { "name": "note", "type": ["null", "string"] },
        { "name": "lines", "type": { "type": "array", "items": line } },
        { "name": "more", "type": { "type": "map", "values": ["long", "string"] } },
    ] })
});

prop_compose! {
    fn order()(
        id in any::<i64>(), ok in any::<bool>(), sum in -1e9_f64..1e9,
        raw in prop::collection::vec(any::<u8>(), 0..9),
        note in prop::option::of(".{0,9}"),
        lines in prop::collection::vec((".{0,5}", any::<i32>()), 0..5),
        more in prop::collection::btree_map("[a-z]{0,3}", prop::option::of(any::<i64>()), 0..4),
    ) -> Value {
        let line = |(article, pieces)| json!({ "article": article, "pieces": pieces });
        let lines: Vec<Value> = lines.into_iter().map(line).collect();
        let more: serde_json::Map<String, Value> = (more.into_iter())
            .map(|(key, number)| (key, number.map_or(json!("none"), |number| json!(number))))
            .collect();
        json!({ "id": id, "ok": ok, "sum": sum, "raw": raw, "note": note, "lines": lines, "more": more })
    }
}

proptest! {
    /// The library reads what this crate writes, and vice versa.
    #[test]
    fn it_is_the_encoding_that_others_have(order in order()) {
        let schema = apache_avro::Schema::parse(&ORDER).expect("a schema");
        let ours = avro(&ORDER);
        let bytes = ours.write(&order).expect("it fits");
        let theirs = their_value(&schema, &bytes);
        prop_assert_eq!(&Value::try_from(theirs.clone()).expect("JSON"), &order);
        let again = their_bytes(&schema, theirs);
        let read = ours.read(&again).expect("we read it");
        prop_assert_eq!(serde_json::from_slice::<Value>(&read).expect("JSON"), order);
    }

    /// Any input: no panic, and what can be read can be written.
    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
        let ours = avro(&ORDER);
        if let Ok(json) = ours.read(&bytes) {
            let json: Value = serde_json::from_slice(&json).expect("JSON");
            prop_assert!(json["sum"].is_null() || ours.write(&json).is_ok());
        }
    }

    #[test]
    fn a_decimal_is_what_the_library_takes_it_for(unscaled in -999_999_999_i64..999_999_999) {
        let decimal = json!({ "type": "bytes", "logicalType": "decimal", "precision": 10, "scale": 3 });
        let schema = apache_avro::Schema::parse(&decimal).expect("a schema");
        let number = apache_avro::Decimal::from(unscaled.to_be_bytes());
        let bytes = their_bytes(&schema, AvroValue::Decimal(number));
        let read = avro(&decimal).read(&bytes).expect("we read it");
        let text: String = serde_json::from_slice(&read).expect("a text");
        let sign = if unscaled < 0 { "-" } else { "" };
        let (whole, places) = (unscaled.abs() / 1000, unscaled.abs() % 1000);
        prop_assert_eq!(&text, &format!("{sign}{whole}.{places:03}"));
        let ours = avro(&decimal).write(&json!(text)).expect("it fits");
        let theirs = their_value(&schema, &ours);
        prop_assert_eq!(theirs, AvroValue::Decimal(apache_avro::Decimal::from(
            num_bigint::BigInt::from(unscaled).to_signed_bytes_be()
        )));
    }
}
