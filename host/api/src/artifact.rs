//! Files a job left behind.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What a file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ArtifactKind {
    /// The agent's commits as a `git bundle`.
    Bundle,
    /// The agent's commits as a `git format-patch` mailbox.
    Patch,
    /// What the agent changed and did not commit.
    Diff,
    /// Everything the agent printed.
    Log,
    /// `report.json`.
    Report,
    /// A file from the agent's `artifacts/` directory, or any other.
    File,
}

/// One stored file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactView {
    /// Relative path with `/`, as the guest named it and the host accepted it.
    pub name: String,
    /// What it is for.
    pub kind: ArtifactKind,
    /// Its size.
    pub size_bytes: u64,
    /// Lower-case hexadecimal SHA-256, computed by the host from the bytes it stored.
    pub sha256: String,
    /// When it arrived.
    pub created_at: Timestamp,
}
