//! Workspaces: disks that outlive sandboxes, one sandbox at a time.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{IdError, SandboxId, Vmid};

/// Identity of one workspace for all time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WorkspaceId(Uuid);

impl WorkspaceId {
    /// A new identity, sortable by time of creation (UUID version 7, RFC 9562).
    #[must_use]
    pub fn generate() -> Self {
        Self(Uuid::now_v7())
    }
}

impl FromStr for WorkspaceId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        Uuid::parse_str(text)
            .map(Self)
            .map_err(|_| IdError::Workspace(text.escape_debug().take(80).collect()))
    }
}

impl fmt::Display for WorkspaceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where a workspace stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum WorkspaceState {
    /// Its volume is being made.
    Creating,
    /// Nobody has it.
    Detached,
    /// A sandbox has it, or is about to.
    Attached,
    /// Its volume is being copied or moved, or goes back to a snapshot; nobody can have it meanwhile.
    Busy,
    /// Its volume is being removed.
    Deleting,
}

impl WorkspaceState {
    /// The word on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "CREATING",
            Self::Detached => "DETACHED",
            Self::Attached => "ATTACHED",
            Self::Busy => "BUSY",
            Self::Deleting => "DELETING",
        }
    }
}

impl fmt::Display for WorkspaceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Body of `POST /v1/workspaces`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkspaceRequest {
    /// Name: lower-case letters, digits and `-`, beginning with a letter, at most 40.
    pub name: String,
    /// Size of its volume in GiB.
    pub size_gb: u32,
}

/// Body of `POST /v1/workspaces/{workspace}/resize`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkspaceResize {
    /// Larger than it is. The volume and its file system grow when a sandbox gets it next.
    pub size_gb: u32,
}

/// Body of `POST /v1/workspaces/{workspace}/snapshots`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkspaceSnapshotRequest {
    /// Name of the snapshot, as those of workspaces.
    pub name: String,
}

/// Body of `POST /v1/workspaces/{workspace}/fork`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkspaceFork {
    /// Name of the new workspace.
    pub name: String,
    /// The snapshot to copy; the workspace as it is now when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_snapshot: Option<String>,
}

/// Body of `POST /v1/workspaces/{workspace}/move`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkspaceMove {
    /// The storage to take its volume to, as the hypervisor calls it.
    pub storage: String,
}

/// Body of `POST /v1/workspaces/{workspace}/attach`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkspaceAttach {
    /// UUID, VMID or name of a stopped sandbox.
    pub sandbox: String,
}

/// Body of `POST /v1/workspaces/{workspace}/rebind`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkspaceRebind {
    /// Profile of the new sandbox.
    pub profile: String,
    /// How long that may live, in minutes; the profile's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_minutes: Option<u32>,
    /// Leave the old sandbox stopped instead of destroying it.
    #[serde(default)]
    pub keep_old: bool,
}

/// A state a workspace can go back to, or be forked from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkspaceSnapshotView {
    /// Its name.
    pub name: String,
    /// When it was taken.
    pub created_at: Timestamp,
}

/// One workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkspaceView {
    /// Identity for all time.
    pub id: WorkspaceId,
    /// Name.
    pub name: String,
    /// Size of its volume in GiB.
    pub size_gb: u32,
    /// Where it stands.
    pub state: WorkspaceState,
    /// Its volume, in the hypervisor's words; absent until there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    /// A guest has made a file system on it. It is never made again.
    pub formatted: bool,
    /// The sandbox that has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<SandboxId>,
    /// The VMID of that sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmid: Option<Vmid>,
    /// The new sandbox that it is being handed to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving_to: Option<SandboxId>,
    /// Its snapshots, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub snapshots: Vec<WorkspaceSnapshotView>,
    /// Why what was asked for last is not done yet, or was not done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When its record last changed.
    pub updated_at: Timestamp,
}

/// Body of `POST /v1/workspaces/{workspace}/adopt`, whose `{workspace}` is the name that it gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkspaceAdopt {
    /// The volume, in the hypervisor's words.
    pub volume: String,
    /// UUID of the file system on it, where that is not the one that its workspace had from the beginning: a fork has
    /// that of what it was forked from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_system: Option<WorkspaceId>,
}

/// What a comparison of records and hypervisor has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkspaceFindingKind {
    /// The hypervisor has no such volume.
    VolumeMissing,
    /// The hypervisor cannot say at the moment.
    VolumeUnread,
    /// The volume is not one that this daemon would have made.
    Foreign,
    /// A machine has it that should not.
    AttachedElsewhere,
    /// The machine that should have it does not.
    NotAttached,
    /// Its size is not the one that was asked for.
    SizeDiffers,
    /// A volume of ours that belongs to no workspace.
    Orphan,
}

impl WorkspaceFindingKind {
    /// The word on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::VolumeMissing => "volume_missing",
            Self::VolumeUnread => "volume_unread",
            Self::Foreign => "foreign",
            Self::AttachedElsewhere => "attached_elsewhere",
            Self::NotAttached => "not_attached",
            Self::SizeDiffers => "size_differs",
            Self::Orphan => "orphan",
        }
    }
}

/// One thing that is not as it is recorded. Nothing was changed because of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkspaceFinding {
    /// What it is.
    pub kind: WorkspaceFindingKind,
    /// Somebody has to do something about it; otherwise it comes right by itself.
    pub wrong: bool,
    /// Name of the workspace; absent for a volume that belongs to none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace: Option<String>,
    /// Its volume, in the hypervisor's words.
    pub volume: String,
    /// What is so, in a sentence.
    pub detail: String,
    /// What helps.
    pub hint: String,
}

/// Answer of `GET /v1/workspaces/{workspace}/check`; `-` stands for all, and for volumes that belong to none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkspaceCheck {
    /// How many workspaces were compared.
    pub compared: usize,
    /// What could not be looked at, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unread: Vec<String>,
    /// What was found, by workspace.
    pub findings: Vec<WorkspaceFinding>,
}

impl WorkspaceCheck {
    /// Whether somebody has to do something.
    #[must_use]
    pub fn is_wrong(&self) -> bool {
        !self.unread.is_empty() || self.findings.iter().any(|finding| finding.wrong)
    }
}

/// All workspaces, by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkspaceList {
    /// All of them.
    pub workspaces: Vec<WorkspaceView>,
}
