//! How each agent is begun when nobody is there to talk to it, and where it keeps the record of what it did.
//!
//! | agent | program | the task comes | transcript below the home directory |
//! |---|---|---|---|
//! | claude | `claude -p` | on standard input | `.claude/projects` |
//! | codex | `codex exec -` | on standard input | `.codex/sessions` |
//! | opencode | `opencode run` | on standard input | `.local/share/opencode` |
//! | shell | `/bin/sh` | is the script | |
//! | command | the profile's | on standard input | |
//! | repository | `.agentlab/run.sh` | on standard input | |
//!
//! All of them are finished when their process ends, and find the task in `AGENTLAB_TASK_FILE` as well.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use agentlab_protocol::agent::{AgentKind, AgentMode};
use agentlab_protocol::message::JobOrder;

use super::agent::AgentError;
use super::process::AgentUser;

/// The repository's own way to begin an agent.
const SCRIPT: &str = ".agentlab/run.sh";
/// Longer tasks come from their file: the kernel takes at most 128 KiB in one argument.
const MAX_TASK_ARGUMENT: usize = 100 * 1024;

/// One agent, ready to begin.
#[derive(Debug)]
pub(crate) struct Adapter {
    /// Program and arguments.
    pub(crate) words: Vec<String>,
    /// Which one it is.
    pub(crate) kind: AgentKind,
    /// The task is its standard input; nothing is otherwise.
    pub(crate) task_on_stdin: bool,
    /// Settings of its own, none of them secret.
    pub(crate) environment: &'static [(&'static str, &'static str)],
}

impl Adapter {
    /// Has Claude Code read these settings besides its own; nothing for other agents.
    pub(crate) fn add_claude_settings(&mut self, path: &Path) {
        if self.kind == AgentKind::Claude {
            self.words
                .extend(["--settings".to_owned(), path.display().to_string()]);
        }
    }
}

/// Whether its output is for programs, and is rendered for people.
pub(crate) fn prints_events(agent: &str) -> bool {
    agent == AgentKind::Claude.as_str()
}

/// Directories below the agent's home where it records what it did.
pub(crate) fn transcripts(kind: AgentKind) -> &'static [&'static str] {
    match kind {
        AgentKind::Claude => &[".claude/projects"],
        AgentKind::Codex => &[".codex/sessions"],
        AgentKind::Opencode => &[".local/share/opencode/storage", ".local/share/opencode/log"],
        AgentKind::Shell | AgentKind::Command | AgentKind::Repository => &[],
    }
}

/// The agent of an order. `task` is the task as a file, `repo` the checkout.
pub(crate) fn of(
    order: &JobOrder,
    user: &AgentUser,
    task: &Path,
    repo: &Path,
) -> Result<Adapter, AgentError> {
    let kind: AgentKind = order.agent.parse()?;
    let words = match kind {
        AgentKind::Claude | AgentKind::Codex | AgentKind::Opencode => {
            [preset(kind, order.mode), order.agent_args.clone()].concat()
        }
        AgentKind::Shell => script_of_task(order, task),
        AgentKind::Command => order.agent_command.clone(),
        AgentKind::Repository => vec![repository_script(repo)?],
    };
    let program = words.first().map(String::as_str).unwrap_or_default();
    if !is_there(program, user, repo) {
        return Err(AgentError::Absent {
            agent: kind,
            program: program.escape_debug().take(80).collect(),
        });
    }
    Ok(Adapter {
        words,
        kind,
        task_on_stdin: kind != AgentKind::Shell,
        environment: environment(kind),
    })
}

/// What the agent's own command line calls unattended, and allowed everything.
fn preset(kind: AgentKind, mode: AgentMode) -> Vec<String> {
    let words: &[&str] = match (kind, mode) {
        (AgentKind::Claude, AgentMode::Dangerous) => &[
            "claude",
            "-p",
            "--output-format",
            "stream-json",
            "--verbose",
            "--dangerously-skip-permissions",
        ],
        (AgentKind::Claude, AgentMode::Safe) => &[
            "claude",
            "-p",
            "--output-format",
            "stream-json",
            "--verbose",
            "--permission-mode",
            "acceptEdits",
        ],
        (AgentKind::Codex, AgentMode::Dangerous) => {
            &["codex", "exec", "--dangerously-bypass-approvals-and-sandbox", "-"]
        }
        (AgentKind::Codex, AgentMode::Safe) => &["codex", "exec", "--sandbox", "workspace-write", "-"],
        (AgentKind::Opencode, AgentMode::Dangerous) => &["opencode", "run", "--auto"],
        (AgentKind::Opencode, AgentMode::Safe) => &["opencode", "run"],
        (AgentKind::Shell | AgentKind::Command | AgentKind::Repository, _) => &[],
    };
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// A baked-in program that replaces itself is another one than the manifest says; so is one that fetches its language
/// servers.
fn environment(kind: AgentKind) -> &'static [(&'static str, &'static str)] {
    match kind {
        AgentKind::Claude => &[
            ("DISABLE_AUTOUPDATER", "1"),
            ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1"),
        ],
        AgentKind::Opencode => &[
            ("OPENCODE_DISABLE_AUTOUPDATE", "1"),
            ("OPENCODE_DISABLE_LSP_DOWNLOAD", "1"),
        ],
        AgentKind::Codex | AgentKind::Shell | AgentKind::Command | AgentKind::Repository => &[],
    }
}

fn script_of_task(order: &JobOrder, task: &Path) -> Vec<String> {
    if order.task.len() <= MAX_TASK_ARGUMENT {
        ["/bin/sh", "-euc", &order.task].map(str::to_owned).to_vec()
    } else {
        ["/bin/sh", "-eu", &task.display().to_string()]
            .map(str::to_owned)
            .to_vec()
    }
}

fn repository_script(repo: &Path) -> Result<String, AgentError> {
    let path = repo.join(SCRIPT);
    match path.metadata() {
        Ok(seen) if seen.is_file() && seen.permissions().mode() & 0o111 != 0 => {
            Ok(path.display().to_string())
        }
        Ok(_) => Err(AgentError::Script("is not an executable file")),
        Err(_) => Err(AgentError::Script("does not exist")),
    }
}

/// Whether the search path has it. Looked at before anything runs: a shell's `not found` would say less.
fn is_there(program: &str, user: &AgentUser, repo: &Path) -> bool {
    let runs = |path: &Path| {
        path.metadata()
            .is_ok_and(|seen| seen.is_file() && seen.permissions().mode() & 0o111 != 0)
    };
    if program.is_empty() {
        return false;
    }
    if program.contains('/') {
        return runs(&repo.join(program));
    }
    user.path
        .split(':')
        .any(|directory| runs(&Path::new(directory).join(program)))
}
