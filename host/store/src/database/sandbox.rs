//! Rows of `sandboxes`.

use agentlab_api::SandboxId;
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};

use super::worker::WorkError;
use super::{decode, encode};
use crate::StoreError;
use crate::record::SandboxRecord;

pub(super) fn put(
    connection: &Connection,
    mut record: SandboxRecord,
    now: Timestamp,
) -> Result<(), WorkError> {
    record.updated_at = now;
    let mut statement = connection.prepare_cached(
        "INSERT INTO sandboxes (id, vmid, address, name, state, created_at, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
         ON CONFLICT (id) DO UPDATE SET vmid = ?2, address = ?3, name = ?4, state = ?5, created_at = ?6, body = ?7",
    )?;
    let written = statement.execute(params![
        record.id.to_string(),
        i64::from(record.vmid),
        record.address.to_string(),
        record.name,
        record.state.as_str(),
        record.created_at.as_microsecond(),
        encode("sandbox", &record)?,
    ]);
    match written {
        Ok(_) => Ok(()),
        Err(error) => Err(taken(&record, &error).map_or(WorkError::Sql(error), WorkError::Store)),
    }
}

/// Which of the values that must be unique among live sandboxes is taken.
fn taken(record: &SandboxRecord, error: &rusqlite::Error) -> Option<StoreError> {
    if error.sqlite_error_code() != Some(rusqlite::ErrorCode::ConstraintViolation) {
        return None;
    }
    let words = error.to_string();
    let what = if words.contains("sandboxes.vmid") {
        format!("VMID {}", record.vmid)
    } else if words.contains("sandboxes.address") {
        format!("Address {}", record.address)
    } else if words.contains("sandboxes.name") {
        format!("Name `{}`", record.name)
    } else {
        return None;
    };
    Some(StoreError::Conflict(format!(
        "{what} is taken by another sandbox that is not destroyed yet"
    )))
}

pub(super) fn one(connection: &Connection, id: SandboxId) -> Result<Option<SandboxRecord>, WorkError> {
    let body = connection
        .prepare_cached("SELECT body FROM sandboxes WHERE id = ?1")?
        .query_row([id.to_string()], |row| row.get::<_, String>(0))
        .optional()?;
    Ok(body.map(|body| decode("sandbox", &body)).transpose()?)
}

/// Newest first.
pub(super) fn all(connection: &Connection, include_destroyed: bool) -> Result<Vec<SandboxRecord>, WorkError> {
    let sql = if include_destroyed {
        "SELECT body FROM sandboxes ORDER BY created_at DESC, id DESC"
    } else {
        "SELECT body FROM sandboxes WHERE state <> 'DESTROYED' ORDER BY created_at DESC, id DESC"
    };
    let mut statement = connection.prepare_cached(sql)?;
    let bodies = statement.query_map([], |row| row.get::<_, String>(0))?;
    bodies.map(|body| Ok(decode("sandbox", &body?)?)).collect()
}
