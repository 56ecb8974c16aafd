//! Uploads that broke off: what had arrived waits for the rest, beside the state of its hash.
//!
//! ```text
//!   claim ──► Incoming ──► whole ──► renamed to its hash
//!     ▲          └──► cut ──► partial/<job>/<key> ──┬──► job ended, or nobody came for too long: removed
//!     └───────────── the rest, from that very byte ─┘
//! ```
//!
//! The key is a hash of name and announced SHA-256, so that a file is only ever continued by itself. One writer has it:
//! for the guest a connection is dead long before it is here, so whoever comes later asks the standing writer to let go.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agentlab_api::JobId;
use jiff::Timestamp;
use rustix::fs::{AtFlags, OFlags};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use tokio::sync::{Notify, watch};

use super::beneath::{self, Place};
use super::incoming::read_through;
use super::{Files, PARTIAL, Shared, blocking};
use crate::StoreError;

/// An upload of one file of one job, whatever connection it comes over.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    job: JobId,
    file: String,
}

impl Key {
    pub(super) fn new(job: &JobId, name: &str, sha256: &str) -> Self {
        let mut hash = Sha256::new();
        // No name holds a NUL.
        hash.update(name.as_bytes());
        hash.update([0]);
        hash.update(sha256.to_ascii_lowercase().as_bytes());
        Self {
            job: job.clone(),
            file: hex::encode(hash.finalize()),
        }
    }

    pub(super) fn place(&self) -> Result<Place, StoreError> {
        Place::new(&[PARTIAL, self.job.as_str()], &self.file)
    }
}

/// The first bytes of a file, hashed.
#[derive(Debug, Clone)]
pub(super) struct Hashed {
    pub(super) bytes: u64,
    pub(super) hash: Sha256,
}

/// What is known of interrupted uploads besides their bytes, and who writes to which.
#[derive(Debug, Default)]
pub(super) struct Partials {
    known: Mutex<HashMap<Key, Known>>,
    released: Notify,
}

#[derive(Debug, Default)]
struct Known {
    /// Asks the writer to let go.
    writer: Option<watch::Sender<bool>>,
    hashed: Option<Hashed>,
}

impl Partials {
    fn known(&self) -> MutexGuard<'_, HashMap<Key, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The only right to touch a partial file; given back when dropped.
#[derive(Debug)]
pub(super) struct Claim {
    shared: Arc<Shared>,
    key: Key,
    /// Of the bytes that are on disk. Kept for the next claim.
    pub(super) hashed: Option<Hashed>,
    superseded: watch::Receiver<bool>,
}

impl Claim {
    /// Waits until whoever has it has let go, which it is asked to.
    pub(super) async fn of(shared: &Arc<Shared>, key: Key) -> Self {
        loop {
            let released = shared.partials.released.notified();
            if let Some(claim) = Self::try_of(shared, &key, true) {
                return claim;
            }
            released.await;
        }
    }

    fn try_of(shared: &Arc<Shared>, key: &Key, ask: bool) -> Option<Self> {
        let mut known = shared.partials.known();
        if let Some(writer) = known.get(key).and_then(|known| known.writer.as_ref()) {
            if ask {
                writer.send_replace(true);
            }
            return None;
        }
        let entry = known.entry(key.clone()).or_default();
        let (writer, superseded) = watch::channel(false);
        entry.writer = Some(writer);
        Some(Self {
            shared: Arc::clone(shared),
            key: key.clone(),
            hashed: entry.hashed.take(),
            superseded,
        })
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(super) fn key(&self) -> &Key {
        &self.key
    }

    /// Resolves when somebody else wants it.
    pub(super) fn superseded(&self) -> watch::Receiver<bool> {
        self.superseded.clone()
    }

    /// The hash of the `bytes` that a file has: remembered, or read anew after a restart. Blocks.
    pub(super) fn hash_of(&mut self, file: &mut File, bytes: u64) -> io::Result<Sha256> {
        if let Some(hashed) = self.hashed.take_if(|hashed| hashed.bytes == bytes) {
            return Ok(hashed.hash);
        }
        let hashed = read_through(file)?;
        if hashed.bytes == bytes {
            Ok(hashed.hash)
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut known = self.shared.partials.known();
        match self.hashed.take() {
            Some(hashed) => {
                let entry = known.entry(self.key.clone()).or_default();
                *entry = Known {
                    writer: None,
                    hashed: Some(hashed),
                };
            }
            None => drop(known.remove(&self.key)),
        }
        drop(known);
        self.shared.partials.released.notify_waiters();
    }
}

/// A file in the directory of a job.
struct Found {
    key: Key,
    bytes: u64,
    changed_at: i64,
}

impl Files {
    /// How much is here of an upload that broke off. Whoever still writes to it is asked to stop, and has.
    ///
    /// # Errors
    /// The file cannot be looked at.
    pub async fn kept_of_artifact(&self, job: &JobId, name: &str, sha256: &str) -> Result<u64, StoreError> {
        let claim = Claim::of(&self.shared, Key::new(job, name, sha256)).await;
        blocking(move || {
            let (shared, place) = (&claim.shared, claim.key.place()?);
            let opened = place
                .open(&shared.root, OFlags::RDONLY)
                .map_err(|error| StoreError::file("Opening", &place.path(&shared.root_path), error))?;
            Ok(opened.map_or(0, |(_, size)| size))
        })
        .await
    }

    /// Removes what broke off longest ago, until a job's interrupted uploads other than this one are no more than
    /// `max_files` and `max_bytes`. Those that are being written to are not counted.
    ///
    /// # Errors
    /// The directory cannot be read, or a file cannot be removed.
    pub async fn make_room_for(
        &self,
        (job, name, sha256): (&JobId, &str, &str),
        max_files: usize,
        max_bytes: u64,
    ) -> Result<(), StoreError> {
        let spared = Key::new(job, name, sha256);
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            let path = shared.root_path.join(PARTIAL).join(spared.job.as_str());
            let mut others =
                list(&shared.root, &spared.job).map_err(|error| StoreError::file("Reading", &path, error))?;
            others.retain(|found| found.key != spared);
            others.sort_by_key(|found| std::cmp::Reverse(found.changed_at));
            let (mut files, mut bytes) = (0usize, 0u64);
            for found in others {
                let together = bytes.saturating_add(found.bytes);
                if files < max_files && together <= max_bytes {
                    (files, bytes) = (files + 1, together);
                } else {
                    remove(&shared, &found.key)
                        .map_err(|error| StoreError::file("Removing", &path, error))?;
                }
            }
            Ok(())
        })
        .await
    }

