//! Files that are too large for rows: `artifacts/ab/<sha256>`, `logs/<job>.jsonl`, `bundles/<sha256>`.
//!
//! ```text
//!   Incoming ──► incoming/<n> or partial/<job>/<key>  (hashed while it is written)
//!      finish ──► fsync ──► rename ──► artifacts/… or bundles/…      drop ──► removed, or kept for the rest
//! ```
//!
//! Directories are 0700, files 0600. A path is walked one component at a time from a directory held open, and no
//! symbolic link on the way is ever followed. What a guest calls its files stands in records only.

mod beneath;
mod by_name;
mod bytes;
mod incoming;
mod log;
mod partial;
mod retention;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use agentlab_api::{JobId, LogRecord, LogStream};
use jiff::Timestamp;
use rustix::fs::OFlags;
use tokio::sync::watch;

use self::beneath::Place;
use self::bytes::Wanted;
use self::partial::{Claim, Key, Partials};
use crate::StoreError;
pub use bytes::Hold;
pub use incoming::{Incoming, Received};

const ARTIFACTS: &str = "artifacts";
const BUNDLES: &str = "bundles";
const INCOMING: &str = "incoming";
const LOGS: &str = "logs";
const PARTIAL: &str = "partial";

/// Artifacts, logs and bundles. Clones share everything.
#[derive(Debug, Clone)]
pub struct Files {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    root: OwnedFd,
    root_path: PathBuf,
    disk_floor: u64,
    /// Names of files in `incoming/`; that directory is emptied at start, so that none is met twice.
    next_incoming: AtomicU64,
    partials: Partials,
    wanted: Wanted,
    /// Held while a log is appended to: two writers would interleave their lines.
    appending: Mutex<()>,
    appended: watch::Sender<u64>,
}

impl Files {
    /// Makes what is absent and empties `incoming/`. Blocks.
    pub(crate) fn open(root_path: &Path, disk_floor: u64) -> Result<Self, StoreError> {
        let failed = |action| move |error: std::io::Error| StoreError::file(action, root_path, error);
        beneath::create_root(root_path).map_err(failed("Creating the directory"))?;
        let root = beneath::open_root(root_path).map_err(failed("Opening the directory"))?;
        for directory in [ARTIFACTS, BUNDLES, INCOMING, LOGS, PARTIAL] {
            beneath::directory(&root, &[directory], true).map_err(failed("Creating a directory below"))?;
        }
        let left =
            beneath::empty(&root, &[INCOMING]).map_err(failed("Removing interrupted uploads below"))?;
        if left > 0 {
            tracing::info!(files = left, "Removed what interrupted uploads had left");
        }
        Ok(Self {
            shared: Arc::new(Shared {
                root,
                root_path: root_path.into(),
                disk_floor,
                next_incoming: AtomicU64::new(0),
                partials: Partials::default(),
                wanted: Wanted::default(),
                appending: Mutex::new(()),
                appended: watch::Sender::new(0),
            }),
        })
    }

    /// Begins an artifact of at most `limit` bytes. It does not exist before [`Incoming::finish`], and then for as long
    /// as somebody holds it or a record names it.
    ///
    /// # Errors
    /// [`StoreError::DiskFloor`], or the file cannot be made.
    pub async fn receive_artifact(&self, _hold: &Hold, limit: u64) -> Result<Incoming, StoreError> {
        self.receive(Kind::Artifact, limit).await
    }

    /// Begins an artifact that may break off and be continued, at its byte `offset`: 0, or as much as
    /// [`Files::kept_of_artifact`] says. Whoever is receiving the same is asked to stop.
    ///
    /// # Errors
    /// [`StoreError::Offset`] when another number of bytes is here; those of [`Files::receive_artifact`].
    pub async fn continue_artifact(
        &self,
        hold: &Hold,
        (job, name): (&JobId, &str),
        offset: u64,
        limit: u64,
    ) -> Result<Incoming, StoreError> {
        let claim = Claim::of(&self.shared, Key::new(job, name, hold.sha256())).await;
        blocking(move || Incoming::go_on(Kind::Artifact, limit, claim, offset)).await
    }

    /// Begins a bundle of at most `limit` bytes, to be found by its SHA-256 later.
    ///
    /// # Errors
    /// [`StoreError::DiskFloor`], or the file cannot be made.
    pub async fn receive_bundle(&self, limit: u64) -> Result<Incoming, StoreError> {
        self.receive(Kind::Bundle, limit).await
    }

    async fn receive(&self, kind: Kind, limit: u64) -> Result<Incoming, StoreError> {
        let shared = Arc::clone(&self.shared);
        blocking(move || Incoming::begin(shared, kind, limit)).await
    }

    /// The bytes of an artifact and their number; `None` when they are not here.
    ///
    /// # Errors
    /// The text is no SHA-256, or the file cannot be opened.
    pub async fn open_artifact(&self, sha256: &str) -> Result<Option<(tokio::fs::File, u64)>, StoreError> {
        self.open_regular(Kind::Artifact.place(sha256)?).await
    }

