//! How the daemon is.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{JobState, SandboxState, Vmid};

/// A template image the back end can clone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateView {
    /// Name of its recipe.
    pub name: String,
    /// The VMID it stands for.
    pub vmid: Vmid,
    /// Content address.
    pub id: String,
    /// Version of the runner baked in.
    pub runner_version: String,
}

/// What is wrong with the hypervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackendTroubleKind {
    /// It does not answer: what is shown of sandboxes is what was known last.
    Unreachable,
    /// It answers and makes no change, as a cluster without quorum does: what runs goes on, what is asked for waits.
    TakesNoChanges,
}

/// A state of the hypervisor in which nothing is concluded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendTrouble {
    /// Which.
    pub kind: BackendTroubleKind,
    /// When it was first noticed.
    pub since: Timestamp,
    /// In the hypervisor's own words, or in those of the way to it.
    pub reason: String,
}

/// The hypervisor as the daemon sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendStatus {
    /// `qemu`, `proxmox`, `shell` or `fake`.
    pub kind: String,
    /// Version in the hypervisor's own words.
    pub version: String,
    /// `kvm` or `tcg`; absent where the hypervisor decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accelerator: Option<String>,
    /// Why that accelerator, when it is not the fastest there could be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accelerator_reason: Option<String>,
    /// Templates it can clone.
    pub templates: Vec<TemplateView>,
    /// Absent while all is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<BackendTrouble>,
}

/// Answer of `GET /v1/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusView {
    /// Version of the daemon.
    pub version: String,
    /// When it started.
    pub started_at: Timestamp,
    /// The hypervisor.
    pub backend: BackendStatus,
    /// Sandboxes per state; states with none are absent.
    pub sandboxes: BTreeMap<String, u64>,
    /// Jobs per state; states with none are absent.
    pub jobs: BTreeMap<String, u64>,
    /// Free bytes where artifacts are stored.
    pub artifact_free_bytes: u64,
    /// Bootstrap tokens that are still good: 0 when no sandbox is on its way.
    #[serde(default)]
    pub live_tokens: u64,
    /// Things an operator should look at.
    pub alarms: Vec<String>,
}

impl StatusView {
    /// Number of sandboxes in a state.
    #[must_use]
    pub fn sandboxes_in(&self, state: SandboxState) -> u64 {
        self.sandboxes.get(state.as_str()).copied().unwrap_or(0)
    }

    /// Number of jobs in a state.
    #[must_use]
    pub fn jobs_in(&self, state: JobState) -> u64 {
        self.jobs.get(state.as_str()).copied().unwrap_or(0)
    }
}
