//! Jobs: a repository, a task, a profile; and what came of it.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{ChannelKind, Failure, JobId, SandboxId, Vmid};

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum JobState {
    /// Recorded; it waits for a place, or its sandbox is on the way.
    Queued,
    /// The guest has redeemed its token and works.
    Running,
    /// The agent ended with status 0 and its work is here.
    Completed,
    /// It did not; `failure` says why.
    Failed,
    /// The agent outlived its deadline.
    Timeout,
    /// An operator ended it.
    Cancelled,
}

impl JobState {
    /// All states.
    pub const ALL: [Self; 6] = [
        Self::Queued,
        Self::Running,
        Self::Completed,
        Self::Failed,
        Self::Timeout,
        Self::Cancelled,
    ];

    /// Whether nothing more will happen to it.
    #[must_use]
    pub fn is_final(self) -> bool {
        match self {
            Self::Queued | Self::Running => false,
            Self::Completed | Self::Failed | Self::Timeout | Self::Cancelled => true,
        }
    }

    /// The word on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "QUEUED",
            Self::Running => "RUNNING",
            Self::Completed => "COMPLETED",
            Self::Failed => "FAILED",
            Self::Timeout => "TIMEOUT",
            Self::Cancelled => "CANCELLED",
        }
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Where the code comes from. The daemon never opens a path that a client names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum RepositorySource {
    /// Cloned inside the guest.
    Url {
        /// Anything `git clone` takes over the network: `https://`, `ssh://`, `git@host:path`.
        url: String,
    },
    /// A `git bundle` uploaded beforehand with `POST /v1/bundles`.
    Bundle {
        /// SHA-256 of the bundle, as the upload answered it.
        sha256: String,
        /// The directory it was made from, shown to people, never opened.
        label: String,
    },
}

impl fmt::Display for RepositorySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url { url } => f.write_str(url),
            Self::Bundle { label, .. } => f.write_str(label),
        }
    }
}

/// Answer to a bundle upload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadedBundle {
    /// Lower-case hexadecimal SHA-256 of what arrived.
    pub sha256: String,
    /// Its size.
    pub size_bytes: u64,
}

/// A branch of the repository's origin that the guest pushes the agent's commits to once the agent ended well: never
/// forced, and never the origin's default branch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PushTarget {
    /// Its name, without `refs/heads/`. The profile's `behavior.push` must name it.
    pub branch: String,
    /// The origin of a repository that came as a bundle; absent for one that is cloned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

/// What came of a push.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum PushOutcome {
    /// The branch is at this commit.
    Pushed {
        /// Its id.
        commit: String,
    },
    /// The agent made no commit.
    NothingToPush,
    /// It was not done.
    Refused {
        /// Why, in the words of git and of the origin.
        reason: String,
    },
}

impl fmt::Display for PushOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pushed { commit } => write!(f, "pushed {}", commit.get(..7).unwrap_or(commit)),
            Self::NothingToPush => f.write_str("nothing to push"),
            Self::Refused { reason } => write!(f, "refused: {reason}"),
        }
    }
}

/// Body of `POST /v1/jobs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobRequest {
    /// Where the code comes from.
    pub repository: RepositorySource,
    /// Branch, tag or commit to start from; the source's own HEAD when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// What the agent is told. The `shell` agent runs it as a script.
    pub task: String,
    /// Profile to make the sandbox from.
    pub profile: String,
    /// Which agent runs the task; the profile's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// How long the agent may run, in seconds; the profile's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_seconds: Option<u32>,
    /// How long the sandbox may live, in minutes; the profile's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_minutes: Option<u32>,
    /// Keep the sandbox after the job; the profile's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keepalive: Option<bool>,
    /// Where the guest pushes the agent's commits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub push: Option<PushTarget>,
    /// Name or UUID of a workspace that nobody has; it is mounted at /work, and the repository is cloned there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace: Option<String>,
    /// How long to wait until nobody has the workspace any more, in seconds, instead of refusing at once; an hour at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace_wait_seconds: Option<u32>,
}

/// What a guest said when its agent ended, checked and completed by the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobOutcome {
    /// The agent's exit status; 128+n when signal n ended it; absent when it never ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<u8>,
    /// Commit the agent started from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_commit: Option<String>,
    /// Commit the work ends in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_commit: Option<String>,
    /// Number of commits the agent made.
    pub commits: u32,
    /// Whether uncommitted changes were left, and so a diff was collected.
    pub uncommitted: bool,
    /// How long the agent ran.
    pub agent_milliseconds: u64,
    /// What came of the push that was asked for; absent when none was, or when the agent did not end well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub push: Option<PushOutcome>,
    /// Secrets that the agent was given and that stand in its work, as its guest found them. The work is not altered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exposed_secrets: Vec<ExposedSecret>,
    /// Why not all of the work was searched for those, so that there may be more; absent when all of it was, and in records
    /// from before guests were asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secrets_unsearched: Option<String>,
}

/// One secret in the work of a job. Every text of it is a guest's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExposedSecret {
    /// Its name, never its value.
    pub secret: String,
    /// File of the repository; absent for the message of a commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Whether it is in the uncommitted changes, and not in the commits.
    pub uncommitted: bool,
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

/// Why a job is not COMPLETED.
pub type JobFailure = Failure;

/// One job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobView {
    /// Identity.
    pub id: JobId,
    /// Where it stands.
    pub state: JobState,
    /// Its place among the jobs that wait for a sandbox, from 1; absent once it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_position: Option<u32>,
    /// Where the code comes from.
    pub repository: RepositorySource,
    /// Branch, tag or commit asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// What the agent was told.
    pub task: String,
    /// Profile.
    pub profile: String,
    /// Agent that runs the task.
    pub agent: String,
    /// Where the guest pushes the agent's commits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub push: Option<PushTarget>,
    /// How long the agent may run.
    pub deadline_seconds: u32,
    /// Its sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<SandboxId>,
    /// Its sandbox's VMID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmid: Option<Vmid>,
    /// The way the guest reached the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel: Option<ChannelKind>,
    /// What came of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<JobOutcome>,
    /// Why it is not COMPLETED.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<JobFailure>,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When the guest began it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
}

/// Body of `POST /v1/jobs/prune`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JobPruneRequest {
    /// Only say which.
    pub dry_run: bool,
}

/// Jobs that were kept for long enough, those first that ended first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobPruneView {
    /// They are still there.
    pub dry_run: bool,
    /// How many.
    pub count: usize,
    /// All their files together.
    pub size_bytes: u64,
    /// Which.
    pub jobs: Vec<PrunedJob>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrunedJob {
    /// Identity.
    pub id: JobId,
    /// Its profile.
    pub profile: String,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
    /// Its files, as they were recorded.
    pub size_bytes: u64,
}

/// Jobs, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobList {
    /// The page.
    pub jobs: Vec<JobView>,
    /// Pass as `cursor` for the next page; absent on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}
