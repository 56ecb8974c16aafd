//! The files of volumes: raw, because nothing in a raw file need be read on the host to use it. What a guest wrote
//! there is only ever copied.
//!
//! ```text
//!   <run_dir>/volumes/.new-<name>        one being made, .gone-<name> one being removed: cleared at start
//!                    /<name>/            0700
//!                        disk.raw        0600, sparse; a machine gets it as an open descriptor
//!                        <name>.snapshot
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::free_bytes;
use super::record::storage;
use crate::{BackendError, Result, Volume, VolumeList};

const DISK: &str = "disk.raw";
const GIB: u64 = 1 << 30;
/// Of a copy, what is read at once; a block of zeros stays a hole.
const BLOCK: usize = 1 << 20;

/// The directory of all volumes.
#[derive(Debug, Clone)]
pub(super) struct VolumeStore {
    dir: PathBuf,
    floor_bytes: u64,
}

fn private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Becomes part of a path.
pub(super) fn check_name(name: &str) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if (1..=60).contains(&name.len()) && name.bytes().all(plain) && !name.starts_with('-') {
        return Ok(());
    }
    let shown = name.escape_debug().take(80).collect::<String>();
    let reason = io::Error::new(
        io::ErrorKind::InvalidInput,
        "a volume's name is 1 to 60 lower-case letters, digits and `-`",
    );
    Err(BackendError::Storage {
        action: "naming a volume",
        path: shown,
        source: reason,
    })
}

impl VolumeStore {
    /// Clears what an earlier process was making or removing when it was killed.
    pub(super) fn open(run_dir: &Path, floor_bytes: u64) -> Result<Self> {
        let dir = run_dir.join("volumes");
        let clear = || -> io::Result<()> {
            private_dir(&dir)?;
            for entry in fs::read_dir(&dir)? {
                let entry = entry?;
                if entry.file_name().as_encoded_bytes().starts_with(b".") {
                    fs::remove_dir_all(entry.path())?;
                }
            }
            Ok(())
        };
        clear().map_err(storage("clearing", &dir))?;
        Ok(Self { dir, floor_bytes })
    }

    fn path(&self, volume: &str) -> Result<PathBuf> {
        check_name(volume)?;
        Ok(self.dir.join(volume))
    }

    fn snapshot_path(&self, volume: &str, snapshot: &str) -> Result<PathBuf> {
        check_name(snapshot)?;
        Ok(self.path(volume)?.join(format!("{snapshot}.snapshot")))
    }

    /// Opens a volume for its machine; its size in bytes.
    pub(super) fn open_disk(&self, volume: &str) -> Result<(File, u64)> {
        let path = self.path(volume)?.join(DISK);
        let open = || {
            let file = OpenOptions::new().read(true).write(true).open(&path)?;
            let size = file.metadata()?.len();
            Ok((file, size))
        };
        open().map_err(storage("opening a volume at", &path))
    }

    /// Makes a volume, whole under its name or not at all.
    fn make(&self, name: &str, fill: impl FnOnce(&File) -> io::Result<()>) -> Result<String> {
        let path = self.path(name)?;
        let new = self.dir.join(format!(".new-{name}"));
        let make = || -> io::Result<()> {
            if path.join(DISK).try_exists()? {
                return Ok(());
            }
            if new.try_exists()? {
                fs::remove_dir_all(&new)?;
            }
            private_dir(&new)?;
            let file = private_file(&new.join(DISK))?;
            fill(&file)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(&self.dir)?.sync_all()
        };
        make().map_err(storage("making a volume at", &path))?;
        Ok(name.to_owned())
    }

    pub(super) fn create(&self, name: &str, size_gb: u32) -> Result<String> {
        let bytes = u64::from(size_gb).saturating_mul(GIB);
        self.leave_room(0)?;
        self.make(name, |file| file.set_len(bytes))
    }

    pub(super) fn grow(&self, volume: &str, size_gb: u32) -> Result<()> {
        let (file, size) = self.open_disk(volume)?;
        let wanted = u64::from(size_gb).saturating_mul(GIB);
        if wanted <= size {
            return Ok(());
        }
        let grow = || {
            file.set_len(wanted)?;
            file.sync_all()
        };
        grow().map_err(storage("growing a volume in", &self.dir))
    }

