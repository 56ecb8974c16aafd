//! Why a record or a file could not be read or written.

use std::path::Path;

use agentlab_api::ErrorCode;
use rusqlite::ErrorCode as SqliteCode;

/// Failure of the store. Callers stop what they do: an effect that cannot be journalled is not tried.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite refused.
    #[error("Database {path}: {action} failed")]
    Database {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: String,
        /// SQLite's own words.
        #[source]
        source: rusqlite::Error,
    },
    /// The database file cannot be used as it is now; the sentence says what to do.
    #[error("Database {path} {reason}")]
    Unusable {
        /// The file.
        path: String,
        /// What is the matter, and what to do about it.
        reason: &'static str,
        /// SQLite's own words.
        #[source]
        source: rusqlite::Error,
    },
    /// A migration failed, or the database is newer than this program.
    #[error("Database {path} cannot be brought to this program's version: {reason}")]
    Migration {
        /// The file.
        path: String,
        /// Why.
        reason: String,
    },
    /// A stored row does not parse.
    #[error("A stored {what} cannot be read: {reason}")]
    Corrupt {
        /// What kind of row.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// A file beside the database.
    #[error("{action} failed on {path}")]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A name that could leave its directory. Nothing was opened.
    #[error("`{0}` is not a plain relative path")]
    Name(String),
    /// A bound was reached; nothing was stored.
    #[error("{what} exceeds its limit of {limit} bytes")]
    TooLarge {
        /// What.
        what: &'static str,
        /// The bound.
        limit: u64,
    },
    /// Less would be free than must stay free; nothing was stored.
    #[error("The disk under {path} is too full: {floor} bytes must stay free")]
    DiskFloor {
        /// Where.
        path: String,
        /// What must stay free.
        floor: u64,
    },
    /// The bytes are not those announced; nothing was stored.
    #[error("{what} has SHA-256 {actual}, announced was {announced}")]
    Mismatch {
        /// What.
        what: &'static str,
        /// As announced.
        announced: String,
        /// As computed.
        actual: String,
    },
    /// An upload can be continued from another byte only.
    #[error("{kept} bytes of this {what} are here: it goes on from there")]
    Offset {
        /// What.
        what: &'static str,
        /// How much is here.
        kept: u64,
    },
    /// The record changed or vanished meanwhile, or a unique value is taken.
    #[error("{0}")]
    Conflict(String),
    /// The store is shut down.
    #[error("The store is closed")]
    Closed,
}

impl StoreError {
    /// What a caller of the API is told it was.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::TooLarge { .. } => ErrorCode::TooLarge,
            _ if self.is_disk_full() => ErrorCode::LimitReached,
            Self::Mismatch { .. } | Self::Name(_) => ErrorCode::InvalidValue,
            Self::Conflict(_) | Self::Offset { .. } => ErrorCode::StateConflict,
            Self::Closed => ErrorCode::ShuttingDown,
            Self::DiskFloor { .. }
            | Self::Database { .. }
            | Self::Unusable { .. }
            | Self::Migration { .. }
            | Self::Corrupt { .. }
            | Self::File { .. } => ErrorCode::Internal,
        }
    }

    /// Whether there is no space, or no quota, left: trying again changes nothing before somebody has made some.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::DiskFloor { .. } => true,
            Self::File { source, .. } => matches!(
                source.kind(),
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
            ),
            Self::Unusable { source, .. } | Self::Database { source, .. } => {
                source.sqlite_error_code() == Some(SqliteCode::DiskFull)
            }
            Self::Migration { .. }
            | Self::Corrupt { .. }
            | Self::Name(_)
            | Self::TooLarge { .. }
            | Self::Mismatch { .. }
            | Self::Offset { .. }
            | Self::Conflict(_)
            | Self::Closed => false,
        }
    }

    /// SQLite's error with the file named and, where there is something to do about it, said.
    pub(crate) fn database(action: &'static str, path: &Path, source: rusqlite::Error) -> Self {
        let path = path.display().to_string();
        let reason = match source.sqlite_error_code() {
            Some(SqliteCode::DatabaseBusy | SqliteCode::DatabaseLocked) => {
                "is locked by another program: stop it, then try again"
            }
            Some(SqliteCode::ReadOnly | SqliteCode::PermissionDenied) => {
                "cannot be written: check the owner and mode of the file and of its directory"
            }
            Some(SqliteCode::DiskFull) => "cannot grow, the disk is full: free some space, then try again",
            Some(SqliteCode::CannotOpen) => {
                "cannot be opened: check that its directory exists and is writable"
            }
            Some(SqliteCode::NotADatabase | SqliteCode::DatabaseCorrupt) => {
                "is damaged or is no SQLite database: restore it from a backup, or move it away to start empty"
            }
            Some(SqliteCode::ConstraintViolation) => {
                return Self::Conflict(format!("{action} contradicts what is stored: {source}"));
            }
            _ => return Self::Database { action, path, source },
        };
        Self::Unusable { path, reason, source }
    }

    /// An operating system's error on a file.
    pub(crate) fn file(action: &'static str, path: &Path, source: impl Into<std::io::Error>) -> Self {
        Self::File {
            action,
            path: path.display().to_string(),
            source: source.into(),
        }
    }
}
