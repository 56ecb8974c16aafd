//! The agent's own files, `/work/artifacts`, read as root and believed in nothing.
//!
//! Every open is relative to a descriptor and refuses links of every kind, so no name leads out of the directory.
//! A hard link to a file of somebody else is refused by its owner.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agentlab_protocol::message::{ArtifactName, FILES_DIR};
use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags};
use sha2::{Digest as _, Sha256};

use crate::redact::{Needles, Redactor};
use crate::sys_mount;

/// Entries looked at in all; a tree of more is somebody's mistake or joke.
const MAX_ENTRIES: usize = 100_000;
const MAX_DEPTH: usize = 32;

/// Names below the directory, and what was left out with its reason.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    pub(crate) names: Vec<ArtifactName>,
    pub(crate) left_out: Vec<String>,
}

/// A regular file held open: what is uploaded is what was looked at.
#[derive(Debug)]
pub(crate) struct OpenFile {
    file: File,
    pub(crate) size: u64,
}

impl OpenFile {
    /// A file of the runner's own.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let size = file.metadata()?.len();
        Ok(Self { file, size })
    }

    /// A path that opens this very file, for as long as this value lives.
    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    /// The same without the secrets, as a file at `into`, when it is text and holds any. Binary files are left as they
    /// are. Blocks.
    pub(crate) fn without_secrets(
        &mut self,
        needles: &Arc<Needles>,
        into: &Path,
    ) -> io::Result<Option<Self>> {
        if needles.is_empty() || !self.pour(needles, |_| Ok(()))? {
            return Ok(None);
        }
        let mut copy = File::create(into)?;
        self.pour(needles, |bytes| io::Write::write_all(&mut copy, bytes))?;
        Self::open(into).map(Some)
    }

    /// Reads it once through a redactor; whether that found something. What is not text shows at its beginning.
    fn pour(
        &mut self,
        needles: &Arc<Needles>,
        mut sink: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<bool> {
        use std::io::Seek as _;
        self.file.seek(io::SeekFrom::Start(0))?;
        let mut redactor = Redactor::new(Arc::clone(needles));
        let (mut buffer, mut out) = (vec![0; 64 * 1024], Vec::new());
        let mut reader = (&self.file).take(self.size);
        let mut is_beginning = true;
        loop {
            let count = reader.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            if std::mem::take(&mut is_beginning) && buffer[..count].contains(&0) {
                return Ok(false);
            }
            redactor.push(&buffer[..count], &mut out);
            sink(&out)?;
            out.clear();
        }
        redactor.finish(&mut out);
        sink(&out)?;
        Ok(redactor.found())
    }

    /// Lower-case hexadecimal SHA-256 of the first `size` bytes, which must be there. Blocks.
    pub(crate) fn sha256(&mut self) -> io::Result<String> {
        use std::io::Seek as _;
        self.file.seek(io::SeekFrom::Start(0))?;
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 128 * 1024];
        let mut left = self.size;
        let mut reader = (&self.file).take(self.size);
        loop {
            let count = reader.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            hash.update(&buffer[..count]);
            left = left.saturating_sub(u64::try_from(count).unwrap_or(u64::MAX));
        }
        if left > 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file became shorter",
            ));
        }
        Ok(hex::encode(hash.finalize()))
    }
}

/// The directory, opened once.
#[derive(Debug)]
pub(crate) struct Tree {
    directory: OwnedFd,
    /// What stands before the names of its files.
    prefix: String,
    /// Whose files they must be.
    uid: u32,
}

impl Tree {
    /// `directory` itself must not be a link either; its parent belongs to root.
    pub(crate) fn open(directory: &Path, uid: u32) -> io::Result<Self> {
        Ok(Self {
            directory: sys_mount::open_directory(directory)?,
            prefix: FILES_DIR.to_owned(),
            uid,
        })
    }

    /// A directory below one of the agent's own, whose files are named after `prefix`. No part of the way may be a link.
    pub(crate) fn open_within(base: &Path, relative: &str, prefix: &str, uid: u32) -> io::Result<Self> {
        let base = sys_mount::open_directory(base)?;
        Ok(Self {
            directory: open_beneath(&base, relative, OFlags::DIRECTORY)?,
            prefix: prefix.to_owned(),
            uid,
        })
    }

    /// Every regular file below, sorted. Blocks.
    pub(crate) fn list(&self) -> Listing {
        let mut listing = Listing::default();
        let mut entries = 0;
        // Paths relative to the directory, "" is itself.
        let mut waiting = vec![(String::new(), 0)];
        while let Some((relative, depth)) = waiting.pop() {
            if let Err(error) = self.list_one(&relative, depth, &mut entries, &mut waiting, &mut listing) {
                listing
                    .left_out
                    .push(format!("{}: {error}", self.shown(&relative)));
            }
            if entries > MAX_ENTRIES {
                listing.left_out.push(format!(
                    "{}: more than {MAX_ENTRIES} entries; the rest was not looked at",
                    self.prefix
                ));
                break;
            }
        }
        listing.names.sort();
        listing
    }

