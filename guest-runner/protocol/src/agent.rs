//! The agents a runner can start, by name, and how much they may do by themselves.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Which program does the task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AgentKind {
    /// Claude Code.
    Claude,
    /// Codex.
    Codex,
    /// OpenCode.
    Opencode,
    /// The task is a script for `/bin/sh`.
    Shell,
    /// The argument vector of the profile.
    Command,
    /// `.agentlab/run.sh` of the repository.
    Repository,
}

impl AgentKind {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Claude,
        Self::Codex,
        Self::Opencode,
        Self::Shell,
        Self::Command,
        Self::Repository,
    ];

    /// The word on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Claude => "claude",
            Self::Codex => "codex",
            Self::Opencode => "opencode",
            Self::Shell => "shell",
            Self::Command => "command",
            Self::Repository => "repository",
        }
    }
}

impl fmt::Display for AgentKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// No agent of that name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "Agent `{0}` is not known to this runner; it has: claude, codex, opencode, shell, command, repository"
)]
pub struct UnknownAgent(String);

impl FromStr for AgentKind {
    type Err = UnknownAgent;

    fn from_str(word: &str) -> Result<Self, UnknownAgent> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str() == word)
            .ok_or_else(|| UnknownAgent(word.escape_debug().take(80).collect()))
    }
}

/// What an agent may do without asking. Nobody is there to be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentMode {
    /// Everything: the machine around it is the sandbox.
    #[default]
    Dangerous,
    /// What the agent's own rules allow; the rest is denied.
    Safe,
}

impl AgentMode {
    /// Whether it is the one that older hosts mean by saying nothing.
    #[must_use]
    pub fn is_dangerous(&self) -> bool {
        *self == Self::Dangerous
    }

    /// The word on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dangerous => "dangerous",
            Self::Safe => "safe",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_agent_is_found_by_its_name_and_an_unknown_one_is_refused_with_the_list() {
        for kind in AgentKind::ALL {
            assert_eq!(kind.as_str().parse(), Ok(kind));
        }
        let said = "clod\u{1b}".parse::<AgentKind>().unwrap_err().to_string();
        for kind in AgentKind::ALL {
            assert!(said.contains(kind.as_str()), "{kind} is not in {said:?}");
        }
        assert!(!said.contains('\u{1b}'));
    }
}
