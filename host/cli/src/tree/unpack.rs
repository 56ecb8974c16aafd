//! What a guest packed, into a directory of the operator's.
//!
//! It lands beside its place first, under a name of ours in a directory that only we may enter, and gets its name when it
//! is whole. No link is there while files are written; those that stay inside are made at the end, and all others are
//! left out, as is everything that is no file, whatever git would take for its own, and names that are one where case
//! does not count.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{Entry, Kind, Receive, TarError};
use crate::landing::Place;

/// Most entries of one copy: each costs memory here and an inode.
const MOST_ENTRIES: u64 = 500_000;
/// Most sentences about what was left out; the rest is counted.
const MOST_TOLD: usize = 20;

/// Why nothing was kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnpackError {
    #[error("What the guest sent is no archive: {0}")]
    Tar(#[from] TarError),
    #[error("It is larger than {0} bytes")]
    TooLarge(u64),
    #[error("It has more than {MOST_ENTRIES} files and directories")]
    TooMany,
    #[error("Writing {path} failed: {source}")]
    Write { path: String, source: io::Error },
}

/// What came of a copy.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Tally {
    pub(crate) files: u64,
    pub(crate) directories: u64,
    pub(crate) links: u64,
    pub(crate) bytes: u64,
    /// What was not copied, and why; the first of them.
    pub(crate) left_out: Vec<String>,
    /// How many were not.
    pub(crate) left_out_count: u64,
}

impl Tally {
    pub(crate) fn leave_out(&mut self, name: &str, why: &str) {
        self.left_out_count += 1;
        if self.left_out.len() < MOST_TOLD {
            self.left_out.push(format!("{}: {why}", name.escape_debug()));
        }
    }
}

/// Takes entries into a staging directory.
#[derive(Debug)]
pub(crate) struct Unpack {
    staging: PathBuf,
    limit: u64,
    entries: u64,
    /// Where each name is that was taken, by how it looks where case does not count.
    taken: BTreeMap<String, String>,
    /// Directories that were made.
    made: BTreeSet<PathBuf>,
    links: Vec<(PathBuf, PathBuf)>,
    current: Option<(PathBuf, File)>,
    tally: Tally,
}

impl Unpack {
    /// `staging` is empty, ours alone, and there for as long as this is.
    pub(crate) fn into(staging: &Path, limit: u64) -> Self {
        Self {
            staging: staging.to_owned(),
            limit,
            entries: 0,
            taken: BTreeMap::new(),
            made: BTreeSet::new(),
            links: Vec::new(),
            current: None,
            tally: Tally::default(),
        }
    }

    /// Makes the links, now that nothing is written any more.
    pub(crate) fn finish(mut self) -> Result<Tally, UnpackError> {
        for (path, target) in std::mem::take(&mut self.links) {
            self.parents(&path)?;
            let whole = self.staging.join(&path);
            std::os::unix::fs::symlink(&target, &whole).map_err(write_error(&path))?;
            self.tally.links += 1;
        }
        Ok(self.tally)
    }

    /// How much has come so far: files and bytes.
    pub(crate) fn so_far(&self) -> (u64, u64) {
        (self.tally.files, self.tally.bytes)
    }

    /// The path of an entry below the staging directory; `None` when it is left out or is the directory itself.
    fn path(&mut self, entry: &Entry) -> Option<PathBuf> {
        let Ok(text) = std::str::from_utf8(&entry.name) else {
            let shown = String::from_utf8_lossy(&entry.name).into_owned();
            self.tally.leave_out(&shown, "its name is no text");
            return None;
        };
        let name = text.strip_prefix("./").unwrap_or(text).trim_end_matches('/');
        if name.is_empty() || name == "." {
            return None;
        }
        let place = match Place::of_all([name]) {
            Ok(mut places) => places.pop()?,
            Err(_) if name.split('/').any(|part| part.eq_ignore_ascii_case(".git")) => {
                // Its hundreds of files are one thing; whoever wants the commits has another way.
                if self.taken.insert(".git/".to_owned(), String::new()).is_none() {
                    let why = "git would run what the guest wrote there; `agentlab job apply` brings commits";
                    self.tally.leave_out(name, why);
                }
                return None;
            }
            Err(_) => {
                self.tally
                    .leave_out(name, "its name is not a plain relative path");
                return None;
            }
        };
        let path = place.path();
        if place.renamed() {
            let why = format!(
                "written as {}, or git could take its directory for a repository",
                path.display()
            );
            self.tally.leave_out(name, &why);
        }
        if self.collides(&path, entry.kind == Kind::Directory) {
            self.tally
                .leave_out(name, "another one has this name, but for case at most");
            return None;
        }
        Some(path)
    }

