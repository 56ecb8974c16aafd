//! What only root may do about memory-backed files: mount a tmpfs, and prove that a path really is on one.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::mount::MountFlags;

/// `TMPFS_MAGIC` of linux/magic.h.
const TMPFS_MAGIC: i128 = 0x0102_1994;

/// Mounts a tmpfs over `path`, without setuid, devices or execution.
pub(crate) fn mount_tmpfs(path: &Path, mode: u32, bytes: u64) -> io::Result<()> {
    let mount = |options: String| -> io::Result<()> {
        let options = CString::new(options).map_err(io::Error::other)?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        Ok(rustix::mount::mount(
            "agentlab",
            path,
            "tmpfs",
            flags,
            options.as_c_str(),
        )?)
    };
    let options = format!("mode={mode:04o},size={bytes}");
    match mount(format!("{options},noswap")) {
        // Linux before 6.4; that no swap is active was looked at before.
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => mount(options),
        done => done,
    }
}

/// The file is on a tmpfs. Asked of the open file, so that no path can change between question and use.
pub(crate) fn is_on_tmpfs(file: impl AsFd) -> io::Result<bool> {
    Ok(i128::from(rustix::fs::fstatfs(file)?.f_type) == TMPFS_MAGIC)
}

/// Another file system begins at `path`.
pub(crate) fn is_mount_point(path: &Path) -> io::Result<bool> {
    let own = rustix::fs::stat(path)?;
    let above = rustix::fs::stat(path.join(".."))?;
    Ok(own.st_dev != above.st_dev)
}

/// Opens a directory that is not itself a symbolic link.
pub(crate) fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Swap areas named in a table like `/proc/swaps`. Anything there could write a tmpfs page to a disk.
pub(crate) fn swap_areas(table: &Path) -> io::Result<Vec<String>> {
    let text = std::fs::read_to_string(table)?;
    Ok(text
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect())
}
