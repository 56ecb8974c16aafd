//! Runs the agent under a deadline, and leaves nothing of it behind.
//!
//! ```text
//!   runner (root) ─► bwrap (root) ─► bwrap, init of a PID namespace (root) ─► setpriv ─► sh (agent) ─► the task
//! ```
//!
//! bubblewrap is started by root and the agent's user is taken on inside: that needs no user namespace, which some
//! distributions forbid, and it keeps bubblewrap out of what is signalled: TERM goes to every process of the agent's
//! user, so the agent hears it first, while bubblewrap waits to hand its status on. Since bubblewrap and setpriv run
//! as root, they see a fixed environment; the agent's shell reads the operator's after it dropped root.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use agentlab_protocol::agent::{AgentKind, UnknownAgent};
use agentlab_protocol::message::JobOrder;
use rustix::process::Signal;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::adapter::{self, Adapter};
use super::process::{self, Group};
use super::render::Rendered;
use super::sandbox::{self, InnerSandbox};
use super::{JobLog, Layout};

/// How long output may still arrive after every process of the agent is gone.
const DRAIN: Duration = Duration::from_secs(15);
/// Loads the operator's environment, then becomes the task.
const WITH_ENVIRONMENT: &str = r#". "$1"; shift; exec "$@""#;

/// Why the agent did not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    #[error(transparent)]
    Unknown(#[from] UnknownAgent),
    #[error("Agent `{agent}` needs `{program}`, which this template does not have{}", absent_hint(*.agent))]
    Absent { agent: AgentKind, program: String },
    #[error("Agent `repository` needs `.agentlab/run.sh`, which {0}")]
    Script(&'static str),
    #[error("The task could not be opened: {0}")]
    Task(std::io::Error),
    #[error("`{program}` could not be started: {source}{hint}")]
    Start {
        program: &'static str,
        source: std::io::Error,
        hint: &'static str,
    },
    #[error("The agent could not be waited for: {0}")]
    Wait(std::io::Error),
}

/// How the agent's time ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// By itself.
    Exited,
    /// It outlived its deadline.
    Deadline,
    /// The host asked for it.
    Cancelled,
}

/// What became of the agent.
#[derive(Debug)]
pub(crate) struct AgentEnd {
    pub(crate) ending: Ending,
    pub(crate) exit_code: u8,
    pub(crate) ran: Duration,
    /// Every process of its user is gone.
    pub(crate) all_gone: bool,
}

/// What the agent is given.
#[derive(Debug)]
pub(crate) struct AgentSpec<'a> {
    pub(crate) order: &'a JobOrder,
    pub(crate) layout: &'a Layout,
    /// The task, as a file.
    pub(crate) task: &'a Path,
    /// Script that sets the operator's environment.
    pub(crate) environment: Option<PathBuf>,
    /// Settings of Claude Code.
    pub(crate) claude_settings: Option<PathBuf>,
    /// What surrounds it.
    pub(crate) sandbox: InnerSandbox,
    /// Not secret.
    pub(crate) git_environment: &'a [(String, String)],
}

impl AgentSpec<'_> {
    /// The program the order names, as words: with the operator's environment where there is one.
    fn words(&self, adapter: &Adapter) -> Vec<String> {
        let mut words = Vec::new();
        if let Some(environment) = &self.environment {
            let script = environment.display().to_string();
            words.extend(["/bin/sh", "-euc", WITH_ENVIRONMENT, "sh", &script].map(str::to_owned));
        }
        words.extend(adapter.words.iter().cloned());
        words
    }

    fn command(&self) -> Result<(&'static str, Command), AgentError> {
        let (user, repo) = (&self.layout.user, self.layout.repo());
        let mut adapter = adapter::of(self.order, user, self.task, &repo)?;
        if let Some(settings) = &self.claude_settings {
            adapter.add_claude_settings(settings);
        }
        let words = self.words(&adapter);
        let (program, mut command) = if self.sandbox == InnerSandbox::None {
            let mut words = words.into_iter();
            let first = words.next().unwrap_or_default();
            let mut command = process::agent_command(&first, user, &repo);
            command.args(words);
            ("sh", command)
        } else {
            let mut command = process::command("bwrap", user, Path::new("/"));
            let extra = &self.order.inner_sandbox_args;
            command
                .args(sandbox::arguments(self.sandbox, self.layout, extra))
                .arg("--")
                .args([
                    "setpriv",
                    &format!("--reuid={}", user.uid),
                    &format!("--regid={}", user.gid),
                    "--clear-groups",
                    "--inh-caps=-all",
                    "--no-new-privs",
                    "--",
                ])
                .args(words);
            ("bwrap", command)
        };
        if adapter.task_on_stdin {
            let task = std::fs::File::open(self.task).map_err(AgentError::Task)?;
            command.stdin(Stdio::from(task));
        }
        command.envs(self.git_environment.iter().map(|(name, value)| (name, value)));
        command
            .envs(adapter.environment.iter().copied())
            .env("AGENTLAB_JOB_ID", &self.order.job)
            .env("AGENTLAB_AGENT", &self.order.agent)
            .env("AGENTLAB_JOB_MODE", self.order.mode.as_str())
            .env("AGENTLAB_INNER_SANDBOX", self.sandbox.as_str())
            .env("AGENTLAB_TASK_FILE", self.task)
            .env("AGENTLAB_REPO_DIR", &repo)
            .env("AGENTLAB_ARTIFACTS_DIR", self.layout.artifacts())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Ok((program, command))
    }
}

