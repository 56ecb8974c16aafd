//! Files that nobody needs any more: found by looking, so that none is missed whatever a record says.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use agentlab_api::JobId;
use jiff::Timestamp;
use rustix::fs::{AtFlags, Dir};
use rustix::io::Errno;

use super::partial::remove_old;
use super::{BUNDLES, Files, LOGS, PARTIAL, beneath, blocking, log_place};
use crate::StoreError;

impl Files {
    /// Every job whose log has not changed for so long.
    ///
    /// # Errors
    /// A directory cannot be read.
    pub async fn jobs_with_logs(
        &self,
        unchanged: Duration,
        now: Timestamp,
    ) -> Result<Vec<JobId>, StoreError> {
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            let names = names_of(&shared.root, LOGS, unchanged, now)
                .map_err(|error| StoreError::file("Reading", &shared.root_path.join(LOGS), error))?;
            // What is not ours is left alone.
            let jobs = names
                .iter()
                .filter_map(|name| name.strip_suffix(".jsonl")?.parse().ok());
            Ok(jobs.collect())
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

    /// Removes a job's log, and what broke off of its uploads. Absent is success.
    ///
    /// # Errors
    /// Something could not be removed.
    pub async fn remove_job(&self, job: &JobId) -> Result<(), StoreError> {
        let (job, log) = (job.clone(), log_place(job)?);
        let shared = Arc::clone(&self.shared);
        blocking(move || {
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
