//! JSON, written as Avro's bytes according to a schema.

use std::fmt;

use num_bigint::BigInt;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::{Avro, DECIMAL_MAX, DEPTH_MAX, Length, Record, Type};

/// The most characters of a value that an error shows.
const SHOWN_MAX: usize = 60;

impl Avro {
    /// Encodes a value, without the registry's prefix. Fields with a default in the schema may be
    /// missing.
    ///
    /// # Errors
    /// It does not fit the schema; the error says where, what was expected and what was found.
    pub(crate) fn write(&self, json: &Value) -> Result<Vec<u8>, String> {
        let mut writer = Writer { types: &self.types, bytes: Vec::new() };
        let written = writer.value(self.root, json, 0, Notation::Json);
        written.map_err(|wrong| wrong.to_string())?;
        Ok(writer.bytes)
    }
}

/// How bytes are written.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Notation {
    /// As lists of numbers, decimals as texts.
    Json,
    /// As in a schema's defaults: a text in which each character is a byte.
    Default,
}

/// What does not fit, and where.
struct Wrong {
    /// From the innermost.
    at: Vec<String>,
    what: String,
}

impl Wrong {
    fn new(what: String) -> Self {
        Self { at: Vec::new(), what }
    }

    fn expected(what: impl fmt::Display, found: &Value) -> Self {
        let text = found.to_string();
        let shown: String = text.chars().take(SHOWN_MAX).collect();
        let more = if shown.len() < text.len() { ".." } else { "" };
        Self::new(format!("expected {what}, found {shown}{more}"))
    }

    fn within(mut self, name: impl fmt::Display) -> Self {
        self.at.push(name.to_string());
        self
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.at.is_empty() {
            return f.write_str(&self.what);
        }
        let at: Vec<&str> = self.at.iter().rev().map(String::as_str).collect();
        write!(f, "`{}`: {}", at.join("."), self.what)
    }
}

struct Writer<'a> {
    types: &'a [Type],
    bytes: Vec<u8>,
}

impl<'a> Writer<'a> {
    fn value(
        &mut self,
        of: usize,
        value: &Value,
        depth: usize,
        notation: Notation,
    ) -> Result<(), Wrong> {
        if depth > DEPTH_MAX {
            return Err(Wrong::new(format!("it is nested deeper than {DEPTH_MAX}")));
        }
        let types = self.types;
        match &types[of] {
            Type::Null if value.is_null() => {}
            Type::Null => return Err(Wrong::expected("null", value)),
            Type::Boolean => match value {
                Value::Bool(is) => self.bytes.push(u8::from(*is)),
                other => return Err(Wrong::expected("a boolean", other)),
            },
            Type::Int | Type::Long | Type::Float | Type::Double => {
                return self.number(&types[of], value);
            }
            Type::Text => {
                let text = value.as_str().ok_or_else(|| Wrong::expected("a text", value))?;
                self.told(text.as_bytes());
            }
            Type::Bytes(_) | Type::Uuid(_) | Type::Decimal { .. } => {
                return self.of_bytes(&types[of], value, notation);
            }
            Type::Enum(symbols) => {
                let at = symbol(symbols, value);
                let at = at.ok_or_else(|| {
                    Wrong::expected(format!("one of {}", symbols.join(", ")), value)
                })?;
                self.place(at);
            }
            Type::List(items) => self.list(*items, value, depth, notation)?,
            Type::Map(values) => self.map(*values, value, depth, notation)?,
            Type::Union(branches) => {
                let at = self.branch(branches, value, notation)?;
                self.place(at);
                self.value(branches[at], value, depth, notation)?;
            }
            Type::Record(record) => self.record(record, value, depth, notation)?,
        }
        Ok(())
    }

    fn number(&mut self, of: &Type, value: &Value) -> Result<(), Wrong> {
        let expected = |what: &str| Wrong::expected(what, value);
        match of {
            Type::Float => {
                let number = float(value).ok_or_else(|| expected("a float"))?;
                self.bytes.extend(number.to_le_bytes());
            }
            Type::Double => {
                let number = value.as_f64().ok_or_else(|| expected("a number"))?;
                self.bytes.extend(number.to_le_bytes());
            }
            Type::Int => self.long(int(value).ok_or_else(|| expected("an int"))?),
            _ => self.long(whole(value).ok_or_else(|| expected("a long"))?),
        }
        Ok(())
    }

