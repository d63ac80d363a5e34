//! The schemas of payloads, with formats of JSON Schema taken in more ways than its standard has.

use std::sync::Arc;

use jsonschema::{Draft, ValidationError, Validator};
use serde_json::{Value, json};

/// Checks payloads against a queue's `schema`. It asserts formats in all drafts, also in those where
/// they are only notes by default: a type's generated schema has them because the type refuses what
/// does not fit. Formats that the draft does not know say nothing.
///
/// A `date-time` and a `time` may be without a zone, and a `duration` may have fractions and any of
/// its units: types whose schemas have these formats write such texts, pydantic's among them.
///
/// # Errors
/// It is no JSON Schema.
#[doc(hidden)]
pub fn payload_validator(schema: &Value) -> Result<Validator, ValidationError<'static>> {
    let draft = Draft::default().detect(schema);
    let mut options = jsonschema::options()
        .should_validate_formats(true)
        .with_format("date-time", zone_or_none("date-time")?)
        .with_format("time", zone_or_none("time")?);
    if draft >= Draft::Draft201909 {
        options = options.with_format("duration", is_duration);
    }
    options.build(schema)
}

fn zone_or_none(
    format: &str,
) -> Result<impl Fn(&str) -> bool + Send + Sync + use<>, ValidationError<'static>> {
    let schema = json!({ "format": format });
    let strict = jsonschema::options().should_validate_formats(true).build(&schema)?;
    let strict = Arc::new(strict);
    Ok(move |text: &str| {
        let is = |text: String| strict.is_valid(&Value::from(text));
        is(text.to_owned()) || is(format!("{text}Z"))
    })
}

/// Whether a text has the form of a duration of ISO 8601, however long that is.
fn is_duration(text: &str) -> bool {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let Some(parts) = unsigned.strip_prefix('P').filter(|parts| !parts.is_empty()) else {
        return false;
    };
    match parts.split_once('T') {
        None => are_parts(parts, "YMWD"),
        Some((_, "")) => false,
        Some((days, time)) => are_parts(days, "YMWD") && are_parts(time, "HMS"),
    }
}

/// Whether a text is numbers with units, in the order of `units`.
fn are_parts(mut text: &str, mut units: &str) -> bool {
    while !text.is_empty() {
        let digits = |c: char| c.is_ascii_digit();
        let Some((number, unit)) =
            text.find(|c| !digits(c) && !matches!(c, '.' | ',')).map(|at| text.split_at(at))
        else {
            return false;
        };
        let is_number = number.split(['.', ',']).all(|run| !run.is_empty());
        let is_whole_or_one_fraction = number.matches(['.', ',']).count() <= 1;
        let left = unit.chars().next().and_then(|unit| units.split_once(unit));
        let Some((_, left)) = left.filter(|_| is_number && is_whole_or_one_fraction) else {
            return false;
        };
        units = left;
        // Each unit is one byte.
        text = &unit[1..];
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_format_that_the_draft_does_not_know_says_nothing() {
        let draft = "http://json-schema.org/draft-07/schema#";
        let schema = json!({ "$schema": draft, "format": "duration" });
        assert!(payload_validator(&schema).unwrap().is_valid(&json!("1h30m")));
    }

    #[test]
    fn times_may_be_without_a_zone_and_durations_as_types_write_them() {
        for (format, good, bad) in [
            (
                "date-time",
                &["2024-02-29T12:00:00Z", "2024-02-29T12:00:00.5+01:00", "2024-02-29T12:00:00"][..],
                &["yesterday", "2024-02-30T12:00:00", "2024-02-29", "12:00:00"][..],
            ),
            ("time", &["12:00:00Z", "12:00:00", "12:00:00.25"], &["noon", "25:00:00"]),
            (
                "duration",
                &[
                    "PT1H",
                    "PT0.5S",
                    "PT1H30S",
                    "P3DT4H",
                    "P2W",
                    "-PT1S",
                    "P10675199DT2H48M5.4775807S",
                ],
                &[
                    "1h",
                    "5 days",
                    "P",
                    "PT",
                    "",
                    "P1DT",
                    "PT1S1H",
                    "PT.5S",
                    "PT1",
                    "P1H",
                    "PT1\u{e9}",
                ],
            ),
        ] {
            let validator = payload_validator(&json!({ "format": format })).unwrap();
            for text in good {
                assert!(validator.is_valid(&json!(text)), "{format}: {text}");
            }
            for text in bad {
                assert!(!validator.is_valid(&json!(text)), "{format}: {text}");
            }
        }
    }
}
