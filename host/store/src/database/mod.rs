//! One SQLite file: a single writer thread, two readers that never wait for it (WAL).
//!
//! `synchronous=FULL` on the writer: a commit that returned survives a power cut, because effects on the hypervisor
//! follow it.

mod event;
mod job;
mod journal;
mod retention;
mod sandbox;
mod schema;
mod worker;
mod workspace;

use std::collections::HashSet;
use std::fs::OpenOptions;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use agentlab_api::{Event, JobId, SandboxId, Vmid, WorkspaceId};
use jiff::Timestamp;
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use self::worker::{WorkError, Workers};
use crate::record::{
    ArtifactRecord, EventFilter, IdempotencyRecord, Intent, JobRecord, SandboxRecord, TokenRecord, Write,
};
use crate::workspace::WorkspaceRecord;
use crate::{Counts, Expiry, JobCursor, Pruned, SandboxCursor, SandboxPage, StoreError};

const READERS: usize = 2;
const BUSY_TIMEOUT_MILLISECONDS: u64 = 5000;
const CACHE_KIBIBYTES: i64 = 512;

/// The open database.
#[derive(Debug)]
pub(crate) struct Database {
    writer: Workers,
    readers: Workers,
    newest: watch::Sender<u64>,
}

impl Database {
    /// Creates or migrates the file. Blocks.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |action| move |source| StoreError::database(action, path, source);
        create_private(path)?;
        let mut connection = Connection::open_with_flags(
            path,
            OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )
        .map_err(failed("opening"))?;
        prepare(&connection).map_err(failed("opening"))?;
        connection
            .pragma_update(None, "foreign_keys", true)
            .map_err(failed("switching foreign keys on"))?;
        connection
            .pragma_update(None, "synchronous", "FULL")
            .map_err(failed("switching to full sync"))?;
        // Before WAL is switched on: a database that is refused is left as it was.
        schema::migrate(&mut connection, path)?;
        let mode: String = connection
            .pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))
            .map_err(failed("switching to WAL"))?;
        if !mode.eq_ignore_ascii_case("wal") {
            return Err(StoreError::Migration {
                path: path.display().to_string(),
                reason: format!(
                    "its file system gives journal mode {mode} instead of WAL; use a local file system"
                ),
            });
        }
        let newest = event::newest(&connection).map_err(failed("reading the newest event"))?;
        let mut readers = Vec::with_capacity(READERS);
        for _ in 0..READERS {
            let reader = Connection::open_with_flags(
                path,
                OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
            )
            .map_err(failed("opening"))?;
            prepare(&reader).map_err(failed("opening"))?;
            readers.push(reader);
        }
        Ok(Self {
            writer: Workers::start("store-writer", path, vec![connection])?,
            readers: Workers::start("store-reader", path, readers)?,
            newest: watch::Sender::new(newest),
        })
    }

    pub(crate) async fn commit(&self, writes: Vec<Write>) -> Result<Vec<Event>, StoreError> {
        let ((), events) = self.transact("committing", move |_| Ok(((), writes))).await?;
        Ok(events)
    }

    pub(crate) async fn reserve<T, C>(&self, choose: C) -> Result<(T, Vec<Event>), StoreError>
    where
        T: Send + 'static,
        C: FnOnce(&[SandboxRecord]) -> Result<(T, Vec<Write>), String> + Send + 'static,
    {
        self.transact("reserving", move |transaction| {
            let live = sandbox::all(transaction, false)?;
            choose(&live).map_err(|reason| WorkError::Store(StoreError::Conflict(reason)))
        })
        .await
    }

    async fn transact<T, C>(&self, action: &'static str, choose: C) -> Result<(T, Vec<Event>), StoreError>
    where
        T: Send + 'static,
        C: FnOnce(&Transaction<'_>) -> Result<(T, Vec<Write>), WorkError> + Send + 'static,
    {
        let newest = self.newest.clone();
        self.writer
            .call(action, move |connection| {
                let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
                let (value, writes) = choose(&transaction)?;
                let now = whole_microseconds(Timestamp::now());
                let mut events = Vec::new();
                for write in writes {
                    events.extend(apply(&transaction, write, now)?);
                }
                transaction.commit()?;
                if let Some(last) = events.last() {
                    newest.send_replace(last.seq);
                }
                Ok((value, events))
            })
            .await
    }

    pub(crate) async fn sandbox(&self, id: SandboxId) -> Result<Option<SandboxRecord>, StoreError> {
        self.readers
            .call("reading a sandbox", move |reader| sandbox::one(reader, id))
            .await
    }

    pub(crate) async fn sandboxes(&self, include_destroyed: bool) -> Result<Vec<SandboxRecord>, StoreError> {
        self.readers
            .call("reading sandboxes", move |reader| {
                sandbox::all(reader, include_destroyed)
            })
            .await
    }

    pub(crate) async fn sandbox_page(
        &self,
        include_destroyed: bool,
        before: Option<SandboxCursor>,
        limit: u32,
    ) -> Result<SandboxPage, StoreError> {
        self.readers
            .call("reading sandboxes", move |reader| {
                sandbox::page(reader, include_destroyed, before.as_ref(), limit)
            })
            .await
    }

    pub(crate) async fn sandbox_named(
        &self,
        vmid: Option<Vmid>,
        name: String,
    ) -> Result<Option<SandboxRecord>, StoreError> {
        self.readers
            .call("reading a sandbox", move |reader| {
                sandbox::named(reader, vmid, &name)
            })
            .await
    }

    pub(crate) async fn ended_jobs(
        &self,
        before: Timestamp,
        now: Timestamp,
        limit: u32,
    ) -> Result<Vec<JobId>, StoreError> {
        self.readers
            .call("reading ended jobs", move |reader| {
                retention::ended_jobs(reader, before, now, limit)
            })
            .await
    }

    pub(crate) async fn unknown_jobs(&self, jobs: Vec<JobId>) -> Result<Vec<JobId>, StoreError> {
        self.readers
            .call("looking for jobs", move |reader| {
                retention::unknown_jobs(reader, jobs)
            })
            .await
    }

    /// The hashes that their artifacts' records named.
    pub(crate) async fn forget_jobs(&self, jobs: Vec<JobId>) -> Result<Vec<String>, StoreError> {
        self.writer
            .call("removing old jobs", move |connection| {
                let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
                let mut hashes = Vec::new();
                for job in &jobs {
                    hashes.extend(retention::forget_job(&transaction, job)?);
                }
                transaction.commit()?;
                Ok(hashes)
            })
            .await
    }

    pub(crate) async fn recorded(&self, hashes: Vec<String>) -> Result<HashSet<String>, StoreError> {
        self.readers
            .call("looking for artifacts", move |reader| {
                retention::recorded(reader, hashes)
            })
            .await
    }

    pub(crate) async fn prune(&self, expiry: Expiry, limit: u32) -> Result<Pruned, StoreError> {
        self.writer
            .call("removing what is old", move |connection| {
                let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
                let pruned = retention::prune(&transaction, expiry, limit)?;
                transaction.commit()?;
                Ok(pruned)
            })
            .await
    }

    pub(crate) async fn workspace(&self, id: WorkspaceId) -> Result<Option<WorkspaceRecord>, StoreError> {
        self.readers
            .call("reading a workspace", move |reader| workspace::one(reader, id))
            .await
    }

    pub(crate) async fn workspaces(&self) -> Result<Vec<WorkspaceRecord>, StoreError> {
        self.readers
            .call("reading workspaces", |reader| workspace::all(reader))
            .await
    }

    pub(crate) async fn job(&self, id: JobId) -> Result<Option<JobRecord>, StoreError> {
        self.readers
            .call("reading a job", move |reader| job::one(reader, &id))
            .await
    }

    pub(crate) async fn jobs(
        &self,
        before: Option<JobCursor>,
        limit: u32,
    ) -> Result<(Vec<JobRecord>, Option<JobCursor>), StoreError> {
        self.readers
            .call("reading jobs", move |reader| {
                job::page(reader, before.as_ref(), limit)
            })
            .await
    }

    pub(crate) async fn unfinished_jobs(&self) -> Result<Vec<JobRecord>, StoreError> {
        self.readers
            .call("reading unfinished jobs", |reader| job::unfinished(reader))
            .await
    }

    pub(crate) async fn waiting_jobs(&self) -> Result<Vec<JobId>, StoreError> {
        self.readers
            .call("reading the queue", |reader| job::waiting(reader))
            .await
    }

    pub(crate) async fn open_intents(&self, sandbox: SandboxId) -> Result<Vec<Intent>, StoreError> {
        self.readers
            .call("reading the journal", move |reader| {
                journal::open_intents(reader, sandbox)
            })
            .await
    }

    pub(crate) async fn token(&self, sha256: String) -> Result<Option<TokenRecord>, StoreError> {
        self.readers
            .call("reading a token", move |reader| journal::token(reader, &sha256))
            .await
    }

    pub(crate) async fn live_tokens(&self, now: Timestamp) -> Result<u64, StoreError> {
        self.readers
            .call("counting tokens", move |reader| journal::live_tokens(reader, now))
            .await
    }

    pub(crate) async fn artifacts(&self, job: JobId) -> Result<Vec<ArtifactRecord>, StoreError> {
        self.readers
            .call("reading artifacts", move |reader| job::artifacts(reader, &job))
            .await
    }

    pub(crate) async fn artifact(
        &self,
        job: JobId,
        name: String,
    ) -> Result<Option<ArtifactRecord>, StoreError> {
        self.readers
            .call("reading an artifact", move |reader| {
                job::artifact(reader, &job, &name)
            })
            .await
    }

    pub(crate) async fn idempotent_job(&self, key: String) -> Result<Option<IdempotencyRecord>, StoreError> {
        self.readers
            .call("reading an idempotency key", move |reader| {
                job::idempotent(reader, &key)
            })
            .await
    }

    pub(crate) async fn events(
        &self,
        filter: EventFilter,
        after: u64,
        limit: u32,
    ) -> Result<Vec<Event>, StoreError> {
        self.readers
            .call("reading events", move |reader| {
                event::after(reader, &filter, after, limit)
            })
            .await
    }

    pub(crate) async fn last_event(&self) -> Result<u64, StoreError> {
        self.readers
            .call("reading the newest event", |reader| Ok(event::newest(reader)?))
            .await
    }

    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    pub(crate) async fn counts(&self) -> Result<Counts, StoreError> {
        self.readers
            .call("counting", |reader| {
                Ok(Counts {
                    sandboxes: by_state(reader, "sandboxes")?,
                    jobs: by_state(reader, "jobs")?,
                })
            })
            .await
    }

    /// Readers first, so that the writer, closing last, folds the WAL into the file. Blocks.
    pub(crate) fn close(&self) {
        self.readers.close();
        self.writer.close();
    }
}

fn apply(transaction: &Transaction<'_>, write: Write, now: Timestamp) -> Result<Option<Event>, WorkError> {
    match write {
        Write::Sandbox(record) => sandbox::put(transaction, *record, now)?,
        Write::Job(record) => job::put(transaction, &record)?,
        Write::Intent(intent) => journal::open(transaction, &intent, now)?,
        Write::Fact { sandbox, step, undo } => journal::close(transaction, sandbox, &step, undo)?,
        Write::Token(token) => journal::put_token(transaction, &token)?,
        Write::ForgetTokens(sandbox) => journal::forget_tokens(transaction, sandbox)?,
        Write::Artifact(artifact) => job::put_artifact(transaction, &artifact)?,
        Write::Idempotency(record) => job::put_idempotent(transaction, &record, now)?,
        Write::Workspace(record) => workspace::put(transaction, *record, now)?,
        Write::ForgetWorkspace(id) => workspace::forget(transaction, id)?,
        Write::Event(event) => return event::append(transaction, event, now).map(Some),
    }
    Ok(None)
}

fn by_state(reader: &Connection, table: &str) -> Result<std::collections::BTreeMap<String, u64>, WorkError> {
    let mut statement =
        reader.prepare_cached(&format!("SELECT state, count(*) FROM {table} GROUP BY state"))?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?)))?;
    rows.map(|row| {
        let (state, count) = row?;
        Ok((state, unsigned(count)))
    })
    .collect()
}

