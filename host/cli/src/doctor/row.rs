//! One line of a checklist: what was looked at, how it is, what was seen, and what to do about it.

use serde::Serialize;

use crate::printer::{BAD, CAUTION, DIM, GOOD};
use crate::terminal::escape_lines;

/// How it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// As it should be.
    Ok,
    /// It works, and should still be looked at.
    Warn,
    /// Something does not work, or is not safe.
    Fail,
    /// It could not be looked at.
    Unknown,
}

impl State {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
            Self::Unknown => "unknown",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Row {
    /// A word or two; the same in every run.
    pub(crate) check: &'static str,
    pub(crate) state: State,
    /// What was seen.
    pub(crate) seen: String,
    /// What to do; a command where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) next: Option<String>,
}

impl Row {
    pub(crate) fn ok(check: &'static str, seen: impl Into<String>) -> Self {
        Self {
            check,
            state: State::Ok,
            seen: seen.into(),
            next: None,
        }
    }

    pub(crate) fn warn(check: &'static str, seen: impl Into<String>, next: impl Into<String>) -> Self {
        Self {
            state: State::Warn,
            next: Some(next.into()),
            ..Self::ok(check, seen)
        }
    }

    pub(crate) fn fail(check: &'static str, seen: impl Into<String>, next: impl Into<String>) -> Self {
        Self {
            state: State::Fail,
            ..Self::warn(check, seen, next)
        }
    }

    pub(crate) fn unknown(check: &'static str, seen: impl Into<String>, next: impl Into<String>) -> Self {
        Self {
            state: State::Unknown,
            ..Self::warn(check, seen, next)
        }
    }
}

/// Rows as people read them. What others named is escaped here.
pub(crate) fn render(rows: &[Row]) -> String {
    let width = rows.iter().map(|row| row.check.len()).max().unwrap_or(0);
    let mut text = String::new();
    for row in rows {
        let style = match row.state {
            State::Ok => GOOD,
            State::Warn => CAUTION,
            State::Fail => BAD,
            State::Unknown => DIM,
        };
        let word = row.state.as_str();
        let seen = escape_lines(&row.seen);
        let indent = " ".repeat(width + 11);
        let seen = seen.lines().collect::<Vec<_>>().join(&format!("\n{indent}"));
        text.push_str(&format!(
            "{style}{word:7}{style:#}  {:width$}  {seen}\n",
            row.check
        ));
        for line in row.next.as_deref().map(escape_lines).unwrap_or_default().lines() {
            text.push_str(&format!("{indent}{DIM}->{DIM:#} {line}\n"));
        }
    }
    text
}

/// Whether nothing failed.
pub(crate) fn passed(rows: &[Row]) -> bool {
    rows.iter().all(|row| row.state != State::Fail)
}
