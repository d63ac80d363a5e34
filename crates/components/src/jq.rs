//! jq expressions, by the `jaq` crates.

use std::sync::Arc;

use brigade_core::component::{Context, Conversion, DecodeError, HandleError, Parsed};
use brigade_core::numbers;
use bytes::Bytes;
use jaq_core::data::JustLut;
use jaq_core::load::{self, Arena, File, Loader, lex};
use jaq_core::native::{self, Fun};
use jaq_core::{Compiler, Ctx, Error, Vars, unwrap_valr};
use jaq_json::{Num, Rc, Val};
use serde_json::Value;

use crate::shared::{decode, reject};

/// The most values that one expression may make from one message.
pub(crate) const VALUES_MAX: usize = 10_000;

/// The deepest nesting of JSON that can be read back: as deep as `serde_json` reads.
const DEPTH_MAX: usize = 127;

/// What would end the process, or put its environment into messages.
const LEFT_OUT: [&str; 3] = ["halt", "halt_error", "env"];

/// A compiled expression. Numbers are exact, however many digits they have: those that it passes on
/// stay as they are written, and those that it computes are written as by jq.
#[derive(Clone)]
pub(crate) struct Expression {
    filter: Arc<jaq_core::compile::Filter<jaq_core::Native<JustLut<Val>>>>,
    text: Arc<str>,
}

impl Expression {
    /// Compiles an expression.
    pub(crate) fn new(text: &str) -> Result<Self, String> {
        let definitions = jaq_core::defs().chain(jaq_std::defs()).chain(jaq_json::defs());
        let definitions = definitions.filter(|definition| !LEFT_OUT.contains(&definition.name));
        let functions = jaq_core::funs().chain(jaq_std::funs()).chain(jaq_json::funs());
        let functions = functions.filter(|(name, ..)| !LEFT_OUT.contains(name));
        let functions = functions.filter(|(name, ..)| *name != FROM_JSON).chain([from_json()]);
        let arena = Arena::default();
        let loader = Loader::new(definitions);
        let modules = loader.load(&arena, File { code: text, path: () }).map_err(|errors| {
            let wrong = errors.first().map(|(_, error)| wrong(error)).unwrap_or_default();
            format!("`{text}` is no jq expression: {wrong}")
        })?;
        // Their values would have to be supplied with each message.
        load::import(&modules, |_| Err("it imports a file: name it in a `lookup`".to_owned()))
            .map_err(|errors| {
                let wrong = errors.first().map(|(_, error)| wrong(error)).unwrap_or_default();
                format!("`{text}` cannot be run: {wrong}")
            })?;
        let filter =
            Compiler::default().with_funs(functions).compile(modules).map_err(|errors| {
                let undefined = errors.iter().flat_map(|(_, found)| found.iter());
                let names: Vec<String> = undefined.map(|(name, _)| format!("`{name}`")).collect();
                format!("`{text}` uses what is not defined: {}", names.join(", "))
            })?;
        Ok(Self { filter: Arc::new(filter), text: text.into() })
    }

    /// Runs the expression on a value.
    pub(crate) fn run(&self, input: Val) -> Result<Vec<Val>, HandleError> {
        let context = Ctx::<JustLut<Val>>::new(&self.filter.lut, Vars::new([]));
        let mut values = Vec::new();
        for value in self.filter.id.run((context, input)).map(unwrap_valr) {
            let value = value.map_err(|error| reject(format!("`{}`: {error}", self.text)))?;
            if values.len() >= VALUES_MAX {
                let text = &self.text;
                return Err(reject(format!("`{text}` makes more than {VALUES_MAX} values")));
            }
            values.push(as_by_jq(value));
        }
        Ok(values)
    }

    /// Whether the expression is true for a value.
    pub(crate) fn test(&self, input: Val) -> Result<bool, HandleError> {
        match self.run(input)?.as_slice() {
            [Val::Bool(verdict)] => Ok(*verdict),
            [] => Ok(false),
            [other] => {
                Err(reject(format!("`{}`: expected true or false, found {other}", self.text)))
            }
            _ => Err(reject(format!("`{}`: expected one value, found several", self.text))),
        }
    }
}

