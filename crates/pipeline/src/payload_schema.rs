//! The schemas of payloads, with formats of JSON Schema taken in more ways than its standard has.

use std::sync::Arc;

use jsonschema::{ValidationError, Validator};
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
    jsonschema::options()
        .should_validate_formats(true)
        .with_format("date-time", zone_or_none("date-time")?)
        .with_format("time", zone_or_none("time")?)
        .with_format("duration", is_duration)
        .build(schema)
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

/// Of ISO 8601. jiff also takes durations in words, which no schema means.
fn is_duration(text: &str) -> bool {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    unsigned.starts_with('P') && text.parse::<jiff::Span>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

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
                &["PT1H", "PT0.5S", "PT1H30S", "P3DT4H", "P2W", "-PT1S"],
                &["1h", "5 days", "P", "PT", ""],
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