    pub(super) fn remove(&self, volume: &str) -> Result<()> {
        let path = self.path(volume)?;
        let gone = self.dir.join(format!(".gone-{volume}"));
        let remove = || -> io::Result<()> {
            if !path.try_exists()? {
                return Ok(());
            }
            if gone.try_exists()? {
                fs::remove_dir_all(&gone)?;
            }
            fs::rename(&path, &gone)?;
            File::open(&self.dir)?.sync_all()?;
            fs::remove_dir_all(&gone)
        };
        remove().map_err(storage("removing a volume at", &path))
    }

    pub(super) fn copy(&self, of: &str, snapshot: Option<&str>, name: &str) -> Result<String> {
        let from = match snapshot {
            Some(snapshot) => self.snapshot_path(of, snapshot)?,
            None => self.path(of)?.join(DISK),
        };
        let source = File::open(&from).map_err(storage("opening", &from))?;
        self.leave_room(written(&source, &from)?)?;
        self.make(name, |target| copy_data(source, target))
    }

    pub(super) fn take_snapshot(&self, volume: &str, name: &str) -> Result<()> {
        let path = self.snapshot_path(volume, name)?;
        if path.try_exists().map_err(storage("looking at", &path))? {
            return Ok(());
        }
        let disk = self.path(volume)?.join(DISK);
        self.replace(&disk, &path)
    }

    pub(super) fn roll_back(&self, volume: &str, name: &str) -> Result<()> {
        let path = self.snapshot_path(volume, name)?;
        self.replace(&path, &self.path(volume)?.join(DISK))
    }

    pub(super) fn delete_snapshot(&self, volume: &str, name: &str) -> Result<()> {
        let path = self.snapshot_path(volume, name)?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(storage("removing", &path)),
        }
    }

    /// Puts a copy of one file in the place of another, in one step.
    fn replace(&self, from: &Path, to: &Path) -> Result<()> {
        let source = File::open(from).map_err(storage("opening", from))?;
        self.leave_room(written(&source, from)?)?;
        let new = to.with_extension("new");
        let replace = || -> io::Result<()> {
            let target = private_file(&new)?;
            copy_data(source, &target)?;
            target.sync_all()?;
            fs::rename(&new, to)?;
            match to.parent() {
                Some(dir) => File::open(dir)?.sync_all(),
                None => Ok(()),
            }
        };
        replace().map_err(storage("copying a volume to", to))
    }

    pub(super) fn list(&self) -> Result<VolumeList> {
        let mut list = VolumeList::default();
        for name in self.names(&self.dir)? {
            if check_name(&name).is_err() {
                continue;
            }
            match self.open_disk(&name) {
                Ok((_, bytes)) => list.volumes.push(Volume {
                    snapshots: self.snapshots(&name)?,
                    name: Some(name.clone()),
                    id: name,
                    bytes,
                }),
                Err(error) => list.unread.push(error.to_string()),
            }
        }
        list.volumes.sort_by(|one, other| one.id.cmp(&other.id));
        Ok(list)
    }

    /// Oldest first.
    fn snapshots(&self, volume: &str) -> Result<Vec<String>> {
        let dir = self.path(volume)?;
        let mut found = Vec::new();
        for file in self.names(&dir)? {
            if let Some(name) = file.strip_suffix(".snapshot") {
                let path = dir.join(&file);
                let seen = path.metadata().and_then(|seen| seen.modified());
                found.push((seen.map_err(storage("looking at", &path))?, name.to_owned()));
            }
        }
        found.sort();
        Ok(found.into_iter().map(|(_, name)| name).collect())
    }

    fn names(&self, dir: &Path) -> Result<Vec<String>> {
        let entries = fs::read_dir(dir).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let entries = entries.map_err(storage("listing", dir))?;
        let names = entries.into_iter().map(|entry| entry.file_name().into_string());
        Ok(names.filter_map(|name| name.ok()).collect())
    }

    fn leave_room(&self, needed: u64) -> Result<()> {
        let free = free_bytes(&self.dir)?;
        if free >= needed.saturating_add(self.floor_bytes) {
            return Ok(());
        }
        let reason = format!(
            "{} MiB free, {} are needed",
            free >> 20,
            needed.saturating_add(self.floor_bytes) >> 20
        );
        let full = io::Error::new(io::ErrorKind::StorageFull, reason);
        Err(storage("making room in", &self.dir)(full))
    }
}

/// An empty file of ours alone.
fn private_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(path)
}

/// Bytes of a file that take room.
fn written(file: &File, path: &Path) -> Result<u64> {
    let seen = file.metadata().map_err(storage("looking at", path))?;
    Ok(seen.blocks().saturating_mul(512))
}