/// A value whose computed numbers are written as by jq: `10 / 2` is a float here, and there it is
/// `5`. What came as `5.0` is [`Num::Dec`]. What is nested too deep for JSON stays as it is.
fn as_by_jq(mut value: Val) -> Val {
    if has_whole(&value, 0) {
        make_whole(&mut value, 0);
    }
    value
}

fn has_whole(value: &Val, depth: usize) -> bool {
    match value {
        Val::Num(number) => whole(number).is_some(),
        _ if depth >= DEPTH_MAX => false,
        Val::Arr(values) => values.iter().any(|value| has_whole(value, depth + 1)),
        Val::Obj(entries) => entries.values().any(|value| has_whole(value, depth + 1)),
        _ => false,
    }
}

fn make_whole(value: &mut Val, depth: usize) {
    let inner = |value: &mut Val| make_whole(value, depth + 1);
    match value {
        Val::Num(number) => *number = whole(number).unwrap_or_else(|| number.clone()),
        _ if depth >= DEPTH_MAX => {}
        Val::Arr(values) => Rc::make_mut(values).iter_mut().for_each(inner),
        Val::Obj(entries) => Rc::make_mut(entries).values_mut().for_each(inner),
        _ => {}
    }
}

/// The integer that a float is, if it is one.
fn whole(number: &Num) -> Option<Num> {
    /// Up to here every whole number is exact as a float.
    const EXACT: f64 = (1_u64 << 53) as f64;
    let Num::Float(number) = *number else { return None };
    let is_whole = number.fract() == 0.0 && number.abs() <= EXACT;
    is_whole.then(|| match number == 0.0 && number.is_sign_negative() {
        true => Num::Dec(Rc::new("-0".to_owned())),
        #[expect(clippy::cast_possible_truncation, reason = "it is whole and small enough")]
        false => Num::from_integral(number as i64),
    })
}

/// Encodes a value as JSON; not every jq value has a JSON form.
pub(crate) fn json(value: &Val) -> Result<String, HandleError> {
    let unfit = |what: String| reject(format!("makes what JSON has not: {what}"));
    match no_json(value, 0) {
        None => Ok(Conversion::Serialize.timed(|| value.to_string())),
        Some(what) => Err(unfit(what)),
    }
}

/// What in a value has no JSON form, if anything.
fn no_json(value: &Val, depth: usize) -> Option<String> {
    let is_text = |bytes: &[u8]| std::str::from_utf8(bytes).is_ok();
    match value {
        Val::Num(Num::Float(number)) if !number.is_finite() => Some(format!("the number {value}")),
        Val::BStr(_) => Some("bytes (`@base64` writes them as a text)".to_owned()),
        Val::TStr(text) if !is_text(text) => Some("a text that is no UTF-8".to_owned()),
        Val::Arr(_) | Val::Obj(_) if depth >= DEPTH_MAX => {
            Some(format!("more than {DEPTH_MAX} levels (as far as it is read again)"))
        }
        Val::Arr(values) => values.iter().find_map(|value| no_json(value, depth + 1)),
        Val::Obj(entries) => entries.iter().find_map(|(key, value)| match key {
            Val::TStr(_) => no_json(key, depth + 1).or_else(|| no_json(value, depth + 1)),
            _ => Some(format!("the key {key}, which is no text")),
        }),
        Val::Null | Val::Bool(_) | Val::Num(_) | Val::TStr(_) => None,
    }
}

/// The payload as a jq value.
pub(crate) fn input(parsed: Option<Parsed>, cx: &Context) -> Result<Val, HandleError> {
    let wrong = |what: String| decode(DecodeError::new(format!("the payload is no JSON: {what}")));
    let read_payload = |bytes| Conversion::Deserialize.timed(|| read(bytes));
    match (parsed, &cx.message().payload) {
        (Some(Parsed::Json(_)), Some(bytes)) if numbers(bytes).any(would_change) => {
            read_payload(bytes).map_err(wrong)
        }
        (Some(Parsed::Json(value) | Parsed::Converted(value)), _) => {
            Ok(Conversion::Construct.timed(|| val(value)))
        }
        (_, Some(bytes)) => read_payload(bytes).map_err(wrong),
        (_, None) => Err(wrong("it is null".to_owned())),
    }
}

