//! What is no longer kept. A piece at a time, so that nobody waits long behind it.

use std::collections::HashSet;

use agentlab_api::JobId;
use jiff::Timestamp;
use rusqlite::{Connection, params};

use super::worker::WorkError;
use super::{parse, signed, unsigned};
use crate::{Expiry, Pruned};

/// Jobs that ended before a time, or whose own retention is over now, those first that ended first. One that is kept for
/// ever has ended before the beginning of time, and so never.
pub(super) fn ended_jobs(
    connection: &Connection,
    before: Timestamp,
    now: Timestamp,
    limit: u32,
) -> Result<Vec<JobId>, WorkError> {
    let mut statement = connection.prepare_cached(
        "SELECT id FROM jobs WHERE finished_at < CASE coalesce(json_extract(body, '$.retention_days'), -1)
                 WHEN -1 THEN ?1
                 WHEN 0 THEN 0
                 ELSE ?2 - json_extract(body, '$.retention_days') * 86400000000 END
             ORDER BY finished_at LIMIT ?3",
    )?;
    let times = params![before.as_microsecond(), now.as_microsecond(), limit];
    let ids = statement.query_map(times, |row| row.get::<_, String>(0))?;
    ids.map(|id| Ok(parse("job", &id?)?)).collect()
}

/// Of some jobs, those of which there is no record.
pub(super) fn unknown_jobs(connection: &Connection, jobs: Vec<JobId>) -> Result<Vec<JobId>, WorkError> {
    let mut statement = connection.prepare_cached("SELECT 1 FROM jobs WHERE id = ?1")?;
    let mut unknown = Vec::new();
    for job in jobs {
        if !statement.exists([job.as_str()])? {
            unknown.push(job);
        }
    }
    Ok(unknown)
}

/// Of some hashes, those that an artifact's record names.
pub(super) fn recorded(connection: &Connection, hashes: Vec<String>) -> Result<HashSet<String>, WorkError> {
    let mut statement = connection.prepare_cached("SELECT 1 FROM artifacts WHERE sha256 = ?1")?;
    let mut recorded = HashSet::new();
    for sha256 in hashes {
        if statement.exists([&sha256])? {
            recorded.insert(sha256);
        }
    }
    Ok(recorded)
}

/// One that has not ended stays. Returns the hashes that its artifacts' records named.
pub(super) fn forget_job(connection: &Connection, job: &JobId) -> Result<Vec<String>, WorkError> {
    let mut artifacts = connection.prepare_cached(
        "DELETE FROM artifacts WHERE job = ?1 AND job IN (SELECT id FROM jobs WHERE finished_at IS NOT NULL)
             RETURNING sha256",
    )?;
    let hashes = artifacts.query_map([job.as_str()], |row| row.get(0))?;
    let hashes = hashes.collect::<Result<_, _>>()?;
    for sql in [
        "DELETE FROM idempotency WHERE job = ?1 AND job IN (SELECT id FROM jobs WHERE finished_at IS NOT NULL)",
        "DELETE FROM jobs WHERE id = ?1 AND finished_at IS NOT NULL",
    ] {
        connection.prepare_cached(sql)?.execute([job.as_str()])?;
    }
    Ok(hashes)
}

/// Removes at most `limit` of each kind. A sandbox stays for as long as a job refers to it.
pub(super) fn prune(connection: &Connection, expiry: Expiry, limit: u32) -> Result<Pruned, WorkError> {
    let before = expiry.ended_before.as_microsecond();
    let sandboxes = connection
        .prepare_cached(
            "DELETE FROM sandboxes WHERE id IN (
                 SELECT id FROM sandboxes
                 WHERE state = 'DESTROYED' AND updated_at < ?1
                   AND NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.sandbox = sandboxes.id)
                   AND NOT EXISTS (SELECT 1 FROM intents WHERE intents.sandbox = sandboxes.id)
                   AND NOT EXISTS (SELECT 1 FROM tokens WHERE tokens.sandbox = sandboxes.id)
                 LIMIT ?2)",
        )?
        .execute(params![before, limit])?;
    let keys = connection
        .prepare_cached(
            "DELETE FROM idempotency WHERE key IN (SELECT key FROM idempotency WHERE created_at < ?1 LIMIT ?2)",
        )?
        .execute(params![expiry.keys_before.as_microsecond(), limit])?;
    // Numbers grow with time, but for a clock that was set: then some stay until those before them go.
    let events = connection
        .prepare_cached(
            "DELETE FROM events
             WHERE seq IN (SELECT seq FROM events ORDER BY seq LIMIT ?2)
               AND (time < ?1 OR seq <= (SELECT max(seq) FROM events) - ?3)",
        )?
        .execute(params![before, limit, signed(expiry.max_events)])?;
    Ok(Pruned {
        sandboxes: count(sandboxes),
        keys: count(keys),
        events: count(events),
    })
}

fn count(rows: usize) -> u64 {
    i64::try_from(rows).map_or(u64::MAX, unsigned)
}
