//! The program of a command, its input and its output.

use std::process::Stdio;
use std::time::Duration;

use agentlab_protocol::command::{CommandOrder, CommandUser, Frame, MAX_PAYLOAD};
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::terminal;
use crate::job::process::{self, Group};
use crate::job::{AgentUser, Layout};
use crate::link::serial::SerialPort;

/// How long output may still come from what a program left running.
const DRAIN: Duration = Duration::from_millis(500);
/// Loads the operator's environment where there is one, then becomes the command.
const AS_AGENT: &str = r#"if test -r "$1"; then . "$1"; fi; shift; exec "$@""#;
const TERMINAL_END: &[u8] = b"\x04";

/// A running program.
pub(super) struct Program {
    child: Child,
    group: Group,
    pipes: Pipes,
}

/// Its ends.
pub(super) struct Pipes {
    pub(super) input: Input,
    pub(super) output: Output,
}

/// Where input goes.
pub(super) enum Input {
    Pipe(Option<ChildStdin>),
    Terminal(WriteHalf<SerialPort>, std::os::fd::OwnedFd),
}

/// Where output comes from.
pub(super) enum Output {
    Pipes(ChildStdout, ChildStderr),
    Terminal(ReadHalf<SerialPort>),
}

/// The process alone: dropping it kills what it began.
pub(super) struct Running {
    child: Child,
    group: Group,
}

impl Program {
    /// Begins it. The error is for the operator.
    pub(super) fn start(order: &CommandOrder, layout: &Layout, user: &AgentUser) -> Result<Self, String> {
        let directory = match &order.directory {
            Some(directory) => directory.into(),
            None if order.user == CommandUser::Agent && layout.repo().is_dir() => layout.repo(),
            None => user.home.clone(),
        };
        if !directory.is_dir() {
            let shown: String = directory.display().to_string().escape_debug().take(200).collect();
            return Err(format!("{shown} is not a directory of the guest"));
        }
        let words = words(order, layout);
        let mut words = words.iter();
        let first = words.next().map(String::as_str).unwrap_or_default();
        let mut command = Command::new(first);
        process::prepare(&mut command, user, &directory);
        command.args(words).uid(user.uid).gid(user.gid);
        let failed = |error: std::io::Error| format!("The command could not be started: {error}");
        let pipes = if let Some(size) = &order.terminal {
            let (ours, theirs) = terminal::open(size, user.uid).map_err(failed)?;
            let again = || theirs.try_clone().map(Stdio::from).map_err(failed);
            command
                .env("TERM", &size.kind)
                .stdin(again()?)
                .stdout(again()?)
                .stderr(again()?);
            let sized = ours.descriptor().try_clone().map_err(failed)?;
            let (read, write) = tokio::io::split(ours);
            Some(Pipes {
                input: Input::Terminal(write, sized),
                output: Output::Terminal(read),
            })
        } else {
            command
                .process_group(0)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            None
        };
        let mut child = command.spawn().map_err(failed)?;
        let group = Group::of(&child);
        let pipes = match pipes {
            Some(pipes) => pipes,
            None => Pipes {
                input: Input::Pipe(child.stdin.take()),
                output: child
                    .stdout
                    .take()
                    .zip(child.stderr.take())
                    .map(|(stdout, stderr)| Output::Pipes(stdout, stderr))
                    .ok_or_else(|| "The command's output could not be taken".to_owned())?,
            },
        };
        Ok(Self { child, group, pipes })
    }

    pub(super) fn split(self) -> (Running, Pipes) {
        let running = Running {
            child: self.child,
            group: self.group,
        };
        (running, self.pipes)
    }
}

/// What is really started: on a terminal in a session of its own, whose terminal it is.
fn words(order: &CommandOrder, layout: &Layout) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    if order.terminal.is_some() {
        words.extend(["setsid", "--ctty"].map(str::to_owned));
    }
    if order.user == CommandUser::Agent {
        let environment = layout.run.join("environment").display().to_string();
        words.extend(["/bin/sh", "-c", AS_AGENT, "sh", &environment].map(str::to_owned));
    }
    if order.words.is_empty() {
        words.extend(["/bin/bash", "-l"].map(str::to_owned));
    } else if order.user == CommandUser::Root && order.terminal.is_none() {
        // A shell says which program is missing, and with the status that people know.
        words.extend(["/bin/sh", "-c", r#"exec "$@""#, "sh"].map(str::to_owned));
        words.extend(order.words.iter().cloned());
    } else {
        words.extend(order.words.iter().cloned());
    }
    words
}

impl Running {
    /// Sends output up until the program has ended and what it printed is through; its status.
    pub(super) async fn wait_with_output(&mut self, from: &mut Output, to: &mpsc::Sender<Bytes>) -> u8 {
        let mut pump = std::pin::pin!(from.pump(to));
        let mut pumped = false;
        let status = loop {
            tokio::select! {
                status = self.child.wait() => break status,
                () = &mut pump, if !pumped => pumped = true,
            }
        };
        if !pumped {
            // A daemon that it left keeps its output open; nobody waits for that.
            let _ = timeout(DRAIN, pump).await;
        }
        self.group.disarm();
        status.map_or(255, process::exit_code)
    }
}

impl Output {
    async fn pump(&mut self, to: &mpsc::Sender<Bytes>) {
        match self {
            Self::Pipes(stdout, stderr) => {
                tokio::join!(copy(stdout, to, Frame::Output), copy(stderr, to, Frame::Error));
            }
            Self::Terminal(terminal) => copy(terminal, to, Frame::Output).await,
        }
    }
}

async fn copy(mut from: impl AsyncRead + Unpin, to: &mpsc::Sender<Bytes>, frame: fn(Vec<u8>) -> Frame) {
    let mut buffer = vec![0; MAX_PAYLOAD / 4];
    // A terminal whose program has ended reads as an error.
    while let Ok(count) = from.read(&mut buffer).await {
        let bytes = buffer.get(..count).unwrap_or_default();
        if bytes.is_empty() || to.send(frame(bytes.to_vec()).encode().into()).await.is_err() {
            return;
        }
    }
}

impl Input {
    /// A program that does not read any more is not the operator's fault.
    pub(super) async fn write(&mut self, bytes: &[u8]) {
        let written = match self {
            Self::Pipe(Some(pipe)) => pipe.write_all(bytes).await,
            Self::Pipe(None) => Ok(()),
            Self::Terminal(terminal, _) => terminal.write_all(bytes).await,
        };
        if written.is_err()
            && let Self::Pipe(pipe) = self
        {
            *pipe = None;
        }
    }

    pub(super) async fn end(&mut self) {
        match self {
            Self::Pipe(pipe) => *pipe = None,
            Self::Terminal(..) => self.write(TERMINAL_END).await,
        }
    }

    pub(super) fn resize(&self, rows: u16, columns: u16) {
        if let Self::Terminal(_, terminal) = self {
            // A program that is gone has no size.
            let _ = terminal::resize(terminal, rows, columns);
        }
    }
}
