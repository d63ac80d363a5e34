//! Templates: JSON in which texts may contain placeholders.

use fastrand::Rng;
use serde_json::Value;

/// The most digits that a placeholder may ask for.
const DIGITS_MAX: usize = 1024;

/// Makes the `n`th message of a seed; it depends on nothing else.
pub(crate) fn render(template: &Value, seed: u64, n: u64) -> Value {
    let mut random = Rng::with_seed(seed ^ n.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    fill(template, n, &mut random)
}

fn fill(template: &Value, n: u64, random: &mut Rng) -> Value {
    match template {
        Value::String(text) => text_of(text, n, random),
        Value::Array(items) => items.iter().map(|item| fill(item, n, random)).collect(),
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| (name.clone(), fill(value, n, random)));
            Value::Object(fields.collect())
        }
        other => other.clone(),
    }
}

/// A text with its placeholders filled in; one that consists of a single placeholder takes its
/// type.
fn text_of(text: &str, n: u64, random: &mut Rng) -> Value {
    if let Some(inside) = text.strip_prefix("{{").and_then(|rest| rest.strip_suffix("}}"))
        && !inside.contains("{{")
        && !inside.contains("}}")
    {
        return place(inside, n, random).unwrap_or_else(|| text.into());
    }
    let (mut filled, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once("{{") {
        filled.push_str(before);
        let Some((inside, after)) = after.split_once("}}") else {
            filled.push_str("{{");
            rest = after;
            continue;
        };
        match place(inside, n, random) {
            Some(Value::String(text)) => filled.push_str(&text),
            Some(other) => filled.push_str(&other.to_string()),
            None => filled.push_str(inside),
        }
        rest = after;
    }
    filled.push_str(rest);
    Value::String(filled)
}

/// The value for a placeholder; `None` if there is no such placeholder.
fn place(inside: &str, n: u64, random: &mut Rng) -> Option<Value> {
    let mut words = inside.split_whitespace();
    let name = words.next()?;
    let words: Vec<&str> = words.collect();
    match (name, &words[..]) {
        ("seq", []) => Some(n.into()),
        ("int", [low, high]) => {
            let (low, high): (i64, i64) = (low.parse().ok()?, high.parse().ok()?);
            (low <= high).then(|| random.i64(low..=high).into())
        }
        ("float", [low, high]) => {
            let (low, high): (f64, f64) = (low.parse().ok()?, high.parse().ok()?);
            let range = high - low;
            (low <= high && range.is_finite()).then(|| (low + range * random.f64()).into())
        }
        ("pick", [_, ..]) => Some(words[random.usize(..words.len())].into()),
        ("hex", [digits]) => {
            let digits = digits.parse::<usize>().ok().filter(|digits| *digits <= DIGITS_MAX)?;
            let digit = || char::from_digit(random.u32(..16), 16);
            Some(Value::String(std::iter::repeat_with(digit).take(digits).flatten().collect()))
        }
        _ => None,
    }
}

/// What to write instead of an invalid placeholder.
pub(crate) fn help(inside: &str) -> String {
    match inside.split_whitespace().next() {
        Some("seq") => "`seq` stands alone".to_owned(),
        Some("int") => "`int` takes two whole numbers of 64 bits, the smaller first".to_owned(),
        Some("float") => {
            "`float` takes two finite numbers, the smaller first, whose difference is finite"
                .to_owned()
        }
        Some("pick") => "`pick` takes the words to pick from".to_owned(),
        Some("hex") => format!("`hex` takes how many digits, at most {DIGITS_MAX}"),
        _ => {
            "there are `{{seq}}`, `{{int 1 100}}`, `{{float 0 1}}`, `{{pick a b c}}`, `{{hex 16}}`"
                .to_owned()
        }
    }
}

/// The invalid placeholders of a template.
pub(crate) fn wrong(template: &Value) -> Vec<String> {
    match template {
        Value::String(text) => {
            let inside = text.split("{{").skip(1).filter_map(|rest| rest.split_once("}}"));
            let bad =
                inside.filter(|(inside, _)| place(inside, 0, &mut Rng::with_seed(0)).is_none());
            bad.map(|(inside, _)| inside.to_owned()).collect()
        }
        Value::Array(items) => items.iter().flat_map(wrong).collect(),
        Value::Object(fields) => fields.values().flat_map(wrong).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_message_depends_only_on_the_seed_and_its_number() {
        let template =
            json!({ "id": "{{seq}}", "at": "gate {{pick A B C}}", "x": "{{int 1 1000000}}" });
        assert_eq!(render(&template, 7, 3), render(&template, 7, 3));
        assert_ne!(render(&template, 7, 3), render(&template, 8, 3));
        assert_eq!(render(&template, 7, 3)["id"], json!(3));
    }

    #[test]
    fn braces_behind_a_placeholder_stand_as_they_are() {
        let template = json!(["{{seq}}}}", "x{{seq}}}}", "{{pick a}}b}}", "{{seq}}"]);
        assert_eq!(render(&template, 7, 3), json!(["3}}", "x3}}", "ab}}", 3]));
    }

    #[test]
    fn placeholders_that_mean_nothing_are_told() {
        assert_eq!(wrong(&json!(["{{seq}}", { "a": "{{sequ}} {{int 2}}" }])), ["sequ", "int 2"]);
        assert!(help("sequ").contains("there are `{{seq}}`"));
        assert!(help("int 2").contains("two whole numbers"));
    }

    #[test]
    fn numbers_that_no_json_can_say_are_refused() {
        for inside in ["0 inf", "-inf 0", "inf inf", "nan 1", "0 nan", "-1e308 1e308", "5 1"] {
            let inside = format!("float {inside}");
            assert_eq!(wrong(&json!(format!("{{{{{inside}}}}}"))), [&*inside]);
            assert!(help(&inside).contains("two finite numbers, the smaller first"));
        }
        for inside in ["0 1", "-1.5 -1.5", "0 1.7e308"] {
            let template = json!(format!("{{{{float {inside}}}}}"));
            assert_eq!(wrong(&template), [""; 0]);
            assert!((0..100).all(|n| render(&template, 7, n).is_f64()), "{inside}");
        }
    }
}