    fn of_bytes(&mut self, of: &Type, value: &Value, notation: Notation) -> Result<(), Wrong> {
        let list = || Wrong::expected("a list of bytes, 0 to 255 each", value);
        match of {
            Type::Uuid(length) => {
                let uuid = uuid(value).ok_or_else(|| Wrong::expected("a UUID", value))?;
                self.of_length(*length, uuid.as_bytes(), value)
            }
            Type::Decimal { length, precision, scale } => {
                let noted = bytes(value, notation).filter(|_| notation == Notation::Default);
                let bytes = noted.map_or_else(|| decimal(value, *precision, *scale), Ok)?;
                self.decimal(*length, &bytes, value)
            }
            Type::Bytes(length) => {
                let bytes = bytes(value, notation).ok_or_else(list)?;
                self.of_length(*length, &bytes, value)
            }
            _ => Err(list()),
        }
    }

    fn list(
        &mut self,
        items: usize,
        value: &Value,
        depth: usize,
        notation: Notation,
    ) -> Result<(), Wrong> {
        let Value::Array(list) = value else { return Err(Wrong::expected("a list", value)) };
        if !list.is_empty() {
            self.place(list.len());
        }
        for (at, item) in list.iter().enumerate() {
            self.value(items, item, depth + 1, notation).map_err(|wrong| wrong.within(at))?;
        }
        self.place(0);
        Ok(())
    }

    fn map(
        &mut self,
        values: usize,
        value: &Value,
        depth: usize,
        notation: Notation,
    ) -> Result<(), Wrong> {
        let Value::Object(map) = value else { return Err(Wrong::expected("an object", value)) };
        if !map.is_empty() {
            self.place(map.len());
        }
        for (key, value) in map {
            self.told(key.as_bytes());
            self.value(values, value, depth + 1, notation).map_err(|wrong| wrong.within(key))?;
        }
        self.place(0);
        Ok(())
    }

    fn record(
        &mut self,
        record: &'a Record,
        value: &Value,
        depth: usize,
        notation: Notation,
    ) -> Result<(), Wrong> {
        let Value::Object(object) = value else {
            return Err(Wrong::expected(format!("an object, a `{}`", record.name), value));
        };
        if let Some(name) = object.keys().find(|name| !record.has(name)) {
            return Err(Wrong::new(format!("`{}` has no field `{name}`", record.name)));
        }
        for field in &record.fields {
            let written = match (object.get(&field.name), &field.default) {
                (Some(value), _) => self.value(field.of, value, depth + 1, notation),
                (None, Some(default)) => {
                    self.value(field.of, default, depth + 1, Notation::Default)
                }
                (None, None) => Err(Wrong::new("it is missing, and has no default".to_owned())),
            };
            written.map_err(|wrong| wrong.within(&field.name))?;
        }
        Ok(())
    }

    /// Which branch of a union a value is: the first that takes it; for records, the only one that
    /// has all of the object's fields and lacks none.
    fn branch(
        &self,
        branches: &[usize],
        value: &Value,
        notation: Notation,
    ) -> Result<usize, Wrong> {
        let record = |at: &usize| match &self.types[*at] {
            Type::Record(record) => Some(record),
            _ => None,
        };
        if let Value::Object(object) = value {
            let numbered = branches.iter().enumerate();
            let fitting = numbered.filter_map(|(at, branch)| Some((at, record(branch)?)));
            let fitting: Vec<_> = fitting.filter(|(_, record)| record.fits(object)).collect();
            match fitting[..] {
                [(at, _)] => return Ok(at),
                [(_, one), (_, other), ..] => {
                    let what = format!("it may be a `{}` or a `{}`", one.name, other.name);
                    return Err(Wrong::new(what));
                }
                [] => {}
            }
        }
        if let ([at], Value::Object(_)) = (&self.objects(branches)[..], value) {
            // The attempt to write it says which field is wrong.
            return Ok(*at);
        }
        let fraction = value.is_f64() && branches.iter().any(|at| self.types[*at].is_float());
        let takes = |branch: &usize| {
            let is_whole = matches!(self.types[*branch], Type::Int | Type::Long);
            !(fraction && is_whole) && self.takes(*branch, value, notation)
        };
        branches.iter().position(takes).ok_or_else(|| {
            let names: Vec<String> = branches.iter().map(|at| self.types[*at].name()).collect();
            Wrong::expected(names.join(" or "), value)
        })
    }

