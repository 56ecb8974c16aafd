//! The places of a job in its machine.

use std::path::PathBuf;

use super::process::{self, AgentUser};

/// Where a job happens. Everything but tests uses the default.
#[derive(Debug, Clone)]
pub struct Layout {
    /// Holds `repo` and `artifacts`.
    pub work: PathBuf,
    /// Becomes a tmpfs: secrets and the task.
    pub run: PathBuf,
    /// The runner's own: downloaded bundle, log, collected work. Emptied when a job begins.
    pub spool: PathBuf,
    /// Who the agent is.
    pub user: AgentUser,
    /// Settings that the template carries.
    pub settings: PathBuf,
    /// How a repository may be cloned, in git's words: ways that prove whom they talk to, and nothing else.
    pub clone_protocols: &'static str,
    /// Certificates that git trusts instead of the system's.
    pub authorities: Option<PathBuf>,
}

impl Default for Layout {
    fn default() -> Self {
        Self {
            work: "/work".into(),
            run: "/run/agentlab".into(),
            spool: "/var/lib/agentlab-runner".into(),
            user: AgentUser {
                name: "agent".to_owned(),
                uid: 1000,
                gid: 1000,
                home: "/home/agent".into(),
                path: process::PATH.to_owned(),
            },
            settings: "/etc/agentlab/agent-runner.env".into(),
            clone_protocols: "https:ssh",
            authorities: None,
        }
    }
}

impl Layout {
    pub(crate) fn repo(&self) -> PathBuf {
        self.work.join("repo")
    }

    /// Where the repository of an earlier job is put aside.
    pub(crate) fn previous(&self) -> PathBuf {
        self.work.join("previous")
    }

    pub(crate) fn artifacts(&self) -> PathBuf {
        self.work.join("artifacts")
    }
}
