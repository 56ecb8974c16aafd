//! What is said of a text that is not as it should be.

use serde_saphyr::{DefaultMessageFormatter, Error, MessageFormatter};

use crate::span;

/// In our words where a person needs better ones; with the key that the value stands at, where that is known.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the library's own words serve for its other sixty variants"
)]
pub(super) fn sentence(error: &Error, key: Option<&str>) -> String {
    let must_be = |what: &str| match key {
        Some(key) => format!("`{}` must be {what}", plain(key)),
        None => format!("here belongs {what}"),
    };
    match error {
        Error::InvalidBooleanStrict { .. } => must_be("true or false"),
        Error::InvalidScalar { ty, .. } if let Some(what) = scalar(ty) => must_be(what),
        Error::Unexpected { expected, .. } if let Some(what) = shape(expected) => must_be(what),
        Error::Message { msg, .. } if msg == span::EXPECTED => must_be(msg),
        Error::SerdeUnknownField { field, expected, .. } => unknown_key(field, expected),
        Error::SerdeUnknownVariant {
            variant, expected, ..
        } => {
            let near = nearest(variant, expected)
                .map(|near| format!("; did you mean `{near}`?"))
                .unwrap_or_default();
            format!(
                "`{}` is not accepted here: expected one of {}{near}",
                plain(variant),
                listed(expected)
            )
        }
        Error::SerdeMissingField { field, .. } => format!("key `{field}` is missing"),
        Error::DuplicateMappingKey { key: Some(key), .. } => {
            format!("key `{}` stands here twice", plain(key))
        }
        other => DefaultMessageFormatter.format_message(other).into_owned(),
    }
}

/// What the library's names of types stand for.
fn scalar(ty: &str) -> Option<&'static str> {
    match ty {
        "u8" | "u16" | "u32" | "u64" | "usize" => Some("a whole number, 0 or more"),
        "i8" | "i16" | "i32" | "i64" | "isize" => Some("a whole number"),
        "f32" | "f64" => Some("a number"),
        "bool" => Some("true or false"),
        _ => None,
    }
}

/// What the library's names of events stand for.
fn shape(event: &str) -> Option<&'static str> {
    match event {
        "mapping start" => Some("a block of keys with values, such as `key: value`"),
        "sequence start" => Some("a list, such as `[one, two]`"),
        "string scalar" => Some("a text"),
        _ => None,
    }
}

fn unknown_key(key: &str, expected: &[&'static str]) -> String {
    match nearest(key, expected) {
        Some(near) => format!("unknown key `{}`; did you mean `{near}`?", plain(key)),
        None => format!("unknown key `{}`; known here: {}", plain(key), listed(expected)),
    }
}

/// The word a person most likely meant, if one is near enough to be worth saying.
fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let word = word.to_lowercase();
    known
        .iter()
        .map(|candidate| {
            // `memory` for `memory_mb` is five edits away and still what was meant.
            let prefix =
                candidate.starts_with(&format!("{word}_")) || word.starts_with(&format!("{candidate}_"));
            let score = if prefix {
                0.9
            } else {
                strsim::jaro_winkler(&word, candidate)
            };
            (score, *candidate)
        })
        .filter(|(score, _)| *score >= 0.8)
        .max_by(|left, right| left.0.total_cmp(&right.0))
        .map(|(_, candidate)| candidate)
}

fn listed(words: &[&str]) -> String {
    words
        .iter()
        .map(|word| format!("`{word}`"))
        .collect::<Vec<_>>()
        .join(", ")
}

fn plain(text: &str) -> String {
    text.escape_debug().take(80).collect()
}
