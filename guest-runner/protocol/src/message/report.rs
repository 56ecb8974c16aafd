//! What came of a job, in the words of its guest.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{ArtifactName, ArtifactRole, Phase};

/// How the job ended in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReportStatus {
    /// The agent ended with status 0.
    Completed,
    /// It did not, or could not be begun.
    Failed,
    /// It outlived its deadline.
    Timeout,
    /// The host asked for it.
    Cancelled,
}

/// Final message, also uploaded as `report.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// 1.
    pub version: u16,
    /// The host's id of the job.
    pub job: String,
    /// How it ended.
    pub status: ReportStatus,
    /// Phase it failed in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_phase: Option<Phase>,
    /// Why it failed, in one word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<FailureCause>,
    /// Why, with git's or the kernel's own words, at most 4,000 characters, redacted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Exit status of the agent; 128+n when signal n ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<u8>,
    /// Commit the agent started from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_commit: Option<String>,
    /// Commit the work ends in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_commit: Option<String>,
    /// Commits made.
    #[serde(default)]
    pub commits: u32,
    /// Uncommitted changes were left.
    #[serde(default)]
    pub uncommitted: bool,
    /// How long the agent ran.
    #[serde(default)]
    pub agent_milliseconds: u64,
    /// What came of the push that was ordered; absent when none was, or when the agent did not end well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub push: Option<PushResult>,
    /// Secrets of the job that stand in the work, at most 100 places.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exposed_secrets: Vec<ExposedSecret>,
    /// Whether those are all of them. Absent: nothing was collected, or the runner does not search.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_search: Option<SecretSearch>,
    /// Files uploaded before this report.
    #[serde(default)]
    pub artifacts: Vec<ReportedArtifact>,
    /// Files that were left out, each with its reason.
    #[serde(default)]
    pub left_out: Vec<String>,
    /// Level of the inner sandbox really enforced: `hardened`, `bubblewrap` or `none`.
    #[serde(default)]
    pub inner_sandbox: String,
}

/// A secret that the agent was given and that stands in its work. The work itself is not altered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExposedSecret {
    /// Its name, never its value.
    pub secret: String,
    /// File of the repository; absent for the message of a commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// It is in the uncommitted changes, not in the commits.
    #[serde(default)]
    pub uncommitted: bool,
}

/// How far the work was searched for [`ExposedSecret`]s.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case", deny_unknown_fields)]
pub enum SecretSearch {
    /// All of it.
    Complete,
    /// Not to its end, so that there may be more of them.
    Incomplete {
        /// Why, at most 4,000 characters, redacted.
        reason: String,
    },
}

impl fmt::Display for ExposedSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = self.path.as_deref().unwrap_or("the message of a commit");
        write!(f, "{} in {place}", self.secret)?;
        if self.uncommitted {
            f.write_str(", uncommitted")?;
        }
        Ok(())
    }
}

/// One uploaded file as the guest saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportedArtifact {
    /// Name.
    pub name: ArtifactName,
    /// What it is for.
    pub role: ArtifactRole,
    /// Size.
    pub size_bytes: u64,
    /// SHA-256, hexadecimal.
    pub sha256: String,
}

/// Why a job failed, as far as its guest can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureCause {
    /// The repository did not come.
    Clone,
    /// The agent ended with another status than 0.
    AgentExit,
    /// The kernel killed processes for want of memory meanwhile.
    Oom,
    /// The disk is full.
    DiskFull,
    /// What was ordered could not be enforced, so nothing was begun.
    Policy,
    /// The workspace cannot be used, so nothing was begun.
    Workspace,
    /// The origin did not take the commits.
    Push,
    /// The runner was killed under the agent.
    Lost,
}

/// What came of a [`super::PushOrder`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case", deny_unknown_fields)]
pub enum PushResult {
    /// The branch is at this commit.
    Pushed {
        /// Its id.
        commit: String,
    },
    /// The agent made no commit.
    NothingToPush,
    /// It was not done.
    Refused {
        /// Why, in the words of git and of the origin, redacted.
        reason: String,
    },
}
