//! Avro payloads, read as JSON and written from it by their schemas.
//!
//! `apache-avro` reads the schemas. What it does with values is made for reading with another schema, and would
//! change what a component put out (an object of several records' fields is the first of them, a name that the
//! schema has not is dropped, a text is a decimal's bytes), takes twice the time for each union that values are
//! nested in, reads what is cut short as nulls, and has no limit for how deep a payload goes. So the bytes are read
//! and written here.
//!
//! # As JSON
//!
//! `bytes`, `fixed` and `duration` are lists of numbers, decimals and UUIDs texts, times and dates numbers. A value of
//! a union is the value alone. What is no number (NaN) or has no end is null.

mod read;
mod write;

use std::collections::HashMap;

use apache_avro::Schema;
use apache_avro::schema::{FixedSchema, InnerDecimalSchema, Name, UuidSchema};
use serde_json::Value;

/// How deep values may be nested in records, lists and maps, as in JSON.
const DEPTH_MAX: usize = 127;
/// The bytes of a decimal, at most: more than two thousand digits.
const DECIMAL_MAX: usize = 1024;

/// A schema, with what it refers to.
#[derive(Debug)]
pub(crate) struct Avro {
    types: Vec<Type>,
    root: usize,
}

/// One type; the numbers are places among a schema's types.
#[derive(Debug)]
enum Type {
    Null,
    Boolean,
    Int,
    Long,
    Float,
    Double,
    Text,
    Bytes(Length),
    Uuid(Length),
    Decimal { length: Length, precision: usize, scale: usize },
    Enum(Vec<String>),
    List(usize),
    Map(usize),
    Union(Vec<usize>),
    Record(Record),
}

#[derive(Debug, Clone, Copy)]
enum Length {
    /// It stands before the bytes.
    Told,
    Always(usize),
}

#[derive(Debug)]
struct Record {
    name: String,
    fields: Vec<Field>,
}

#[derive(Debug)]
struct Field {
    name: String,
    default: Option<Value>,
    of: usize,
}

impl Avro {
    /// Reads a schema. `references` are the texts of all that it refers to, directly or not.
    ///
    /// # Errors
    /// One of them is no schema, or something is missing: what.
    pub(crate) fn parse(text: &str, references: &[String]) -> Result<Self, String> {
        let parsed = Schema::parse_str_with_list(text, references);
        let (schema, others) = parsed.map_err(|error| error.to_string())?;
        let mut parts = Parts { types: Vec::new(), names: HashMap::new(), others: HashMap::new() };
        for other in &others {
            if let Some(name) = name_of(other) {
                parts.others.insert(name.clone(), other);
            }
        }
        // What is defined within one of them may be meant by its name alone.
        for other in &others {
            if name_of(other).is_some_and(|name| !parts.names.contains_key(name)) {
                parts.add(other)?;
            }
        }
        let root = parts.add(&schema)?;
        Ok(Self { types: parts.types, root })
    }
}

/// What a schema is taken apart into.
struct Parts<'s> {
    types: Vec<Type>,
    /// Named types that have a place.
    names: HashMap<Name, usize>,
    /// Named types of other schemas.
    others: HashMap<Name, &'s Schema>,
}

impl<'s> Parts<'s> {
    /// The place of a type, which may refer to itself.
    fn add(&mut self, schema: &'s Schema) -> Result<usize, String> {
        if let Schema::Ref { name } = schema {
            return self.named(name);
        }
        let place = self.types.len();
        self.types.push(Type::Null);
        if let Some(name) = name_of(schema) {
            self.names.insert(name.clone(), place);
        }
        self.types[place] = self.type_of(schema)?;
        Ok(place)
    }

    fn named(&mut self, name: &Name) -> Result<usize, String> {
        if let Some(place) = self.names.get(name) {
            return Ok(*place);
        }
        match self.others.get(name) {
            Some(schema) => self.add(schema),
            None => Err(format!("the type `{}` is not defined", name.fullname(None))),
        }
    }

    fn type_of(&mut self, schema: &'s Schema) -> Result<Type, String> {
        Ok(match schema {
            Schema::Null => Type::Null,
            Schema::Boolean => Type::Boolean,
            Schema::Int | Schema::Date | Schema::TimeMillis => Type::Int,
            Schema::Long
            | Schema::TimeMicros
            | Schema::TimestampMillis
            | Schema::TimestampMicros
            | Schema::TimestampNanos
            | Schema::LocalTimestampMillis
            | Schema::LocalTimestampMicros
            | Schema::LocalTimestampNanos => Type::Long,
            Schema::Float => Type::Float,
            Schema::Double => Type::Double,
            Schema::String | Schema::Uuid(UuidSchema::String) => Type::Text,
            Schema::Bytes | Schema::BigDecimal => Type::Bytes(Length::Told),
            Schema::Fixed(fixed) | Schema::Duration(fixed) => Type::Bytes(always(fixed)),
            Schema::Uuid(UuidSchema::Bytes) => Type::Uuid(Length::Told),
            Schema::Uuid(UuidSchema::Fixed(fixed)) => Type::Uuid(always(fixed)),
            Schema::Decimal(decimal) => {
                let length = match &decimal.inner {
                    InnerDecimalSchema::Bytes => Length::Told,
                    InnerDecimalSchema::Fixed(fixed) => always(fixed),
                };
                Type::Decimal { length, precision: decimal.precision, scale: decimal.scale }
            }
            Schema::Enum(of) => Type::Enum(of.symbols.clone()),
            Schema::Array(list) => Type::List(self.add(&list.items)?),
            Schema::Map(map) => Type::Map(self.add(&map.types)?),
            Schema::Union(union) => {
                let branches = union.variants().iter().map(|branch| self.add(branch));
                Type::Union(branches.collect::<Result<_, _>>()?)
            }
            Schema::Record(record) => {
                let fields = record.fields.iter().map(|field| {
                    let (name, default) = (field.name.clone(), field.default.clone());
                    Ok(Field { name, default, of: self.add(&field.schema)? })
                });
                let fields = fields.collect::<Result<_, String>>()?;
                Type::Record(Record { name: record.name.fullname(None), fields })
            }
            Schema::Ref { name } => {
                return Err(format!("the type `{}` stands for another name", name.fullname(None)));
            }
        })
    }
}

fn always(fixed: &FixedSchema) -> Length {
    Length::Always(fixed.size)
}

/// The name of a type that has one.
fn name_of(schema: &Schema) -> Option<&Name> {
    match schema {
        Schema::Record(record) => Some(&record.name),
        Schema::Enum(of) => Some(&of.name),
        Schema::Fixed(fixed) | Schema::Duration(fixed) | Schema::Uuid(UuidSchema::Fixed(fixed)) => {
            Some(&fixed.name)
        }
        Schema::Decimal(decimal) => match &decimal.inner {
            InnerDecimalSchema::Fixed(fixed) => Some(&fixed.name),
            InnerDecimalSchema::Bytes => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests;
