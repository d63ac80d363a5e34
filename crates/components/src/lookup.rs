//! The component `lookup`.

mod table;

use std::path::PathBuf;
use std::sync::Arc;

use brigade_core::BoxError;
use brigade_core::component::{
    AnyComponent, ComponentFactory, Context, DecodeError, Emit, Emitted, HandleError, Handling,
    Kind, Parsed, Setup, StageSite,
};
use brigade_core::connector::Problem;
use brigade_core::field::FieldPath;
use futures_util::future::LocalBoxFuture;
use indexmap::IndexMap;
use jaq_json::{Rc, Val};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::table::{ColumnType, Table, Wanted, is_csv};
use crate::jq::{input, json};
use crate::key::{find, key_of};
use crate::shared::{decode, one_way, reject, schema, settings};

/// `lookup`: adds fields from a CSV or JSON Lines file, found by a key. The file is read when the
/// stage starts; at most 1,000,000 rows and 512 MiB. Numbers keep all their digits.
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
    /// The fields to add, as paths, each with its column in the table. Objects on the way are made
    /// where there are none.
    add: IndexMap<String, String>,
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

#[derive(Clone)]
struct Looking {
    settings: Arc<Settings>,
    path: PathBuf,
    wanted: Arc<LookUps>,
    /// Read by `init`; the workers of a lane share it.
    table: Arc<Table>,
}

/// What is looked up.
struct LookUps {
    /// The columns of a row.
    columns: Vec<String>,
    all: Vec<LookUp>,
}

/// One look-up.
struct LookUp {
    field: FieldPath,
    /// Each with its place in a row.
    add: Vec<(FieldPath, usize)>,
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
        let path = PathBuf::from(&settings.file);
        if !settings.types.is_empty() && !is_csv(&path) {
            let text = "`types` is for tables in CSV: the values of JSON Lines have their types";
            return Err(vec![Problem::at("types", text).help("remove `types`")]);
        }
        let wanted = Arc::new(look_ups(&settings.matches)?);
        let table = Arc::default();
        Ok(Box::new(Looking { settings: Arc::new(settings), path, wanted, table }))
    }
}

fn look_ups(matches: &[Match]) -> Result<LookUps, Vec<Problem>> {
    let (mut columns, mut all, mut problems) = (Vec::new(), Vec::new(), Vec::new());
    let mut path = |path: &str, at: &[&str]| {
        path.parse::<FieldPath>().map_err(|error| {
            let path = at.iter().map(|step| (*step).to_owned()).collect();
            problems.push(Problem { path, message: error.to_string(), help: None });
        })
    };
    for (at, Match { field, add }) in matches.iter().enumerate() {
        let at = at.to_string();
        let field = path(field, &["match", &at, "field"]);
        let mut added = Vec::with_capacity(add.len());
        for (name, column) in add {
            if let Ok(to) = path(name, &["match", &at, "add", name]) {
                added.push((to, columns.len()));
                columns.push(column.clone());
            }
        }
        if let Ok(field) = field {
            all.push(LookUp { field, add: added });
        }
    }
    match problems.is_empty() {
        true => Ok(LookUps { columns, all }),
        false => Err(problems),
    }
}

impl Looking {
    fn look_up(&self, parsed: Option<Parsed>, cx: &Context) -> Result<Emit, HandleError> {
        let mut payload = input(parsed, cx)?;
        for LookUp { field, add } in &self.wanted.all {
            let key = find(field, &payload).filter(|key| **key != Val::Null).map(key_of);
            let Some(row) = key.as_ref().and_then(|key| self.table.row(key)) else {
                if self.settings.on_miss == OnMiss::Pass {
                    continue;
                }
                let table = self.path.display();
                return Err(reject(match key {
                    Some(key) => format!("`{field}`: `{key}` is not in {table}"),
                    None => format!("the message has no `{field}` to look up in {table}"),
                }));
            };
            if !matches!(payload, Val::Obj(_)) {
                let text = "the payload is no JSON object, so no field can be added";
                return Err(decode(DecodeError::new(text)));
            }
            for (to, column) in add {
                put(&mut payload, to, row[*column].clone())?;
            }
        }
        Ok(Emit::from(Emitted::json(json(&payload)?)))
    }
}

/// Puts a value at a path; the objects on the way that are not there are made.
fn put(payload: &mut Val, path: &FieldPath, value: Val) -> Result<(), HandleError> {
    let mut place = payload;
    for (depth, name) in path.names().enumerate() {
        if matches!(place, Val::Null) {
            *place = Val::obj(Default::default());
        }
        let within = match place {
            Val::Obj(fields) => {
                Some(Rc::make_mut(fields).entry(name.to_owned().into()).or_insert(Val::Null))
            }
            Val::Arr(items) => {
                name.parse().ok().and_then(|at: usize| Rc::make_mut(items).get_mut(at))
            }
            _ => None,
        };
        place = within.ok_or_else(|| {
            let before: Vec<&str> = path.names().take(depth).collect();
            let before = before.join(".");
            reject(format!("`{path}` cannot be added: `{before}` has no place for `{name}`"))
        })?;
    }
    *place = value;
    Ok(())
}

impl AnyComponent for Looking {
    fn kind(&self) -> Kind {
        Kind::Sync
    }

    fn init<'a>(&'a mut self, _: &'a Setup) -> LocalBoxFuture<'a, Result<(), BoxError>> {
        Box::pin(async {
            let Settings { key, types, .. } = &*self.settings;
            let wanted = Wanted { key, columns: &self.wanted.columns, types };
            self.table = Arc::new(Table::read(&self.path, &wanted)?);
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
