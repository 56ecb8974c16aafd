//! The disk that outlives this machine: found by its serial number, made a file system of once in its life, mounted at
//! `/work` before anything begins, and unmounted before the machine ends. There is no second choice: work on the
//! machine's own disk would be lost with it.
//!
//! ```text
//!   order ─► disk of the serial number ─► blank? ── make (only if ordered) ─┐
//!                                      └► ext4 of the ordered UUID ─ e2fsck ─┴─► mount ─► grow ─► set aside
//! ```
//!
//! What is on it was written by an earlier guest. It is mounted without devices and setuid, and nothing of it is executed
//! here.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use agentlab_protocol::message::{Heartbeat, Phase};
use agentlab_protocol::workspace::{LABEL, SERIAL, WorkspaceNews, WorkspaceOrder};
use rustix::mount::{MountFlags, UnmountFlags};
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};

use crate::job::{HostLink, Layout, end_user};
use crate::sys_mount;

/// A disk's driver may take a moment to show it.
const APPEARANCE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(50);
/// A file system is made in a second, also a large one; e2fsck reads all of one that was not unmounted cleanly and has
/// errors.
const MAKE: Duration = Duration::from_secs(10 * 60);
const CHECK: Duration = Duration::from_secs(60 * 60);
/// Processes that were killed let go of their directories a moment later.
const UNMOUNT: Duration = Duration::from_secs(15);
/// Where the tools are.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
/// What is read of a disk to call it blank, at its beginning, at its end, and at places between.
const EDGE: u64 = 4 << 20;
const SAMPLES: u64 = 256;
const SAMPLE: u64 = 4096;
/// Where ext4 keeps its superblock, and what of it tells whose it is.
const SUPERBLOCK: u64 = 1024;
const MAGIC: (usize, [u8; 2]) = (0x38, [0x53, 0xef]);
const UUID: usize = 0x68;

/// Why there is no workspace. Nothing was begun on another disk instead.
#[derive(Debug, thiserror::Error)]
pub enum WorkspaceError {
    /// The hypervisor shows none.
    #[error("No disk with the serial number {SERIAL} appeared within {} s", APPEARANCE.as_secs())]
    Absent,
    /// More than one claims to be it.
    #[error("{0} disks have the serial number {SERIAL}")]
    Several(usize),
    /// It is blank, and was not when a guest had it last.
    #[error("The disk is blank, and there was a file system on it: it was not made again")]
    Emptied,
    /// Something else is on it.
    #[error("The disk holds {0}: it was left as it is")]
    Foreign(String),
    /// A tool is missing or failed.
    #[error("{tool}: {reason}")]
    Tool {
        /// Which.
        tool: &'static str,
        /// Its words.
        reason: String,
    },
    /// The kernel refused.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's words.
        source: io::Error,
    },
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> WorkspaceError {
    let path = path.to_owned();
    move |source| WorkspaceError::Io { action, path, source }
}

/// What is on a disk.
#[derive(Debug, PartialEq, Eq)]
enum Content {
    /// Nothing but zeros, wherever one looked.
    Blank,
    /// An ext4 file system of this UUID.
    Ext4(String),
    /// Something else.
    Unknown,
}

/// Mounts the workspace at `layout.work`, ready for work: what an earlier job left in `artifacts` is gone, what it left
/// in `repo` has been set aside for a job, and stays for a person.
///
/// # Errors
/// It cannot be used; what is mounted at `layout.work` is as it was.
pub async fn mount(order: &WorkspaceOrder, layout: &Layout, for_job: bool) -> Result<(), WorkspaceError> {
    let disk = appear(Path::new("/sys/block"), Path::new("/dev")).await?;
    match content(&disk)? {
        Content::Ext4(uuid) if uuid == order.uuid => check(&disk).await?,
        Content::Ext4(uuid) => {
            return Err(WorkspaceError::Foreign(format!(
                "another file system, {uuid} instead of {}",
                order.uuid
            )));
        }
        Content::Blank if order.make => make(&disk, &order.uuid).await?,
        Content::Blank => return Err(WorkspaceError::Emptied),
        Content::Unknown => {
            return Err(WorkspaceError::Foreign(
                "neither nothing nor a file system of ours".to_owned(),
            ));
        }
    }
    mount_at(&disk, &layout.work)?;
    grow(&disk).await;
    let user = &layout.user;
    chown(&layout.work, Some(user.uid), Some(user.gid)).map_err(failed("handing over", &layout.work))?;
    tidy(layout, for_job).map_err(failed("tidying", &layout.work))
}