/// A parsed value, whose floats stay floats, also those that are whole.
fn val(value: Value) -> Val {
    match value {
        Value::Null => Val::Null,
        Value::Bool(is) => Val::Bool(is),
        Value::Number(number) => {
            Val::Num(match (number.as_i64(), number.as_u64(), number.as_f64()) {
                (Some(number), ..) => Num::from_integral(number),
                (_, Some(number), _) => Num::from_integral(number),
                (.., Some(float)) if float.fract() != 0.0 => Num::Float(float),
                _ => Num::Dec(Rc::new(number.to_string())),
            })
        }
        Value::String(text) => Val::utf8_str(text.into_bytes()),
        Value::Array(values) => values.into_iter().map(val).collect(),
        Value::Object(fields) => {
            let field = |(name, value)| (Val::utf8_str(String::into_bytes(name)), val(value));
            Val::obj(fields.into_iter().map(field).collect())
        }
    }
}

/// Parses JSON, with its numbers as they are written.
pub(crate) fn read(bytes: &[u8]) -> Result<Val, String> {
    with_its_numbers(serde_json::from_slice(bytes).map_err(|error| error.to_string())?, bytes)
}

/// The value parsed from this JSON, or, if needed, one parsed with its numbers as they are written.
fn with_its_numbers(value: Val, bytes: &[u8]) -> Result<Val, String> {
    match numbers(bytes).any(would_change) {
        false => Ok(value),
        // The exact parser accepts more than JSON, and nests as deep as the stack allows; text that
        // is not JSON has been refused by now.
        true => jaq_json::read::parse_single(bytes).map_err(|error| error.to_string()),
    }
}

/// Parses any number of consecutive values, each on demand, up to text that is not JSON.
fn read_many(bytes: Bytes) -> impl Iterator<Item = Result<Val, String>> {
    let mut rest = Some(bytes);
    std::iter::from_fn(move || {
        let text = rest.take()?;
        let mut values = serde_json::Deserializer::from_slice(&text).into_iter::<Val>();
        let value = match values.next()? {
            Ok(value) => value,
            Err(error) => return Some(Err(error.to_string())),
        };
        let to = values.byte_offset();
        rest = Some(text.slice(to..));
        Some(with_its_numbers(value, &text[..to]))
    })
}

const FROM_JSON: &str = "fromjson";

/// `fromjson`, which nests as deep as a payload may; jaq's own nests as deep as the text, which can
/// end the process.
fn from_json() -> Fun<JustLut<Val>> {
    native::run((FROM_JSON, native::v(0), |(_, value)| {
        let text = match value.try_as_utf8_bytes_owned() {
            Ok(text) => text,
            Err(error) => return native::bome(Err(error)),
        };
        let wrong = move |what| Error::str(format_args!("cannot parse {value} as JSON: {what}"));
        Box::new(read_many(text).map(move |value| value.map_err(|what| wrong(what).into())))
    }))
}

/// Whether a number of a JSON text may be written otherwise again: one that 64 bits cannot hold
/// exactly, with an exponent, a fraction that ends in zero, or one that is close to zero.
fn would_change(number: &[u8]) -> bool {
    /// This many digits are always exact.
    const EXACT: usize = 15;
    let fraction = number.contains(&b'.');
    number.iter().filter(|byte| byte.is_ascii_digit()).count() > EXACT
        || number.iter().any(|byte| matches!(byte, b'e' | b'E'))
        || fraction && number.ends_with(b"0")
        || fraction && number.strip_prefix(b"-").unwrap_or(number).starts_with(b"0.0000")
}

