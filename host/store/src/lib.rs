//! What must survive a SIGKILL or a power cut: records, the journal, events, and the files jobs leave.
//!
//! ```text
//!   engine ──► Store::commit(Vec<Write>) ──► one SQLite transaction, WAL, synchronous=FULL (writer thread)
//!          ──► reads                     ──► two read-only connections that never wait for the writer
//!          ──► Files                     ──► plain files beside the database: artifacts, logs, bundles
//! ```
//!
//! No SQL leaves this crate, and no decision is taken in it.

mod database;
mod error;
mod files;
mod page;
pub mod record;
mod workspace;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use agentlab_api::{Event, JobId, SandboxId, Vmid};
use jiff::Timestamp;
use tokio::sync::watch;

use self::database::Database;
pub use error::StoreError;
pub use files::{Files, Hold, Incoming, Received};
pub use page::{Counts, CursorError, Expiry, JobCursor, Pruned, SandboxCursor, SandboxPage};
pub use record::{
    ArtifactRecord, EventFilter, IdempotencyRecord, Idle, Intent, JobRecord, NewEvent, SandboxRecord,
    TokenRecord, Waiting, Write,
};
pub use workspace::{Rebind, WorkspaceRecord, WorkspaceSnapshot, WorkspaceTask};

/// Where things are kept.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// The SQLite file; `-wal` and `-shm` stand beside it.
    pub database_path: PathBuf,
    /// Directory of `artifacts/`, `bundles/`, `logs/`, `incoming/` and `partial/`; made with mode 0700 if absent.
    pub files_dir: PathBuf,
    /// Nothing is received while less than this is free there.
    pub disk_floor_bytes: u64,
}

/// Records, journal and files. Clones share everything.
///
/// Exactly one process may have it open; the caller holds a lock for that.
#[derive(Debug, Clone)]
pub struct Store {
    database: Arc<Database>,
    files: Files,
}

impl Store {
    /// Creates or migrates the database and the files, makes the directories, and removes what interrupted uploads left
    /// that cannot be continued.
    ///
    /// # Errors
    /// The database is newer than this program, damaged, locked or unwritable, or a directory cannot be made.
    pub async fn open(options: StoreOptions) -> Result<Self, StoreError> {
        let store = files::blocking(move || {
            let files = Files::open(&options.files_dir, options.disk_floor_bytes)?;
            Ok(Self {
                database: Arc::new(Database::open(&options.database_path)?),
                files,
            })
        })
        .await?;
        for job in store.files.jobs_by_name().await? {
            let recorded = store.artifacts(&job).await?;
            tracing::info!(%job, files = recorded.len(), "Moving its artifacts to where they are kept now");
            store.files.move_to_hashes(job, recorded).await?;
        }
        Ok(store)
    }

    /// Applies all writes in one transaction, or none. Returns the events among them, numbered, in order. Once it
    /// has returned, a power cut does not take it back.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when a unique value is taken or a record refers to something absent.
    pub async fn commit(&self, writes: Vec<Write>) -> Result<Vec<Event>, StoreError> {
        self.database.commit(writes).await
    }

    /// Runs `choose` inside the write transaction over all sandboxes not DESTROYED, so that two callers never
    /// choose the same VMID, address or name; the writes it returns are part of the transaction.
    ///
    /// # Errors
    /// `choose`'s own refusal comes back as [`StoreError::Conflict`], and nothing is written.
    pub async fn reserve<T, C>(&self, choose: C) -> Result<(T, Vec<Event>), StoreError>
    where
        T: Send + 'static,
        C: FnOnce(&[SandboxRecord]) -> Result<(T, Vec<Write>), String> + Send + 'static,
    {
        self.database.reserve(choose).await
    }

