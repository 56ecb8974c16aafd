//! Tables, and the way from one version of them to the next.
//!
//! Records that only the engine understands are one JSON `body`; what is searched or must be unique is a column
//! beside it. Times are microseconds since the epoch.

use std::path::Path;

use rusqlite::Connection;
use rusqlite_migration::{M, Migrations};

use crate::StoreError;

/// `AGLB`: tells our database from any other SQLite file.
const APPLICATION_ID: i64 = 0x4147_4c42;

const VERSION_1: &str = "
PRAGMA application_id = 1095191618;

CREATE TABLE sandboxes (
    id         TEXT PRIMARY KEY,
    vmid       INTEGER NOT NULL,
    address    TEXT NOT NULL,
    name       TEXT NOT NULL,
    state      TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    body       TEXT NOT NULL
) STRICT;
CREATE UNIQUE INDEX sandboxes_live_vmid    ON sandboxes (vmid)    WHERE state <> 'DESTROYED';
CREATE UNIQUE INDEX sandboxes_live_address ON sandboxes (address) WHERE state <> 'DESTROYED';
CREATE UNIQUE INDEX sandboxes_live_name    ON sandboxes (name)    WHERE state <> 'DESTROYED';
CREATE INDEX sandboxes_newest ON sandboxes (created_at, id);

CREATE TABLE jobs (
    id         TEXT PRIMARY KEY,
    state      TEXT NOT NULL,
    sandbox    TEXT,
    created_at INTEGER NOT NULL,
    body       TEXT NOT NULL
) STRICT;
CREATE INDEX jobs_newest ON jobs (created_at, id);
CREATE INDEX jobs_unfinished ON jobs (state) WHERE state IN ('QUEUED', 'RUNNING');

CREATE TABLE intents (
    sandbox   TEXT NOT NULL REFERENCES sandboxes (id) DEFERRABLE INITIALLY DEFERRED,
    step      TEXT NOT NULL,
    undo      INTEGER NOT NULL,
    detail    TEXT NOT NULL,
    opened_at INTEGER NOT NULL,
    PRIMARY KEY (sandbox, step, undo)
) STRICT;

CREATE TABLE tokens (
    sha256     TEXT PRIMARY KEY,
    sandbox    TEXT NOT NULL UNIQUE REFERENCES sandboxes (id) DEFERRABLE INITIALLY DEFERRED,
    expires_at INTEGER NOT NULL
) STRICT;

CREATE TABLE artifacts (
    job  TEXT NOT NULL REFERENCES jobs (id) DEFERRABLE INITIALLY DEFERRED,
    name TEXT NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (job, name)
) STRICT;

CREATE TABLE idempotency (
    key            TEXT PRIMARY KEY,
    request_sha256 TEXT NOT NULL,
    job            TEXT NOT NULL REFERENCES jobs (id) DEFERRABLE INITIALLY DEFERRED,
    created_at     INTEGER NOT NULL
) STRICT;

CREATE TABLE events (
    seq     INTEGER PRIMARY KEY AUTOINCREMENT,
    time    INTEGER NOT NULL,
    kind    TEXT NOT NULL,
    sandbox TEXT,
    job     TEXT,
    message TEXT NOT NULL,
    data    TEXT NOT NULL
) STRICT;
CREATE INDEX events_of_sandbox ON events (sandbox, seq) WHERE sandbox IS NOT NULL;
CREATE INDEX events_of_job     ON events (job, seq)     WHERE job IS NOT NULL;
";

/// What ages has its time in a column, and what is looked up or counted has an index.
const VERSION_2: &str = "
ALTER TABLE sandboxes ADD COLUMN updated_at INTEGER NOT NULL DEFAULT 0;
UPDATE sandboxes SET updated_at =
    coalesce(CAST(strftime('%s', json_extract(body, '$.updated_at')) AS INTEGER) * 1000000, created_at);
ALTER TABLE jobs ADD COLUMN finished_at INTEGER;
UPDATE jobs SET finished_at = CAST(strftime('%s', json_extract(body, '$.finished_at')) AS INTEGER) * 1000000;

