//! Reads what PVE answers. It writes booleans as `1`, `"1"` or `true`, and numbers as numbers or strings, even for one
//! key of one version, so every value is read leniently and by what is wanted of it.

use serde_json::{Map, Value};

/// A truth, in any of PVE's spellings.
pub(crate) fn truth(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(truth) => Some(*truth),
        Value::Number(number) => match number.as_u64() {
            Some(0) => Some(false),
            Some(1) => Some(true),
            Some(_) | None => None,
        },
        Value::String(text) => match text.as_str() {
            "0" | "" | "no" | "off" | "false" => Some(false),
            "1" | "yes" | "on" | "true" => Some(true),
            _ => None,
        },
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// A whole number that is not negative.
pub(crate) fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => text.trim().parse().ok(),
        Value::Bool(truth) => Some(u64::from(*truth)),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// A number that may have a fraction.
pub(crate) fn fraction(value: &Value) -> Option<f64> {
    let found = match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    };
    found.filter(|number| number.is_finite())
}

/// A text, or whatever else is written as one word.
pub(crate) fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(if *truth { "1" } else { "0" }.to_owned()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// An object of an answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Fields(Map<String, Value>);

impl Fields {
    pub(crate) fn of(value: Value) -> Option<Self> {
        match value {
            Value::Object(map) => Some(Self(map)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => None,
        }
    }

    /// The objects of a list; whatever else is in it is passed over.
    pub(crate) fn list(value: Value) -> Option<Vec<Self>> {
        match value {
            Value::Array(items) => Some(items.into_iter().filter_map(Self::of).collect()),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => None,
        }
    }

    pub(crate) fn text(&self, key: &str) -> Option<String> {
        self.0.get(key).and_then(text)
    }

    pub(crate) fn number(&self, key: &str) -> Option<u64> {
        self.0.get(key).and_then(number)
    }

    pub(crate) fn fraction(&self, key: &str) -> Option<f64> {
        self.0.get(key).and_then(fraction)
    }

    /// Absent is no.
    pub(crate) fn flag(&self, key: &str) -> bool {
        self.0.get(key).and_then(truth).unwrap_or(false)
    }

    /// The objects of a list in it.
    pub(crate) fn objects(&self, key: &str) -> Vec<Self> {
        self.0.get(key).cloned().and_then(Self::list).unwrap_or_default()
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn one_truth_has_many_spellings() {
        for yes in [json!(1), json!("1"), json!(true), json!("on")] {
            assert_eq!(truth(&yes), Some(true), "{yes}");
        }
        for no in [json!(0), json!("0"), json!(false), json!("")] {
            assert_eq!(truth(&no), Some(false), "{no}");
        }
        for neither in [json!(null), json!(2), json!("perhaps"), json!([1]), json!({})] {
            assert_eq!(truth(&neither), None, "{neither}");
        }
    }

    #[test]
    fn numbers_come_as_strings_and_texts_as_numbers() {
        assert_eq!(number(&json!("384")), Some(384));
        assert_eq!(number(&json!(384)), Some(384));
        assert_eq!(number(&json!(-1)), None);
        assert_eq!(number(&json!("1.5")), None);
        assert_eq!(fraction(&json!("0.25")), Some(0.25));
        assert_eq!(fraction(&json!("nan")), None);
        assert_eq!(text(&json!(100)), Some("100".to_owned()));
        assert_eq!(text(&json!([])), None);
    }
}