    /// One sandbox, destroyed or not.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn sandbox(&self, id: SandboxId) -> Result<Option<SandboxRecord>, StoreError> {
        self.database.sandbox(id).await
    }

    /// Sandboxes, newest first.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn sandboxes(&self, include_destroyed: bool) -> Result<Vec<SandboxRecord>, StoreError> {
        self.database.sandboxes(include_destroyed).await
    }

    /// A page of sandboxes, newest first.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn sandbox_page(
        &self,
        include_destroyed: bool,
        before: Option<SandboxCursor>,
        limit: u32,
    ) -> Result<SandboxPage, StoreError> {
        self.database.sandbox_page(include_destroyed, before, limit).await
    }

    /// The sandbox of a VMID or a name. Both are used again: the living one comes first, then the newest.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn sandbox_named(
        &self,
        vmid: Option<Vmid>,
        name: &str,
    ) -> Result<Option<SandboxRecord>, StoreError> {
        self.database.sandbox_named(vmid, name.to_owned()).await
    }

    /// Jobs that were kept for long enough, those first that ended first: those that ended before a time, and those whose
    /// own retention is over now.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn ended_jobs(
        &self,
        before: Timestamp,
        now: Timestamp,
        limit: u32,
    ) -> Result<Vec<JobId>, StoreError> {
        self.database.ended_jobs(before, now, limit).await
    }

    /// Of some jobs, those of which there is no record.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn unknown_jobs(&self, jobs: Vec<JobId>) -> Result<Vec<JobId>, StoreError> {
        self.database.unknown_jobs(jobs).await
    }

    /// Removes the records of jobs, with those of their artifacts and keys; their logs are to be removed before. A job
    /// that has not ended stays. Artifacts that nobody else has go with [`Store::remove_unrecorded`].
    ///
    /// # Errors
    /// Nothing was removed.
    pub async fn forget_jobs(&self, jobs: Vec<JobId>) -> Result<(), StoreError> {
        let hashes = self.database.forget_jobs(jobs).await?;
        self.files.loosen(hashes);
        Ok(())
    }

    /// Removes the bytes of artifacts whose last record was removed or that were never recorded, and says of how many.
    ///
    /// # Errors
    /// The database cannot be read, or a file cannot be removed; they are met again by the next call.
    pub async fn remove_unrecorded(&self) -> Result<usize, StoreError> {
        let mut removed = 0;
        loop {
            let loose = self.files.loose();
            if loose.is_empty() {
                return Ok(removed);
            }
            let hashes = loose.iter().map(|one| one.sha256.clone()).collect();
            let recorded = self.database.recorded(hashes).await?;
            removed += self.files.remove_loose(loose, recorded).await?;
        }
    }

    /// The same for all artifacts there are, because another process may have ended between file and record.
    ///
    /// Where logs are of jobs without a record, nothing is removed: an older database was put back, and what it does not
    /// know of is the only copy of somebody's work.
    ///
    /// # Errors
    /// Those of [`Store::remove_unrecorded`].
    pub async fn compare_artifacts(&self) -> Result<usize, StoreError> {
        let logs = self.files.jobs_with_logs(Duration::ZERO, Timestamp::MAX).await?;
        let unknown = self.unknown_jobs(logs).await?;
        if let Some(job) = unknown.first() {
            let jobs = unknown.len();
            tracing::warn!(jobs, first = %job, "The records are older than the files, whose artifacts are all kept");
            return Ok(0);
        }
        let mut removed = 0;
        for shard in self.files.shards().await? {
            self.files.loosen(self.files.stored(shard).await?);
            removed += self.remove_unrecorded().await?;
        }
        Ok(removed)
    }

    /// Removes at most `limit` records of each kind that has expired. A sandbox stays for as long as a job refers to
    /// it.
    ///
    /// # Errors
    /// Nothing was removed.
    pub async fn prune(&self, expiry: Expiry, limit: u32) -> Result<Pruned, StoreError> {
        self.database.prune(expiry, limit).await
    }

    /// One job.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn job(&self, id: &JobId) -> Result<Option<JobRecord>, StoreError> {
        self.database.job(id.clone()).await
    }

    /// A page of jobs, newest first, and where the next one begins.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn jobs(
        &self,
        before: Option<JobCursor>,
        limit: u32,
    ) -> Result<(Vec<JobRecord>, Option<JobCursor>), StoreError> {
        self.database.jobs(before, limit).await
    }

    /// Jobs QUEUED or RUNNING, oldest first.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn unfinished_jobs(&self) -> Result<Vec<JobRecord>, StoreError> {
        self.database.unfinished_jobs().await
    }

    /// Jobs without a sandbox yet, in the order they were recorded in, whatever the clock did meanwhile.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn waiting_jobs(&self) -> Result<Vec<JobId>, StoreError> {
        self.database.waiting_jobs().await
    }

    /// Effects of a sandbox that were tried and are not known to be done, oldest first.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn open_intents(&self, sandbox: SandboxId) -> Result<Vec<Intent>, StoreError> {
        self.database.open_intents(sandbox).await
    }

    /// The token of this hash, expired or not.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn token(&self, sha256: &str) -> Result<Option<TokenRecord>, StoreError> {
        self.database.token(sha256.to_owned()).await
    }

    /// Number of tokens that would still let a guest in: neither expired nor acknowledged.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn live_tokens(&self, now: Timestamp) -> Result<u64, StoreError> {
        self.database.live_tokens(now).await
    }

    /// Artifacts of a job, by name.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn artifacts(&self, job: &JobId) -> Result<Vec<ArtifactRecord>, StoreError> {
        self.database.artifacts(job.clone()).await
    }

    /// One artifact's record.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn artifact(&self, job: &JobId, name: &str) -> Result<Option<ArtifactRecord>, StoreError> {
        self.database.artifact(job.clone(), name.to_owned()).await
    }

    /// What a key was used for.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn idempotent_job(&self, key: &str) -> Result<Option<IdempotencyRecord>, StoreError> {
        self.database.idempotent_job(key.to_owned()).await
    }

    /// Events numbered above `after`, ascending, at most `limit`.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn events(
        &self,
        filter: &EventFilter,
        after: u64,
        limit: u32,
    ) -> Result<Vec<Event>, StoreError> {
        self.database.events(filter.clone(), after, limit).await
    }

    /// The highest number ever given to an event; 0 before the first.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn last_event(&self) -> Result<u64, StoreError> {
        self.database.last_event().await
    }

    /// Carries the newest event's number after every commit that had one.
    #[must_use]
    pub fn watch_events(&self) -> watch::Receiver<u64> {
        self.database.watch()
    }

    /// Records per state.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn counts(&self) -> Result<Counts, StoreError> {
        self.database.counts().await
    }

    /// Artifacts, logs and bundles.
    #[must_use]
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// Finishes what is queued and closes the database; everything later answers [`StoreError::Closed`].
    pub async fn close(&self) {
        let database = Arc::clone(&self.database);
        if tokio::task::spawn_blocking(move || database.close())
            .await
            .is_err()
        {
            tracing::error!("Closing the database failed; what was committed is safe");
        }
    }
}
