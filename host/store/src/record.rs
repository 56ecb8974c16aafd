//! Records as the engine writes them, and writes as values.

use std::net::{IpAddr, Ipv4Addr};

use agentlab_api::{
    ArtifactKind, ChannelKind, EventKind, Failure, IdleView, JobId, JobOutcome, JobState, Profile,
    PushTarget, RepositorySource, SandboxId, SandboxState, SandboxView, Vmid, WorkspaceId,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::workspace::WorkspaceRecord;

/// One sandbox, from request to beyond destruction. Unique among those not DESTROYED: `vmid`, `address`, `name`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// Identity for all time.
    pub id: SandboxId,
    /// The hypervisor's number for it.
    pub vmid: Vmid,
    /// Name and host name.
    pub name: String,
    /// The profile as it was when the sandbox was asked for.
    pub profile: Profile,
    /// Where it stands.
    pub state: SandboxState,
    /// Name of the last step begun; the engine's own word, empty before the first.
    pub cursor: String,
    /// Whether it is being taken down; never goes back to false.
    pub unwinding: bool,
    /// Nonce of its stamp, 32 hexadecimal characters.
    pub nonce: String,
    /// Ethernet address.
    pub mac: [u8; 6],
    /// Address on the agent subnet.
    pub address: Ipv4Addr,
    /// The job that holds it.
    pub job: Option<JobId>,
    /// The workspace it has, or is about to; nobody else has it meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace: Option<WorkspaceId>,
    /// Survives the end of its job.
    pub keepalive: bool,
    /// End of its lease; `None` for no expiry.
    pub lease_expires_at: Option<Timestamp>,
    /// The warning before the end of the lease was given.
    pub lease_warned: bool,
    /// SHA-256 of the runner key that redeemed its token, hexadecimal.
    pub runner_key_sha256: Option<String>,
    /// The guest has acknowledged the answer.
    pub acknowledged: bool,
    /// Version its runner told.
    pub runner_version: Option<String>,
    /// The way its runner reached the host.
    pub channel: Option<ChannelKind>,
    /// Last heartbeat or other authenticated request.
    pub last_heard_at: Option<Timestamp>,
    /// When it was powered on last.
    pub powered_on_at: Option<Timestamp>,
    /// When it was paused, for as long as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_at: Option<Timestamp>,
    /// Nobody uses it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle: Option<Idle>,
    /// Why it failed.
    pub failure: Option<Failure>,
    /// What teardown could not remove yet.
    pub left_behind: Vec<String>,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When this record last changed; set by the store.
    pub updated_at: Timestamp,
}

impl SandboxRecord {
    /// As callers see it.
    #[must_use]
    pub fn view(&self) -> SandboxView {
        SandboxView {
            id: self.id,
            vmid: self.vmid,
            name: self.name.clone(),
            profile: self.profile.name.clone(),
            state: self.state,
            address: IpAddr::V4(self.address),
            network_mode: self.profile.network.mode,
            job: self.job.clone(),
            workspace: self.workspace,
            keepalive: self.keepalive,
            lease_expires_at: self.lease_expires_at,
            idle: self.idle.map(|idle| IdleView {
                since: idle.since,
                stop_at: idle.stop_at,
            }),
            failure: self.failure.clone(),
            left_behind: self.left_behind.clone(),
            created_at: self.created_at,
            updated_at: self.updated_at,
            backend_trouble: None,
        }
    }
}

/// A sandbox that nobody uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idle {
    /// Since when, less the time in which nobody looked.
    pub since: Timestamp,
    /// When it is stopped for that, should it go on.
    pub stop_at: Timestamp,
}

