//! A file on its way in: hashed and bounded while it is written, in place only when it is whole.
//!
//! ```text
//!   write ──► buffer ──► (full) ──► blocking thread: hash, write, check free space
//!                 ▲                         │
//!                 └── the next buffer fills ┘
//! ```
//!
//! What breaks off is removed, unless it may be continued ([`super::partial`]).

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, Mode, OFlags};
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::beneath::{self, Place};
use super::partial::{Claim, Hashed};
use super::{INCOMING, Kind, PARTIAL, Shared, blocking};
use crate::StoreError;

const BUFFER_BYTES: usize = 256 << 10;

/// What arrived and was stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// Lower-case hexadecimal SHA-256 of the bytes on disk.
    pub sha256: String,
    /// Their number.
    pub size_bytes: u64,
}

/// A file being received. Dropped before [`Incoming::finish`], it leaves nothing behind, unless it may be continued.
#[derive(Debug)]
pub struct Incoming {
    shared: Arc<Shared>,
    kind: Kind,
    limit: u64,
    /// Bytes that were here when it began.
    kept: u64,
    received: u64,
    buffer: Vec<u8>,
    sink: SinkState,
    /// Somebody else wants to go on with it.
    superseded: Option<watch::Receiver<bool>>,
}

#[derive(Debug)]
enum SinkState {
    Idle(Box<Sink>),
    Busy(JoinHandle<Result<Sink, StoreError>>),
    /// A write failed; there is nothing to finish any more.
    Broken,
}

/// What becomes of the file when nobody writes to it any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Removed,
    /// Waits for the rest.
    Kept,
    Renamed,
}

/// The open file and the hash of what is in it.
struct Sink {
    file: File,
    hash: Sha256,
    written: u64,
    directory: OwnedFd,
    name: String,
    fate: Fate,
    /// Of a file that may be continued.
    claim: Option<Claim>,
}

impl std::fmt::Debug for Sink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sink")
            .field("name", &self.name)
            .field("written", &self.written)
            .field("fate", &self.fate)
            .finish_non_exhaustive()
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        match (self.fate, &mut self.claim) {
            (Fate::Renamed, _) => {}
            (Fate::Kept, Some(claim)) if self.written > 0 => {
                claim.hashed = Some(Hashed {
                    bytes: self.written,
                    hash: self.hash.clone(),
                });
            }
            (Fate::Kept | Fate::Removed, _) => {
                // Where it fails, the next start or the end of the job removes it.
                let _ = rustix::fs::unlinkat(&self.directory, &self.name, AtFlags::empty());
            }
        }
    }
}

impl Sink {
    fn path(&self, shared: &Shared) -> PathBuf {
        let directory = if self.claim.is_some() { PARTIAL } else { INCOMING };
        shared.root_path.join(directory).join(&self.name)
    }
}

const NEW: OFlags = OFlags::CREATE
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC)
    .union(OFlags::WRONLY);

impl Incoming {
    /// A file that is whole or nothing. Blocks.
    pub(super) fn begin(shared: Arc<Shared>, kind: Kind, limit: u64) -> Result<Self, StoreError> {
        keep_floor(&shared)?;
        let name = shared.next_incoming.fetch_add(1, Ordering::Relaxed).to_string();
        let path = shared.root_path.join(INCOMING).join(&name);
        let failed = |error: io::Error| StoreError::file("Creating", &path, error);
        let directory = beneath::directory(&shared.root, &[INCOMING], false).map_err(failed)?;
        let file = rustix::fs::openat(&directory, &name, NEW | OFlags::EXCL, Mode::RUSR | Mode::WUSR)
            .map_err(|error| failed(error.into()))?;
        let sink = Sink {
            file: file.into(),
            hash: Sha256::new(),
            written: 0,
            directory,
            name,
            fate: Fate::Removed,
            claim: None,
        };
        Ok(Self::over(shared, kind, limit, sink))
    }

