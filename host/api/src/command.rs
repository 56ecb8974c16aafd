//! Commands that an operator runs in a sandbox.

use serde::{Deserialize, Serialize};

/// Who a command runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CommandUser {
    /// The agent's user, with the agent's environment.
    #[default]
    Agent,
    /// The guest's root.
    Root,
}

/// Size and kind of the operator's terminal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommandTerminal {
    /// Lines.
    pub rows: u16,
    /// Characters of a line.
    pub columns: u16,
    /// What `TERM` shall be.
    pub kind: String,
}

/// Body of `POST /v1/sandboxes/{sandbox}/commands`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommandRequest {
    /// Program and arguments; the user's login shell without any.
    pub words: Vec<String>,
    /// Who runs it.
    #[serde(default)]
    pub user: CommandUser,
    /// Where; the repository, or the home directory, when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<String>,
    /// Run it on a terminal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<CommandTerminal>,
}

/// Answer to it: the guest is ready to begin. `POST /v1/commands/{command}/stream` within half a minute begins it; the
/// bodies of that request and its answer are the frames of docs/protocol.md, both ways until the command ends, and so it
/// takes HTTP/2.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandView {
    /// Names the command, once.
    pub id: String,
}