/// Shares the blocks where the file system can, and copies what is not a hole where it cannot.
fn copy_data(mut source: File, target: &File) -> io::Result<()> {
    if rustix::fs::ioctl_ficlone(target, &source).is_ok() {
        return Ok(());
    }
    let size = source.metadata()?.len();
    target.set_len(size)?;
    let mut block = vec![0; BLOCK];
    let mut at = 0;
    while at < size {
        at = match rustix::fs::seek(&source, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(rustix::io::Errno::NXIO) => break,
            // A file system that knows of no holes: all of it is data.
            Err(rustix::io::Errno::INVAL) => at,
            Err(errno) => return Err(errno.into()),
        };
        source.seek(SeekFrom::Start(at))?;
        let count = source.read(&mut block)?;
        if count == 0 {
            break;
        }
        let bytes = block.get(..count).unwrap_or_default();
        if bytes.iter().any(|byte| *byte != 0) {
            target.write_all_at(bytes, at)?;
        }
        at = at.saturating_add(u64::try_from(count).map_err(io::Error::other)?);
    }
    let mut target = target;
    target.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, VolumeStore) {
        let run = tempfile::tempdir().unwrap();
        let store = VolumeStore::open(run.path(), 0).unwrap();
        (run, store)
    }

    #[test]
    fn a_copy_holds_the_same_bytes_and_the_same_holes() {
        let (_run, store) = store();
        store.create("a", 1).unwrap();
        let (disk, size) = store.open_disk("a").unwrap();
        for at in [0, 5 << 20, size - 7] {
            disk.write_all_at(b"written", at).unwrap();
        }
        store.take_snapshot("a", "before").unwrap();
        disk.write_all_at(b"changed", 0).unwrap();
        store.copy("a", Some("before"), "b").unwrap();
        store.roll_back("a", "before").unwrap();
        for name in ["a", "b"] {
            let (copy, copied) = store.open_disk(name).unwrap();
            assert_eq!(copied, size);
            assert!(
                copy.metadata().unwrap().blocks() * 512 < 16 << 20,
                "holes were filled"
            );
            for at in [0, 5 << 20, size - 7] {
                let mut bytes = [0; 7];
                copy.read_exact_at(&mut bytes, at).unwrap();
                assert_eq!(&bytes, b"written", "{name} at {at}");
            }
        }
    }

    #[test]
    fn all_volumes_are_listed_with_their_sizes_and_snapshots_and_one_without_its_file_is_named() {
        let (run, store) = store();
        store.create("b", 2).unwrap();
        store.create("a", 1).unwrap();
        store.take_snapshot("a", "one").unwrap();
        private_dir(&run.path().join("volumes/.new-c")).unwrap();
        private_dir(&run.path().join("volumes/hollow")).unwrap();
        let list = store.list().unwrap();
        let seen: Vec<_> = list.volumes.iter().map(|one| (&*one.id, one.bytes)).collect();
        assert_eq!(seen, [("a", GIB), ("b", 2 * GIB)]);
        assert_eq!(list.volumes[0].snapshots, ["one"]);
        assert!(
            list.unread.len() == 1 && list.unread[0].contains("hollow"),
            "{list:?}"
        );
    }

    #[test]
    fn a_name_never_leads_out_of_the_directory() {
        let (_run, store) = store();
        for name in ["", "..", "../a", "a/b", "-a", ".new", "A", "a\0", &"a".repeat(61)] {
            assert!(store.create(name, 1).is_err(), "{name:?}");
            assert!(store.remove(name).is_err(), "{name:?}");
            assert!(store.snapshot_path("a", name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn what_was_being_made_or_removed_is_cleared_at_the_next_start() {
        let (run, store) = store();
        store.create("kept", 1).unwrap();
        for half in [".new-a", ".gone-b"] {
            private_dir(&run.path().join("volumes").join(half)).unwrap();
        }
        VolumeStore::open(run.path(), 0).unwrap();
        assert_eq!(fs::read_dir(run.path().join("volumes")).unwrap().count(), 1);
        store.open_disk("kept").unwrap();
    }

    #[test]
    fn nothing_is_made_where_the_disk_would_be_too_full() {
        let (run, _) = store();
        let store = VolumeStore::open(run.path(), u64::MAX).unwrap();
        let error = store.create("a", 1).unwrap_err();
        assert!(matches!(&error, BackendError::Storage { source, .. }
            if source.kind() == io::ErrorKind::StorageFull));
    }
}
