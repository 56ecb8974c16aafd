//! Programs run as the agent user, each with a deadline and bounded output, and the end of everything that user
//! left running.
//!
//! The agent's processes may leave their group, their session and their parent; they cannot leave their user. So
//! what ends them looks at the user. `/proc/<pid>/status` is read, not the owner of `/proc/<pid>`: a process that
//! made itself undumpable belongs to root there.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};

/// Who the agent is.
#[derive(Debug, Clone)]
pub struct AgentUser {
    /// Name, for `USER`.
    pub name: String,
    /// User.
    pub uid: u32,
    /// Group; no other groups are kept.
    pub gid: u32,
    /// Home directory.
    pub home: PathBuf,
    /// Search path of everything that is run for it.
    pub path: String,
}

/// How much of a program's error output is kept, from its end: whole lines of it, for half a secret would not be known as
/// one any more.
const STDERR_TAIL: usize = 8 * 1024;
/// Longest wait for killed processes to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// Where a template's programs are.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a program gave no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProcessError {
    #[error("`{what}` could not be started: {source}")]
    Start { what: String, source: io::Error },
    #[error("`{what}` was stopped after {seconds} s")]
    Deadline { what: String, seconds: u64 },
    #[error("Output of `{what}` is larger than {limit} bytes")]
    TooLarge { what: String, limit: u64 },
    #[error("Output of `{what}` could not be taken: {source}")]
    Output { what: String, source: io::Error },
    #[error("`{what}` failed ({status}): {words}")]
    Failed {
        what: String,
        status: ExitStatus,
        words: String,
    },
}

/// What a program left behind.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) status: ExitStatus,
    pub(crate) stderr: String,
}

/// One program to run: its name for people, and its bound.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) what: String,
    pub(crate) command: Command,
    pub(crate) deadline: Duration,
}

/// A command that begins with an empty environment.
pub(crate) fn command(program: &str, user: &AgentUser, directory: &Path) -> Command {
    let mut command = Command::new(program);
    prepare(&mut command, user, directory);
    command.stdin(Stdio::null()).process_group(0);
    command
}

/// Environment and directory of everything that is run for a user.
pub(crate) fn prepare(command: &mut Command, user: &AgentUser, directory: &Path) {
    command
        .env_clear()
        .env("PATH", &user.path)
        .env("HOME", &user.home)
        .env("USER", &user.name)
        .env("LOGNAME", &user.name)
        .env("LANG", "C.UTF-8")
        .env("TERM", "dumb")
        .current_dir(directory)
        .kill_on_drop(true);
}

/// The same, as the agent user. The standard library drops all supplementary groups when it changes the user.
pub(crate) fn agent_command(program: &str, user: &AgentUser, directory: &Path) -> Command {
    let mut command = command(program, user, directory);
    command.uid(user.uid).gid(user.gid);
    command
}

/// A process group that dies with its guard, so that a dropped future leaves no helper of git behind.
#[derive(Debug)]
pub(crate) struct Group(Option<Pid>);

impl Group {
    pub(crate) fn of(child: &Child) -> Self {
        Self(
            child
                .id()
                .and_then(|id| i32::try_from(id).ok())
                .and_then(Pid::from_raw),
        )
    }

    /// The leader was waited for: its number may soon be somebody else's.
    pub(crate) fn disarm(&mut self) {
        self.0 = None;
    }