/// Waits for the disk to appear.
async fn appear(block_dir: &Path, dev_dir: &Path) -> Result<PathBuf, WorkspaceError> {
    let until = Instant::now() + APPEARANCE;
    loop {
        let mut found = disks(block_dir);
        match (found.pop(), found.len()) {
            (Some(name), 0) => {
                let disk = dev_dir.join(name);
                if std::fs::metadata(&disk).is_ok_and(|seen| seen.file_type().is_block_device()) {
                    return Ok(disk);
                }
            }
            (Some(_), others) => return Err(WorkspaceError::Several(others + 1)),
            (None, _) => {}
        }
        if Instant::now() >= until {
            return Err(WorkspaceError::Absent);
        }
        sleep(LOOK).await;
    }
}

/// Names of the disks with the workspace's serial number: virtio-blk shows it as text, SCSI as a page with a header.
fn disks(block_dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(block_dir).into_iter().flatten().flatten();
    let mut found = Vec::new();
    for entry in entries {
        let read = |file: &str| std::fs::read(entry.path().join(file)).unwrap_or_default();
        let (plain, page) = (read("serial"), read("device/vpd_pg80"));
        let is_it = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_matches(['\0', ' ', '\n']) == SERIAL;
        if (is_it(&plain) || is_it(page.get(4..).unwrap_or_default()))
            && let Ok(name) = entry.file_name().into_string()
        {
            found.push(name);
        }
    }
    found
}

fn content(disk: &Path) -> Result<Content, WorkspaceError> {
    let read = || -> io::Result<Content> {
        let file = File::open(disk)?;
        let size = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0))?;
        content_of(&file, size)
    };
    read().map_err(failed("reading", disk))
}

fn content_of(file: &File, size: u64) -> io::Result<Content> {
    let mut superblock = [0; 1024];
    if size >= SUPERBLOCK * 2 {
        file.read_exact_at(&mut superblock, SUPERBLOCK)?;
    }
    let part = |from: usize, to: usize| superblock.get(from..to).unwrap_or_default();
    if part(MAGIC.0, MAGIC.0 + 2) == MAGIC.1 {
        let hex = hex::encode(part(UUID, UUID + 16));
        let group = |from: usize, to: usize| hex.get(from..to).unwrap_or_default();
        let groups = [
            group(0, 8),
            group(8, 12),
            group(12, 16),
            group(16, 20),
            group(20, 32),
        ];
        return Ok(Content::Ext4(groups.join("-")));
    }
    let edges = [(0, EDGE), (size.saturating_sub(EDGE), EDGE)];
    let step = (size / SAMPLES).max(SAMPLE);
    let samples = (1..SAMPLES).map(|number| (number.saturating_mul(step), SAMPLE));
    for (at, length) in edges.into_iter().chain(samples) {
        if !is_zero(file, at, length.min(size.saturating_sub(at)))? {
            return Ok(Content::Unknown);
        }
    }
    Ok(Content::Blank)
}

fn is_zero(file: &File, at: u64, length: u64) -> io::Result<bool> {
    let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, at)?;
    Ok(bytes.iter().all(|byte| *byte == 0))
}