/// One job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRecord {
    /// Identity.
    pub id: JobId,
    /// Where it stands.
    pub state: JobState,
    /// Where the code comes from.
    pub repository: RepositorySource,
    /// Branch, tag or commit.
    pub reference: Option<String>,
    /// What the agent is told.
    pub task: String,
    /// Name of the profile.
    pub profile: String,
    /// Agent.
    pub agent: String,
    /// Where the guest pushes the agent's commits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub push: Option<PushTarget>,
    /// How long it is kept after its end, in days, where its profile says so; for ever when 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention_days: Option<u32>,
    /// How long the agent may run.
    pub deadline_seconds: u32,
    /// Its sandbox.
    pub sandbox: Option<SandboxId>,
    /// Its sandbox's VMID.
    pub vmid: Option<Vmid>,
    /// The way the guest reached the host.
    pub channel: Option<ChannelKind>,
    /// An operator asked to end it.
    pub cancel_requested: bool,
    /// Number of the next log piece expected from the guest.
    pub next_log_piece: u64,
    /// What came of it.
    pub outcome: Option<JobOutcome>,
    /// Why it is not COMPLETED.
    pub failure: Option<Failure>,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When the guest began it.
    pub started_at: Option<Timestamp>,
    /// For how long its sandbox was paused meanwhile; its deadline does not count that.
    #[serde(default)]
    pub paused_seconds: u64,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// What its sandbox is to be, for as long as there is no place for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<Box<Waiting>>,
}

/// What a job waits with until it has a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// The profile as it was when the job was asked for.
    pub profile: Profile,
    /// Lease of the sandbox, from when there is one.
    pub ttl_minutes: u32,
    /// The sandbox survives the end of the job.
    pub keepalive: bool,
    /// The workspace it is to have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace: Option<WorkspaceId>,
}

/// An effect about to be tried. It stays open until [`Write::Fact`] closes it, and is closed again after a crash
/// only by looking at the world.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// Whose.
    pub sandbox: SandboxId,
    /// Name of the step.
    pub step: String,
    /// True for the step's undo.
    pub undo: bool,
    /// What must be known to find the effect again, for example the stamp or a task id.
    pub detail: serde_json::Value,
}

/// A bootstrap token, known by its hash only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// SHA-256 of the token, hexadecimal.
    pub sha256: String,
    /// The sandbox it is good for.
    pub sandbox: SandboxId,
    /// When it stops being good.
    pub expires_at: Timestamp,
}

/// One stored artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactRecord {
    /// Whose.
    pub job: JobId,
    /// Relative path, already checked.
    pub name: String,
    /// What it is for.
    pub kind: ArtifactKind,
    /// Size in bytes.
    pub size_bytes: u64,
    /// SHA-256 of the bytes stored, hexadecimal.
    pub sha256: String,
    /// When it arrived.
    pub created_at: Timestamp,
}

/// Something that happened, before the store has numbered it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEvent {
    /// What.
    pub kind: EventKind,
    /// Which sandbox.
    pub sandbox: Option<SandboxId>,
    /// Which job.
    pub job: Option<JobId>,
    /// In words. Never holds a secret.
    pub message: String,
    /// For programs.
    pub data: serde_json::Value,
}

/// An idempotency key that was used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyRecord {
    /// The caller's key.
    pub key: String,
    /// SHA-256 of the request it came with, hexadecimal.
    pub request_sha256: String,
    /// The job it made.
    pub job: JobId,
}

/// One change. All writes of a commit stand or none does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Inserts or replaces a sandbox.
    Sandbox(Box<SandboxRecord>),
    /// Inserts or replaces a job.
    Job(Box<JobRecord>),
    /// Opens an intent; the same step of the same sandbox again replaces it.
    Intent(Intent),
    /// Closes the intent of a step: it was done, or was undone.
    Fact {
        /// Whose.
        sandbox: SandboxId,
        /// Which step.
        step: String,
        /// True for the step's undo.
        undo: bool,
    },
    /// Stores a token; older tokens of the same sandbox die.
    Token(TokenRecord),
    /// Every token of the sandbox dies.
    ForgetTokens(SandboxId),
    /// Records an artifact whose bytes are already on disk; the same name again replaces the record.
    Artifact(ArtifactRecord),
    /// Remembers an idempotency key.
    Idempotency(IdempotencyRecord),
    /// Inserts or replaces a workspace.
    Workspace(Box<WorkspaceRecord>),
    /// A workspace is gone.
    ForgetWorkspace(WorkspaceId),
    /// Appends an event.
    Event(NewEvent),
}

/// Which events are wanted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EventFilter {
    /// Only of this sandbox.
    pub sandbox: Option<SandboxId>,
    /// Only of this job, and of its sandbox.
    pub job: Option<JobId>,
}