    pub(crate) fn kill(&self) {
        if let Some(group) = self.0 {
            // It may be gone already; that is what we want.
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Where a program's standard output goes.
pub(crate) trait Sink {
    /// Takes a chunk; `Ok(Some(limit))` when that was more than it may hold.
    fn take(&mut self, chunk: &[u8]) -> io::Result<Option<u64>>;
}

/// Output kept in memory.
#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) bytes: Vec<u8>,
    pub(crate) limit: usize,
}

impl Sink for Memory {
    fn take(&mut self, chunk: &[u8]) -> io::Result<Option<u64>> {
        self.bytes.extend_from_slice(chunk);
        Ok((self.bytes.len() > self.limit).then(|| u64::try_from(self.limit).unwrap_or(u64::MAX)))
    }
}

impl Run {
    /// Runs to the end with the output going to `sink`, whatever the status.
    pub(crate) async fn into_sink(mut self, sink: &mut impl Sink) -> Result<Finished, ProcessError> {
        let what = self.what;
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = match self.command.spawn() {
            Ok(child) => child,
            Err(source) => return Err(ProcessError::Start { what, source }),
        };
        let mut group = Group::of(&child);
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let work = async {
            let ((), stderr) = tokio::try_join!(pour(stdout, sink, &what), tail(stderr, &what))?;
            let status = child.wait().await.map_err(|source| ProcessError::Output {
                what: what.clone(),
                source,
            })?;
            Ok(Finished { status, stderr })
        };
        let Ok(done) = tokio::time::timeout(self.deadline, work).await else {
            return Err(ProcessError::Deadline {
                what,
                seconds: self.deadline.as_secs(),
            });
        };
        if done.is_ok() {
            group.disarm();
        }
        done
    }

    /// Runs to the end; a status other than 0 is an error that carries the program's words.
    pub(crate) async fn success_into(self, sink: &mut impl Sink) -> Result<(), ProcessError> {
        let what = self.what.clone();
        let done = self.into_sink(sink).await?;
        if done.status.success() {
            return Ok(());
        }
        Err(ProcessError::Failed {
            what,
            status: done.status,
            words: done.stderr.trim().to_owned(),
        })
    }

    /// Runs to the end and returns a short output.
    pub(crate) async fn success(self) -> Result<String, ProcessError> {
        let mut memory = Memory {
            bytes: Vec::new(),
            limit: 64 * 1024,
        };
        self.success_into(&mut memory).await?;
        Ok(String::from_utf8_lossy(&memory.bytes)
            .trim_end_matches('\n')
            .to_owned())
    }
}

async fn pour(
    source: Option<impl AsyncRead + Unpin>,
    sink: &mut impl Sink,
    what: &str,
) -> Result<(), ProcessError> {
    let Some(mut source) = source else { return Ok(()) };
    let failed = |source| ProcessError::Output {
        what: what.to_owned(),
        source,
    };
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = source.read(&mut buffer).await.map_err(failed)?;
        if count == 0 {
            return Ok(());
        }
        if let Some(limit) = sink.take(&buffer[..count]).map_err(failed)? {
            return Err(ProcessError::TooLarge {
                what: what.to_owned(),
                limit,
            });
        }
    }
}

async fn tail(source: Option<impl AsyncRead + Unpin>, what: &str) -> Result<String, ProcessError> {
    let Some(mut source) = source else {
        return Ok(String::new());
    };
    let mut kept = Vec::new();
    let mut is_cut = false;
    let mut buffer = [0; 4096];
    loop {
        let read = source.read(&mut buffer).await;
        let count = read.map_err(|source| ProcessError::Output {
            what: what.to_owned(),
            source,
        })?;
        if count == 0 {
            if is_cut {
                let end = kept.iter().position(|byte| *byte == b'\n');
                kept.drain(..end.map_or(kept.len(), |end| end + 1));
                if kept.trim_ascii().is_empty() {
                    return Ok(format!("(one line of more than {} KiB)", STDERR_TAIL / 1024));
                }
            }
            return Ok(String::from_utf8_lossy(&kept).into_owned());
        }
        kept.extend_from_slice(&buffer[..count]);
        let surplus = kept.len().saturating_sub(STDERR_TAIL);
        is_cut |= surplus > 0;
        kept.drain(..surplus);
    }
}

/// 128+n for signal n, as a shell says it.
pub(crate) fn exit_code(status: ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt as _;
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .unwrap_or(255);
    u8::try_from(code & 0xff).unwrap_or(255)
}

/// Sends `signal` to every process of the user; returns how many there were. Zombies do not count.
pub(crate) fn signal_user(uid: u32, signal: Signal) -> io::Result<usize> {
    let mut found = 0;
    for entry in std::fs::read_dir("/proc")? {
        let Some(pid) = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
            .and_then(Pid::from_raw)
        else {
            continue;
        };
        // Opened before its status is read: the signal then goes to what was looked at, or nowhere.
        let Ok(process) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else {
            continue;
        };
        let Ok(status) = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())) else {
            continue;
        };
        if belongs_to(&status, uid) {
            found += 1;
            let _ = rustix::process::pidfd_send_signal(&process, signal);
        }
    }
    Ok(found)
}

/// Kills every process of the user until none is left. `false`: some would not go.
pub(crate) async fn end_user(uid: u32) -> bool {
    let until = tokio::time::Instant::now() + KILL_PATIENCE;
    let mut pause = Duration::from_millis(2);
    loop {
        if matches!(signal_user(uid, Signal::KILL), Ok(0)) {
            return true;
        }
        if tokio::time::Instant::now() >= until {
            return false;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// A living process whose real, effective or saved user is `uid`.
fn belongs_to(status: &str, uid: u32) -> bool {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    let dead = field("State:").is_some_and(|state| state.trim_start().starts_with(['Z', 'X']));
    let uid = uid.to_string();
    !dead && field("Uid:").is_some_and(|users| users.split_whitespace().any(|user| user == uid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn of_long_words_whole_lines_are_kept_so_that_no_secret_is_cut_in_two() {
        let line = "a line of twenty-five bytes\n";
        let words = line.repeat(1000);
        let kept = tail(Some(words.as_bytes()), "x").await.unwrap();
        assert!(kept.len() > STDERR_TAIL / 2 && kept.len() <= STDERR_TAIL);
        assert!(kept.starts_with(line), "{:?}", kept.lines().next());
        let short = tail(Some("one line".as_bytes()), "x").await.unwrap();
        assert_eq!(short, "one line");
        for end in ["", "\n", "\n\n"] {
            let endless = "s3cr3t".repeat(10_000) + end;
            let told = tail(Some(endless.as_bytes()), "x").await.unwrap();
            assert_eq!(told, "(one line of more than 8 KiB)");
        }
    }

    #[test]
    fn a_zombie_and_another_user_are_left_alone() {
        assert!(belongs_to(
            "Name:\tx\nState:\tS (sleeping)\nUid:\t0\t1000\t0\t0\n",
            1000
        ));
        assert!(!belongs_to(
            "State:\tZ (zombie)\nUid:\t1000\t1000\t1000\t1000\n",
            1000
        ));
        assert!(!belongs_to("State:\tR\nUid:\t10001\t10001\t10001\t10001\n", 1000));
    }
}