/// Runs a tool of e2fsprogs; its exit code, or its words where that is not one of `fine`.
async fn tool(
    tool: &'static str,
    arguments: &[&str],
    fine: &[i32],
    patience: Duration,
) -> Result<(), WorkspaceError> {
    let refused = |reason: String| WorkspaceError::Tool { tool, reason };
    let mut command = Command::new(tool);
    command
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        .env("LC_ALL", "C.UTF-8")
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true);
    let output = match timeout(patience, command.output()).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => {
            return Err(refused("it is not in this template; build it again".to_owned()));
        }
        Ok(Err(error)) => return Err(refused(error.to_string())),
        Err(_) => return Err(refused(format!("it did not end within {} s", patience.as_secs()))),
    };
    if output.status.code().is_some_and(|code| fine.contains(&code)) {
        return Ok(());
    }
    let words = [output.stdout, output.stderr].concat();
    let words = String::from_utf8_lossy(&words).trim().to_owned();
    let words: String = words.chars().take(1500).collect();
    Err(refused(format!("{}: {words}", output.status)))
}

async fn make(disk: &Path, uuid: &str) -> Result<(), WorkspaceError> {
    let disk = disk.display().to_string();
    let arguments = [
        "-t",
        "ext4",
        "-F",
        "-q",
        "-m",
        "0",
        "-L",
        LABEL,
        "-U",
        uuid,
        "-E",
        "lazy_itable_init=1,lazy_journal_init=1,nodiscard",
        &disk,
    ];
    tool("mke2fs", &arguments, &[0], MAKE).await
}

/// Replays the journal and mends what can be mended without a question; a damage beyond that is an error, and the disk
/// is not mounted.
async fn check(disk: &Path) -> Result<(), WorkspaceError> {
    let disk = disk.display().to_string();
    // 1: errors were corrected. 2 and 3 ask for a reboot, which a file system that is not mounted does not need.
    tool("e2fsck", &["-p", &disk], &[0, 1, 2, 3], CHECK).await
}

/// A volume may have grown. A file system that does not grow is still one.
async fn grow(disk: &Path) {
    let disk = disk.display().to_string();
    if let Err(error) = tool("resize2fs", &[&disk], &[0], CHECK).await {
        crate::console::say(format_args!("the workspace was not grown: {error}"));
    }
}

fn mount_at(disk: &Path, at: &Path) -> Result<(), WorkspaceError> {
    std::fs::create_dir_all(at).map_err(failed("making", at))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
    rustix::mount::mount(disk, at, "ext4", flags, c"errors=remount-ro")
        .map_err(|errno| failed("mounting the workspace at", at)(errno.into()))?;
    let is_there = || -> io::Result<bool> {
        let (device, mounted) = (std::fs::metadata(disk)?, std::fs::metadata(at)?);
        Ok(device.rdev() == mounted.dev())
    };
    match is_there() {
        Ok(true) => Ok(()),
        Ok(false) => Err(failed("looking at", at)(io::Error::other(
            "another file system is mounted there",
        ))),
        Err(error) => Err(failed("looking at", at)(error)),
    }
}

/// Nothing here follows a link: what lies there was made by an earlier guest.
fn tidy(layout: &Layout, for_job: bool) -> io::Result<()> {
    remove(&layout.artifacts())?;
    let repo = layout.repo();
    let is_directory = std::fs::symlink_metadata(&repo).is_ok_and(|seen| seen.is_dir());
    if !is_directory {
        return remove(&repo);
    }
    if for_job {
        remove(&layout.previous())?;
        std::fs::rename(&repo, layout.previous())?;
    }
    Ok(())
}

/// Absent is success.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(seen) if seen.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Ends the agent's processes, writes everything and unmounts. `None` when nothing is mounted there.
pub async fn release(layout: &Layout) -> Option<WorkspaceNews> {
    if !sys_mount::is_mount_point(&layout.work).unwrap_or(false) {
        return None;
    }
    let until = Instant::now() + UNMOUNT;
    loop {
        end_user(layout.user.uid).await;
        rustix::fs::sync();
        match rustix::mount::unmount(&layout.work, UnmountFlags::empty()) {
            Ok(()) => return Some(WorkspaceNews::Released),
            Err(errno) if Instant::now() >= until => {
                return Some(WorkspaceNews::Held {
                    reason: format!("unmounting {}: {errno}", layout.work.display()),
                });
            }
            Err(_) => sleep(LOOK).await,
        }
    }
}