    /// The bundle's bytes and their number; `None` when there is none.
    ///
    /// # Errors
    /// The text is no SHA-256, or the file cannot be opened.
    pub async fn open_bundle(&self, sha256: &str) -> Result<Option<(tokio::fs::File, u64)>, StoreError> {
        self.open_regular(Kind::Bundle.place(sha256)?).await
    }

    async fn open_regular(&self, place: Place) -> Result<Option<(tokio::fs::File, u64)>, StoreError> {
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            let opened = place
                .open(&shared.root, OFlags::RDONLY)
                .map_err(|error| StoreError::file("Opening", &place.path(&shared.root_path), error))?;
            Ok(opened.map(|(file, size)| (tokio::fs::File::from_std(file), size)))
        })
        .await
    }

    /// Removes a bundle. Absent is success.
    ///
    /// # Errors
    /// The text is no SHA-256, or the file cannot be removed.
    pub async fn remove_bundle(&self, sha256: &str) -> Result<(), StoreError> {
        let place = Kind::Bundle.place(sha256)?;
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            place
                .remove(&shared.root)
                .map_err(|error| StoreError::file("Removing", &place.path(&shared.root_path), error))
        })
        .await
    }

    /// Appends output, numbered from `first`, to the job's log and returns its new end. Numbers that stand there
    /// already are left out: the same batch again changes nothing. The log never grows past `max_bytes` but for one
    /// record that says so; what comes later is dropped. Not synced: a power cut ends the VM whose output it is.
    ///
    /// # Errors
    /// The file cannot be written.
    pub async fn append_log(
        &self,
        job: &JobId,
        first: u64,
        records: Vec<(LogStream, String)>,
        now: Timestamp,
        max_bytes: u64,
    ) -> Result<u64, StoreError> {
        let shared = Arc::clone(&self.shared);
        let place = log_place(job)?;
        blocking(move || {
            let one_at_a_time = shared
                .appending
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            let end = log::append(&shared.root, &place, (first, &records), now, max_bytes)
                .map_err(|error| StoreError::file("Appending to", &place.path(&shared.root_path), error))?;
            drop(one_at_a_time);
            shared
                .appended
                .send_modify(|count| *count = count.wrapping_add(1));
            Ok(end)
        })
        .await
    }

    /// Records after an offset that an earlier record carried (0 for the start), at most `max_records` and at most
    /// about a MiB, so that an answer stays small. Empty when there is nothing more yet, or no log at all.
    ///
    /// # Errors
    /// The file cannot be read.
    pub async fn read_log(
        &self,
        job: &JobId,
        after_offset: u64,
        max_records: usize,
    ) -> Result<Vec<LogRecord>, StoreError> {
        let shared = Arc::clone(&self.shared);
        let place = log_place(job)?;
        blocking(move || {
            log::read(&shared.root, &place, after_offset, max_records)
                .map_err(|error| StoreError::file("Reading", &place.path(&shared.root_path), error))
        })
        .await
    }

    /// Changes at every append to any log.
    #[must_use]
    pub fn watch_logs(&self) -> watch::Receiver<u64> {
        self.shared.appended.subscribe()
    }

    /// Bytes free to us on the file system of the files.
    ///
    /// # Errors
    /// The file system does not answer.
    pub async fn free_bytes(&self) -> Result<u64, StoreError> {
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            beneath::free_bytes(&shared.root)
                .map_err(|error| StoreError::file("Measuring free space", &shared.root_path, error))
        })
        .await
    }
}

fn log_place(job: &JobId) -> Result<Place, StoreError> {
    Place::new(&[LOGS], &format!("{job}.jsonl"))
}

/// What is found by its SHA-256.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Artifact,
    Bundle,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Artifact => "artifact",
            Self::Bundle => "bundle",
        }
    }

    /// Where it is. Artifacts are many: one directory for each first byte of their hashes.
    fn place(self, sha256: &str) -> Result<Place, StoreError> {
        match (self, sha256.get(..2)) {
            (Self::Artifact, Some(shard)) if is_sha256(sha256) => Place::new(&[ARTIFACTS, shard], sha256),
            (Self::Bundle, Some(_)) if is_sha256(sha256) => Place::new(&[BUNDLES], sha256),
            _ => Err(StoreError::Name(sha256.escape_debug().take(80).collect())),
        }
    }
}

/// As it is written here: 64 lower-case hexadecimal digits.
fn is_sha256(text: &str) -> bool {
    text.len() == 64
        && text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// Runs file work on a thread that may wait. A panic in it is the caller's.
pub(crate) async fn blocking<T, W>(work: W) -> Result<T, StoreError>
where
    T: Send + 'static,
    W: FnOnce() -> Result<T, StoreError> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(StoreError::Closed),
        },
    }
}

#[cfg(test)]
mod tests;
