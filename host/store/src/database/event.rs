//! Rows of `events`. AUTOINCREMENT: a number is never used twice, so a client may resume by it across restarts.

use agentlab_api::{Event, EventKind};
use jiff::Timestamp;
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, params, params_from_iter};

use super::worker::WorkError;
use super::{decode, encode, parse, signed, unsigned};
use crate::StoreError;
use crate::record::{EventFilter, NewEvent};

pub(super) fn append(connection: &Connection, new: NewEvent, now: Timestamp) -> Result<Event, WorkError> {
    connection
        .prepare_cached(
            "INSERT INTO events (time, kind, sandbox, job, message, data) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![
            now.as_microsecond(),
            new.kind.as_str(),
            new.sandbox.map(|sandbox| sandbox.to_string()),
            new.job.as_ref().map(|job| job.as_str()),
            new.message,
            encode("event", &new.data)?,
        ])?;
    Ok(Event {
        seq: unsigned(connection.last_insert_rowid()),
        time: now,
        kind: new.kind,
        sandbox: new.sandbox,
        job: new.job,
        message: new.message,
        data: new.data,
    })
}

const COLUMNS: &str = "SELECT seq, time, kind, sandbox, job, message, data FROM events WHERE seq > ?1";

/// In order, those numbered above `after`.
pub(super) fn after(
    connection: &Connection,
    filter: &EventFilter,
    after: u64,
    limit: u32,
) -> Result<Vec<Event>, WorkError> {
    let mut sql = COLUMNS.to_owned();
    let mut values = vec![Value::from(signed(after)), Value::from(i64::from(limit))];
    if let Some(sandbox) = filter.sandbox {
        values.push(sandbox.to_string().into());
        sql += &format!(" AND sandbox = ?{}", values.len());
    }
    if let Some(job) = &filter.job {
        values.push(job.as_str().to_owned().into());
        let job = values.len();
        // What befalls the sandbox is the job's story too, unless it is told of another job.
        sql += &format!(
            " AND (job = ?{job} OR (job IS NULL AND sandbox = (SELECT sandbox FROM jobs WHERE id = ?{job})))"
        );
    }
    sql += " ORDER BY seq LIMIT ?2";
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query(params_from_iter(values))?;
    let mut events = Vec::new();
    while let Some(row) = rows.next()? {
        let time = Timestamp::from_microsecond(row.get(1)?).map_err(|error| StoreError::Corrupt {
            what: "event",
            reason: error.to_string(),
        })?;
        let sandbox = row
            .get::<_, Option<String>>(3)?
            .map(|text| parse("event", &text))
            .transpose()?;
        let job = row
            .get::<_, Option<String>>(4)?
            .map(|text| parse("event", &text))
            .transpose()?;
        events.push(Event {
            seq: unsigned(row.get(0)?),
            time,
            kind: EventKind::from(row.get::<_, String>(2)?),
            sandbox,
            job,
            message: row.get(5)?,
            data: decode("event", &row.get::<_, String>(6)?)?,
        });
    }
    Ok(events)
}

/// The highest number ever given, even if its event is gone.
pub(super) fn newest(connection: &Connection) -> Result<u64, rusqlite::Error> {
    let seq = connection
        .prepare_cached("SELECT seq FROM sqlite_sequence WHERE name = 'events'")?
        .query_row([], |row| row.get::<_, i64>(0))
        .optional()?;
    Ok(seq.map_or(0, unsigned))
}