    /// The branches that objects can belong to.
    fn objects(&self, branches: &[usize]) -> Vec<usize> {
        let is = |at: &usize| matches!(self.types[branches[*at]], Type::Record(_) | Type::Map(_));
        (0..branches.len()).filter(is).collect()
    }

    /// Whether a value is of a type, as far as can be seen without looking inside it.
    fn takes(&self, of: usize, value: &Value, notation: Notation) -> bool {
        match &self.types[of] {
            Type::Null => value.is_null(),
            Type::Boolean => value.is_boolean(),
            Type::Int => int(value).is_some(),
            Type::Long => whole(value).is_some(),
            // A whole number that it would round may belong to another type.
            Type::Float => float(value).is_some_and(|number| {
                whole(value)
                    .is_none_or(|whole| f64::from(number) == whole as f64 && whole.abs() < 1 << 24)
            }),
            Type::Double => value.is_number(),
            Type::Text => value.is_string(),
            Type::Bytes(Length::Told) => bytes(value, notation).is_some(),
            Type::Bytes(Length::Always(length)) => {
                bytes(value, notation).is_some_and(|bytes| bytes.len() == *length)
            }
            Type::Uuid(_) => uuid(value).is_some(),
            Type::Decimal { precision, scale, .. } => decimal(value, *precision, *scale).is_ok(),
            Type::Enum(symbols) => symbol(symbols, value).is_some(),
            Type::List(_) => value.is_array(),
            Type::Map(_) => value.is_object(),
            Type::Record(_) | Type::Union(_) => false,
        }
    }

    fn of_length(&mut self, length: Length, bytes: &[u8], value: &Value) -> Result<(), Wrong> {
        match length {
            Length::Told => self.told(bytes),
            Length::Always(length) if length == bytes.len() => self.bytes.extend(bytes),
            Length::Always(length) => {
                return Err(Wrong::expected(format!("{length} bytes"), value));
            }
        }
        Ok(())
    }

    /// A decimal of a fixed length has its sign repeated before it.
    fn decimal(&mut self, length: Length, bytes: &[u8], value: &Value) -> Result<(), Wrong> {
        let Length::Always(length) = length else {
            self.told(bytes);
            return Ok(());
        };
        let Some(before) = length.checked_sub(bytes.len()) else {
            return Err(Wrong::expected(format!("a decimal of {length} bytes"), value));
        };
        let sign = if bytes.first().is_some_and(|first| first & 0x80 != 0) { 0xff } else { 0 };
        self.bytes.extend(std::iter::repeat_n(sign, before));
        self.bytes.extend(bytes);
        Ok(())
    }

    fn told(&mut self, bytes: &[u8]) {
        self.place(bytes.len());
        self.bytes.extend(bytes);
    }

    fn place(&mut self, number: usize) {
        self.long(i64::try_from(number).unwrap_or(i64::MAX));
    }

    fn long(&mut self, number: i64) {
        #[expect(clippy::cast_sign_loss, reason = "the sign is the lowest bit")]
        let mut number = (number << 1 ^ number >> 63) as u64;
        while number >= 0x80 {
            self.bytes.push((number & 0x7f) as u8 | 0x80);
            number >>= 7;
        }
        self.bytes.push(number as u8);
    }
}

impl Record {
    fn has(&self, name: &str) -> bool {
        self.fields.iter().any(|field| field.name == name)
    }

