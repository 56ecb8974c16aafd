//! Paths that can only stay below a directory: walked by descriptor, one component at a time, no link followed.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::StoreError;

const DIRECTORY: OFlags = OFlags::DIRECTORY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC)
    .union(OFlags::RDONLY);

/// A file below the root: directories, then a last component. Holds no component that could lead elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    directories: Vec<String>,
    last: String,
}

impl Place {
    /// `name` is a relative path with `/`, refused by the same rules as on the wire (`ArtifactName` of the protocol):
    /// no empty component, `.` or `..`, no control character, no backslash, at most 512 bytes.
    pub(super) fn new(prefix: &[&str], name: &str) -> Result<Self, StoreError> {
        let refuse = || StoreError::Name(name.escape_debug().take(80).collect());
        if name.is_empty() || name.len() > 512 || name.chars().any(|c| c.is_control() || c == '\\') {
            return Err(refuse());
        }
        let mut directories: Vec<String> = prefix.iter().map(|part| (*part).to_owned()).collect();
        for part in name.split('/') {
            if part.is_empty() || part == "." || part == ".." || part.len() > 255 {
                return Err(refuse());
            }
            directories.push(part.to_owned());
        }
        let last = directories.pop().ok_or_else(refuse)?;
        Ok(Self { directories, last })
    }

    /// The last component.
    pub(super) fn last(&self) -> &str {
        &self.last
    }

    /// For error messages only.
    pub(super) fn path(&self, root: &Path) -> PathBuf {
        root.join(self.directories.join("/")).join(&self.last)
    }

    /// The directory that holds it.
    pub(super) fn parent(&self, root: &OwnedFd, create: bool) -> io::Result<OwnedFd> {
        directory(root, &self.directories, create)
    }

    /// Removes the file. Absent is success.
    pub(super) fn remove(&self, root: &OwnedFd) -> io::Result<()> {
        let removed = self
            .parent(root, false)
            .and_then(|parent| Ok(rustix::fs::unlinkat(&parent, &self.last, AtFlags::empty())?));
        match removed {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Moves the file over whatever file is there; says whether it was here.
    pub(super) fn rename(&self, root: &OwnedFd, to: &Self) -> io::Result<bool> {
        let from = match self.parent(root, false) {
            Ok(parent) => parent,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        match rustix::fs::renameat(&from, &self.last, &to.parent(root, true)?, &to.last) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens the file if it exists, and refuses anything that is not a plain file.
    pub(super) fn open(&self, root: &OwnedFd, flags: OFlags) -> io::Result<Option<(File, u64)>> {
        let parent = match self.parent(root, false) {
            Ok(parent) => parent,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        // NONBLOCK: a fifo somebody planted must not hold the thread.
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = match rustix::fs::openat(&parent, &self.last, flags, Mode::RUSR | Mode::WUSR) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a plain file"));
        }
        Ok(Some((file, metadata.len())))
    }
}

/// Makes the root and what is above it.
pub(super) fn create_root(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

/// The root itself may be reached through links: the operator named it.
pub(super) fn open_root(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(
        path,
        OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY,
        Mode::empty(),
    )?)
}

/// Walks down from `root`. `NotFound` when a component is absent and `create` is false.
pub(super) fn directory<S: AsRef<str>>(
    root: &OwnedFd,
    components: &[S],
    create: bool,
) -> io::Result<OwnedFd> {
    let mut current = root.try_clone()?;
    for component in components {
        let component = component.as_ref();
        if create {
            match rustix::fs::mkdirat(&current, component, Mode::RWXU) {
                // Synced, or a power cut could lose the directory of a file that was synced itself.
                Ok(()) => rustix::fs::fsync(&current)?,
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        current = rustix::fs::openat(&current, component, DIRECTORY, Mode::empty())?;
    }
    Ok(current)
}

/// Removes the plain files of a directory of ours, and says how many there were.
pub(super) fn empty(root: &OwnedFd, components: &[&str]) -> io::Result<usize> {
    let handle = directory(root, components, false)?;
    let mut removed = 0;
    for entry in Dir::read_from(&handle)? {
        let entry = entry?;
        if entry.file_type() != FileType::Directory {
            rustix::fs::unlinkat(&handle, entry.file_name(), AtFlags::empty())?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// What is in a directory of ours; an absent one is empty.
pub(super) fn names<S: AsRef<str>>(root: &OwnedFd, components: &[S]) -> io::Result<Vec<String>> {
    let handle = match directory(root, components, false) {
        Ok(handle) => handle,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in Dir::read_from(&handle)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name != "." && name != ".." {
            names.push(name);
        }
    }
    Ok(names)
}

/// Removes a directory with everything below it. Absent is success.
pub(super) fn clear(root: &OwnedFd, components: &[&str]) -> io::Result<()> {
    let Some((last, above)) = components.split_last() else {
        return Ok(());
    };
    let cleared = directory(root, components, false)
        .and_then(|handle| clear_in(&handle))
        .and_then(|()| {
            let above = directory(root, above, false)?;
            Ok(rustix::fs::unlinkat(&above, *last, AtFlags::REMOVEDIR)?)
        });
    match cleared {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn clear_in(handle: &OwnedFd) -> io::Result<()> {
    for entry in Dir::read_from(handle)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let flags = if entry.file_type() == FileType::Directory {
            clear_in(&rustix::fs::openat(handle, name, DIRECTORY, Mode::empty())?)?;
            AtFlags::REMOVEDIR
        } else {
            AtFlags::empty()
        };
        rustix::fs::unlinkat(handle, name, flags)?;
    }
    Ok(())
}

/// What an unprivileged writer could still use.
pub(super) fn free_bytes(root: &OwnedFd) -> io::Result<u64> {
    let usage = rustix::fs::fstatvfs(root)?;
    Ok(usage.f_bavail.saturating_mul(usage.f_frsize))
}
