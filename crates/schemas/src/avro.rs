//! Avro payloads as JSON.

use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::types::Value as AvroValue;
use apache_avro::writer::datum::GenericDatumWriter;
use apache_avro::{AvroResult, Schema};
use serde_json::Value;

/// A parsed schema.
pub(crate) struct Avro {
    schema: Schema,
    references: Vec<Schema>,
}

impl Avro {
    /// `references`: the texts of all schemas that it refers to, directly or not, those that others refer to first.
    pub(crate) fn parse(text: &str, references: &[String]) -> Result<Self, String> {
        let parsed = Schema::parse_str_with_list(text, references);
        let (schema, references) = parsed.map_err(|error| error.to_string())?;
        Ok(Self { schema, references })
    }

    /// The payload behind the five bytes, as JSON.
    pub(crate) fn read(&self, payload: &[u8]) -> Result<Vec<u8>, String> {
        let read = || -> AvroResult<Value> {
            let reader = GenericDatumReader::builder(&self.schema).writer_schemata(self.all())?;
            Value::try_from(reader.build()?.read_value(&mut &payload[..])?)
        };
        let value = read().map_err(|error| error.to_string())?;
        serde_json::to_vec(&value).map_err(|error| error.to_string())
    }

    /// Without the five bytes.
    pub(crate) fn write(&self, json: &Value) -> Result<Vec<u8>, String> {
        let written = || -> AvroResult<Vec<u8>> {
            let references = self.references.iter().collect();
            let value = AvroValue::try_from(json.clone())?;
            let value = value.resolve_schemata(&self.schema, references)?;
            let writer = GenericDatumWriter::builder(&self.schema).schemata(self.all())?;
            writer.build()?.write_value_to_vec(value)
        };
        written().map_err(|error| error.to_string())
    }

    fn all(&self) -> Vec<&Schema> {
        self.references.iter().chain([&self.schema]).collect()
    }
}