/// The file is made by us, so that neither it nor the WAL beside it (which takes its mode) is ever readable by others.
fn create_private(path: &Path) -> Result<(), StoreError> {
    if let Some(directory) = path
        .parent()
        .filter(|directory| !directory.as_os_str().is_empty())
    {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(|error| StoreError::file("Creating the database's directory", directory, error))?;
    }
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map(drop)
        .map_err(|error| StoreError::file("Opening the database", path, error))
}

fn prepare(connection: &Connection) -> Result<(), rusqlite::Error> {
    connection.busy_timeout(std::time::Duration::from_millis(BUSY_TIMEOUT_MILLISECONDS))?;
    connection.set_prepared_statement_cache_capacity(32);
    // What is not in it is in the kernel's cache; three connections with the default would take 6 MiB of our own.
    connection.pragma_update(None, "cache_size", -CACHE_KIBIBYTES)?;
    Ok(())
}

/// What the database keeps of a time; events carry it from the start, so that a re-read one is equal.
fn whole_microseconds(time: Timestamp) -> Timestamp {
    Timestamp::from_microsecond(time.as_microsecond()).unwrap_or(time)
}

/// Counts and sequence numbers are never negative.
fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn encode<T: Serialize>(what: &'static str, value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::Corrupt {
        what,
        reason: error.to_string(),
    })
}

fn decode<T: DeserializeOwned>(what: &'static str, body: &str) -> Result<T, StoreError> {
    serde_json::from_str(body).map_err(|error| StoreError::Corrupt {
        what,
        reason: error.to_string(),
    })
}

fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(
    what: &'static str,
    text: &str,
) -> Result<T, StoreError> {
    text.parse().map_err(|error: T::Err| StoreError::Corrupt {
        what,
        reason: error.to_string(),
    })
}
