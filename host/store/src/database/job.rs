//! Rows of `jobs`, and of what belongs to a job: `artifacts` and `idempotency`.

use agentlab_api::JobId;
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};

use super::worker::WorkError;
use super::{decode, encode, parse};
use crate::record::{ArtifactRecord, IdempotencyRecord, JobRecord};
use crate::{JobCursor, StoreError};

pub(super) fn put(connection: &Connection, record: &JobRecord) -> Result<(), WorkError> {
    connection
        .prepare_cached(
            "INSERT INTO jobs (id, state, sandbox, created_at, finished_at, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT (id) DO UPDATE SET state = ?2, sandbox = ?3, created_at = ?4, finished_at = ?5, body = ?6",
        )?
        .execute(params![
            record.id.as_str(),
            record.state.as_str(),
            record.sandbox.map(|sandbox| sandbox.to_string()),
            record.created_at.as_microsecond(),
            record.finished_at.map(Timestamp::as_microsecond),
            encode("job", record)?,
        ])?;
    Ok(())
}

pub(super) fn one(connection: &Connection, id: &JobId) -> Result<Option<JobRecord>, WorkError> {
    let body = connection
        .prepare_cached("SELECT body FROM jobs WHERE id = ?1")?
        .query_row([id.as_str()], |row| row.get::<_, String>(0))
        .optional()?;
    Ok(body.map(|body| decode("job", &body)).transpose()?)
}

/// Newest first; one row more than asked for tells whether there is a next page.
pub(super) fn page(
    connection: &Connection,
    before: Option<&JobCursor>,
    limit: u32,
) -> Result<(Vec<JobRecord>, Option<JobCursor>), WorkError> {
    let (microseconds, id) =
        before.map_or((i64::MAX, ""), |cursor| (cursor.microseconds, cursor.id.as_str()));
    let mut statement = connection.prepare_cached(
        "SELECT body FROM jobs WHERE (created_at, id) < (?1, ?2) ORDER BY created_at DESC, id DESC LIMIT ?3",
    )?;
    let bodies = statement.query_map(params![microseconds, id, i64::from(limit) + 1], |row| {
        row.get::<_, String>(0)
    })?;
    let mut jobs: Vec<JobRecord> = bodies
        .map(|body| Ok(decode("job", &body?)?))
        .collect::<Result<_, WorkError>>()?;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let next = if jobs.len() > limit {
        jobs.truncate(limit);
        jobs.last().map(|last| JobCursor {
            microseconds: last.created_at.as_microsecond(),
            id: last.id.clone(),
        })
    } else {
        None
    };
    Ok((jobs, next))
}

/// Oldest first: recovery takes them up in the order they were asked for.
pub(super) fn unfinished(connection: &Connection) -> Result<Vec<JobRecord>, WorkError> {
    let mut statement = connection.prepare_cached(
        "SELECT body FROM jobs WHERE state IN ('QUEUED', 'RUNNING') ORDER BY created_at, id",
    )?;
    let bodies = statement.query_map([], |row| row.get::<_, String>(0))?;
    bodies.map(|body| Ok(decode("job", &body?)?)).collect()
}

/// In the order of their insertion: a row keeps its number for life, and numbers grow.
pub(super) fn waiting(connection: &Connection) -> Result<Vec<JobId>, WorkError> {
    let mut statement = connection
        .prepare_cached("SELECT id FROM jobs WHERE state = 'QUEUED' AND sandbox IS NULL ORDER BY rowid")?;
    let ids = statement.query_map([], |row| row.get::<_, String>(0))?;
    ids.map(|id| Ok(parse("job", &id?)?)).collect()
}

pub(super) fn put_artifact(connection: &Connection, record: &ArtifactRecord) -> Result<(), WorkError> {
    connection
        .prepare_cached(
            "INSERT INTO artifacts (job, name, sha256, body) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (job, name) DO UPDATE SET sha256 = ?3, body = ?4",
        )?
        .execute(params![
            record.job.as_str(),
            record.name,
            record.sha256,
            encode("artifact", record)?
        ])?;
    Ok(())
}

/// By name.
pub(super) fn artifacts(connection: &Connection, job: &JobId) -> Result<Vec<ArtifactRecord>, WorkError> {
    let mut statement =
        connection.prepare_cached("SELECT body FROM artifacts WHERE job = ?1 ORDER BY name")?;
    let bodies = statement.query_map([job.as_str()], |row| row.get::<_, String>(0))?;
    bodies.map(|body| Ok(decode("artifact", &body?)?)).collect()
}

pub(super) fn artifact(
    connection: &Connection,
    job: &JobId,
    name: &str,
) -> Result<Option<ArtifactRecord>, WorkError> {
    let body = connection
        .prepare_cached("SELECT body FROM artifacts WHERE job = ?1 AND name = ?2")?
        .query_row([job.as_str(), name], |row| row.get::<_, String>(0))
        .optional()?;
    Ok(body.map(|body| decode("artifact", &body)).transpose()?)
}

pub(super) fn put_idempotent(
    connection: &Connection,
    record: &IdempotencyRecord,
    now: Timestamp,
) -> Result<(), WorkError> {
    let written = connection
        .prepare_cached(
            "INSERT INTO idempotency (key, request_sha256, job, created_at) VALUES (?1, ?2, ?3, ?4)",
        )?
        .execute(params![
            record.key,
            record.request_sha256,
            record.job.as_str(),
            now.as_microsecond()
        ]);
    match written {
        Ok(_) => Ok(()),
        Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::ConstraintViolation) => {
            Err(StoreError::Conflict("This idempotency key was used meanwhile".into()).into())
        }
        Err(error) => Err(error.into()),
    }
}

pub(super) fn idempotent(connection: &Connection, key: &str) -> Result<Option<IdempotencyRecord>, WorkError> {
    let row = connection
        .prepare_cached("SELECT request_sha256, job FROM idempotency WHERE key = ?1")?
        .query_row([key], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
        })
        .optional()?;
    row.map(|(request_sha256, job)| {
        Ok(IdempotencyRecord {
            key: key.to_owned(),
            request_sha256,
            job: parse("idempotency key", &job)?,
        })
    })
    .transpose()
}
