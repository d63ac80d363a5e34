//! The component `lookup`.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use brigade_core::BoxError;
use brigade_core::component::{
    AnyComponent, ComponentFactory, Context, Emit, Emitted, HandleError, Handling, Kind, Parsed,
    Setup, StageSite,
};
use brigade_core::connector::Problem;
use brigade_core::field::FieldPath;
use futures_util::future::LocalBoxFuture;
use indexmap::IndexMap;
use jaq_json::{Rc, Val};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::jq::{input, json, read};
use crate::key::{find, key_of};
use crate::shared::{decode, one_way, reject, schema, settings};

/// `lookup`: adds fields from a CSV or JSON Lines file, found by a key. The file is read when the
/// stage starts; at most 1,000,000 rows. Numbers keep all their digits.
///
/// ```yaml
/// component:
///   lookup:
///     file: airports.csv
///     key: iata
///     match:
///       - { field: origin, add: { origin_city: city, origin_latitude: latitude } }
///     types: { latitude: number }
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Lookup;

/// The settings of `lookup`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Settings {
    /// The table: `.csv` with a header line, anything else JSON Lines.
    file: String,
    /// The column of the table that is searched; its values are distinct.
    key: String,
    /// What is looked up for each message.
    #[serde(rename = "match")]
    matches: Vec<Match>,
    /// Types of CSV columns: `text`, `number` or `boolean`. Default: `text`.
    #[serde(default)]
    types: IndexMap<String, ColumnType>,
    /// What happens when a key is not in the table.
    #[serde(default)]
    on_miss: OnMiss,
}

/// One look-up.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Match {
    /// Path of the key in the message.
    field: String,
    /// The fields to add, each with its column in the table.
    add: IndexMap<String, String>,
}

/// The type of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum ColumnType {
    Text,
    Number,
    Boolean,
}

/// What happens when a key is not in the table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum OnMiss {
    /// The message becomes a dead letter.
    #[default]
    Reject,
    /// The message passes without the fields.
    Pass,
}

type Row = HashMap<String, Val>;
type Table = HashMap<String, Row>;

/// The most rows of a table, so that a wrong file cannot fill the memory.
const ROWS_MAX: usize = 1_000_000;

#[derive(Clone)]
struct Looking {
    settings: Arc<Settings>,
    fields: Vec<FieldPath>,
    path: PathBuf,
    /// Read by `init`; the workers of a lane share it.
    table: Arc<Table>,
}

impl ComponentFactory for Lookup {
    fn name(&self) -> &'static str {
        "lookup"
    }

    fn schema(&self) -> Option<Value> {
        schema::<Settings>()
    }

    fn build(
        &self,
        given: &Value,
        site: &StageSite,
    ) -> Result<Box<dyn AnyComponent>, Vec<Problem>> {
        one_way("lookup", site)?;
        let settings: Settings = settings(given)?;
        let fields = settings.matches.iter().map(|found| found.field.parse());
        let fields = fields.collect::<Result<Vec<FieldPath>, _>>();
        let fields = fields.map_err(|error| vec![Problem::whole(error.to_string())])?;
        let path = PathBuf::from(&settings.file);
        let table = Arc::default();
        Ok(Box::new(Looking { settings: Arc::new(settings), fields, path, table }))
    }
}

impl Looking {
    fn load(&self) -> Result<Table, BoxError> {
        let place = self.path.display();
        let csv = self.path.extension().is_some_and(|extension| extension == "csv");
        let rows = if csv { self.csv() } else { self.json_lines() };
        let mut table = Table::new();
        for (line, row) in rows.map_err(|error| format!("{place}: {error}"))? {
            let Some(key) = row.get(&self.settings.key).map(key_of) else {
                return Err(format!("{place}:{line}: no column `{}`", self.settings.key).into());
            };
            let columns = self.settings.matches.iter().flat_map(|found| found.add.values());
            if let Some(missing) = columns.into_iter().find(|column| !row.contains_key(*column)) {
                return Err(format!("{place}:{line}: no column `{missing}`").into());
            }
            if table.contains_key(&key) {
                return Err(format!("{place}:{line}: the key `{key}` stands twice").into());
            }
            if table.len() >= ROWS_MAX {
                return Err(format!("{place}: more than {ROWS_MAX} rows").into());
            }
            table.insert(key, row);
        }
        Ok(table)
    }