    /// Whether the name, or that of a directory above it, is another one's where case does not count. A directory may
    /// come again.
    fn collides(&mut self, path: &Path, directory: bool) -> bool {
        for above in path.ancestors().filter(|above| !above.as_os_str().is_empty()) {
            let exact = above.display().to_string();
            let known = self.taken.get(&exact.to_lowercase());
            if known.is_some_and(|known| *known != exact || (above == path && !directory)) {
                return true;
            }
        }
        for above in path.ancestors().filter(|above| !above.as_os_str().is_empty()) {
            let exact = above.display().to_string();
            self.taken.insert(exact.to_lowercase(), exact);
        }
        false
    }

    fn parents(&mut self, path: &Path) -> Result<(), UnpackError> {
        match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => self.directory(parent),
            Some(_) | None => Ok(()),
        }
    }

    /// Makes a directory and those above it.
    fn directory(&mut self, path: &Path) -> Result<(), UnpackError> {
        if self.made.contains(path) {
            return Ok(());
        }
        self.parents(path)?;
        std::fs::DirBuilder::new()
            .mode(0o777)
            .create(self.staging.join(path))
            .map_err(write_error(path))?;
        self.made.insert(path.to_owned());
        self.tally.directories += 1;
        Ok(())
    }
}

fn write_error(path: &Path) -> impl FnOnce(io::Error) -> UnpackError {
    let path = path.display().to_string();
    move |source| UnpackError::Write { path, source }
}

/// Whether a link there stays below the directory, whatever other links there are: only its first parts lead up, and no
/// further than its own directory is deep.
fn stays_inside(path: &Path, target: &Path) -> bool {
    let mut up = 0;
    let mut down = false;
    for part in target.components() {
        match part {
            std::path::Component::ParentDir if !down => up += 1,
            std::path::Component::Normal(_) => down = true,
            std::path::Component::CurDir => {}
            std::path::Component::ParentDir
            | std::path::Component::RootDir
            | std::path::Component::Prefix(_) => return false,
        }
    }
    let depth = path.components().count().saturating_sub(1);
    up <= depth && !target.as_os_str().is_empty()
}

impl Receive for Unpack {
    type Error = UnpackError;

    fn begin(&mut self, entry: Entry) -> Result<(), UnpackError> {
        self.entries += 1;
        if self.entries > MOST_ENTRIES {
            return Err(UnpackError::TooMany);
        }
        // Said before the bytes come, of those that are left out as well: they cross the channel all the same.
        self.tally.bytes = self.tally.bytes.saturating_add(entry.size);
        if self.tally.bytes > self.limit {
            return Err(UnpackError::TooLarge(self.limit));
        }
        let shown = String::from_utf8_lossy(&entry.name).into_owned();
        if let Kind::Other(_) = entry.kind {
            self.tally.bytes -= entry.size;
            self.tally
                .leave_out(&shown, "a device, a pipe or a second name of a file");
            return Ok(());
        }
        let Some(path) = self.path(&entry) else {
            self.tally.bytes -= entry.size;
            return Ok(());
        };
        match entry.kind {
            Kind::Directory => {
                self.directory(&path)?;
            }
            Kind::File => {
                self.parents(&path)?;
                let mode = if entry.mode & 0o100 == 0 { 0o666 } else { 0o777 };
                let file = std::fs::OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(mode)
                    .open(self.staging.join(&path))
                    .map_err(write_error(&path))?;
                self.tally.files += 1;
                self.current = Some((path, file));
            }
            Kind::Link(target) => {
                let target = PathBuf::from(std::ffi::OsStr::from_bytes(&target));
                if stays_inside(&path, &target) {
                    self.links.push((path, target));
                } else {
                    self.tally
                        .leave_out(&shown, "a link that leads out of the directory");
                }
            }
            Kind::Other(_) => {}
        }
        Ok(())
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<(), UnpackError> {
        match &mut self.current {
            Some((path, file)) => file.write_all(bytes).map_err(write_error(path)),
            None => Ok(()),
        }
    }

    fn end(&mut self) -> Result<(), UnpackError> {
        self.current = None;
        Ok(())
    }
}