CREATE INDEX sandboxes_of_vmid ON sandboxes (vmid, created_at);
CREATE INDEX sandboxes_of_name ON sandboxes (name, created_at);
CREATE INDEX sandboxes_of_state ON sandboxes (state);
CREATE INDEX sandboxes_destroyed ON sandboxes (updated_at) WHERE state = 'DESTROYED';
CREATE INDEX jobs_of_sandbox ON jobs (sandbox);
CREATE INDEX jobs_of_state ON jobs (state);
CREATE INDEX jobs_ended ON jobs (finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX idempotency_of_job ON idempotency (job);
CREATE INDEX idempotency_age ON idempotency (created_at);
";

/// Workspaces; a sandbox that lives may have one, and shares it with no other.
const VERSION_3: &str = "
CREATE TABLE workspaces (
    id   TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    body TEXT NOT NULL
) STRICT;
ALTER TABLE sandboxes ADD COLUMN workspace TEXT REFERENCES workspaces (id) DEFERRABLE INITIALLY DEFERRED;
CREATE UNIQUE INDEX sandboxes_live_workspace ON sandboxes (workspace)
    WHERE state <> 'DESTROYED' AND workspace IS NOT NULL;
";

/// What a list shows of a sandbox stands beside its record. Absent until the record is written again; a version that
/// shows something else sets it to NULL.
const VERSION_4: &str = "
ALTER TABLE sandboxes ADD COLUMN view TEXT;
";

/// Bytes are kept by their hash, for as long as a record names it.
const VERSION_5: &str = "
ALTER TABLE artifacts ADD COLUMN sha256 TEXT NOT NULL DEFAULT '';
UPDATE artifacts SET sha256 = json_extract(body, '$.sha256');
CREATE INDEX artifacts_of_bytes ON artifacts (sha256);
";

fn migrations() -> [M<'static>; 5] {
    [
        M::up(VERSION_1),
        M::up(VERSION_2),
        M::up(VERSION_3),
        M::up(VERSION_4),
        M::up(VERSION_5),
    ]
}

/// Brings the database to this program's version. Refuses one that is newer or is somebody else's, and changes
/// nothing in it then.
pub(super) fn migrate(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let refuse = |reason: String| StoreError::Migration {
        path: path.display().to_string(),
        reason,
    };
    let pragma = |name: &str| {
        connection
            .pragma_query_value(None, name, |row| row.get::<_, i64>(0))
            .map_err(|source| StoreError::database("reading its version", path, source))
    };
    let known = migrations();
    let newest = i64::try_from(known.len()).unwrap_or(i64::MAX);
    let (version, application) = (pragma("user_version")?, pragma("application_id")?);
    if version > newest {
        return Err(refuse(format!(
            "it was written by a newer agentlabd (its version is {version}, this program knows {newest}); install \
             that version again, or restore the backup made before the upgrade"
        )));
    }
    let tables = connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| {
            row.get::<_, i64>(0)
        })
        .map_err(|source| StoreError::database("reading its tables", path, source))?;
    if tables > 0 && application != APPLICATION_ID {
        return Err(refuse(
            "it holds tables of another program; set db_path to a file of its own".into(),
        ));
    }
    Migrations::from_slice(&known)
        .to_latest(connection)
        .map_err(|error| refuse(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_migration_is_valid_sql() {
        Migrations::from_slice(&migrations()).validate().unwrap();
    }

    #[test]
    fn records_of_the_first_version_age_by_their_own_times() {
        let mut connection = Connection::open_in_memory().unwrap();
        let known = migrations();
        Migrations::from_slice(&known)
            .to_version(&mut connection, 1)
            .unwrap();
        connection
            .execute_batch(
                r#"INSERT INTO sandboxes VALUES ('s', 1, 'a', 'n', 'DESTROYED', 5, '{"updated_at": "1970-01-01T00:00:07.123456Z"}');
                   INSERT INTO sandboxes VALUES ('t', 2, 'b', 'o', 'DESTROYED', 5, '{}');
                   INSERT INTO jobs VALUES ('j', 'FAILED', NULL, 5, '{"finished_at": "1970-01-01T00:00:09Z"}');
                   INSERT INTO jobs VALUES ('k', 'RUNNING', NULL, 5, '{"finished_at": null}');"#,
            )
            .unwrap();
        migrate(&mut connection, Path::new("old.db")).unwrap();
        let number = |sql: &str| {
            connection
                .query_row(sql, [], |row| row.get::<_, Option<i64>>(0))
                .unwrap()
        };
        assert_eq!(
            [
                number("SELECT updated_at FROM sandboxes WHERE id = 's'"),
                number("SELECT updated_at FROM sandboxes WHERE id = 't'"),
                number("SELECT finished_at FROM jobs WHERE id = 'j'"),
                number("SELECT finished_at FROM jobs WHERE id = 'k'"),
            ],
            [Some(7_000_000), Some(5), Some(9_000_000), None]
        );
    }

    #[test]
    fn a_database_of_another_program_is_refused_untouched() {
        let mut connection = Connection::open_in_memory().unwrap();
        connection
            .execute_batch("CREATE TABLE theirs (id INTEGER)")
            .unwrap();
        let error = migrate(&mut connection, Path::new("their.db")).unwrap_err();
        assert!(error.to_string().contains("another program"), "{error}");
        let tables: i64 = connection
            .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
            .unwrap();
        assert_eq!(tables, 1);
    }
}