    /// The rows of a CSV file, each with the line on which it begins.
    fn csv(&self) -> Result<Vec<(usize, Row)>, BoxError> {
        let text = std::fs::read(&self.path)?;
        let mut reader = csv::Reader::from_reader(&text[..]);
        let header = reader.headers()?.clone();
        let (mut rows, mut line, mut counted) = (Vec::new(), 1, 0);
        for record in reader.records().take(ROWS_MAX + 1) {
            let record = record?;
            let at = record.position().map_or(0, csv::Position::byte);
            // Empty lines before a record count as part of it.
            let mut begin = usize::try_from(at)?;
            while matches!(text.get(begin), Some(b'\r' | b'\n')) {
                begin += 1;
            }
            line += text[counted..begin].iter().filter(|byte| **byte == b'\n').count();
            counted = begin;
            let mut row = Row::new();
            for (column, text) in header.iter().zip(record.iter()) {
                row.insert(column.to_owned(), self.typed(column, text, line)?);
            }
            rows.push((line, row));
        }
        Ok(rows)
    }

    fn typed(&self, column: &str, text: &str, line: usize) -> Result<Val, BoxError> {
        let wrong = |kind: &str| format!("line {line}: `{text}` in column `{column}` is no {kind}");
        match self.settings.types.get(column) {
            None | Some(ColumnType::Text) => Ok(text.to_owned().into()),
            Some(ColumnType::Number) => match read(text.as_bytes()) {
                Ok(number @ Val::Num(_)) => Ok(number),
                _ => Err(wrong("number").into()),
            },
            Some(ColumnType::Boolean) => Ok(Val::Bool(text.parse().map_err(|_| wrong("boolean"))?)),
        }
    }

    /// The rows of a file of JSON Lines, each with its line.
    fn json_lines(&self) -> Result<Vec<(usize, Row)>, BoxError> {
        let text = std::fs::read_to_string(&self.path)?;
        let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
        let row = |(at, line): (usize, &str)| match read(line.as_bytes()) {
            Ok(Val::Obj(row)) => {
                Ok((at, row.iter().map(|(name, value)| (key_of(name), value.clone())).collect()))
            }
            Ok(_) => Err(format!("line {at}: expected a JSON object").into()),
            Err(error) => Err(format!("line {at}: {error}").into()),
        };
        lines.take(ROWS_MAX + 1).map(row).collect()
    }

    fn look_up(&self, parsed: Option<Parsed>, cx: &Context) -> Result<Emit, HandleError> {
        let mut payload = input(parsed, cx)?;
        for (found, field) in self.settings.matches.iter().zip(&self.fields) {
            let key = find(field, &payload).filter(|key| **key != Val::Null).map(key_of);
            let Some(row) = key.as_ref().and_then(|key| self.table.get(key)) else {
                if self.settings.on_miss == OnMiss::Pass {
                    continue;
                }
                let (field, table) = (&found.field, self.path.display());
                return Err(reject(match key {
                    Some(key) => format!("`{field}`: `{key}` is not in {table}"),
                    None => format!("the message has no `{field}` to look up in {table}"),
                }));
            };
            let Val::Obj(fields) = &mut payload else {
                let text = "the payload is no JSON object, so no field can be added";
                return Err(decode(brigade_core::component::DecodeError::new(text)));
            };
            let fields = Rc::make_mut(fields);
            for (name, column) in &found.add {
                fields.insert(name.clone().into(), row[column].clone());
            }
        }
        Ok(Emit::from(Emitted::json(json(&payload)?)))
    }
}

impl AnyComponent for Looking {
    fn kind(&self) -> Kind {
        Kind::Sync
    }

    fn init<'a>(&'a mut self, _: &'a Setup) -> LocalBoxFuture<'a, Result<(), BoxError>> {
        Box::pin(async {
            self.table = Arc::new(self.load()?);
            Ok(())
        })
    }

    fn handle<'a>(&'a mut self, parsed: Option<Parsed>, cx: &'a Context) -> Handling<'a> {
        Handling::Done(self.look_up(parsed, cx))
    }

    fn fresh(&self) -> Box<dyn AnyComponent> {
        Box::new(self.clone())
    }
}
