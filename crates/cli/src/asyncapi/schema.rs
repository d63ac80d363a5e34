//! A JSON Schema as a part of a larger document. A reference there points into the whole document,
//! so those of the schema have to include the schema's position in it.

use serde_json::{Map, Value, json};

/// Keys whose values are schemas by name.
const BY_NAME: [&str; 5] =
    ["$defs", "definitions", "properties", "patternProperties", "dependentSchemas"];
/// Keys whose values are data, whatever they look like.
const DATA: [&str; 4] = ["const", "enum", "default", "examples"];

/// The draft that AsyncAPI's own parser reads.
const OLD: &str = "draft-07";
/// Keys that drafts after 07 brought, and that change what fits. Of their other keys `$defs` is only
/// a place, and references to an `$anchor` are written as pointers.
const LATER: [&str; 11] = [
    "$dynamicAnchor",
    "$dynamicRef",
    "$recursiveAnchor",
    "$recursiveRef",
    "dependentRequired",
    "dependentSchemas",
    "maxContains",
    "minContains",
    "prefixItems",
    "unevaluatedItems",
    "unevaluatedProperties",
];
/// Keys that say nothing of what fits, or are only places: a reference may stand beside them in any
/// draft. Up to 07 it replaces everything else.
const BESIDE_REFERENCE: [&str; 13] = [
    "$anchor",
    "$comment",
    "$defs",
    "$ref",
    "$schema",
    "default",
    "definitions",
    "deprecated",
    "description",
    "examples",
    "readOnly",
    "title",
    "writeOnly",
];

/// The schema as the payload of a message at this pointer (`#/components/...`) of a document, where
/// its key is `schema`, with its format.
pub(super) fn payload(schema: &Value, at: &str) -> Value {
    let mut schema = embedded(schema, &format!("{at}/schema"));
    let version = version_of(&schema);
    if let Some(keys) = schema.as_object_mut()
        && version == OLD
        && !dialect(keys).contains(OLD)
    {
        // It would say another draft than the format.
        keys.shift_remove("$schema");
    }
    json!({ "schemaFormat": format!("application/schema+json;version={version}"), "schema": schema })
}

/// The draft of an embedded schema, as AsyncAPI names it: that of its `$schema` if it is an old one;
/// otherwise 07 if it says nothing that only later ones know. Of those, AsyncAPI's own parser reads
/// none, and its older versions refuse whole documents for them.
fn version_of(schema: &Value) -> &'static str {
    let dialect = schema.as_object().map(dialect).unwrap_or_default();
    let old = ["draft-04", "draft-06", OLD].into_iter().find(|old| dialect.contains(old));
    match old {
        Some(old) => old,
        None if !is_later(schema) => OLD,
        None if dialect.contains("2019-09") => "draft-2019-09",
        None => "draft-2020-12",
    }
}

fn dialect(schema: &Map<String, Value>) -> &str {
    schema.get("$schema").and_then(Value::as_str).unwrap_or_default()
}

/// Whether a schema, or one in it, says what draft 07 cannot.
fn is_later(schema: &Value) -> bool {
    let Some(keys) = schema.as_object() else { return false };
    let is_reference = keys.get("$ref").is_some_and(Value::is_string);
    let adds = |key: &String| !BESIDE_REFERENCE.contains(&key.as_str()) && !key.starts_with("x-");
    keys.keys().any(|key| LATER.contains(&key.as_str()) || is_reference && adds(key))
        || below(schema).iter().any(|(_, below)| is_later(below))
}

/// The schema as it appears at this pointer (`#/components/...`) of a document.
fn embedded(schema: &Value, at: &str) -> Value {
    let mut named = Named::default();
    named.collect(schema, at, at);
    let mut schema = schema.clone();
    rewrite(&mut schema, at, &named);
    schema
}

/// What references may name, with its pointer in the document.
#[derive(Default)]
struct Named {
    /// Schemas with an `$id`.
    ids: Vec<(String, String)>,
    /// Anchors, each with the pointer of the schema it belongs to.
    anchors: Vec<(String, String, String)>,
}

