//! What happened, in order, for people and programs that follow along.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{JobId, SandboxId};

/// What kind of thing happened. New kinds may be added; clients show those they do not know.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum EventKind {
    /// A job was recorded.
    JobQueued,
    /// A guest began a job.
    JobStarted,
    /// The guest reports what it is doing.
    JobProgress,
    /// A job reached a final state.
    JobFinished,
    /// A sandbox changed its state.
    SandboxState,
    /// A provisioning or teardown step was begun, done, failed or undone.
    SandboxStep,
    /// A guest redeemed its token.
    SandboxRedeemed,
    /// A guest was given secrets.
    SecretsDelivered,
    /// A file arrived.
    ArtifactStored,
    /// A guest's machine or agent is in trouble, by its own word: memory, disk, or an agent that does nothing.
    SandboxTrouble,
    /// A lease is about to end.
    LeaseExpiring,
    /// An operator had a lease begin anew.
    LeaseRenewed,
    /// Nobody uses a sandbox any more, or somebody does again.
    SandboxIdle,
    /// The packet policy refused a guest something.
    NetworkDenied,
    /// A workspace was made, changed, mounted, unmounted or removed.
    Workspace,
    /// Something an operator should look at.
    Alarm,
    /// A kind of a later version.
    Other(String),
}

impl EventKind {
    /// The word on the wire.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::JobQueued => "job.queued",
            Self::JobStarted => "job.started",
            Self::JobProgress => "job.progress",
            Self::JobFinished => "job.finished",
            Self::SandboxState => "sandbox.state",
            Self::SandboxStep => "sandbox.step",
            Self::SandboxRedeemed => "sandbox.redeemed",
            Self::SecretsDelivered => "secrets.delivered",
            Self::ArtifactStored => "artifact.stored",
            Self::SandboxTrouble => "sandbox.trouble",
            Self::LeaseExpiring => "lease.expiring",
            Self::LeaseRenewed => "lease.renewed",
            Self::SandboxIdle => "sandbox.idle",
            Self::NetworkDenied => "network.denied",
            Self::Workspace => "workspace",
            Self::Alarm => "alarm",
            Self::Other(word) => word,
        }
    }
}

impl From<String> for EventKind {
    fn from(word: String) -> Self {
        match word.as_str() {
            "job.queued" => Self::JobQueued,
            "job.started" => Self::JobStarted,
            "job.progress" => Self::JobProgress,
            "job.finished" => Self::JobFinished,
            "sandbox.state" => Self::SandboxState,
            "sandbox.step" => Self::SandboxStep,
            "sandbox.redeemed" => Self::SandboxRedeemed,
            "secrets.delivered" => Self::SecretsDelivered,
            "artifact.stored" => Self::ArtifactStored,
            "sandbox.trouble" => Self::SandboxTrouble,
            "lease.expiring" => Self::LeaseExpiring,
            "lease.renewed" => Self::LeaseRenewed,
            "sandbox.idle" => Self::SandboxIdle,
            "network.denied" => Self::NetworkDenied,
            "workspace" => Self::Workspace,
            "alarm" => Self::Alarm,
            _ => Self::Other(word),
        }
    }
}

impl From<EventKind> for String {
    fn from(kind: EventKind) -> Self {
        kind.as_str().to_owned()
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One thing that happened. `seq` is the SSE id: resume with `Last-Event-ID`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Grows by at least one per event, across daemon restarts.
    pub seq: u64,
    /// When.
    pub time: Timestamp,
    /// What.
    pub kind: EventKind,
    /// Which sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<SandboxId>,
    /// Which job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobId>,
    /// In words.
    pub message: String,
    /// Details for programs.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub data: serde_json::Value,
}
