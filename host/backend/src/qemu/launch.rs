//! Starting QEMU as nobody, with exactly the descriptors it was meant to have.
//!
//! A descriptor meant for one child must not be inheritable in the daemon even for a moment: another thread may
//! start another child just then. So a short-lived thread takes a descriptor table of its own (`CLONE_FILES`
//! unshared), closes everything else in it, makes the chosen descriptors inheritable there, starts the child, and
//! ends with its table.
//!
//! Session and limits are the child's own to set, so util-linux's `setsid` and `prlimit` do it, each turning into the
//! next by exec: one process, whose id is QEMU's. Setting limits from outside would take CAP_SYS_RESOURCE.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::sched::CloneFlags;
use rustix::io::FdFlags;

use super::process::Identity;

const SETSID: &str = "/usr/bin/setsid";
const PRLIMIT: &str = "/usr/bin/prlimit";
/// QEMU's threads: its processors, its loop, and at most 64 workers; and some air.
const MAX_THREADS: u64 = 512;
const MAX_FILES: u64 = 1024;
/// The kernel's OOM killer takes a sandbox before it takes the host's services.
const OOM_SCORE: &str = "500";

/// What to start, and as whom.
#[derive(Debug)]
pub(super) struct Launch {
    pub(super) program: PathBuf,
    pub(super) arguments: Vec<OsString>,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Takes what the program complains about.
    pub(super) stderr: File,
    /// Keep their numbers in the child; closed here once it is started.
    pub(super) descriptors: Vec<OwnedFd>,
    /// No file of the child's grows beyond this.
    pub(super) max_file_bytes: u64,
}

impl Launch {
    /// Starts it. Blocks for as long as starting a process takes. The child is waited for through its pidfd.
    pub(super) fn start(self) -> io::Result<Identity> {
        let started = std::thread::scope(|scope| {
            std::thread::Builder::new()
                .name("launch".to_owned())
                .spawn_scoped(scope, || self.start_here())?
                .join()
                .map_err(|_| io::Error::other("the launching thread panicked"))
        });
        let identity = started??;
        offer_to_oom_killer(identity.pid);
        Ok(identity)
    }

    fn start_here(&self) -> io::Result<Identity> {
        nix::sched::unshare(CloneFlags::CLONE_FILES)?;
        self.close_all_others()?;
        for descriptor in &self.descriptors {
            rustix::io::fcntl_setfd(descriptor, FdFlags::empty())?;
        }
        let mut command = Command::new(SETSID);
        command
            .arg(PRLIMIT)
            .args(["--core=0:0", &format!("--fsize={0}:{0}", self.max_file_bytes)])
            .args([
                format!("--nofile={MAX_FILES}:{MAX_FILES}"),
                format!("--nproc={MAX_THREADS}:{MAX_THREADS}"),
            ])
            .arg(&self.program);
        // Changing the user as root also empties the supplementary groups.
        let child = command
            .args(&self.arguments)
            .env_clear()
            .current_dir("/")
            .uid(self.uid)
            .gid(self.gid)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(self.stderr.try_clone()?)
            .spawn()?;
        let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
        // Not waited for by anyone yet, so the id is still the child's, even if it has ended.
        Identity::of(pid)
    }

    /// Closes what this thread's table holds besides our descriptors: what the daemon itself inherited without
    /// close-on-exec would go on to the child. Only numbers of this private table; nobody else sees them close.
    fn close_all_others(&self) -> io::Result<()> {
        let kept: Vec<RawFd> = self
            .descriptors
            .iter()
            .map(AsRawFd::as_raw_fd)
            .chain([self.stderr.as_raw_fd()])
            .collect();
        let open = fs::read_dir("/proc/thread-self/fd")?
            .map(|entry| {
                entry?
                    .file_name()
                    .to_string_lossy()
                    .parse::<RawFd>()
                    .map_err(io::Error::other)
            })
            .collect::<io::Result<Vec<_>>>()?;
        for number in open {
            if number > 2 && !kept.contains(&number) {
                // The directory's own number is closed already.
                nix::unistd::close(number).ok();
            }
        }
        Ok(())
    }
}

fn offer_to_oom_killer(pid: i32) {
    if let Err(error) = fs::write(format!("/proc/{pid}/oom_score_adj"), OOM_SCORE) {
        tracing::debug!(pid, %error, "OOM score not raised");
    }
}