impl Named {
    /// `base` is the pointer of the nearest schema with an `$id`.
    fn collect(&mut self, schema: &Value, at: &str, base: &str) {
        let id = schema.get("$id").and_then(Value::as_str).unwrap_or_default();
        // Before 2019 an anchor was an `$id`.
        let (id, old_anchor) = id.split_once('#').unwrap_or((id, ""));
        let base = if id.is_empty() { base } else { at };
        if !id.is_empty() {
            self.ids.push((id.to_owned(), at.to_owned()));
        }
        let anchor = ["$anchor", "$dynamicAnchor"].into_iter().filter_map(|key| schema.get(key));
        let anchors = anchor.filter_map(Value::as_str).chain([old_anchor]);
        for anchor in anchors.filter(|anchor| !anchor.is_empty()) {
            self.anchors.push((base.to_owned(), anchor.to_owned(), at.to_owned()));
        }
        for (step, below) in below(schema) {
            self.collect(below, &format!("{at}{step}"), base);
        }
    }

    /// The target of a reference, if it is within the schema.
    fn place(&self, reference: &str, base: &str) -> Option<String> {
        let (file, fragment) = reference.split_once('#').unwrap_or((reference, ""));
        let mut ids = self.ids.iter();
        let base = match file {
            "" => base,
            file => {
                let end = format!("/{}", file.trim_start_matches("./"));
                let is_it = |id: &str| id == file || id.ends_with(&end);
                ids.find(|(id, _)| is_it(id)).map(|(_, at)| at.as_str())?
            }
        };
        if fragment.is_empty() || fragment.starts_with('/') {
            return Some(format!("{base}{fragment}"));
        }
        let mut anchors = self.anchors.iter();
        let found = anchors.find(|(of, anchor, _)| of == base && anchor == fragment);
        found.map(|(_, _, at)| at.clone())
    }
}

/// The schemas directly below one, with the pointer steps that lead to them.
fn below(schema: &Value) -> Vec<(String, &Value)> {
    let mut found = Vec::new();
    for (key, value) in schema.as_object().into_iter().flatten() {
        let step = format!("/{}", escaped(key));
        match value {
            _ if DATA.contains(&key.as_str()) => {}
            Value::Object(schemas) if BY_NAME.contains(&key.as_str()) => {
                let named = schemas.iter();
                found.extend(named.map(|(name, one)| (format!("{step}/{}", escaped(name)), one)));
            }
            Value::Array(items) => {
                let items = items.iter().enumerate();
                found.extend(items.map(|(number, one)| (format!("{step}/{number}"), one)));
            }
            one => found.push((step, one)),
        }
    }
    found
}

/// A key as a step of a pointer within a URL.
fn escaped(key: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._$".contains(&byte);
    let mut escaped = String::new();
    for byte in key.replace('~', "~0").replace('/', "~1").bytes() {
        match plain(byte) || byte == b'~' {
            true => escaped.push(char::from(byte)),
            false => escaped += &format!("%{byte:02X}"),
        }
    }
    escaped
}