/// What is wrong with an expression: what was expected, and what was found.
fn wrong(error: &load::Error<&str>) -> String {
    const SHOWN_MAX: usize = 40;
    let (expected, rest) = match error {
        load::Error::Io(errors) => return errors.iter().map(|(_, e)| e.as_str()).collect(),
        load::Error::Lex(errors) => match errors.first() {
            Some((lex::Expect::Delim(open), _)) => return format!("`{open}` is not closed"),
            Some((expected, rest)) => (expected.as_str(), *rest),
            None => return String::new(),
        },
        load::Error::Parse(errors) => match errors.first() {
            Some((expected, rest)) => (expected.as_str(), *rest),
            None => return String::new(),
        },
    };
    match rest.trim() {
        "" => format!("expected {expected}, found its end"),
        rest => {
            let shown: String = rest.chars().take(SHOWN_MAX).collect();
            format!("expected {expected}, found `{shown}`")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(expression: &str, input: &str) -> Result<Vec<String>, String> {
        let input = read(input.as_bytes()).expect("it is JSON");
        let made = Expression::new(expression).expect("it is jq").run(input);
        let values = made.map_err(|error| format!("{error:?}"))?;
        Ok(values.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn json_in_a_text_is_read_as_deep_as_a_payload_may_be() {
        let text =
            |depth: usize| serde_json::json!("[".repeat(depth) + &"]".repeat(depth)).to_string();
        assert!(run("fromjson | length", &text(120)).is_ok());
        for depth in [1000, 1_000_000] {
            let error = run("fromjson", &text(depth)).unwrap_err();
            assert!(error.contains("as JSON: recursion limit exceeded"), "{error:.200}");
            let open = serde_json::json!("[".repeat(depth)).to_string();
            assert!(run("fromjson", &open).is_err());
            assert_eq!(run("try tonumber catch 0", &open).unwrap(), ["0"]);
        }
    }

    #[test]
    fn json_in_a_text_keeps_its_digits() {
        let text = r#""12345678901234567890.5 [1]\n{\"a\":null}""#;
        let values = ["12345678901234567890.5", "[1]", "{\"a\":null}"];
        assert_eq!(run("fromjson", text).unwrap(), values);
        assert_eq!(run("[.[] | tonumber]", r#"["12", " 1.50 ", "-0"]"#).unwrap(), ["[12,1.50,-0]"]);
        assert!(run("fromjson", r#""{""#).is_err() && run("fromjson", "1").is_err());
        assert_eq!(run("fromjson", r#""  ""#).unwrap(), [""; 0]);
    }

    #[test]
    fn a_number_that_passes_stays_as_it_is_written() {
        let all = r#"{"a":[5.0,-0.0,1.50,1e3,2E-7,0.000001,-0.00000010,2.5,7,-7,100,1.0e+20],"1e4":"5.0"}"#;
        assert_eq!(run(".", all).unwrap(), [all]);
        assert_eq!(run("[.a[] | select(. == 5 or . == 1000)]", all).unwrap(), ["[5.0,1e3]"]);
        for number in all.split(['[', ',', ']']).filter(|text| text.parse::<f64>().is_ok()) {
            assert_eq!(run(".", number).unwrap(), [number], "also alone");
        }
    }

    #[test]
    fn a_number_that_is_computed_is_written_as_by_jq() {
        for (expression, made) in [
            ("10 / 2", "5"),
            ("2.5 * 2", "5"),
            ("{n: [10 / 2, 1 / 4]}", r#"{"n":[5,0.25]}"#),
            ("[6, 8] | add / length", "7"),
            ("-10 / 2", "-5"),
            ("0 / -5", "-0"),
            ("9007199254740992 / 1", "9007199254740992"),
            ("5.0", "5.0"),
            ("[1, 2.5]", "[1,2.5]"),
        ] {
            assert_eq!(run(expression, "null").unwrap(), [made], "{expression}");
        }
        // All that is computed with is read.
        assert_eq!(run(".price * .count", r#"{"price":2.50,"count":4.0}"#).unwrap(), ["10"]);
        let shared = run(". as $all | [.[0] / 2, $all]", "[4, 1.0]").unwrap();
        assert_eq!(shared, ["[2,[4,1.0]]"]);
    }

    #[test]
    fn floats_of_other_codecs_stay_floats() {
        let value = serde_json::json!({ "a": [5.0, 5, 0.5, -1, u64::MAX, 1e300], "b": null });
        assert_eq!(val(value.clone()).to_string(), value.to_string());
    }

    #[test]
    fn an_expression_that_imports_is_refused() {
        for text in [r#"import "x" as $d; $d"#, r#"import "x" as x; x::y"#, r#"include "x"; ."#] {
            let error = Expression::new(text).err().expect("it is refused");
            assert!(error.contains(text), "{error}");
        }
    }
}
