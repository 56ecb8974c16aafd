//! What several targets demand.

use std::collections::HashSet;
use std::fmt::Debug;

/// Longest message a person is shown.
const MAX_MESSAGE: usize = 8 * 1024;

/// A message ends on a terminal and in a log: one line, no control characters of whoever wrote the input, and not as
/// long as the input.
pub(crate) fn fit_to_print(message: &str) {
    assert!(!message.is_empty(), "an error says nothing");
    if let Some(control) = message.chars().find(|c| c.is_control()) {
        panic!("an error carries the control character {control:?}: {message:?}");
    }
    assert!(
        message.len() <= MAX_MESSAGE,
        "an error is {} bytes long: {:.200}...",
        message.len(),
        message
    );
}

/// A place that an editor can jump to.
pub(crate) fn inside(text: &str, line: u64, column: u64, message: &str) {
    let lines = text.split('\n').count() + text.matches('\r').count();
    let lines = u64::try_from(lines).unwrap_or(u64::MAX);
    assert!(
        (1..=lines).contains(&line) && column >= 1,
        "{line}:{column} is no place in {lines} lines: {message}"
    );
}

/// Names of the fields in which two values differ, for outcomes that are worth telling apart.
pub(crate) fn differing<T: Debug>(value: &T, from: &T) -> String {
    let (value, from) = (format!("{value:#?}"), format!("{from:#?}"));
    let known: HashSet<&str> = from.lines().collect();
    value
        .lines()
        .filter(|line| !known.contains(line))
        .filter_map(|line| line.split_once(':').map(|(name, _)| name.trim()))
        .filter(|name| !name.starts_with('"'))
        .collect::<Vec<_>>()
        .join(" ")
}

/// An input as the text a file reader would give.
pub(crate) fn text(input: &[u8]) -> String {
    String::from_utf8_lossy(input).into_owned()
}