fn rewrite(schema: &mut Value, base: &str, named: &Named) {
    let Value::Object(keys) = schema else { return };
    let id = keys.get("$id").and_then(Value::as_str).filter(|id| !id.starts_with('#'));
    let at = id.and_then(|id| named.place(id.split('#').next().unwrap_or(id), base));
    let base = at.as_deref().unwrap_or(base);
    if keys.get("$id").is_some_and(Value::is_string) {
        // It would change what references are relative to.
        keys.remove("$id");
    }
    if let Some(Value::String(reference)) = keys.get_mut("$ref")
        && let Some(place) = named.place(reference, base)
    {
        *reference = place;
    }
    for (key, value) in keys.iter_mut() {
        match value {
            _ if DATA.contains(&key.as_str()) => {}
            Value::Object(schemas) if BY_NAME.contains(&key.as_str()) => {
                schemas.values_mut().for_each(|one| rewrite(one, base, named));
            }
            Value::Array(items) => items.iter_mut().for_each(|one| rewrite(one, base, named)),
            one => rewrite(one, base, named),
        }
    }
    // Some readers replace everything next to a reference by what it refers to.
    let has_definitions = keys.contains_key("$defs") || keys.contains_key("definitions");
    if has_definitions && keys.get("$ref").is_some_and(Value::is_string) {
        let reference = keys.remove("$ref");
        let all = keys.entry("allOf").or_insert_with(|| json!([]));
        all.as_array_mut().into_iter().for_each(|all| all.push(json!({ "$ref": reference })));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_lead_to_where_the_schema_stands() {
        let schema = json!({
            "type": "object",
            "properties": {
                "k": { "$ref": "#/$defs/K" }, "self": { "$ref": "#" }, "a": { "$ref": "#top" },
                "$ref": { "type": "string" }, "default": { "$ref": "#/$defs/K" },
                "other": { "$ref": "https://example.com/other" }, "far": { "$ref": "far.json#/x" },
            },
            "const": { "$ref": "#/$defs/K" },
            "anyOf": [{ "$ref": "#/$defs/a~1b%20c" }],
            "$defs": {
                "K": { "$anchor": "top" }, "a/b c": {},
                "far": { "$id": "https://example.com/far.json", "x": { "$ref": "#/x" } },
            },
        });
        let is = embedded(&schema, "#/at");
        let leads = |pointer: &str| is.pointer(pointer).unwrap()["$ref"].clone();
        assert_eq!(leads("/properties/k"), "#/at/$defs/K");
        assert_eq!(leads("/properties/self"), "#/at");
        assert_eq!(leads("/properties/a"), "#/at/$defs/K");
        assert_eq!(leads("/properties/default"), "#/at/$defs/K");
        assert_eq!(leads("/anyOf/0"), "#/at/$defs/a~1b%20c");
        assert_eq!(leads("/properties/far"), "#/at/$defs/far/x");
        assert_eq!(leads("/$defs/far/x"), "#/at/$defs/far/x");
        assert_eq!(leads("/properties/other"), "https://example.com/other");
        assert_eq!(is["properties"]["$ref"], json!({ "type": "string" }));
        assert_eq!(leads("/const"), "#/$defs/K", "it is data");
        assert_eq!(is["$defs"]["far"].get("$id"), None);
        let root = json!({ "$ref": "#/$defs/K", "$defs": { "K": {} } });
        assert_eq!(embedded(&root, "#/at")["allOf"], json!([{ "$ref": "#/at/$defs/K" }]));
    }

    #[test]
    fn an_old_schema_keeps_its_draft() {
        for draft in ["draft-04", "draft-07"] {
            let dialect = format!("http://json-schema.org/{draft}/schema#");
            let payload = payload(&json!({ "$schema": dialect, "type": "object" }), "#/at");
            assert_eq!(payload["schemaFormat"], format!("application/schema+json;version={draft}"));
            assert_eq!(payload["schema"]["$schema"], dialect);
        }
    }

    #[test]
    fn a_schema_is_of_draft_07_if_it_says_nothing_that_only_later_drafts_know() {
        let of = |schema: &Value| {
            let format = payload(schema, "#/at")["schemaFormat"].as_str().unwrap().to_owned();
            format.strip_prefix("application/schema+json;version=").unwrap().to_owned()
        };
        let newest = "https://json-schema.org/draft/2020-12/schema";
        for schema in [
            json!({}),
            json!(true),
            json!({ "$schema": newest, "$ref": "#/$defs/K", "type": "object", "$defs": { "K": { "$anchor": "k" } } }),
            json!({ "properties": { "k": { "$ref": "#/definitions/K", "description": "one", "x-own": 1 } } }),
            json!({ "properties": { "prefixItems": {}, "$ref": { "minLength": 1 } }, "required": ["minContains"] }),
            json!({ "default": { "prefixItems": [] }, "enum": [{ "unevaluatedItems": 1 }] }),
        ] {
            assert_eq!(of(&schema), "draft-07", "{schema}");
            assert_eq!(payload(&schema, "#/at")["schema"].get("$schema"), None, "{schema}");
        }
        for schema in [
            json!({ "prefixItems": [true] }),
            json!({ "anyOf": [{ "properties": { "k": { "unevaluatedProperties": false } } }] }),
            json!({ "$defs": { "K": { "dependentRequired": { "a": ["b"] } } } }),
            json!({ "$dynamicRef": "#k" }),
            json!({ "properties": { "k": { "$ref": "#", "minLength": 1 } } }),
        ] {
            assert_eq!(of(&schema), "draft-2020-12", "{schema}");
            let mut older = schema;
            older["$schema"] = json!("https://json-schema.org/draft/2019-09/schema");
            assert_eq!(of(&older), "draft-2019-09", "{older}");
        }
    }
}