    /// One that may break off and be continued, from its byte `offset` on. Blocks.
    pub(super) fn go_on(kind: Kind, limit: u64, mut claim: Claim, offset: u64) -> Result<Self, StoreError> {
        let shared = Arc::clone(claim.shared());
        keep_floor(&shared)?;
        let place = claim.key().place()?;
        let failed = |error: io::Error| StoreError::file("Opening", &place.path(&shared.root_path), error);
        let (file, hash) = if offset == 0 {
            claim.hashed = None;
            let directory = place.parent(&shared.root, true).map_err(failed)?;
            let file = rustix::fs::openat(
                &directory,
                place.last(),
                NEW | OFlags::TRUNC,
                Mode::RUSR | Mode::WUSR,
            )
            .map_err(|error| failed(error.into()))?;
            (file.into(), Sha256::new())
        } else {
            let opened = place.open(&shared.root, OFlags::RDWR).map_err(failed)?;
            let kept = opened.as_ref().map_or(0, |(_, size)| *size);
            match opened {
                Some((mut file, _)) if kept == offset => {
                    let hash = claim.hash_of(&mut file, kept).map_err(failed)?;
                    file.seek(io::SeekFrom::End(0)).map_err(failed)?;
                    (file, hash)
                }
                Some(_) | None => {
                    return Err(StoreError::Offset {
                        what: kind.as_str(),
                        kept,
                    });
                }
            }
        };
        let superseded = claim.superseded();
        let sink = Sink {
            file,
            hash,
            written: offset,
            directory: place.parent(&shared.root, false).map_err(failed)?,
            name: place.last().to_owned(),
            fate: Fate::Kept,
            claim: Some(claim),
        };
        let mut incoming = Self::over(shared, kind, limit, sink);
        incoming.superseded = Some(superseded);
        Ok(incoming)
    }

    fn over(shared: Arc<Shared>, kind: Kind, limit: u64, sink: Sink) -> Self {
        Self {
            shared,
            kind,
            limit,
            kept: sink.written,
            received: sink.written,
            buffer: Vec::new(),
            sink: SinkState::Idle(Box::new(sink)),
            superseded: None,
        }
    }

    /// Resolves when the same file is sent over another connection: this one should be dropped.
    pub async fn superseded(&mut self) {
        let Some(asked) = &mut self.superseded else {
            return std::future::pending().await;
        };
        // Its sender lives as long as the claim, which is ours.
        while !*asked.borrow_and_update() && asked.changed().await.is_ok() {}
    }

    /// Writes out what was taken so far, so that nothing of it need be sent again. Only dropping makes sense
    /// afterwards.
    pub async fn keep(&mut self) {
        // What cannot be written is not kept.
        if self.flush().await.is_ok() {
            drop(self.idle().await);
        }
    }

