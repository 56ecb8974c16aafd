//! What must survive a SIGKILL or a power cut: records, the journal, events, and the files jobs leave.
//!
//! ```text
//!   engine ──► Store::commit(Vec<Write>) ──► one SQLite transaction, WAL, synchronous=FULL (writer thread)
//!          ──► reads                     ──► a few read-only connections
//!          ──► ArtifactFiles, LogFiles, BundleFiles ──► plain files beside the database
//! ```
//!
//! No SQL leaves this crate, and no decision is taken in it.

mod error;
pub mod record;

pub use error::StoreError;
pub use record::{
    ArtifactRecord, EventFilter, IdempotencyRecord, Intent, JobRecord, NewEvent, SandboxRecord, TokenRecord, Write,
};