    /// Whether an object has no field that this record lacks, and all fields that have no default.
    fn fits(&self, object: &Map<String, Value>) -> bool {
        let needed = |name: &str, has_default: bool| has_default || object.contains_key(name);
        let all = self.fields.iter().all(|field| needed(&field.name, field.default.is_some()));
        all && object.keys().all(|name| self.has(name))
    }
}

impl Type {
    fn is_float(&self) -> bool {
        matches!(self, Self::Float | Self::Double)
    }

    /// The type's name, in readable form.
    fn name(&self) -> String {
        match self {
            Self::Null => "null".to_owned(),
            Self::Boolean => "a boolean".to_owned(),
            Self::Int => "an int".to_owned(),
            Self::Long => "a long".to_owned(),
            Self::Float | Self::Double => "a number".to_owned(),
            Self::Text => "a text".to_owned(),
            Self::Bytes(_) => "a list of bytes".to_owned(),
            Self::Uuid(_) => "a UUID".to_owned(),
            Self::Decimal { precision, scale, .. } => format!("a decimal({precision},{scale})"),
            Self::Enum(symbols) => format!("one of {}", symbols.join(", ")),
            Self::List(_) => "a list".to_owned(),
            Self::Map(_) => "a map".to_owned(),
            Self::Union(_) => "a union".to_owned(),
            Self::Record(record) => format!("a `{}`", record.name),
        }
    }
}

/// A whole number, including one that is written as a fraction, such as `1.0`.
fn whole(value: &Value) -> Option<i64> {
    /// Below this every whole number is exact as a float.
    const EXACT: f64 = (1_u64 << 53) as f64;
    value.as_i64().or_else(|| {
        let number = value.as_f64().filter(|_| !value.is_u64())?;
        #[expect(clippy::cast_possible_truncation, reason = "it is whole and small enough")]
        (number.fract() == 0.0 && number.abs() < EXACT).then_some(number as i64)
    })
}

fn int(value: &Value) -> Option<i64> {
    whole(value).filter(|number| i32::try_from(*number).is_ok())
}

/// A number that is finite as a 32-bit float.
fn float(value: &Value) -> Option<f32> {
    #[expect(clippy::cast_possible_truncation, reason = "that is what a float is")]
    value.as_f64().map(|number| number as f32).filter(|number| number.is_finite())
}

fn uuid(value: &Value) -> Option<Uuid> {
    Uuid::parse_str(value.as_str()?).ok()
}

fn symbol(symbols: &[String], value: &Value) -> Option<usize> {
    let text = value.as_str()?;
    symbols.iter().position(|symbol| symbol == text)
}

fn bytes(value: &Value, notation: Notation) -> Option<Vec<u8>> {
    match (value, notation) {
        (Value::String(text), Notation::Default) => {
            text.chars().map(|byte| u8::try_from(u32::from(byte)).ok()).collect()
        }
        (Value::Array(list), Notation::Json) => {
            let byte = |item: &Value| item.as_u64().and_then(|byte| u8::try_from(byte).ok());
            list.iter().map(byte).collect()
        }
        _ => None,
    }
}

/// A decimal's unscaled value. It must be exact.
fn decimal(value: &Value, precision: usize, scale: usize) -> Result<Vec<u8>, Wrong> {
    let expected =
        || Wrong::expected(format!("a decimal({precision},{scale}), as \"12.50\""), value);
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return Err(expected()),
    };
    let unsigned = text.strip_prefix('-').unwrap_or(&text);
    let (whole, places) = unsigned.split_once('.').unwrap_or((unsigned, ""));
    let are_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let significant = places.trim_end_matches('0');
    let fits = !whole.is_empty()
        && are_digits(whole)
        && are_digits(places)
        && significant.len() <= scale
        && whole.trim_start_matches('0').len() + scale <= precision.min(2 * DECIMAL_MAX);
    if !fits {
        return Err(expected());
    }
    let digits = format!("{whole}{significant:0<scale$}");
    let unscaled: BigInt = digits.parse().map_err(|_| expected())?;
    let unscaled = if text.starts_with('-') { -unscaled } else { unscaled };
    Ok(unscaled.to_signed_bytes_be())
}
