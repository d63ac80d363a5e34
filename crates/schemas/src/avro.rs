//! Avro payloads, converted to and from JSON according to their schemas.
//!
//! `apache-avro` parses the schemas. Its handling of values is made for reading with another
//! schema, and would change what a component emitted (an object with the fields of several records
//! becomes the first of them, a name that is not in the schema is dropped, a text becomes a
//! decimal's bytes), doubles its time with each union that values are nested in, reads truncated
//! input as nulls, and does not limit the depth of a payload. So the bytes are read and written
//! here.
//!
//! # As JSON
//!
//! `bytes`, `fixed` and `duration` are lists of numbers, decimals and UUIDs are texts, times and
//! dates are numbers. A value of a union is just the value. NaN and infinities are null.

mod read;
mod write;

use std::collections::HashMap;

use apache_avro::Schema;
use apache_avro::schema::{FixedSchema, InnerDecimalSchema, Name, UuidSchema};
use serde_json::Value;

/// The deepest nesting of values in records, lists and maps, as for JSON.
const DEPTH_MAX: usize = 127;
/// The most bytes of a decimal: more than two thousand digits.
const DECIMAL_MAX: usize = 1024;

/// A schema, with everything it refers to.
#[derive(Debug)]
pub(crate) struct Avro {
    types: Vec<Type>,
    root: usize,
}

/// One type; the numbers are indices of the schema's types.
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
    /// The length precedes the bytes.
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
    /// Parses a schema. `references` are the texts of all schemas that it refers to, directly or
    /// indirectly.
    ///
    /// # Errors
    /// One of them is not a schema, or something is missing; the error says what.
    pub(crate) fn parse(text: &str, references: &[String]) -> Result<Self, String> {
        let parsed = Schema::parse_str_with_list(text, references);
        let (schema, others) = parsed.map_err(|error| error.to_string())?;
        let mut parts = Parts { types: Vec::new(), names: HashMap::new(), others: HashMap::new() };
        for other in &others {
            if let Some(name) = name_of(other) {
                parts.others.insert(name.clone(), other);
            }
        }
        // A type defined within one of them may be referred to by name only.
        for other in &others {
            if name_of(other).is_some_and(|name| !parts.names.contains_key(name)) {
                parts.add(other)?;
            }
        }
        let root = parts.add(&schema)?;
        Ok(Self { types: parts.types, root })
    }
}

/// The parts of a schema while it is taken apart.
struct Parts<'s> {
    types: Vec<Type>,
    /// Named types that have an index.
    names: HashMap<Name, usize>,
    /// Named types of other schemas.
    others: HashMap<Name, &'s Schema>,
}

impl<'s> Parts<'s> {
    /// The index of a type, which may refer to itself.
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
