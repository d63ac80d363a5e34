//! The table of `lookup`: a CSV or JSON Lines file, read as a whole.

use std::collections::HashMap;
use std::fmt::Display;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use csv::StringRecord;
use indexmap::IndexMap;
use jaq_json::Val;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::jq::read;
use crate::key::key_of;

/// The most rows of a table, so that a wrong file cannot fill the memory.
const ROWS_MAX: usize = 1_000_000;

/// The most bytes of its file, for the same reason: 500 for each row.
const BYTES_MAX: u64 = 512 << 20;

/// What may stand before the text of a file.
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// The type of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum ColumnType {
    Text,
    Number,
    Boolean,
}

/// What is taken from a table.
pub(super) struct Wanted<'s> {
    /// The column of the keys.
    pub(super) key: &'s str,
    /// What a row consists of, in this order.
    pub(super) columns: &'s [String],
    /// How the text of CSV columns is read.
    pub(super) types: &'s IndexMap<String, ColumnType>,
}

/// Rows by their keys.
#[derive(Debug, Default)]
pub(super) struct Table(HashMap<String, Box<[Val]>>);

/// Whether a file is read as CSV; if not, as JSON Lines.
pub(super) fn is_csv(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("csv"))
}

impl Table {
    /// Reads a file.
    pub(super) fn read(path: &Path, wanted: &Wanted<'_>) -> Result<Self, String> {
        let mut table = Self::default();
        let filled = bytes(path).and_then(|bytes| {
            let text = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&bytes);
            match is_csv(path) {
                true => table.fill_from_csv(text, wanted),
                false => table.fill_from_json_lines(text, wanted),
            }
        });
        match filled {
            Ok(()) => Ok(table),
            Err(Wrong { line: None, what }) => Err(format!("{}: {what}", path.display())),
            Err(Wrong { line: Some(line), what }) => {
                Err(format!("{}:{line}: {what}", path.display()))
            }
        }
    }

    /// The row with this key: the values of the wanted columns.
    pub(super) fn row(&self, key: &str) -> Option<&[Val]> {
        self.0.get(key).map(AsRef::as_ref)
    }

    fn fill_from_csv(&mut self, text: &[u8], wanted: &Wanted<'_>) -> Result<(), Wrong> {
        let mut reader = csv::Reader::from_reader(text);
        let header = reader.headers().map_err(|error| whole(&error))?.clone();
        let place = |column: &str| place(&header, column);
        let key = place(wanted.key)?;
        let columns: Vec<usize> =
            wanted.columns.iter().map(|column| place(column)).collect::<Result<_, _>>()?;
        let mut types = vec![ColumnType::Text; header.len()];
        for (column, kind) in wanted.types {
            types[place(column)?] = *kind;
        }
        let (mut line, mut counted) = (1, 0);
        for record in reader.records() {
            let record = record.map_err(|error| whole(&error))?;
            let begin = record.position().map_or(0, csv::Position::byte);
            let mut begin = usize::try_from(begin).map_err(|error| whole(&error))?;
            // Empty lines before a record count as part of it.
            while matches!(text.get(begin), Some(b'\r' | b'\n')) {
                begin += 1;
            }
            line += text[counted..begin].iter().filter(|byte| **byte == b'\n').count();
            counted = begin;
            let fields = header.iter().zip(&record).zip(&types);
            let values = fields.map(|((column, text), kind)| typed(column, text, *kind));
            let values = values.collect::<Result<Vec<Val>, _>>().map_err(|what| at(line, what))?;
            let row = columns.iter().map(|column| values[*column].clone()).collect();
            self.enter(line, key_of(&values[key]), row)?;
        }
        Ok(())
    }

    fn fill_from_json_lines(&mut self, text: &[u8], wanted: &Wanted<'_>) -> Result<(), Wrong> {
        let text = std::str::from_utf8(text).map_err(|error| whole(&error))?;
        for (line, text) in (1..).zip(text.lines()).filter(|(_, text)| !text.trim().is_empty()) {
            let Val::Obj(fields) = read(text.as_bytes()).map_err(|error| at(line, error))? else {
                return Err(at(line, "expected a JSON object"));
            };
            let value = |column: &str| {
                let value = fields.get(&Val::from(column.to_owned())).cloned();
                value.ok_or_else(|| at(line, no_column(column, fields.keys().map(key_of))))
            };
            let key = key_of(&value(wanted.key)?);
            let row =
                wanted.columns.iter().map(|column| value(column)).collect::<Result<_, _>>()?;
            self.enter(line, key, row)?;
        }
        Ok(())
    }

    fn enter(&mut self, line: usize, key: String, row: Box<[Val]>) -> Result<(), Wrong> {
        if self.0.contains_key(&key) {
            return Err(at(line, format!("the key `{key}` stands twice")));
        }
        if self.0.len() >= ROWS_MAX {
            return Err(whole(&format!("more than {ROWS_MAX} rows")));
        }
        self.0.insert(key, row);
        Ok(())
    }
}

/// What is wrong with a file, and where.
struct Wrong {
    line: Option<usize>,
    what: String,
}

fn whole(what: &dyn Display) -> Wrong {
    Wrong { line: None, what: what.to_string() }
}

fn at(line: usize, what: impl Into<String>) -> Wrong {
    Wrong { line: Some(line), what: what.into() }
}

/// What is in a file, if it is not too large.
fn bytes(path: &Path) -> Result<Vec<u8>, Wrong> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|error| whole(&error))?;
    file.take(BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| whole(&error))?;
    match bytes.len() as u64 > BYTES_MAX {
        true => Err(whole(&format!("larger than {} MiB, the most of a table", BYTES_MAX >> 20))),
        false => Ok(bytes),
    }
}

/// Which column has this name.
fn place(header: &StringRecord, column: &str) -> Result<usize, Wrong> {
    let mut places = (0..).zip(header).filter(|(_, name)| *name == column);
    match (places.next(), places.next()) {
        (Some((place, _)), None) => Ok(place),
        (Some(_), Some(_)) => {
            let text =
                format!("its header has the column `{column}` twice: give each its own name");
            Err(whole(&text))
        }
        (None, _) => Err(whole(&no_column(column, header.iter().map(str::to_owned)))),
    }
}

fn no_column(column: &str, there: impl Iterator<Item = String>) -> String {
    /// At most this many are told.
    const TOLD_MAX: usize = 30;
    let mut there: Vec<String> = there.map(|name| format!("`{name}`")).take(TOLD_MAX + 1).collect();
    if there.len() > TOLD_MAX {
        there[TOLD_MAX] = "..".to_owned();
    }
    match there.is_empty() {
        true => format!("no column `{column}`: it has none"),
        false => format!("no column `{column}`; there are {}", there.join(", ")),
    }
}

/// The text of a CSV field as a value.
fn typed(column: &str, text: &str, kind: ColumnType) -> Result<Val, String> {
    let wrong = |kind: &str| format!("`{text}` in column `{column}` is no {kind}");
    match kind {
        ColumnType::Text => Ok(text.to_owned().into()),
        ColumnType::Number => match read(text.as_bytes()) {
            Ok(number @ Val::Num(_)) => Ok(number),
            _ => Err(wrong("number")),
        },
        ColumnType::Boolean => text.parse().map(Val::Bool).map_err(|_| wrong("boolean")),
    }
}
