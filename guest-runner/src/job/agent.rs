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

use agentlab_protocol::message::JobOrder;
use rustix::process::Signal;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::process::{self, Group};
use super::{JobLog, Layout};

/// Longer tasks come from their file: the kernel takes at most 128 KiB in one argument.
const MAX_TASK_ARGUMENT: usize = 100 * 1024;
/// How long output may still arrive after every process of the agent is gone.
const DRAIN: Duration = Duration::from_secs(15);
/// Loads the operator's environment, then becomes the task.
const WITH_ENVIRONMENT: &str = r#". "$1"; shift; exec "$@""#;

/// Why the agent did not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    #[error("Agent `{0}` is not known to this runner; it has: shell")]
    Unknown(String),
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
    /// Not secret.
    pub(crate) git_environment: &'a [(String, String)],
}

impl AgentSpec<'_> {
    /// The program the order names, as words.
    fn agent(&self) -> Result<Vec<String>, AgentError> {
        if self.order.agent != "shell" {
            return Err(AgentError::Unknown(
                self.order.agent.escape_debug().take(80).collect(),
            ));
        }
        let mut words = Vec::new();
        if let Some(environment) = &self.environment {
            let script = environment.display().to_string();
            words.extend(["/bin/sh", "-euc", WITH_ENVIRONMENT, "sh", &script].map(str::to_owned));
        }
        if self.order.task.len() <= MAX_TASK_ARGUMENT {
            words.extend(["/bin/sh", "-euc", &self.order.task].map(str::to_owned));
        } else {
            words.extend(["/bin/sh", "-eu", &self.task.display().to_string()].map(str::to_owned));
        }
        Ok(words)
    }

    fn command(&self) -> Result<(&'static str, Command), AgentError> {
        let agent = self.agent()?;
        let (user, repo) = (&self.layout.user, self.layout.repo());
        let (program, mut command) = if self.order.inner_sandbox {
            let mut command = process::command("bwrap", user, Path::new("/"));
            command.args(self.sandbox_arguments()).arg("--").args([
                "setpriv",
                &format!("--reuid={}", user.uid),
                &format!("--regid={}", user.gid),
                "--clear-groups",
                "--inh-caps=-all",
                "--no-new-privs",
                "--",
            ]);
            command.args(agent);
            ("bwrap", command)
        } else {
            let mut words = agent.into_iter();
            let first = words.next().unwrap_or_default();
            let mut command = process::agent_command(&first, user, &repo);
            command.args(words);
            ("sh", command)
        };
        command.envs(self.git_environment.iter().map(|(name, value)| (name, value)));
        command
            .env("AGENTLAB_JOB_ID", &self.order.job)
            .env("AGENTLAB_TASK_FILE", self.task)
            .env("AGENTLAB_REPO_DIR", &repo)
            .env("AGENTLAB_ARTIFACTS_DIR", self.layout.artifacts())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Ok((program, command))
    }

    /// The file system read-only but for where the agent works; no view of other processes; of `/run` only what the
    /// agent needs, so that no system socket is within reach.
    fn sandbox_arguments(&self) -> Vec<String> {
        let path = |path: &Path| path.display().to_string();
        let (work, home, run) = (
            path(&self.layout.work),
            path(&self.layout.user.home),
            path(&self.layout.run),
        );
        let repo = path(&self.layout.repo());
        let mut arguments: Vec<String> = [
            "--die-with-parent --new-session --unshare-pid --unshare-ipc --unshare-uts --unshare-cgroup-try",
            "--ro-bind / / --proc /proc --dev /dev --perms 1777 --tmpfs /dev/shm --tmpfs /run",
            "--ro-bind-try /run/systemd/resolve /run/systemd/resolve",
            "--ro-bind-try /run/resolvconf /run/resolvconf",
            "--bind /tmp /tmp --bind /var/tmp /var/tmp",
        ]
        .iter()
        .flat_map(|words| words.split(' '))
        .map(str::to_owned)
        .collect();
        for words in [
            ["--bind", &work, &work],
            ["--bind", &home, &home],
            ["--ro-bind", &run, &run],
        ] {
            arguments.extend(words.map(str::to_owned));
        }
        // What is left to root inside is what setpriv needs to stop being root.
        let words = "--cap-drop ALL --cap-add CAP_SETUID --cap-add CAP_SETGID --chdir";
        arguments.extend(words.split(' ').map(str::to_owned));
        arguments.push(repo);
        arguments.extend(self.order.inner_sandbox_args.iter().cloned());
        arguments
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
    let mut pump = std::pin::pin!(async {
        if let Some((stdout, stderr)) = output {
            log.pump(stdout, stderr).await;
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
