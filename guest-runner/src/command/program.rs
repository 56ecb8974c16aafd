//! The program of a command, its input and its output.

use std::process::Stdio;
use std::time::Duration;

use agentlab_protocol::command::{CommandOrder, CommandUser, Frame, MAX_PAYLOAD};
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::terminal;
use crate::job::process::{self, Group};
use crate::job::{AgentUser, Layout};
use crate::link::serial::SerialPort;

/// How long a program that has ended is waited for to have printed more, all waits together: what it left running holds
/// its output open, and may go on printing.
const DRAIN: Duration = Duration::from_millis(500);
/// As much as may still be on its way in a pipe when a program ends. More comes from what it left running.
const LARGEST_PIPE: usize = 1 << 20;
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
    /// Sends output up until the program has ended and what it printed is through, however long the way takes for that;
    /// its status.
    pub(super) async fn wait_with_output(&mut self, from: &mut Output, to: &mpsc::Sender<Bytes>) -> u8 {
        let (end, ended) = watch::channel(false);
        let mut pump = std::pin::pin!(from.pump(to, &ended));
        let mut pumped = false;
        let status = loop {
            tokio::select! {
                status = self.child.wait() => break status,
                () = &mut pump, if !pumped => pumped = true,
            }
        };
        self.group.disarm();
        if !pumped {
            end.send_replace(true);
            pump.await;
        }
        status.map_or(255, process::exit_code)
    }
}

impl Output {
    async fn pump(&mut self, to: &mpsc::Sender<Bytes>, ended: &watch::Receiver<bool>) {
        match self {
            Self::Pipes(stdout, stderr) => {
                tokio::join!(
                    copy(stdout, to, Frame::Output, ended),
                    copy(stderr, to, Frame::Error, ended)
                );
            }
            Self::Terminal(terminal) => copy(terminal, to, Frame::Output, ended).await,
        }
    }
}

/// Sends on all that comes until there is no more, or until the program has `ended` and what it printed is through.
async fn copy(
    mut from: impl AsyncRead + Unpin,
    to: &mpsc::Sender<Bytes>,
    frame: fn(Vec<u8>) -> Frame,
    ended: &watch::Receiver<bool>,
) {
    let mut buffer = vec![0; MAX_PAYLOAD / 4];
    let mut rest = LARGEST_PIPE;
    let mut patience = DRAIN;
    while rest > 0 {
        // The time that others take to take it does not count.
        let Some(count) = read(&mut from, &mut buffer, ended.clone(), &mut patience).await else {
            return;
        };
        let bytes = buffer.get(..count).unwrap_or_default();
        if bytes.is_empty() || to.send(frame(bytes.to_vec()).encode().into()).await.is_err() {
            return;
        }
        if *ended.borrow() {
            rest = rest.saturating_sub(count);
        }
    }
}

/// Reads what comes next. Once the program has `ended`, waiting uses `patience` up: when that is over, nothing comes.
async fn read(
    from: &mut (impl AsyncRead + Unpin),
    buffer: &mut [u8],
    mut ended: watch::Receiver<bool>,
    patience: &mut Duration,
) -> Option<usize> {
    let mut since = None;
    let silence = async {
        // Whoever would say so is gone only when nothing is read any more.
        let _ = ended.wait_for(|ended| *ended).await;
        since = Some(Instant::now());
        tokio::time::sleep(*patience).await;
    };
    let read = tokio::select! {
        biased;
        read = from.read(buffer) => read,
        () = silence => return None,
    };
    if let Some(since) = since {
        *patience = patience.saturating_sub(since.elapsed());
    }
    // A terminal whose program has ended reads as an error.
    read.ok()
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

#[cfg(test)]
mod tests {
    use agentlab_protocol::command::FrameReader;

    use super::*;

    /// Bytes of output up to its end.
    async fn count(pieces: &mut mpsc::Receiver<Bytes>) -> usize {
        let mut frames = FrameReader::default();
        let mut count = 0;
        while let Some(piece) = pieces.recv().await {
            frames.push(&piece);
            while let Some(Frame::Output(bytes)) = frames.next_frame().unwrap() {
                count += bytes.len();
            }
        }
        count
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_program_printed_comes_through_however_late_it_is_asked_for() {
        let user = AgentUser {
            name: "me".to_owned(),
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            home: "/".into(),
            path: process::PATH.to_owned(),
        };
        let order = CommandOrder {
            id: String::new(),
            words: ["head", "-c", "60000", "/dev/zero"].map(str::to_owned).to_vec(),
            user: CommandUser::Root,
            directory: Some("/".to_owned()),
            terminal: None,
        };
        let program = Program::start(&order, &Layout::default(), &user).unwrap();
        let pid = program.child.id().unwrap();
        let (mut running, mut pipes) = program.split();
        let (output, mut pieces) = mpsc::channel(1);
        let ended = async {
            let code = running.wait_with_output(&mut pipes.output, &output).await;
            drop(output);
            code
        };
        // Whoever reads comes when the program is long gone, as behind a pager or a slow line.
        let late = async {
            while std::path::Path::new(&format!("/proc/{pid}")).exists() {
                tokio::task::yield_now().await;
            }
            tokio::time::sleep(10 * DRAIN).await;
            count(&mut pieces).await
        };
        assert_eq!(tokio::join!(ended, late), (0, 60_000));
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_program_left_running_does_not_hold_its_command_open_by_printing_on() {
        let (mut left_running, output) = tokio::io::duplex(100);
        let (to, mut pieces) = mpsc::channel(1);
        let (_end, ended) = watch::channel(true);
        let ticks = async {
            while left_running.write_all(b"x").await.is_ok() {
                tokio::time::sleep(DRAIN * 3 / 5).await;
            }
        };
        let pause = 10 * DRAIN;
        let operator = async {
            tokio::time::sleep(pause).await;
            count(&mut pieces).await
        };
        let began = Instant::now();
        let command = async {
            copy(output, &to, Frame::Output, &ended).await;
            drop(to);
        };
        let (count, ..) = tokio::join!(operator, command, ticks);
        assert!(count > 10, "what came while the operator paused is lost: {count}");
        assert!(began.elapsed() < pause + 3 * DRAIN, "{:?}", began.elapsed());
    }
}
