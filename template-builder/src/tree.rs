//! Changes to a root tree from the outside.
//!
//! A root tree is full of absolute symbolic links (`/var/run -> /run`), and we are root: following one of them with
//! an ordinary path would write to the build host. Every path here is resolved by the kernel inside the tree
//! (`openat2`, `RESOLVE_IN_ROOT`), and the last component is never followed.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use crate::error::{During, Result, TemplateError};

const DIR: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC).union(OFlags::RDONLY);

/// A root tree. Paths are those that the guest will see; a leading `/` may be left out.
#[derive(Debug)]
pub struct Tree {
    root: OwnedFd,
    path: PathBuf,
}

impl Tree {
    /// Opens the tree below a directory of the build host.
    ///
    /// # Errors
    /// When it is not a directory that can be opened.
    pub fn open(path: &Path) -> Result<Self> {
        let root = rustix::fs::openat(CWD, path, DIR, Mode::empty()).during("open", path)?;
        Ok(Self {
            root,
            path: path.to_owned(),
        })
    }

    /// Where the tree stands on the build host.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn shown(&self, path: &str) -> PathBuf {
        self.path.join(path.trim_start_matches('/'))
    }

    fn directory(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        rustix::fs::openat2(&self.root, path, DIR, Mode::empty(), ResolveFlags::IN_ROOT)
    }

    /// The directory a path lies in, opened, and its last component.
    fn parent(&self, path: &str) -> Result<(rustix::io::Result<OwnedFd>, OsString)> {
        let relative = Path::new(path.trim_start_matches('/'));
        let plain = relative
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
        match relative.file_name() {
            Some(name) if plain => Ok((
                self.directory(relative.parent().unwrap_or(Path::new(""))),
                name.to_owned(),
            )),
            Some(_) | None => Err(TemplateError::Tree {
                problem: format!("cannot hold a file at `{path}`"),
            }),
        }
    }

    /// Content of a regular file; `None` when there is none. Links on the way are followed inside the tree.
    ///
    /// # Errors
    /// When it exists and cannot be read.
    pub fn read(&self, path: &str) -> Result<Option<Vec<u8>>> {
        let relative = path.trim_start_matches('/');
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        match rustix::fs::openat2(&self.root, relative, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
            Ok(file) => {
                let mut bytes = Vec::new();
                File::from(file)
                    .read_to_end(&mut bytes)
                    .during("read", &self.shown(path))?;
                Ok(Some(bytes))
            }
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(refused) => Err(refused).during("open", &self.shown(path)),
        }
    }

    /// Writes a file, in place of whatever was there; missing directories are made.
    ///
    /// # Errors
    /// When the path is not plain or the file system refuses.
    pub fn write(&self, path: &str, bytes: &[u8], mode: u32) -> Result<()> {
        let shown = self.shown(path);
        self.remove(path)?;
        self.make_parents(path)?;
        let (parent, name) = self.parent(path)?;
        let parent = parent.during("open the directory of", &shown)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file =
            rustix::fs::openat(&parent, &name, flags, Mode::RUSR | Mode::WUSR).during("create", &shown)?;
        let mut file = File::from(file);
        file.write_all(bytes).during("write", &shown)?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode)).during("set the mode of", &shown)
    }

    /// Writes new content into a regular file that is there, whose owner and mode stay.
    ///
    /// # Errors
    /// When there is none, it is a link, or the file system refuses.
    pub fn rewrite(&self, path: &str, bytes: &[u8]) -> Result<()> {
        let shown = self.shown(path);
        let (parent, name) = self.parent(path)?;
        let parent = parent.during("open the directory of", &shown)?;
        let flags = OFlags::WRONLY | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&parent, &name, flags, Mode::empty()).during("open", &shown)?;
        File::from(file).write_all(bytes).during("write", &shown)
    }

    /// Makes a symbolic link, in place of whatever was there.
    ///
    /// # Errors
    /// When the path is not plain or the file system refuses.
    pub fn link(&self, path: &str, target: &str) -> Result<()> {
        self.remove(path)?;
        self.make_parents(path)?;
        let (parent, name) = self.parent(path)?;
        let parent = parent.during("open the directory of", &self.shown(path))?;
        rustix::fs::symlinkat(target, &parent, &name).during("link", &self.shown(path))
    }

    /// Makes a directory and those above it; one that is there keeps its mode.
    ///
    /// # Errors
    /// When the path is not plain or the file system refuses.
    pub fn make_dir(&self, path: &str, mode: u32) -> Result<()> {
        self.make_parents(path)?;
        let (parent, name) = self.parent(path)?;
        let parent = parent.during("open the directory of", &self.shown(path))?;
        match rustix::fs::mkdirat(&parent, &name, Mode::RWXU) {
            Ok(()) => {
                let made = rustix::fs::openat(&parent, &name, DIR | OFlags::NOFOLLOW, Mode::empty());
                let made = made.during("open", &self.shown(path))?;
                rustix::fs::fchmod(&made, Mode::from_raw_mode(mode))
                    .during("set the mode of", &self.shown(path))
            }
            Err(Errno::EXIST) => Ok(()),
            Err(refused) => Err(refused).during("make the directory", &self.shown(path)),
        }
    }

    fn make_parents(&self, path: &str) -> Result<()> {
        let (parent, _) = self.parent(path)?;
        match parent {
            Ok(_) => Ok(()),
            Err(Errno::NOENT) => {
                let above = Path::new(path)
                    .parent()
                    .and_then(Path::to_str)
                    .unwrap_or_default();
                self.make_dir(above, 0o755)
            }
            Err(refused) => Err(refused).during("open the directory of", &self.shown(path)),
        }
    }

    /// Gives a file or directory, not what is in it, to somebody.
    ///
    /// # Errors
    /// When there is none or the file system refuses.
    pub fn give(&self, path: &str, owner: (u32, u32)) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        let parent = parent.during("open the directory of", &self.shown(path))?;
        let (uid, gid) = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
        rustix::fs::chownat(&parent, &name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .during("give away", &self.shown(path))
    }

    /// Sets the mode of a file.
    ///
    /// # Errors
    /// When there is none, it is a link, or the file system refuses.
    pub fn protect(&self, path: &str, mode: u32) -> Result<()> {
        let shown = self.shown(path);
        let (parent, name) = self.parent(path)?;
        let parent = parent.during("open the directory of", &shown)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&parent, &name, flags, Mode::empty()).during("open", &shown)?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode)).during("set the mode of", &shown)
    }

    /// Removes a file, link or directory with all in it. Absent is success.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn remove(&self, path: &str) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        match parent {
            Ok(parent) => remove_at(parent.as_fd(), &name).during("remove", &self.shown(path)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
            Err(refused) => Err(refused).during("open the directory of", &self.shown(path)),
        }
    }

    /// Names in a directory, sorted; none when there is no such directory. Links on the way are followed inside.
    ///
    /// # Errors
    /// When it exists and cannot be read.
    pub fn names(&self, path: &str) -> Result<Vec<String>> {
        match self.directory(Path::new(path.trim_start_matches('/'))) {
            Ok(directory) => {
                let mut names = Vec::new();
                for (name, _) in entries(directory.as_fd()).during("read", &self.shown(path))? {
                    names.push(name.to_string_lossy().into_owned());
                }
                names.sort_unstable();
                Ok(names)
            }
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(Vec::new()),
            Err(refused) => Err(refused).during("open", &self.shown(path)),
        }
    }

    /// Whether something is at a path, a dangling link included.
    #[must_use]
    pub fn has(&self, path: &str) -> bool {
        match self.parent(path) {
            Ok((Ok(parent), name)) => rustix::fs::statat(&parent, &name, AtFlags::SYMLINK_NOFOLLOW).is_ok(),
            Ok((Err(_), _)) | Err(_) => false,
        }
    }

    /// Removes every regular file below a directory and keeps the directories.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn empty_files(&self, path: &str) -> Result<()> {
        match self.directory(Path::new(path.trim_start_matches('/'))) {
            Ok(directory) => empty_files_at(directory.as_fd()).during("empty", &self.shown(path)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
            Err(refused) => Err(refused).during("open", &self.shown(path)),
        }
    }

    /// Sets access and change times of everything to the change time, but never later than `latest` (seconds since
    /// the epoch), so that the time of the build does not show in the image.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn clamp_times(&self, latest: i64) -> Result<()> {
        // Content first: setting the times of an entry must not be undone by work inside it.
        for entry in walkdir::WalkDir::new(&self.path)
            .contents_first(true)
            .follow_links(false)
        {
            let entry = entry.map_err(std::io::Error::from).during("walk", &self.path)?;
            let seen = rustix::fs::statat(CWD, entry.path(), AtFlags::SYMLINK_NOFOLLOW)
                .during("look at", entry.path())?;
            let seconds = seen.st_mtime.min(latest);
            let time = Timespec {
                tv_sec: seconds,
                tv_nsec: 0,
            };
            let times = Timestamps {
                last_access: time,
                last_modification: time,
            };
            rustix::fs::utimensat(CWD, entry.path(), &times, AtFlags::SYMLINK_NOFOLLOW)
                .during("set the times of", entry.path())?;
        }
        Ok(())
    }
}

