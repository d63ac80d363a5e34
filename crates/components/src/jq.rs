//! jq expressions, by the `jaq` crates.

use std::sync::Arc;

use brigade_core::component::{Context, DecodeError, HandleError, Parsed};
use jaq_core::data::JustLut;
use jaq_core::load::{self, Arena, File, Loader, lex};
use jaq_core::{Compiler, Ctx, Vars, unwrap_valr};
use jaq_json::Val;
use serde::Deserialize;

use crate::shared::{decode, reject};

/// The most values one expression may make of one message.
pub(crate) const VALUES_MAX: usize = 10_000;

/// A compiled expression. Numbers are exact, however many digits they have.
#[derive(Clone)]
pub(crate) struct Expression {
    filter: Arc<jaq_core::compile::Filter<jaq_core::Native<JustLut<Val>>>>,
    text: Arc<str>,
}

impl Expression {
    /// Compiles an expression.
    pub(crate) fn new(text: &str) -> Result<Self, String> {
        let definitions = jaq_core::defs().chain(jaq_std::defs()).chain(jaq_json::defs());
        let functions = jaq_core::funs().chain(jaq_std::funs()).chain(jaq_json::funs());
        let arena = Arena::default();
        let loader = Loader::new(definitions);
        let modules = loader.load(&arena, File { code: text, path: () }).map_err(|errors| {
            let wrong = errors.first().map(|(_, error)| wrong(error)).unwrap_or_default();
            format!("`{text}` is no jq expression: {wrong}")
        })?;
        let filter =
            Compiler::default().with_funs(functions).compile(modules).map_err(|errors| {
                let undefined = errors.iter().flat_map(|(_, found)| found.iter());
                let names: Vec<String> = undefined.map(|(name, _)| format!("`{name}`")).collect();
                format!("`{text}` uses what is not defined: {}", names.join(", "))
            })?;
        Ok(Self { filter: Arc::new(filter), text: text.into() })
    }

    /// What the expression makes of a value.
    pub(crate) fn run(&self, input: Val) -> Result<Vec<Val>, HandleError> {
        let context = Ctx::<JustLut<Val>>::new(&self.filter.lut, Vars::new([]));
        let mut values = Vec::new();
        for value in self.filter.id.run((context, input)).map(unwrap_valr) {
            let value = value.map_err(|error| reject(format!("`{}`: {error}", self.text)))?;
            if values.len() >= VALUES_MAX {
                let text = &self.text;
                return Err(reject(format!("`{text}` makes more than {VALUES_MAX} values")));
            }
            values.push(value);
        }
        Ok(values)
    }

    /// Whether the expression is true of a value.
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

/// The payload as a value of jq.
pub(crate) fn input(parsed: Option<Parsed>, cx: &Context) -> Result<Val, HandleError> {
    let wrong = |what: String| decode(DecodeError::new(format!("the payload is no JSON: {what}")));
    match (parsed, &cx.message().payload) {
        // Other codecs hold no number that 64 bits do not, and are no JSON text.
        (_, Some(bytes)) if cx.codec().is_json() && has_long_number(bytes) => {
            // What reads numbers exactly takes more than JSON, nested as deeply as the stack goes.
            serde_json::from_slice::<Val>(bytes).map_err(|error| wrong(error.to_string()))?;
            jaq_json::read::parse_single(bytes).map_err(|error| wrong(error.to_string()))
        }
        (Some(Parsed::Json(value)), _) => {
            Val::deserialize(value).map_err(|error| wrong(error.to_string()))
        }
        (_, Some(bytes)) => serde_json::from_slice(bytes).map_err(|error| wrong(error.to_string())),
        (_, None) => Err(wrong("it is null".to_owned())),
    }
}

/// Whether there may be a number that 64 bits do not hold exactly.
fn has_long_number(bytes: &[u8]) -> bool {
    /// So many digits are exact in any case.
    const EXACT: usize = 15;
    let mut run = 0;
    bytes.iter().any(|byte| {
        run = match byte {
            b'0'..=b'9' => run + 1,
            b'.' => run,
            _ => 0,
        };
        run > EXACT
    })
}

/// What is wrong with an expression: what was expected, and what stands there.
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