    fn list_one(
        &self,
        relative: &str,
        depth: usize,
        entries: &mut usize,
        waiting: &mut Vec<(String, usize)>,
        listing: &mut Listing,
    ) -> io::Result<()> {
        let directory = match relative {
            "" => self.directory.try_clone()?,
            _ => self.open_below(relative, OFlags::DIRECTORY)?,
        };
        for entry in Dir::read_from(&directory)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            *entries += 1;
            if *entries > MAX_ENTRIES {
                return Ok(());
            }
            let Ok(name) = std::str::from_utf8(name) else {
                let name = String::from_utf8_lossy(name);
                listing
                    .left_out
                    .push(format!("{}{name}: its name is not UTF-8", self.shown(relative)));
                continue;
            };
            let path = if relative.is_empty() {
                name.to_owned()
            } else {
                format!("{relative}/{name}")
            };
            let stat = rustix::fs::statat(&directory, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory if depth >= MAX_DEPTH => {
                    listing.left_out.push(format!(
                        "{}: more than {MAX_DEPTH} directories deep",
                        self.shown(&path)
                    ));
                }
                // Nothing below a refused name can be handed over: one entry says so, and not one for every file.
                FileType::Directory => match format!("{}{path}", self.prefix).parse::<ArtifactName>() {
                    Ok(_) => waiting.push((path, depth + 1)),
                    Err(error) => listing.left_out.push(format!("{}: {error}", self.shown(&path))),
                },
                FileType::RegularFile => match format!("{}{path}", self.prefix).parse() {
                    Ok(name) => listing.names.push(name),
                    Err(error) => listing.left_out.push(format!("{}: {error}", self.shown(&path))),
                },
                FileType::Symlink => listing
                    .left_out
                    .push(format!("{}: a symbolic link", self.shown(&path))),
                FileType::Fifo
                | FileType::Socket
                | FileType::CharacterDevice
                | FileType::BlockDevice
                | FileType::Unknown => {
                    listing
                        .left_out
                        .push(format!("{}: not a regular file", self.shown(&path)));
                }
            }
        }
        Ok(())
    }

    /// Opens one listed file.
    pub(crate) fn open_file(&self, name: &ArtifactName) -> Result<OpenFile, String> {
        let relative = name
            .as_str()
            .strip_prefix(self.prefix.as_str())
            .unwrap_or(name.as_str());
        // A FIFO that took the file's place must not make the open wait.
        let opened = self
            .open_below(relative, OFlags::NONBLOCK)
            .map_err(|error| error.to_string())?;
        let file = File::from(opened);
        let seen = file.metadata().map_err(|error| error.to_string())?;
        if !seen.is_file() {
            return Err("not a regular file".to_owned());
        }
        if seen.uid() != self.uid && seen.nlink() > 1 {
            return Err("a hard link to a file that is not the agent's".to_owned());
        }
        Ok(OpenFile {
            file,
            size: seen.len(),
        })
    }

    fn shown(&self, relative: &str) -> String {
        format!("{}{}", self.prefix, relative.escape_debug())
    }

    fn open_below(&self, relative: &str, flags: OFlags) -> io::Result<OwnedFd> {
        open_beneath(&self.directory, relative, flags)
    }
}

/// Opens for reading without leaving `directory` and without following a link.
pub(crate) fn open_beneath(directory: impl AsFd, relative: &str, flags: OFlags) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat2(
        directory,
        relative,
        flags,
        Mode::empty(),
        resolve,
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_pipes_and_foreign_hard_links_are_left_out_with_their_reason() {
        let base = tempfile::tempdir().unwrap();
        let root = base.path().join("artifacts");
        std::fs::create_dir_all(root.join("sub/deep")).unwrap();
        std::fs::write(root.join("sub/deep/result.txt"), "result").unwrap();
        std::fs::write(base.path().join("secret"), "secret").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", root.join("passwd")).unwrap();
        std::os::unix::fs::symlink("/etc", root.join("sub/etc")).unwrap();
        std::fs::hard_link(base.path().join("secret"), root.join("hard")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, root.join("pipe"), Mode::RUSR).unwrap();
        std::fs::write(root.join("bad\nname"), "").unwrap();
        std::fs::create_dir_all(root.join("sub/.git/objects")).unwrap();
        std::fs::write(root.join("sub/.git/config"), "").unwrap();
        let tree = Tree::open(&root, 60_903).unwrap();
        let listing = tree.list();
        let names: Vec<&str> = listing.names.iter().map(ArtifactName::as_str).collect();
        assert_eq!(names, ["files/hard", "files/sub/deep/result.txt"]);
        let left_out = listing.left_out.join("\n");
        for part in [
            "files/passwd: a symbolic",
            "files/sub/etc: a symbolic",
            "files/pipe: not a",
            "bad\\nname",
            "files/sub/.git: Artifact name",
        ] {
            assert!(left_out.contains(part), "{part} in {left_out}");
        }
        assert!(
            tree.open_file(&listing.names[0])
                .unwrap_err()
                .contains("hard link")
        );
        let mut file = tree.open_file(&listing.names[1]).unwrap();
        assert_eq!(file.sha256().unwrap(), hex::encode(Sha256::digest(b"result")));
        assert_eq!(std::fs::read(file.path()).unwrap(), b"result");
    }

    #[test]
    fn a_name_swapped_for_a_link_after_listing_does_not_open() {
        let base = tempfile::tempdir().unwrap();
        std::fs::create_dir(base.path().join("d")).unwrap();
        std::fs::write(base.path().join("d/passwd"), "mine").unwrap();
        let tree = Tree::open(base.path(), 0).unwrap();
        let listing = tree.list();
        std::fs::remove_dir_all(base.path().join("d")).unwrap();
        std::os::unix::fs::symlink("/etc", base.path().join("d")).unwrap();
        assert!(tree.open_file(&listing.names[0]).is_err());
        assert!(Tree::open(&base.path().join("d"), 0).is_err());
    }
}
