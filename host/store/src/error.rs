//! Why a record could not be read or written.

/// Failure of the store. Callers stop what they do: an effect that cannot be journalled is not tried.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite refused.
    #[error("Database {action} failed")]
    Database {
        /// What was tried.
        action: &'static str,
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
    /// A bound was reached; nothing was stored.
    #[error("{what} exceeds its limit of {limit} bytes")]
    TooLarge {
        /// What.
        what: &'static str,
        /// The bound.
        limit: u64,
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
    /// The record changed or vanished meanwhile, or a unique value is taken.
    #[error("{0}")]
    Conflict(String),
    /// The store is shut down.
    #[error("The store is closed")]
    Closed,
}
