//! Message bodies (JSON) and the guest routes. The host believes nothing in them: sizes are capped by the
//! HTTP edge, names go through [`ArtifactName`], and every request after redemption carries the session.

mod artifact;
mod order;
mod report;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

pub use self::artifact::{
    ArtifactName, ArtifactNameError, ArtifactRole, BUNDLE_NAME, DIFF_NAME, FILES_DIR, LOG_NAME,
    OFFSET_HEADER, PATCH_NAME, REPORT_NAME, RESUMABLE_BYTES, ROLE_HEADER, SHA256_HEADER,
};
pub use self::order::{JobOrder, Order, PushOrder, Repository};
pub use self::report::{
    ExposedSecret, FailureCause, PushResult, Report, ReportStatus, ReportedArtifact, SecretSearch,
};
use crate::secret::SecretText;
use crate::workspace::{WorkspaceNews, WorkspaceOrder};

/// The protocol this crate speaks.
pub const VERSION: u16 = 1;

/// `POST`: [`RedeemRequest`] to [`RedeemAnswer`]. Bootstrap port and every channel.
pub const REDEEM_PATH: &str = "/guest/v1/redeem";
/// `POST`, empty body, session required: the answer arrived, the token may die. 204.
pub const ACKNOWLEDGE_PATH: &str = "/guest/v1/acknowledge";
/// `POST`: [`Heartbeat`] to [`HeartbeatAnswer`], session required.
pub const HEARTBEAT_PATH: &str = "/guest/v1/heartbeat";
/// `POST`: [`LogBatch`], session required. 204.
pub const LOGS_PATH: &str = "/guest/v1/logs";
/// `GET`: the uploaded `git bundle` of the job, session required. Artifact port and every channel.
pub const REPOSITORY_PATH: &str = "/guest/v1/repository";
/// `PUT` below this prefix: one artifact, session required. Artifact port and every channel. 201. `HEAD`: how much is
/// there of it, in [`OFFSET_HEADER`]. 200.
pub const ARTIFACTS_PREFIX: &str = "/guest/v1/artifacts/";
/// `POST`: [`Report`], session required. 202.
pub const REPORT_PATH: &str = "/guest/v1/report";
/// First message of a guest.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RedeemRequest {
    /// VMID of the seed.
    pub vmid: u32,
    /// Token of the seed, base64url without padding.
    pub token: SecretText,
    /// 32 random bytes of the runner's own, base64url without padding. Repeating a request with the same key
    /// gives the same answer until it is acknowledged; another key revokes everything.
    pub runner_key: SecretText,
    /// Version of the runner.
    pub runner_version: String,
}

/// What a redeemed token is worth.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RedeemAnswer {
    /// What every later request carries as `authorization: Bearer …`: base64url without padding of the 32 bytes
    /// that [`crate::session::derive`] gives the host. The guest cannot derive it.
    pub session: SecretText,
    /// What to do: a job, or hold the sandbox for an operator.
    pub order: Order,
    /// Git credentials.
    #[serde(default)]
    pub git: Option<GitCredentials>,
    /// Environment of the agent.
    #[serde(default)]
    pub environment: BTreeMap<String, SecretText>,
    /// Settings of Claude Code, a JSON object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claude_settings: Option<SecretText>,
    /// Public keys that may log in as the agent user.
    #[serde(default)]
    pub authorized_keys: Vec<String>,
    /// The operator's tailnet, where the profile lets the machine join it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tailnet: Option<TailnetLogin>,
    /// Bounds.
    pub limits: Limits,
    /// Seconds between heartbeats.
    pub heartbeat_seconds: u32,
    /// The disk for `/work`; the template's own disk when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace: Option<WorkspaceOrder>,
}

/// For `git` in the guest.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GitCredentials {
    /// User name that goes with the token.
    pub username: String,
    /// Token.
    #[serde(default)]
    pub token: Option<SecretText>,
    /// Private key in OpenSSH's form.
    #[serde(default)]
    pub ssh_private_key: Option<SecretText>,
    /// Known hosts for it.
    #[serde(default)]
    pub known_hosts: Option<String>,
}

/// For `tailscale up`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TailnetLogin {
    /// Lets one machine join.
    pub authkey: SecretText,
    /// What the machine is called there.
    pub hostname: String,
    /// What it is there.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Further arguments.
    #[serde(default)]
    pub extra_args: Vec<String>,
}

/// Bounds the guest keeps by itself; the host enforces them again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Largest single artifact in bytes.
    pub max_file_bytes: u64,
    /// All artifacts together in bytes.
    pub max_total_bytes: u64,
    /// Number of artifacts.
    pub max_files: u32,
    /// All log text together in bytes.
    pub max_log_bytes: u64,
}

/// What the guest is busy with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Redeemed, nothing begun.
    Idle,
    /// Fetching the repository.
    Repository,
    /// The agent runs.
    Agent,
    /// Commits, diff and files are being collected.
    Collect,
    /// The commits go to the repository's origin.
    Push,
    /// Files are being uploaded.
    Upload,
    /// The report is on its way.
    Report,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Idle => "idle",
            Self::Repository => "repository",
            Self::Agent => "agent",
            Self::Collect => "collect",
            Self::Push => "push",
            Self::Upload => "upload",
            Self::Report => "report",
        })
    }
}

/// How the guest's machine is. A guest's word: worth an event, never a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Vitals {
    /// Average of a minute, in hundredths.
    pub load_hundredths: u32,
    /// Memory there is.
    pub memory_total_bytes: u64,
    /// Memory that can still be had.
    pub memory_available_bytes: u64,
    /// Size of the disk that is worked on.
    pub disk_total_bytes: u64,
    /// What is free of it.
    pub disk_free_bytes: u64,
    /// Processes that the kernel has killed for want of memory, since it began.
    pub oom_kills: u64,
    /// Processes there are.
    pub processes: u32,
    /// How long the agent has neither printed anything nor used the processor.
    pub quiet_seconds: u32,
}

/// Sent every `heartbeat_seconds`, and at once when the phase changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Heartbeat {
    /// Busy with.
    pub phase: Phase,
    /// One line for people.
    #[serde(default)]
    pub message: String,
    /// How its machine is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vitals: Option<Vitals>,
    /// How the workspace is, in the first beat since that changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace: Option<WorkspaceNews>,
}

/// Answer to a heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HeartbeatAnswer {
    /// End the agent (TERM, then KILL), collect, upload and report `cancelled`.
    #[serde(default)]
    pub cancel: bool,
    /// The sandbox is about to lose its power: end everything that uses the workspace, unmount it, and say so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub release_workspace: bool,
}

/// Stream of a log piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Standard output of the agent.
    Stdout,
    /// Standard error of the agent.
    Stderr,
    /// The runner itself.
    Runner,
}

/// One piece of output, redacted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogPiece {
    /// From.
    pub stream: Stream,
    /// Text, valid UTF-8 (others replaced by U+FFFD), line ends kept.
    pub text: String,
}

/// Pieces in order. `first` makes repeating harmless: the host drops pieces it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogBatch {
    /// Number of the first piece; the first of a session is 0.
    pub first: u64,
    /// The pieces.
    pub pieces: Vec<LogPiece>,
}
