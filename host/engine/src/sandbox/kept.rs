//! A driver's record, which others read as well: one in memory for both, until the driver changes it. There may be a
//! thousand drivers, and nearly always nothing changes.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use agentlab_store::SandboxRecord;

/// Not `Clone`, so that `clone()` gives a record.
#[derive(Debug)]
pub(crate) struct Kept(Arc<SandboxRecord>);

impl Kept {
    pub(crate) fn new(record: SandboxRecord) -> Self {
        Self(Arc::new(record))
    }

    /// For those who read it.
    pub(crate) fn share(&self) -> Arc<SandboxRecord> {
        self.0.clone()
    }
}

impl Deref for Kept {
    type Target = SandboxRecord;

    fn deref(&self) -> &SandboxRecord {
        &self.0
    }
}

impl DerefMut for Kept {
    /// Those who read it keep seeing what was shared.
    fn deref_mut(&mut self) -> &mut SandboxRecord {
        Arc::make_mut(&mut self.0)
    }
}
