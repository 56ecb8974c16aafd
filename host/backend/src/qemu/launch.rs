//! Starting QEMU as nobody, with exactly the descriptors it was meant to have.
//!
//! A descriptor meant for one child must not be inheritable in the daemon even for a moment: another thread may
//! start another child just then. So a short-lived thread takes a descriptor table of its own (`CLONE_FILES`
//! unshared), makes the chosen descriptors inheritable there, starts the child, and ends with its table.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sched::CloneFlags;
use rustix::io::FdFlags;
use rustix::process::{Pid, Resource, Rlimit};

use super::process::Identity;

/// Executes a program in a session of its own, in the same process.
const SETSID: &str = "/usr/bin/setsid";
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
        self.restrain(identity.pid);
        Ok(identity)
    }

    fn start_here(&self) -> io::Result<Identity> {
        nix::sched::unshare(CloneFlags::CLONE_FILES)?;
        for descriptor in &self.descriptors {
            rustix::io::fcntl_setfd(descriptor, FdFlags::empty())?;
        }
        let setsid = Path::new(SETSID);
        let mut command = if setsid.exists() {
            let mut command = Command::new(setsid);
            command.arg(&self.program);
            command
        } else {
            // Without util-linux: a process group of its own keeps the terminal's signals away.
            let mut command = Command::new(&self.program);
            command.process_group(0);
            command
        };
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

    /// Limits that can be set from outside. A daemon without CAP_SYS_RESOURCE cannot set them; its own unit's
    /// limits then hold for its children too.
    fn restrain(&self, pid: i32) {
        let Some(target) = Pid::from_raw(pid) else { return };
        let limits = [
            (Resource::Core, 0),
            (Resource::Fsize, self.max_file_bytes),
            (Resource::Nofile, MAX_FILES),
            (Resource::Nproc, MAX_THREADS),
        ];
        for (resource, limit) in limits {
            let limit = Rlimit {
                current: Some(limit),
                maximum: Some(limit),
            };
            if let Err(error) = rustix::process::prlimit(Some(target), resource, limit) {
                tracing::debug!(pid, ?resource, %error, "limit not set");
            }
        }
        if let Err(error) = std::fs::write(format!("/proc/{pid}/oom_score_adj"), OOM_SCORE) {
            tracing::debug!(pid, %error, "OOM score not raised");
        }
    }
}
