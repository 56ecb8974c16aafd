//! Rows of `sandboxes`.

use agentlab_api::{SandboxId, Vmid};
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};

use super::worker::WorkError;
use super::{decode, encode, parse};
use crate::record::SandboxRecord;
use crate::{SandboxCursor, SandboxPage, StoreError};

pub(super) fn put(
    connection: &Connection,
    mut record: SandboxRecord,
    now: Timestamp,
) -> Result<(), WorkError> {
    record.updated_at = now;
    let mut statement = connection.prepare_cached(
        "INSERT INTO sandboxes (id, vmid, address, name, state, created_at, updated_at, workspace, body, view)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
         ON CONFLICT (id) DO UPDATE
         SET vmid = ?2, address = ?3, name = ?4, state = ?5, created_at = ?6, updated_at = ?7, workspace = ?8,
             body = ?9, view = ?10",
    )?;
    let written = statement.execute(params![
        record.id.to_string(),
        i64::from(record.vmid),
        record.address.to_string(),
        record.name,
        record.state.as_str(),
        record.created_at.as_microsecond(),
        record.updated_at.as_microsecond(),
        record.workspace.map(|workspace| workspace.to_string()),
        encode("sandbox", &record)?,
        encode("sandbox", &record.view())?,
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
    } else if words.contains("sandboxes.workspace") {
        "Its workspace".to_owned()
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
    let mut rows = statement.query([])?;
    let mut records = Vec::new();
    while let Some(row) = rows.next()? {
        let body = row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?;
        records.push(decode("sandbox", body)?);
    }
    Ok(records)
}

/// Newest first; one row more than asked for tells whether there is a next page.
pub(super) fn page(
    connection: &Connection,
    include_destroyed: bool,
    before: Option<&SandboxCursor>,
    limit: u32,
) -> Result<SandboxPage, WorkError> {
    let live = if include_destroyed {
        ""
    } else {
        "state <> 'DESTROYED' AND"
    };
    // What an older program has written stands there without its view.
    let sql = format!(
        "SELECT id, created_at, coalesce(view, body), view IS NULL FROM sandboxes
         WHERE {live} (created_at, id) < (?1, ?2) ORDER BY created_at DESC, id DESC LIMIT ?3"
    );
    let (microseconds, id) = before.map_or((i64::MAX, String::new()), |cursor| {
        (cursor.microseconds, cursor.id.to_string())
    });
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query(params![microseconds, id, i64::from(limit) + 1])?;
    let (mut sandboxes, mut last) = (String::from("["), None);
    for _ in 0..limit {
        let Some(row) = rows.next()? else { break };
        if last.is_some() {
            sandboxes.push(',');
        }
        let text = row.get_ref(2)?.as_str().map_err(rusqlite::Error::from)?;
        if row.get(3)? {
            let record: SandboxRecord = decode("sandbox", text)?;
            sandboxes.push_str(&encode("sandbox", &record.view())?);
        } else {
            sandboxes.push_str(text);
        }
        last = Some((row.get::<_, String>(0)?, row.get(1)?));
    }
    sandboxes.push(']');
    let next = match (rows.next()?, last) {
        (Some(_), Some((id, microseconds))) => Some(SandboxCursor {
            microseconds,
            id: parse("sandbox", &id)?,
        }),
        (Some(_), None) | (None, _) => None,
    };
    Ok(SandboxPage { sandboxes, next })
}

/// By VMID or by name. The living one before those that are gone, then the newest.
pub(super) fn named(
    connection: &Connection,
    vmid: Option<Vmid>,
    name: &str,
) -> Result<Option<SandboxRecord>, WorkError> {
    let find = |sql: &str, value: rusqlite::types::Value| {
        let row = connection
            .prepare_cached(sql)?
            .query_row([value], |row| {
                Ok((row.get::<_, bool>(0)?, row.get::<_, String>(1)?))
            })
            .optional();
        row.map_err(WorkError::Sql)
    };
    let by_vmid = match vmid {
        Some(vmid) => find(
            "SELECT state <> 'DESTROYED', body FROM sandboxes WHERE vmid = ?1
             ORDER BY state <> 'DESTROYED' DESC, created_at DESC LIMIT 1",
            i64::from(vmid).into(),
        )?,
        None => None,
    };
    let by_name = find(
        "SELECT state <> 'DESTROYED', body FROM sandboxes WHERE name = ?1
         ORDER BY state <> 'DESTROYED' DESC, created_at DESC LIMIT 1",
        name.to_owned().into(),
    )?;
    let found = match (by_vmid, by_name) {
        (Some((false, _)), Some((true, body))) | (None, Some((_, body))) | (Some((_, body)), _) => Some(body),
        (None, None) => None,
    };
    Ok(found.map(|body| decode("sandbox", &body)).transpose()?)
}