/// Tells the host. What cannot be told now is told by the machine's end.
pub async fn tell<H: HostLink>(host: &H, phase: Phase, news: WorkspaceNews) {
    let beat = Heartbeat {
        phase,
        message: String::new(),
        vitals: None,
        workspace: Some(news),
    };
    if let Err(error) = host.heartbeat(beat).await {
        crate::console::say(format_args!("the host does not know of the workspace: {error}"));
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn disk_of(size: u64) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(size).unwrap();
        file
    }

    #[test]
    fn a_disk_is_blank_only_where_nothing_is_written() {
        let size = 64 << 20;
        let disk = disk_of(size);
        assert_eq!(content_of(disk.as_file(), size).unwrap(), Content::Blank);
        for at in [0, 511, (size / 256) * 17, size - 1] {
            let disk = disk_of(size);
            disk.as_file().write_all_at(b"x", at).unwrap();
            assert_eq!(
                content_of(disk.as_file(), size).unwrap(),
                Content::Unknown,
                "{at}"
            );
        }
        let small = disk_of(100);
        assert_eq!(content_of(small.as_file(), 100).unwrap(), Content::Blank);
    }

    #[tokio::test]
    async fn a_file_system_is_known_by_its_uuid_and_mended_or_refused() {
        let size = 32 << 20;
        let mut disk = disk_of(size);
        let uuid = "01234567-89ab-7cde-8f01-23456789abcd";
        make(disk.path(), uuid).await.unwrap();
        assert_eq!(
            content_of(disk.as_file(), size).unwrap(),
            Content::Ext4(uuid.to_owned())
        );
        check(disk.path()).await.unwrap();
        // What a hostile guest leaves: a superblock that looks like ours, and nothing behind it.
        disk.as_file().set_len(2048).unwrap();
        disk.as_file().set_len(size).unwrap();
        disk.flush().unwrap();
        let error = check(disk.path()).await.unwrap_err();
        assert!(
            matches!(&error, WorkspaceError::Tool { tool: "e2fsck", .. }),
            "{error}"
        );
    }

    #[test]
    fn the_disk_is_known_by_its_serial_number_on_either_bus() {
        let block = tempfile::tempdir().unwrap();
        let put = |name: &str, file: &str, bytes: &[u8]| {
            let path = block.path().join(name).join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        };
        put("vda", "serial", b"root");
        put("sda", "device/vpd_pg80", b"\0\x80\0\x04root");
        assert!(disks(block.path()).is_empty());
        put("vdb", "serial", b"agentlab-work");
        assert_eq!(disks(block.path()), ["vdb"]);
        put("sdb", "device/vpd_pg80", b"\0\x80\0\x0dagentlab-work");
        assert_eq!(disks(block.path()).len(), 2);
    }

    #[test]
    fn what_an_earlier_guest_left_is_set_aside_without_following_a_link() {
        let (work, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(outside.path().join("kept"), "x").unwrap();
        let layout = Layout {
            work: work.path().to_owned(),
            ..Layout::default()
        };
        std::os::unix::fs::symlink(outside.path(), layout.repo()).unwrap();
        std::os::unix::fs::symlink(outside.path(), layout.artifacts()).unwrap();
        tidy(&layout, true).unwrap();
        assert!(outside.path().join("kept").exists());
        assert_eq!(std::fs::read_dir(work.path()).unwrap().count(), 0);

        std::fs::create_dir_all(layout.repo().join(".git")).unwrap();
        std::fs::create_dir_all(layout.previous().join("older")).unwrap();
        std::fs::write(work.path().join("own"), "x").unwrap();
        tidy(&layout, false).unwrap();
        assert!(layout.repo().join(".git").exists(), "a person's repository stays");
        tidy(&layout, true).unwrap();
        assert!(layout.previous().join(".git").exists() && !layout.previous().join("older").exists());
        assert!(!layout.repo().exists() && work.path().join("own").exists());
    }
}