    /// Bytes taken so far, with those that were here.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.received
    }

    /// Takes more bytes. After an error only dropping makes sense.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`] beyond the limit, [`StoreError::DiskFloor`] when too little would stay free.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.received = self
            .received
            .saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        if self.received > self.limit {
            // Waited for and dropped: the refusal is not heard before the file is gone.
            if let Ok(mut sink) = self.idle().await {
                sink.fate = Fate::Removed;
            }
            return Err(StoreError::TooLarge {
                what: self.kind.as_str(),
                limit: self.limit,
            });
        }
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= BUFFER_BYTES {
            self.flush().await?;
        }
        Ok(())
    }

    /// Makes the file exist under its hash: synced, then renamed. `announced_sha256` is what the sender said the
    /// bytes hash to; letter case does not matter. The same bytes again take the place of those that stand there, which
    /// mends what a disk has damaged.
    ///
    /// # Errors
    /// [`StoreError::Mismatch`] when they do not; [`StoreError::Offset`] when they do not and a part was here before,
    /// which is gone now. Nothing is stored then.
    pub async fn finish(mut self, announced_sha256: Option<&str>) -> Result<Received, StoreError> {
        self.flush().await?;
        let mut sink = self.idle().await?;
        // Whatever is wrong with them from here on: the bytes are not worth keeping.
        sink.fate = Fate::Removed;
        let sha256 = hex::encode(sink.hash.clone().finalize());
        if let Some(announced) = announced_sha256
            && !announced.eq_ignore_ascii_case(&sha256)
        {
            if self.kept > 0 {
                return Err(StoreError::Offset {
                    what: self.kind.as_str(),
                    kept: 0,
                });
            }
            let announced = announced.escape_debug().take(80).collect();
            return Err(StoreError::Mismatch {
                what: self.kind.as_str(),
                announced,
                actual: sha256,
            });
        }
        let place = self.kind.place(&sha256)?;
        let shared = Arc::clone(&self.shared);
        let size_bytes = self.received;
        blocking(move || {
            settle(&shared, sink, &place)?;
            Ok(Received { sha256, size_bytes })
        })
        .await
    }

    /// Hands the buffer to a blocking thread, after the one before has been written.
    async fn flush(&mut self) -> Result<(), StoreError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let sink = self.idle().await?;
        let bytes = std::mem::replace(&mut self.buffer, Vec::with_capacity(BUFFER_BYTES));
        let shared = Arc::clone(&self.shared);
        self.sink = SinkState::Busy(tokio::task::spawn_blocking(move || absorb(&shared, sink, &bytes)));
        Ok(())
    }

    /// Waits for the buffer in flight and takes the sink out.
    async fn idle(&mut self) -> Result<Sink, StoreError> {
        if let SinkState::Busy(task) = &mut self.sink {
            // Awaited in place: a caller that is cancelled here can come back.
            let written = task.await;
            self.sink = SinkState::Broken;
            return written.map_err(|_| StoreError::Closed)?;
        }
        match std::mem::replace(&mut self.sink, SinkState::Broken) {
            SinkState::Idle(sink) => Ok(*sink),
            SinkState::Busy(_) | SinkState::Broken => Err(StoreError::Closed),
        }
    }
}

fn absorb(shared: &Shared, mut sink: Sink, bytes: &[u8]) -> Result<Sink, StoreError> {
    let written = keep_floor(shared).and_then(|()| {
        sink.file
            .write_all(bytes)
            .map_err(|error| StoreError::file("Writing", &sink.path(shared), error))
    });
    if let Err(error) = written {
        // On a full disk of all places nothing is kept for later.
        sink.fate = Fate::Removed;
        return Err(error);
    }
    sink.hash.update(bytes);
    sink.written = sink
        .written
        .saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
    Ok(sink)
}

fn settle(shared: &Shared, mut sink: Sink, place: &Place) -> Result<(), StoreError> {
    sink.file
        .sync_all()
        .map_err(|error| StoreError::file("Syncing", &sink.path(shared), error))?;
    let failed = |error: io::Error| StoreError::file("Storing", &place.path(&shared.root_path), error);
    let parent = place.parent(&shared.root, true).map_err(failed)?;
    rustix::fs::renameat(&sink.directory, &sink.name, &parent, place.last())
        .map_err(|error| failed(error.into()))?;
    sink.fate = Fate::Renamed;
    rustix::fs::fsync(&parent).map_err(|error| failed(error.into()))
}

/// Hashes what is left of a file. Blocks.
pub(super) fn read_through(file: &mut File) -> io::Result<Hashed> {
    let (mut hash, mut bytes) = (Sha256::new(), 0u64);
    let mut piece = vec![0; BUFFER_BYTES];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(Hashed { bytes, hash }),
            read => {
                hash.update(&piece[..read]);
                bytes = bytes.saturating_add(u64::try_from(read).unwrap_or(u64::MAX));
            }
        }
    }
}

fn keep_floor(shared: &Shared) -> Result<(), StoreError> {
    let free = beneath::free_bytes(&shared.root)
        .map_err(|error| StoreError::file("Measuring free space", &shared.root_path, error))?;
    if free < shared.disk_floor {
        let path = shared.root_path.display().to_string();
        return Err(StoreError::DiskFloor {
            path,
            floor: shared.disk_floor,
        });
    }
    Ok(())
}
