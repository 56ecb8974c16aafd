//! The bytes of artifacts: on disk once, under their hash, however many records name them, and gone after the last.
//!
//! ```text
//!   hold ──► Incoming ──► artifacts/ab/abcd… ──► record ──► Hold::recorded
//!     └──► dropped ──► loose ──┐
//!   record removed ──► loose ──┴──► no record names them: removed
//! ```
//!
//! What a crash leaves without a record is found at the next start, when all there is counts as loose.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::beneath::{self, Place};
use super::{ARTIFACTS, Files, INCOMING, Kind, Shared, blocking, is_sha256};
use crate::StoreError;

/// Hashes that are looked at together.
pub(crate) const AT_ONCE: usize = 500;

/// Who wants to keep which bytes, besides the records. None is both held and loose.
#[derive(Debug, Default)]
pub(super) struct Wanted(Mutex<Standing>);

#[derive(Debug, Default)]
struct Standing {
    held: HashMap<String, usize>,
    loose: HashMap<String, u64>,
    next: u64,
}

impl Standing {
    fn loosen(&mut self, sha256: String) {
        if !self.held.contains_key(&sha256) {
            self.loose.insert(sha256, self.next);
            self.next = self.next.wrapping_add(1);
        }
    }
}

impl Wanted {
    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes that perhaps no record names. Told apart by number, so that an answer of the database is never applied to
/// what has happened after it was given.
#[derive(Debug, Clone)]
pub(crate) struct Loose {
    pub(crate) sha256: String,
    number: u64,
}

/// Keeps the bytes of a hash, once they are here, until a record names them. Dropped without [`Hold::recorded`], it
/// lets go of them.
#[derive(Debug)]
pub struct Hold {
    shared: Arc<Shared>,
    sha256: String,
    recorded: bool,
}

impl Hold {
    /// What the bytes hash to, in lower-case hexadecimal.
    #[must_use]
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// A record keeps them from here on.
    pub fn recorded(mut self) {
        self.recorded = true;
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut standing = self.shared.wanted.standing();
        if let Some(holders) = standing.held.get_mut(&self.sha256) {
            *holders -= 1;
            if *holders == 0 {
                standing.held.remove(&self.sha256);
            }
        }
        if !self.recorded {
            standing.loosen(std::mem::take(&mut self.sha256));
        }
    }
}

impl Files {
    /// Keeps what has this SHA-256, or is about to arrive, from being removed.
    ///
    /// # Errors
    /// [`StoreError::Name`] for what is not 64 lower-case hexadecimal digits.
    pub fn hold(&self, sha256: &str) -> Result<Hold, StoreError> {
        Kind::Artifact.place(sha256)?;
        let mut standing = self.shared.wanted.standing();
        standing.loose.remove(sha256);
        *standing.held.entry(sha256.to_owned()).or_default() += 1;
        drop(standing);
        Ok(Hold {
            shared: Arc::clone(&self.shared),
            sha256: sha256.to_owned(),
            recorded: false,
        })
    }

    /// The record of these may have been the last. What is held is left to its holder.
    pub(crate) fn loosen(&self, hashes: impl IntoIterator<Item = String>) {
        let mut standing = self.shared.wanted.standing();
        hashes.into_iter().for_each(|sha256| standing.loosen(sha256));
    }

    /// Some of what may be without a record.
    pub(crate) fn loose(&self) -> Vec<Loose> {
        let standing = self.shared.wanted.standing();
        let some = standing.loose.iter().take(AT_ONCE);
        some.map(|(sha256, number)| Loose {
            sha256: sha256.clone(),
            number: *number,
        })
        .collect()
    }

    /// Removes those that are not among the `recorded`, and says how many there were. Absent is success; one that
    /// somebody has held since is left alone.
    pub(crate) async fn remove_loose(
        &self,
        loose: Vec<Loose>,
        recorded: HashSet<String>,
    ) -> Result<usize, StoreError> {
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            let mut removed = 0;
            for one in loose {
                if recorded.contains(&one.sha256) {
                    let mut standing = shared.wanted.standing();
                    if standing.loose.get(&one.sha256) == Some(&one.number) {
                        standing.loose.remove(&one.sha256);
                    }
                } else if remove(&shared, &one)? {
                    removed += 1;
                }
            }
            Ok(removed)
        })
        .await
    }

    /// The directories of artifacts that there are, by the first byte of the hashes in them.
    pub(crate) async fn shards(&self) -> Result<Vec<String>, StoreError> {
        let mut names = self.names_in(vec![ARTIFACTS.to_owned()]).await?;
        names.retain(|name| name.len() == 2 && name.bytes().all(|byte| byte.is_ascii_hexdigit()));
        Ok(names)
    }

    /// The hashes in one of them.
    pub(crate) async fn stored(&self, shard: String) -> Result<Vec<String>, StoreError> {
        let mut names = self.names_in(vec![ARTIFACTS.to_owned(), shard]).await?;
        // What has another name is not ours.
        names.retain(|name| is_sha256(name));
        Ok(names)
    }

    pub(super) async fn names_in(&self, components: Vec<String>) -> Result<Vec<String>, StoreError> {
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            let path = shared.root_path.join(components.join("/"));
            beneath::names(&shared.root, &components)
                .map_err(|error| StoreError::file("Reading", &path, error))
        })
        .await
    }
}

/// Whether it was there and is gone.
fn remove(shared: &Shared, loose: &Loose) -> Result<bool, StoreError> {
    let place = Kind::Artifact.place(&loose.sha256)?;
    let aside = shared.next_incoming.fetch_add(1, Ordering::Relaxed).to_string();
    let aside = Place::new(&[INCOMING], &aside)?;
    let failed = |error: io::Error| StoreError::file("Removing", &place.path(&shared.root_path), error);
    let mut standing = shared.wanted.standing();
    if standing.loose.get(&loose.sha256) != Some(&loose.number) {
        return Ok(false);
    }
    // Out of the way first: to remove a large file takes long, and who wants to hold something waits meanwhile.
    let moved = place.rename(&shared.root, &aside).map_err(failed)?;
    standing.loose.remove(&loose.sha256);
    drop(standing);
    aside.remove(&shared.root).map_err(failed)?;
    Ok(moved)
}
