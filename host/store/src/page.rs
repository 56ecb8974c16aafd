//! What lists need besides records.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use agentlab_api::{JobId, SandboxId};
use jiff::Timestamp;

/// Place in the list of jobs, after which the next page begins. Opaque text to everybody else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobCursor {
    pub(crate) microseconds: i64,
    pub(crate) id: JobId,
}

/// A page of sandboxes, as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxPage {
    /// A JSON array of `SandboxView`: a thousand of them are put together, not read and written again.
    pub sandboxes: String,
    /// Where the next page begins, if there is one.
    pub next: Option<SandboxCursor>,
}

/// Place in the list of sandboxes, after which the next page begins. Opaque text to everybody else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxCursor {
    pub(crate) microseconds: i64,
    pub(crate) id: SandboxId,
}

impl fmt::Display for SandboxCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.microseconds, self.id)
    }
}

impl FromStr for SandboxCursor {
    type Err = CursorError;

    fn from_str(text: &str) -> Result<Self, CursorError> {
        let (microseconds, id) = parts(text)?;
        Ok(Self { microseconds, id })
    }
}

/// The text is not a cursor that this store has given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a cursor: pass `next_cursor` of the page before as it is")]
pub struct CursorError(String);

impl fmt::Display for JobCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.microseconds, self.id)
    }
}

impl FromStr for JobCursor {
    type Err = CursorError;

    fn from_str(text: &str) -> Result<Self, CursorError> {
        let (microseconds, id) = parts(text)?;
        Ok(Self { microseconds, id })
    }
}

fn parts<I: FromStr>(text: &str) -> Result<(i64, I), CursorError> {
    text.split_once('.')
        .and_then(|(microseconds, id)| Some((microseconds.parse().ok()?, id.parse().ok()?)))
        .ok_or_else(|| CursorError(text.escape_debug().take(80).collect()))
}

/// What is too old to be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expiry {
    /// Destroyed sandboxes and events from before go.
    pub ended_before: Timestamp,
    /// Idempotency keys from before go.
    pub keys_before: Timestamp,
    /// Of younger events, about so many of the newest stay.
    pub max_events: u64,
}

/// What was removed by one look at what is too old.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pruned {
    /// Destroyed sandboxes.
    pub sandboxes: u64,
    /// Idempotency keys.
    pub keys: u64,
    /// Events.
    pub events: u64,
}

/// How many records there are, per state; states with none are absent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counts {
    /// Sandboxes, destroyed ones included.
    pub sandboxes: BTreeMap<String, u64>,
    /// Jobs.
    pub jobs: BTreeMap<String, u64>,
}
