//! What the agent and the runner print, as it happens.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Which stream a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogStream {
    /// The agent's standard output.
    Stdout,
    /// The agent's standard error.
    Stderr,
    /// The runner itself.
    Runner,
}

/// One piece of output, already redacted by the guest. `text` may hold any bytes a guest chose, made
/// valid UTF-8: whoever prints it to a terminal must escape control characters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRecord {
    /// Byte offset after this record in the job's log: the SSE id, resume with `Last-Event-ID`.
    pub offset: u64,
    /// When the host received it.
    pub time: Timestamp,
    /// Where from.
    pub stream: LogStream,
    /// What, with its line ends.
    pub text: String,
}
