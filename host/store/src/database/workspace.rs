//! Rows of `workspaces`. Who has one is a column of `sandboxes`, unique among those that live.

use agentlab_api::WorkspaceId;
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};

use super::worker::WorkError;
use super::{decode, encode};
use crate::StoreError;
use crate::workspace::WorkspaceRecord;

pub(super) fn put(
    connection: &Connection,
    mut record: WorkspaceRecord,
    now: Timestamp,
) -> Result<(), WorkError> {
    record.updated_at = now;
    let written = connection
        .prepare_cached(
            "INSERT INTO workspaces (id, name, body) VALUES (?1, ?2, ?3)
             ON CONFLICT (id) DO UPDATE SET name = ?2, body = ?3",
        )?
        .execute(params![
            record.id.to_string(),
            record.name,
            encode("workspace", &record)?
        ]);
    match written {
        Ok(_) => Ok(()),
        Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::ConstraintViolation) => {
            let taken = format!("Name `{}` is taken by another workspace", record.name);
            Err(WorkError::Store(StoreError::Conflict(taken)))
        }
        Err(error) => Err(WorkError::Sql(error)),
    }
}

pub(super) fn forget(connection: &Connection, id: WorkspaceId) -> Result<(), WorkError> {
    connection
        .prepare_cached("DELETE FROM workspaces WHERE id = ?1")?
        .execute([id.to_string()])?;
    Ok(())
}

pub(super) fn one(connection: &Connection, id: WorkspaceId) -> Result<Option<WorkspaceRecord>, WorkError> {
    let body = connection
        .prepare_cached("SELECT body FROM workspaces WHERE id = ?1")?
        .query_row([id.to_string()], |row| row.get::<_, String>(0))
        .optional()?;
    Ok(body.map(|body| decode("workspace", &body)).transpose()?)
}

/// By name.
pub(super) fn all(connection: &Connection) -> Result<Vec<WorkspaceRecord>, WorkError> {
    let mut statement = connection.prepare_cached("SELECT body FROM workspaces ORDER BY name")?;
    let bodies = statement.query_map([], |row| row.get::<_, String>(0))?;
    bodies.map(|body| Ok(decode("workspace", &body?)?)).collect()
}
