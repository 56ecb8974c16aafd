//! What a guest is sending: counted from the first byte until it is stored or dropped, however long that takes and
//! whatever it is called.

use std::sync::{Arc, Mutex};

use agentlab_store::{Incoming, Received, StoreError};

use crate::shared::lock;

/// Uploads of one sandbox that may be under way at once.
const AT_ONCE: usize = 4;

/// The uploads of one sandbox.
#[derive(Debug, Clone, Default)]
pub(crate) struct Uploads(Arc<Mutex<UnderWay>>);

#[derive(Debug, Default)]
struct UnderWay {
    count: usize,
    /// What they may still come to, together.
    bytes: u64,
}

impl Uploads {
    /// Sets `bytes` aside for one more, of the `room` that what is stored leaves. `None` while others may need it.
    pub(crate) fn begin(&self, bytes: u64, room: u64) -> Option<Permit> {
        let mut under_way = lock(&self.0);
        let together = under_way.bytes.checked_add(bytes)?;
        if under_way.count >= AT_ONCE || together > room {
            return None;
        }
        under_way.count += 1;
        under_way.bytes = together;
        Some(Permit {
            uploads: self.clone(),
            bytes,
        })
    }
}

/// A place among the uploads of a sandbox; given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    uploads: Uploads,
    bytes: u64,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut under_way = lock(&self.uploads.0);
        under_way.count = under_way.count.saturating_sub(1);
        under_way.bytes = under_way.bytes.saturating_sub(self.bytes);
    }
}

/// A file that a guest is sending. Dropped before [`Upload::finish`], it leaves nothing behind.
#[derive(Debug)]
pub struct Upload {
    incoming: Incoming,
    // Dropped last: what is on disk still counts.
    _permit: Permit,
}

impl Upload {
    pub(crate) fn new(incoming: Incoming, permit: Permit) -> Self {
        Self {
            incoming,
            _permit: permit,
        }
    }

    /// Takes more bytes. After an error only dropping makes sense.
    ///
    /// # Errors
    /// Those of [`Incoming::write`].
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.incoming.write(bytes).await
    }

    /// Makes the file exist under its name, if its bytes are what was announced.
    ///
    /// # Errors
    /// Those of [`Incoming::finish`].
    pub async fn finish(self, announced_sha256: Option<&str>) -> Result<Received, StoreError> {
        self.incoming.finish(announced_sha256).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_under_way_counts_until_it_is_dropped_whatever_its_name() {
        let uploads = Uploads::default();
        let first = uploads.begin(60, 100).unwrap();
        assert!(
            uploads.begin(60, 100).is_none(),
            "together more than there is room for"
        );
        let others: Vec<Permit> = (0..3).map(|_| uploads.begin(10, 100).unwrap()).collect();
        assert!(uploads.begin(0, 100).is_none(), "a fifth one");
        drop(first);
        assert!(uploads.begin(70, 100).is_some());
        drop(others);
        assert!(uploads.begin(100, 100).is_some());
    }
}