/// Which template has it.
fn absent_hint(agent: AgentKind) -> &'static str {
    match agent {
        AgentKind::Claude | AgentKind::Codex | AgentKind::Opencode => {
            "; the recipe `agents` builds one that has"
        }
        AgentKind::Shell | AgentKind::Command | AgentKind::Repository => "",
    }
}

/// Runs the agent to its end: its own, the deadline's or the host's. When this returns, no process of the agent's
/// user is left, so nothing races the collection of its work.
pub(crate) async fn run(
    spec: &AgentSpec<'_>,
    log: &JobLog,
    cancel: &mut watch::Receiver<bool>,
) -> Result<AgentEnd, AgentError> {
    let (program, mut command) = spec.command()?;
    let started = Instant::now();
    let mut child = command.spawn().map_err(|source| start_error(program, source))?;
    let mut group = Group::of(&child);
    let output = child.stdout.take().zip(child.stderr.take());
    let events = adapter::prints_events(&spec.order.agent);
    let mut pump = std::pin::pin!(async {
        match output {
            Some((stdout, stderr)) if events => log.pump(Rendered::new(stdout, log.needles()), stderr).await,
            Some((stdout, stderr)) => log.pump(stdout, stderr).await,
            None => {}
        }
    });
    let mut pumped = false;
    let (ending, status, all_gone) = {
        let mut finish = std::pin::pin!(finish(spec, &mut child, &group, cancel));
        loop {
            tokio::select! {
                result = &mut finish => break result.map_err(AgentError::Wait)?,
                () = &mut pump, if !pumped => pumped = true,
            }
        }
    };
    let ran = started.elapsed();
    group.disarm();
    if !pumped {
        // What is left is at most two pipes full. A process that survived KILL must not hold the job up.
        let _ = timeout(DRAIN, pump).await;
    }
    Ok(AgentEnd {
        ending,
        exit_code: process::exit_code(status),
        ran,
        all_gone,
    })
}

/// Waits for the agent, ends it when it must end, and then everything else of its user.
async fn finish(
    spec: &AgentSpec<'_>,
    child: &mut Child,
    group: &Group,
    cancel: &mut watch::Receiver<bool>,
) -> std::io::Result<(Ending, ExitStatus, bool)> {
    let uid = spec.layout.user.uid;
    let deadline = Duration::from_secs(spec.order.deadline_seconds.into());
    let (ending, exited) = tokio::select! {
        biased;
        status = child.wait() => (Ending::Exited, Some(status?)),
        () = cancelled(cancel) => (Ending::Cancelled, None),
        () = sleep(deadline) => (Ending::Deadline, None),
    };
    let status = match exited {
        Some(status) => status,
        None => {
            process::signal_user(uid, Signal::TERM)?;
            let grace = Duration::from_secs(spec.order.kill_grace_seconds.into());
            match timeout(grace, child.wait()).await {
                Ok(status) => status?,
                Err(_) => {
                    // With bubblewrap goes its PID namespace, all at once, however fast the agent forks.
                    group.kill();
                    process::end_user(uid).await;
                    child.wait().await?
                }
            }
        }
    };
    Ok((ending, status, process::end_user(uid).await))
}

/// Returns once the host asked for the end.
pub(crate) async fn cancelled(cancel: &mut watch::Receiver<bool>) {
    if cancel.wait_for(|cancel| *cancel).await.is_err() {
        // Nobody is left who could ask.
        std::future::pending::<()>().await;
    }
}

fn start_error(program: &'static str, source: std::io::Error) -> AgentError {
    let hint = if program == "bwrap" && source.kind() == std::io::ErrorKind::NotFound {
        "; install bubblewrap in the template, or set the profile's inner sandbox to none"
    } else {
        ""
    };
    AgentError::Start {
        program,
        source,
        hint,
    }
}
