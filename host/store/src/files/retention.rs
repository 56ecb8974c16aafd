//! Files that nobody needs any more: found by looking, so that none is missed whatever a record says.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use agentlab_api::JobId;
use jiff::Timestamp;
use rustix::fs::{AtFlags, Dir};
use rustix::io::Errno;

use super::partial::remove_old;
use super::{ARTIFACTS, BUNDLES, Files, LOGS, PARTIAL, beneath, blocking, log_place};
use crate::StoreError;

impl Files {
    /// Every job of which there is a file or a directory that has not changed for so long.
    ///
    /// # Errors
    /// A directory cannot be read.
    pub async fn jobs_with_files(
        &self,
        unchanged: Duration,
        now: Timestamp,
    ) -> Result<Vec<JobId>, StoreError> {
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            let mut jobs = BTreeSet::new();
            for directory in [ARTIFACTS, LOGS] {
                let names = names_of(&shared.root, directory, unchanged, now)
                    .map_err(|error| StoreError::file("Reading", &shared.root_path.join(directory), error))?;
                // What is not ours is left alone.
                jobs.extend(
                    names
                        .iter()
                        .filter_map(|name| name.strip_suffix(".jsonl").unwrap_or(name).parse::<JobId>().ok()),
                );
            }
            Ok(jobs.into_iter().collect())
        })
        .await
    }

    /// Every bundle, by its SHA-256, that has not been uploaded anew for so long.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub async fn old_bundles(&self, unchanged: Duration, now: Timestamp) -> Result<Vec<String>, StoreError> {
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            names_of(&shared.root, BUNDLES, unchanged, now)
                .map_err(|error| StoreError::file("Reading", &shared.root_path.join(BUNDLES), error))
        })
        .await
    }

    /// Removes a job's artifacts, what broke off of them, and its log. Absent is success.
    ///
    /// # Errors
    /// Something could not be removed.
    pub async fn remove_job(&self, job: &JobId) -> Result<(), StoreError> {
        let (job, log) = (job.clone(), log_place(job)?);
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            let artifacts = [ARTIFACTS, job.as_str()];
            let removed = beneath::prune(&shared.root, &artifacts, &HashSet::new())
                .and_then(|_| remove_directory(&shared.root, job.as_str()));
            removed.map_err(|error| {
                StoreError::file("Removing", &shared.root_path.join(artifacts.join("/")), error)
            })?;
            remove_old(&shared, &job, Duration::ZERO, Timestamp::UNIX_EPOCH).map_err(|error| {
                StoreError::file(
                    "Removing",
                    &shared.root_path.join(PARTIAL).join(job.as_str()),
                    error,
                )
            })?;
            log.remove(&shared.root)
                .map_err(|error| StoreError::file("Removing", &log.path(&shared.root_path), error))
        })
        .await
    }
}

fn remove_directory(root: &OwnedFd, job: &str) -> io::Result<()> {
    let artifacts = beneath::directory(root, &[ARTIFACTS], false)?;
    match rustix::fs::unlinkat(&artifacts, job, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Names in a directory of ours whose entry was last changed at least so long ago.
fn names_of(root: &OwnedFd, directory: &str, unchanged: Duration, now: Timestamp) -> io::Result<Vec<String>> {
    let handle = beneath::directory(root, &[directory], false)?;
    let newest = now.as_second() - i64::try_from(unchanged.as_secs()).unwrap_or(i64::MAX);
    let mut names = Vec::new();
    for entry in Dir::read_from(&handle)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == "." || name == ".." {
            continue;
        }
        match rustix::fs::statat(&handle, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) if found.st_mtime <= newest => names.push(name),
            Ok(_) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(names)
}