    /// Jobs with interrupted uploads.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub async fn interrupted_jobs(&self) -> Result<Vec<JobId>, StoreError> {
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            beneath::names(&shared.root, &[PARTIAL])
                .map(|names| names.iter().filter_map(|name| name.parse().ok()).collect())
                .map_err(|error| StoreError::file("Reading", &shared.root_path.join(PARTIAL), error))
        })
        .await
    }

    /// Removes the interrupted uploads of a job that nobody has continued for so long; all of them when that is zero.
    /// Says how many there were.
    ///
    /// # Errors
    /// Something could not be removed.
    pub async fn remove_interrupted(
        &self,
        job: &JobId,
        unchanged: Duration,
        now: Timestamp,
    ) -> Result<usize, StoreError> {
        let (job, shared) = (job.clone(), Arc::clone(&self.shared));
        blocking(move || {
            remove_old(&shared, &job, unchanged, now).map_err(|error| {
                StoreError::file(
                    "Removing",
                    &shared.root_path.join(PARTIAL).join(job.as_str()),
                    error,
                )
            })
        })
        .await
    }
}

/// Blocks.
pub(super) fn remove_old(
    shared: &Arc<Shared>,
    job: &JobId,
    unchanged: Duration,
    now: Timestamp,
) -> io::Result<usize> {
    let newest = now.as_second() - i64::try_from(unchanged.as_secs()).unwrap_or(i64::MAX);
    let mut removed = 0;
    for found in list(&shared.root, job)? {
        if (unchanged.is_zero() || found.changed_at <= newest) && remove(shared, &found.key)? {
            removed += 1;
        }
    }
    let above = beneath::directory(&shared.root, &[PARTIAL], false)?;
    match rustix::fs::unlinkat(&above, job.as_str(), AtFlags::REMOVEDIR) {
        // Something is still being written there; it is met again.
        Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST) => Ok(removed),
        Err(error) => Err(error.into()),
    }
}

/// Whether it is gone: what is being written to is left alone.
fn remove(shared: &Arc<Shared>, key: &Key) -> io::Result<bool> {
    let Some(mut claim) = Claim::try_of(shared, key, false) else {
        return Ok(false);
    };
    claim.hashed = None;
    let directory = beneath::directory(&shared.root, &[PARTIAL, key.job.as_str()], false)?;
    match rustix::fs::unlinkat(&directory, &key.file, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

fn list(root: &OwnedFd, job: &JobId) -> io::Result<Vec<Found>> {
    let names = beneath::names(root, &[PARTIAL, job.as_str()])?;
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let handle = beneath::directory(root, &[PARTIAL, job.as_str()], false)?;
    let mut found = Vec::with_capacity(names.len());
    for file in names {
        match rustix::fs::statat(&handle, &file, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(seen) => found.push(Found {
                bytes: u64::try_from(seen.st_size).unwrap_or(0),
                changed_at: seen.st_mtime,
                key: Key {
                    job: job.clone(),
                    file,
                },
            }),
            // Whole, or removed, since it was listed.
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found)
}
