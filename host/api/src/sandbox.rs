//! Sandboxes as callers see them.

use std::fmt;
use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{BackendTrouble, ErrorCode, JobId, NetworkMode, SandboxId, Vmid, WorkspaceId};

/// Where a sandbox stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum SandboxState {
    /// Recorded; nothing exists on the hypervisor yet.
    Requested,
    /// The VM is being made.
    Provisioning,
    /// The VM is powered on; its runner has not answered yet.
    Booting,
    /// The runner answered; nobody holds the sandbox.
    Ready,
    /// Held by a job or by the operator.
    Running,
    /// Paused in memory.
    Suspended,
    /// Powered off, disk kept.
    Stopped,
    /// The lease ran out.
    Timeout,
    /// Gone, and nothing of it is left.
    Destroyed,
    /// Something failed; `failure` says what.
    Failed,
}

impl SandboxState {
    /// All states, in the order of a life.
    pub const ALL: [Self; 10] = [
        Self::Requested,
        Self::Provisioning,
        Self::Booting,
        Self::Ready,
        Self::Running,
        Self::Suspended,
        Self::Stopped,
        Self::Timeout,
        Self::Failed,
        Self::Destroyed,
    ];

    /// The word on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "REQUESTED",
            Self::Provisioning => "PROVISIONING",
            Self::Booting => "BOOTING",
            Self::Ready => "READY",
            Self::Running => "RUNNING",
            Self::Suspended => "SUSPENDED",
            Self::Stopped => "STOPPED",
            Self::Timeout => "TIMEOUT",
            Self::Destroyed => "DESTROYED",
            Self::Failed => "FAILED",
        }
    }
}

impl fmt::Display for SandboxState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why something failed, kept on the record for as long as the record lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Stable code.
    pub code: ErrorCode,
    /// The step it happened in, for example `Clone` or `AwaitGuest`.
    pub stage: String,
    /// What happened, with the failing part's own words.
    pub message: String,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}: {}", self.code, self.stage, self.message)
    }
}

/// How far one named step is, and how long it took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepView {
    /// Name of the step.
    pub step: String,
    /// When it was begun.
    pub started_at: Timestamp,
    /// When it was done; absent while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
}

/// Body of `POST /v1/sandboxes`: a machine for a person, without a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SandboxRequest {
    /// Profile to make it from.
    pub profile: String,
    /// Name, also the guest's host name; made from the VMID when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// How long it may live, in minutes; the profile's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_minutes: Option<u32>,
    /// Name or UUID of a workspace that nobody has; it is mounted at /work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace: Option<String>,
    /// How long to wait until nobody has the workspace any more, in seconds, instead of refusing at once; an hour at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace_wait_seconds: Option<u32>,
}

/// Body of `POST /v1/sandboxes/{sandbox}/lease/renew`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaseRequest {
    /// How long it lives from now on, in minutes.
    pub ttl_minutes: u32,
}

/// Body of `POST /v1/sandboxes/prune`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PruneRequest {
    /// Also what is STOPPED, with its disk.
    pub stopped: bool,
    /// Only say which.
    pub dry_run: bool,
}

/// What was pruned, or would be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PruneView {
    /// How many.
    pub count: usize,
    /// Nothing was asked to go.
    pub dry_run: bool,
    /// Which.
    pub sandboxes: Vec<SandboxView>,
    /// Those that could not be asked to go, one sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<String>,
}

/// A sandbox that nobody uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdleView {
    /// Since when.
    pub since: Timestamp,
    /// When it is stopped for that, should it go on.
    pub stop_at: Timestamp,
}

/// One sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxView {
    /// Identity for all time.
    pub id: SandboxId,
    /// The number the hypervisor knows it by; recycled after destruction.
    pub vmid: Vmid,
    /// Name, also the guest's host name.
    pub name: String,
    /// Profile it was made from.
    pub profile: String,
    /// Where it stands.
    pub state: SandboxState,
    /// Its address on the agent subnet.
    pub address: IpAddr,
    /// What its packets may reach once it runs.
    pub network_mode: NetworkMode,
    /// The job that holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobId>,
    /// Survives the end of its job.
    pub keepalive: bool,
    /// When its lease ends; absent for `--no-expiry`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_expires_at: Option<Timestamp>,
    /// Nobody uses it: no login, no command, next to no computing. Absent while somebody does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle: Option<IdleView>,
    /// Why it failed, or why it could not be started again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// What teardown could not remove yet; it is retried until this is empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_behind: Vec<String>,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When its record last changed.
    pub updated_at: Timestamp,
    /// The workspace it has, or is about to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace: Option<WorkspaceId>,
    /// Why this may not be how it is: nothing is concluded while the hypervisor is in trouble. In the answer for one
    /// sandbox only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend_trouble: Option<BackendTrouble>,
}

/// Sandboxes, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxList {
    /// The page.
    pub sandboxes: Vec<SandboxView>,
    /// Pass as `cursor` for the next page; absent on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
    /// Why they may not be as they are shown: nothing is concluded while the hypervisor is in trouble.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend_trouble: Option<BackendTrouble>,
}