fn entries(directory: BorrowedFd<'_>) -> rustix::io::Result<Vec<(OsString, FileType)>> {
    let mut found = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            found.push((name.to_owned(), entry.file_type()));
        }
    }
    Ok(found)
}

fn remove_at(parent: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        // Linux says ISDIR, POSIX allows PERM.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(refused) => return Err(refused),
    }
    let directory = rustix::fs::openat(parent, name, DIR | OFlags::NOFOLLOW, Mode::empty())?;
    for (inside, _) in entries(directory.as_fd())? {
        remove_at(directory.as_fd(), &inside)?;
    }
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}

fn empty_files_at(directory: BorrowedFd<'_>) -> rustix::io::Result<()> {
    for (name, kind) in entries(directory)? {
        if kind == FileType::Directory {
            let inside = rustix::fs::openat(directory, &name, DIR | OFlags::NOFOLLOW, Mode::empty())?;
            empty_files_at(inside.as_fd())?;
        } else {
            rustix::fs::unlinkat(directory, &name, AtFlags::empty())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn an_absolute_link_in_the_tree_never_leads_to_the_build_host() {
        let host = tempfile::tempdir().unwrap();
        let outside = host.path().join("outside");
        fs::create_dir(&outside).unwrap();
        let inside = host.path().join("tree");
        fs::create_dir_all(inside.join("run")).unwrap();
        fs::create_dir(inside.join("var")).unwrap();
        symlink("/run", inside.join("var/run")).unwrap();
        symlink(&outside, inside.join("escape")).unwrap();
        symlink("../../../../../../../../etc/passwd", inside.join("var/passwd")).unwrap();
        let tree = Tree::open(&inside).unwrap();

        tree.write("/var/run/seen", b"1", 0o644).unwrap();
        assert_eq!(fs::read(inside.join("run/seen")).unwrap(), b"1");
        assert!(
            tree.write("/escape/seen", b"1", 0o644).is_err() || inside.join(&outside).join("seen").exists()
        );
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        assert_eq!(tree.read("/var/passwd").unwrap(), None);
        tree.write("/var/passwd", b"ours", 0o600).unwrap();
        assert_eq!(fs::read(inside.join("var/passwd")).unwrap(), b"ours");
        assert!(tree.write("/../seen", b"1", 0o644).is_err());
    }

    #[test]
    fn removing_takes_a_link_and_not_what_it_points_to() {
        let host = tempfile::tempdir().unwrap();
        let inside = host.path();
        fs::create_dir_all(inside.join("kept/deep")).unwrap();
        fs::create_dir_all(inside.join("gone/deep")).unwrap();
        fs::write(inside.join("kept/deep/file"), "").unwrap();
        symlink("../kept", inside.join("gone/link")).unwrap();
        let tree = Tree::open(inside).unwrap();
        tree.remove("gone").unwrap();
        tree.remove("gone").unwrap();
        assert!(!inside.join("gone").exists() && inside.join("kept/deep/file").exists());
    }

    #[test]
    fn a_written_file_has_exactly_the_mode_asked_for_whatever_the_umask() {
        let host = tempfile::tempdir().unwrap();
        let tree = Tree::open(host.path()).unwrap();
        tree.write("/new/dir/tool", b"#!", 0o4777).unwrap();
        let mode = |path: &str| fs::metadata(host.path().join(path)).unwrap().permissions().mode() & 0o7777;
        assert_eq!(
            (mode("new/dir/tool"), mode("new/dir"), mode("new")),
            (0o4777, 0o755, 0o755)
        );
    }

    #[test]
    fn times_are_clamped_for_links_and_directories_too() {
        let host = tempfile::tempdir().unwrap();
        let tree = Tree::open(host.path()).unwrap();
        tree.write("/d/f", b"", 0o644).unwrap();
        tree.link("/d/l", "nowhere").unwrap();
        tree.clamp_times(1_000).unwrap();
        for path in ["d", "d/f", "d/l"] {
            let seen = rustix::fs::statat(CWD, host.path().join(path), AtFlags::SYMLINK_NOFOLLOW).unwrap();
            assert_eq!((seen.st_mtime, seen.st_atime), (1_000, 1_000), "{path}");
        }
    }
}
