//! What a guest is for.

use serde::{Deserialize, Serialize};

use crate::agent::AgentMode;

/// What the guest is for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Order {
    /// Run one job and report.
    Job(Box<JobOrder>),
    /// Heartbeats only, until told otherwise.
    Hold,
}

/// One job.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobOrder {
    /// The host's id of it.
    pub job: String,
    /// Where the code comes from.
    pub repository: Repository,
    /// Branch, tag or commit; the source's HEAD when absent.
    #[serde(default)]
    pub reference: Option<String>,
    /// Its submodules too, and theirs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub submodules: bool,
    /// What the agent is told.
    pub task: String,
    /// Which agent, a word of [`crate::agent::AgentKind`].
    pub agent: String,
    /// What it may do without asking.
    #[serde(default, skip_serializing_if = "AgentMode::is_dangerous")]
    pub mode: AgentMode,
    /// Program and arguments of the agent `command`; empty for the others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub agent_command: Vec<String>,
    /// Further arguments of an agent that is a preset; empty for the others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub agent_args: Vec<String>,
    /// How long the agent may run before it is sent TERM.
    pub deadline_seconds: u32,
    /// How long after TERM it is sent KILL.
    pub kill_grace_seconds: u32,
    /// Run the agent in bubblewrap.
    pub inner_sandbox: bool,
    /// In the stricter one: of the disk it sees its own work and what programs need.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hardened: bool,
    /// Appended to the bubblewrap command line.
    #[serde(default)]
    pub inner_sandbox_args: Vec<String>,
    /// Where the commits of an agent that ended well go besides the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub push: Option<PushOrder>,
}

/// A branch of the repository's origin. Never forced, and never the origin's default branch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PushOrder {
    /// The origin: `https:` or `ssh:`.
    pub url: String,
    /// Name of the branch, without `refs/heads/`.
    pub branch: String,
}

/// Where the code comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Repository {
    /// `git clone` of this.
    Url {
        /// As the operator wrote it.
        url: String,
    },
    /// `GET` [`super::REPOSITORY_PATH`], then clone that file.
    Bundle {
        /// SHA-256 the file must have.
        sha256: String,
    },
}
