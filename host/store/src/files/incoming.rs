//! A file on its way in: hashed and bounded while it is written, in place only when it is whole.
//!
//! ```text
//!   write ──► buffer ──► (full) ──► blocking thread: hash, write, check free space
//!                 ▲                         │
//!                 └── the next buffer fills ┘
//! ```

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use sha2::{Digest, Sha256};
use tokio::task::JoinHandle;

use super::beneath::{self, Place};
use super::{INCOMING, Shared, blocking};
use crate::StoreError;

const BUFFER_BYTES: usize = 256 << 10;

/// Where the file goes once it is whole.
#[derive(Debug, Clone)]
pub(super) enum Target {
    /// Its name is known.
    Named(Place),
    /// Its SHA-256 is its name, in this directory.
    ByHash(&'static str),
}

/// What arrived and was stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// Lower-case hexadecimal SHA-256 of the bytes on disk.
    pub sha256: String,
    /// Their number.
    pub size_bytes: u64,
}

/// A file being received. Dropped before [`Incoming::finish`], it leaves nothing behind.
#[derive(Debug)]
pub struct Incoming {
    shared: Arc<Shared>,
    what: &'static str,
    target: Target,
    limit: u64,
    received: u64,
    buffer: Vec<u8>,
    sink: SinkState,
}

#[derive(Debug)]
enum SinkState {
    Idle(Sink),
    Busy(JoinHandle<Result<Sink, StoreError>>),
    /// A write failed; there is nothing to finish any more.
    Broken,
}

/// The open file and the hash of what is in it.
struct Sink {
    file: File,
    hash: Sha256,
    temporary: Temporary,
}

impl std::fmt::Debug for Sink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sink")
            .field("temporary", &self.temporary.name)
            .finish_non_exhaustive()
    }
}

/// The name in `incoming/`; removed when dropped, unless it was renamed away before.
struct Temporary {
    directory: OwnedFd,
    name: String,
    renamed: bool,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.renamed {
            // Where it fails, the next start removes it.
            let _ = rustix::fs::unlinkat(&self.directory, &self.name, AtFlags::empty());
        }
    }
}

impl Incoming {
    /// Blocks.
    pub(super) fn begin(
        shared: Arc<Shared>,
        what: &'static str,
        target: Target,
        limit: u64,
    ) -> Result<Self, StoreError> {
        keep_floor(&shared)?;
        let name = shared.next_incoming.fetch_add(1, Ordering::Relaxed).to_string();
        let path = shared.root_path.join(INCOMING).join(&name);
        let failed = |error: io::Error| StoreError::file("Creating", &path, error);
        let directory = beneath::directory(&shared.root, &[INCOMING], false).map_err(failed)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&directory, &name, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|error| failed(error.into()))?;
        let temporary = Temporary {
            directory,
            name,
            renamed: false,
        };
        let sink = SinkState::Idle(Sink {
            file: file.into(),
            hash: Sha256::new(),
            temporary,
        });
        Ok(Self {
            shared,
            what,
            target,
            limit,
            received: 0,
            buffer: Vec::new(),
            sink,
        })
    }

    /// Bytes taken so far.
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
            drop(self.idle().await);
            return Err(StoreError::TooLarge {
                what: self.what,
                limit: self.limit,
            });
        }
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= BUFFER_BYTES {
            self.flush().await?;
        }
        Ok(())
    }

    /// Makes the file exist under its name: synced, then renamed. `announced_sha256` is what the sender said the
    /// bytes hash to; letter case does not matter.
    ///
    /// # Errors
    /// [`StoreError::Mismatch`] when they do not; [`StoreError::Conflict`] when the name holds other bytes already.
    /// Nothing is stored then. The same bytes under the same name again are success.
    pub async fn finish(mut self, announced_sha256: Option<&str>) -> Result<Received, StoreError> {
        self.flush().await?;
        let sink = self.idle().await?;
        let sha256 = hex::encode(sink.hash.clone().finalize());
        if let Some(announced) = announced_sha256
            && !announced.eq_ignore_ascii_case(&sha256)
        {
            let announced = announced.escape_debug().take(80).collect();
            return Err(StoreError::Mismatch {
                what: self.what,
                announced,
                actual: sha256,
            });
        }
        let place = match self.target {
            Target::Named(ref place) => place.clone(),
            Target::ByHash(directory) => Place::new(&[directory], &sha256)?,
        };
        let shared = Arc::clone(&self.shared);
        let size_bytes = self.received;
        blocking(move || {
            settle(&shared, sink, &place, &sha256)?;
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
            SinkState::Idle(sink) => Ok(sink),
            SinkState::Busy(_) | SinkState::Broken => Err(StoreError::Closed),
        }
    }
}

fn absorb(shared: &Shared, mut sink: Sink, bytes: &[u8]) -> Result<Sink, StoreError> {
    keep_floor(shared)?;
    sink.file
        .write_all(bytes)
        .map_err(|error| StoreError::file("Writing", &sink_path(shared, &sink), error))?;
    sink.hash.update(bytes);
    Ok(sink)
}

fn settle(shared: &Shared, mut sink: Sink, place: &Place, sha256: &str) -> Result<(), StoreError> {
    sink.file
        .sync_all()
        .map_err(|error| StoreError::file("Syncing", &sink_path(shared, &sink), error))?;
    let failed = |error: io::Error| StoreError::file("Storing", &place.path(&shared.root_path), error);
    let parent = place.parent(&shared.root, true).map_err(|error| {
        if error.kind() == io::ErrorKind::NotADirectory {
            StoreError::Conflict(format!(
                "A directory on the way to `{}` is a file already",
                place.last()
            ))
        } else {
            failed(error)
        }
    })?;
    // A guest that repeats an upload gets the same answer; one that changes its mind is refused. A link in the
    // place of the file counts as nothing and is replaced by the rename.
    if let Ok(Some((standing, _))) = place.open(&shared.root, OFlags::RDONLY) {
        let young_again = standing.set_modified(std::time::SystemTime::now());
        if hash_of(standing).map_err(failed)? == sha256 {
            // It ages from the last time somebody wanted it here.
            return young_again.map_err(failed);
        }
        return Err(StoreError::Conflict(format!(
            "`{}` is stored already, with other bytes",
            place.last()
        )));
    }
    match rustix::fs::renameat(
        &sink.temporary.directory,
        &sink.temporary.name,
        &parent,
        place.last(),
    ) {
        Ok(()) => sink.temporary.renamed = true,
        Err(Errno::ISDIR | Errno::NOTEMPTY | Errno::EXIST) => {
            return Err(StoreError::Conflict(format!(
                "`{}` is already a directory of this job",
                place.last()
            )));
        }
        Err(error) => return Err(failed(error.into())),
    }
    rustix::fs::fsync(&parent).map_err(|error| failed(error.into()))
}

fn hash_of(mut file: File) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut piece = vec![0; BUFFER_BYTES];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(hex::encode(hash.finalize())),
            read => hash.update(&piece[..read]),
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

fn sink_path(shared: &Shared, sink: &Sink) -> PathBuf {
    shared.root_path.join(INCOMING).join(&sink.temporary.name)
}
