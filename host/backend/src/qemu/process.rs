//! Which process is a machine's QEMU. A process id alone names nobody: it is recycled. The id together with the
//! time the process started and the boot it started in names one process for all time, and a pidfd, opened
//! first and checked after, makes waiting and killing free of races.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;

use crate::Usage;

/// Ticks per second in `/proc/<pid>/stat`; a constant of the kernel's user interface on every Linux.
const MILLISECONDS_PER_TICK: u64 = 10;

/// Names one process for all time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    pub(super) pid: i32,
    /// Ticks since boot, from `/proc/<pid>/stat`.
    pub(super) start_time: u64,
    /// Which boot those ticks count from.
    pub(super) boot_id: String,
}

/// A living process, held so that it cannot be mistaken for another.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) identity: Identity,
    pidfd: AsyncFd<OwnedFd>,
}

/// What `/proc/<pid>/stat` says.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    is_dead: bool,
    cpu_ticks: u64,
    start_time: u64,
}

/// The command name may hold spaces and parentheses: fields count from the last `)`.
fn parse_stat(text: &str) -> Option<Stat> {
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let number = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok());
    Some(Stat {
        is_dead: matches!(*fields.first()?, "Z" | "X" | "x"),
        cpu_ticks: number(11)?.saturating_add(number(12)?),
        start_time: number(19)?,
    })
}

fn read_stat(pid: i32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// A value of `/proc/<pid>/status`, first word only.
fn status_word(pid: i32, key: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    line.split_ascii_whitespace().next().map(str::to_owned)
}

/// Which boot this is.
pub(super) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

/// The living QEMU of a machine, by its user and by the sandbox's UUID among its arguments: found even where the record
/// of its id was never written. The user alone proves nothing, because another daemon on this host may give the same
/// uids out; and its descriptors cannot be looked at without the right to trace.
pub(super) fn of_machine(uid: u32, sandbox: &str) -> Vec<i32> {
    living()
        .filter(|pid| user_of(*pid) == Some(uid) && has_argument(*pid, sandbox))
        .collect()
}

/// Real users of all living processes.
pub(super) fn users() -> HashSet<u32> {
    living().filter_map(user_of).collect()
}

fn living() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten();
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| read_stat(*pid).is_some_and(|stat| !stat.is_dead))
}

fn user_of(pid: i32) -> Option<u32> {
    status_word(pid, "Uid")?.parse().ok()
}

fn has_argument(pid: i32, wanted: &str) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0)
        .any(|argument| argument == wanted.as_bytes())
}

impl Identity {
    /// Names the process that has this id now. It must be known to live: a child not yet waited for, or one
    /// found by its user.
    pub(super) fn of(pid: i32) -> io::Result<Self> {
        let stat = read_stat(pid).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        Ok(Self {
            pid,
            start_time: stat.start_time,
            boot_id: boot_id()?,
        })
    }

    /// Names this very process.
    pub(super) fn of_self() -> io::Result<Self> {
        Self::of(i32::try_from(std::process::id()).map_err(io::Error::other)?)
    }

    /// Takes hold of the process; `None` when it no longer lives.
    pub(super) fn hold(&self) -> io::Result<Option<Process>> {
        Ok(self.hold_child()?.filter(Process::is_alive))
    }

    /// Takes hold of a child that nobody waited for yet, which may have ended already.
    #[expect(
        deprecated,
        reason = "unsound only for types that give away or replace their descriptor; OwnedFd keeps it"
    )]
    pub(super) fn hold_child(&self) -> io::Result<Option<Process>> {
        if boot_id()? != self.boot_id {
            return Ok(None);
        }
        let Some(pid) = Pid::from_raw(self.pid) else {
            return Ok(None);
        };
        let pidfd = match rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK) {
            Ok(pidfd) => pidfd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // Checked after the pidfd is open: from here on it names this process and no other.
        match read_stat(self.pid) {
            Some(stat) if stat.start_time == self.start_time => Ok(Some(Process {
                identity: self.clone(),
                pidfd: AsyncFd::new(pidfd)?,
            })),
            Some(_) | None => Ok(None),
        }
    }
}

impl Process {
    /// Waits until it has ended, whosever child it is, and reaps it where it is ours.
    pub(super) async fn ended(&self) -> io::Result<()> {
        self.exit_code().await.map(drop)
    }

    /// Waits until it has ended; its exit code where it is our child, nobody reaped it before, and no signal ended
    /// it.
    pub(super) async fn exit_code(&self) -> io::Result<Option<i32>> {
        drop(self.pidfd.readable().await?);
        // Not our child after a daemon restart: then there is nothing to reap, and the error says just that.
        let reaped = rustix::process::waitid(
            WaitId::PidFd(self.pidfd.get_ref().as_fd()),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
        );
        Ok(reaped.ok().flatten().and_then(|status| status.exit_status()))
    }

    pub(super) fn is_alive(&self) -> bool {
        read_stat(self.identity.pid)
            .is_some_and(|stat| stat.start_time == self.identity.start_time && !stat.is_dead)
    }

    /// Kills it; gone already is success.
    pub(super) fn kill(&self) -> io::Result<()> {
        match rustix::process::pidfd_send_signal(self.pidfd.get_ref(), Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn usage(&self) -> Option<Usage> {
        let pid = self.identity.pid;
        let stat = read_stat(pid).filter(|stat| stat.start_time == self.identity.start_time)?;
        let resident_kib: u64 = status_word(pid, "VmRSS")
            .and_then(|word| word.parse().ok())
            .unwrap_or(0);
        let cpu = Duration::from_millis(stat.cpu_ticks.saturating_mul(MILLISECONDS_PER_TICK));
        Some(Usage {
            cpu_seconds: cpu.as_secs_f64(),
            memory_bytes: resident_kib.saturating_mul(1024),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_name_cannot_forge_the_fields_behind_it() {
        let line = "42 (x) Z 1 2) S 1 42 42 0 -1 4194560 1 0 0 0 7 5 0 0 20 0 1 0 987654 1 1";
        assert_eq!(
            parse_stat(line),
            Some(Stat {
                is_dead: false,
                cpu_ticks: 12,
                start_time: 987_654
            })
        );
        assert_eq!(parse_stat("42 (short) S 1"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[tokio::test]
    async fn a_recycled_process_id_is_not_taken_for_the_process_that_had_it() {
        let own = Identity::of_self().unwrap();
        assert!(own.hold().unwrap().is_some());
        let earlier = Identity {
            start_time: own.start_time - 1,
            ..own.clone()
        };
        assert!(earlier.hold().unwrap().is_none());
        let other_boot = Identity {
            boot_id: "another".to_owned(),
            ..own
        };
        assert!(other_boot.hold().unwrap().is_none());
    }
}
