//! Rows of `intents` (what was tried and is not known to be done) and `tokens` (what would let a guest in).

use agentlab_api::SandboxId;
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};

use super::worker::WorkError;
use super::{decode, encode, parse, unsigned};
use crate::StoreError;
use crate::record::{Intent, TokenRecord};

pub(super) fn open(connection: &Connection, intent: &Intent, now: Timestamp) -> Result<(), WorkError> {
    connection
        .prepare_cached(
            "INSERT INTO intents (sandbox, step, undo, detail, opened_at) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (sandbox, step, undo) DO UPDATE SET detail = ?4, opened_at = ?5",
        )?
        .execute(params![
            intent.sandbox.to_string(),
            intent.step,
            intent.undo,
            encode("intent", &intent.detail)?,
            now.as_microsecond(),
        ])?;
    Ok(())
}

/// Closing what is not open is no error: a step may be repeated after a crash.
pub(super) fn close(
    connection: &Connection,
    sandbox: SandboxId,
    step: &str,
    undo: bool,
) -> Result<(), WorkError> {
    connection
        .prepare_cached("DELETE FROM intents WHERE sandbox = ?1 AND step = ?2 AND undo = ?3")?
        .execute(params![sandbox.to_string(), step, undo])?;
    Ok(())
}

/// Oldest first.
pub(super) fn open_intents(connection: &Connection, sandbox: SandboxId) -> Result<Vec<Intent>, WorkError> {
    let mut statement = connection.prepare_cached(
        "SELECT step, undo, detail FROM intents WHERE sandbox = ?1 ORDER BY opened_at, rowid",
    )?;
    let rows = statement.query_map([sandbox.to_string()], |row| {
        Ok((
            row.get::<_, String>(0)?,
            row.get::<_, bool>(1)?,
            row.get::<_, String>(2)?,
        ))
    })?;
    rows.map(|row| {
        let (step, undo, detail) = row?;
        Ok(Intent {
            sandbox,
            step,
            undo,
            detail: decode("intent", &detail)?,
        })
    })
    .collect()
}

pub(super) fn put_token(connection: &Connection, token: &TokenRecord) -> Result<(), WorkError> {
    forget_tokens(connection, token.sandbox)?;
    connection
        .prepare_cached("INSERT INTO tokens (sha256, sandbox, expires_at) VALUES (?1, ?2, ?3)")?
        .execute(params![
            token.sha256,
            token.sandbox.to_string(),
            token.expires_at.as_microsecond()
        ])?;
    Ok(())
}

pub(super) fn forget_tokens(connection: &Connection, sandbox: SandboxId) -> Result<(), WorkError> {
    connection
        .prepare_cached("DELETE FROM tokens WHERE sandbox = ?1")?
        .execute([sandbox.to_string()])?;
    Ok(())
}

pub(super) fn token(connection: &Connection, sha256: &str) -> Result<Option<TokenRecord>, WorkError> {
    let row = connection
        .prepare_cached("SELECT sandbox, expires_at FROM tokens WHERE sha256 = ?1")?
        .query_row([sha256], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?))
        })
        .optional()?;
    row.map(|(sandbox, expires_at)| {
        let expires_at = Timestamp::from_microsecond(expires_at).map_err(|error| StoreError::Corrupt {
            what: "token",
            reason: error.to_string(),
        })?;
        Ok(TokenRecord {
            sha256: sha256.to_owned(),
            sandbox: parse("token", &sandbox)?,
            expires_at,
        })
    })
    .transpose()
}

pub(super) fn live_tokens(connection: &Connection, now: Timestamp) -> Result<u64, WorkError> {
    // One whose answer was acknowledged is kept to be known again, and lets nobody in.
    let count = connection
        .prepare_cached(
            "SELECT count(*) FROM tokens JOIN sandboxes ON sandboxes.id = tokens.sandbox
             WHERE tokens.expires_at > ?1 AND NOT coalesce(json_extract(sandboxes.body, '$.acknowledged'), 0)",
        )?
        .query_row([now.as_microsecond()], |row| row.get::<_, i64>(0))?;
    Ok(unsigned(count))
}
