//! What lists need besides records.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use agentlab_api::JobId;

/// Place in the list of jobs, after which the next page begins. Opaque text to everybody else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobCursor {
    pub(crate) microseconds: i64,
    pub(crate) id: JobId,
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
        text.split_once('.')
            .and_then(|(microseconds, id)| {
                Some(Self {
                    microseconds: microseconds.parse().ok()?,
                    id: id.parse().ok()?,
                })
            })
            .ok_or_else(|| CursorError(text.escape_debug().take(80).collect()))
    }
}

/// How many records there are, per state; states with none are absent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counts {
    /// Sandboxes, destroyed ones included.
    pub sandboxes: BTreeMap<String, u64>,
    /// Jobs.
    pub jobs: BTreeMap<String, u64>,
}
