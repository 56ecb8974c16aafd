//! Lets go of what is old, so that nothing grows without end: a little every quarter of an hour, in pieces, and only
//! while the clock can be believed.
//!
//! ```text
//!   jobs that ended long ago ─► their logs ─► their records ─► artifacts that no other job has
//!   destroyed sandboxes, events, idempotency keys ─► records
//!   logs of no job, uploads that nobody continues, bundles that nobody needs ─► files
//!
//! A crash in between is finished by the next round, or the next start.
//! ```

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use agentlab_api::{JobPruneRequest, JobPruneView, Problem, PrunedJob, RepositorySource, chain};
use agentlab_store::{Expiry, StoreError};
use jiff::Timestamp;
use tokio::time::{Instant, sleep};

use crate::engine::{Engine, store_problem};
use crate::shared::Shared;

const ROUND: Duration = Duration::from_secs(900);
/// How long an upload that broke off waits for the rest: six times as long as a runner waits for its host.
const INTERRUPTED: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// Newest events that are kept, however young the others are: some ten thousand jobs.
const EVENTS: u64 = 200_000;
/// Records of one transaction, and jobs of one: others write in between.
const RECORDS: u32 = 500;
const JOBS: u32 = 20;
/// Jobs that one answer names.
const LISTED: u32 = 10_000;
const BREATH: Duration = Duration::from_millis(20);
/// How far the wall clock may be from the time that has really passed in a round.
const DRIFT: Duration = Duration::from_secs(60);

/// Runs until the engine stops.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut last = (shared.now(), Instant::now());
    loop {
        let round = async {
            sleep(ROUND).await;
            let now = (shared.now(), Instant::now());
            let steady = is_steady(last.0, now.0, now.1.duration_since(last.1));
            last = now;
            if !steady {
                // A clock in the wrong year would make everything old.
                tracing::warn!(
                    "the clock was set; nothing old is removed until it has been steady for a while"
                );
                return;
            }
            if let Err(error) = self::round(&shared).await {
                tracing::warn!(error = %chain(&error), "what is old could not be removed; it is tried again");
            }
        };
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = round => {}
        }
    }
}

fn is_steady(before: Timestamp, now: Timestamp, passed: Duration) -> bool {
    let shown = now.duration_since(before).unsigned_abs();
    now >= before && shown.abs_diff(passed) <= DRIFT
}

/// Removes what is old now.
pub(crate) async fn round(shared: &Shared) -> Result<(), StoreError> {
    let now = shared.now();
    let before = now - shared.tunable().retention;
    let jobs = jobs(shared, before, now).await?;
    let records = records(shared, before, now - DAY).await?;
    let files = strays(shared, now).await? + interrupted(shared, now).await? + bundles(shared, now).await?;
    if jobs + records + files > 0 {
        tracing::info!(jobs, records, files, "removed what was old");
    }
    Ok(())
}

impl Engine {
    /// Lets go at once of the jobs that were kept for long enough, or only says which those are.
    ///
    /// # Errors
    /// The store failed; what it let go of before is gone.
    pub async fn prune_jobs(&self, request: JobPruneRequest) -> Result<JobPruneView, Problem> {
        let pruned = prune(&self.shared, request.dry_run).await;
        pruned.map_err(|error| store_problem(&error))
    }
}

async fn prune(shared: &Shared, dry_run: bool) -> Result<JobPruneView, StoreError> {
    let now = shared.now();
    let before = now - shared.tunable().retention;
    let mut jobs = Vec::new();
    for id in shared.store.ended_jobs(before, now, LISTED).await? {
        let Some(job) = shared.store.job(&id).await? else {
            continue;
        };
        let files = shared.store.artifacts(&id).await?;
        jobs.push(PrunedJob {
            id,
            profile: job.profile,
            finished_at: job.finished_at,
            size_bytes: files.iter().map(|file| file.size_bytes).sum(),
        });
    }
    if !dry_run {
        self::jobs(shared, before, now).await?;
    }
    Ok(JobPruneView {
        dry_run,
        count: jobs.len(),
        size_bytes: jobs.iter().map(|job| job.size_bytes).sum(),
        jobs,
    })
}

/// Logs first: a record without one says that it is gone, a log without a record says nothing.
async fn jobs(shared: &Shared, before: Timestamp, now: Timestamp) -> Result<u64, StoreError> {
    let mut removed = 0;
    loop {
        let jobs = shared.store.ended_jobs(before, now, JOBS).await?;
        for job in &jobs {
            shared.store.files().remove_job(job).await?;
            removed += 1;
        }
        let last = jobs.len() < usize::try_from(JOBS).unwrap_or(usize::MAX);
        shared.store.forget_jobs(jobs).await?;
        shared.store.remove_unrecorded().await?;
        if last {
            return Ok(removed);
        }
        sleep(BREATH).await;
    }
}

async fn records(shared: &Shared, before: Timestamp, keys_before: Timestamp) -> Result<u64, StoreError> {
    let expiry = Expiry {
        ended_before: before,
        keys_before,
        max_events: EVENTS,
    };
    let mut removed = 0;
    loop {
        let pruned = shared.store.prune(expiry, RECORDS).await?;
        let kinds = [pruned.sandboxes, pruned.keys, pruned.events];
        removed += kinds.iter().sum::<u64>();
        if kinds.iter().all(|kind| *kind < u64::from(RECORDS)) {
            return Ok(removed);
        }
        sleep(BREATH).await;
    }
}

/// Logs of jobs that have no record, because an operator put an older database back: kept for as long as their jobs would
/// be, and all artifacts with them, so that a newer one can follow.
async fn strays(shared: &Shared, now: Timestamp) -> Result<u64, StoreError> {
    let old = shared.tunable().retention.max(DAY);
    let found = shared.store.files().jobs_with_logs(old, now).await?;
    let mut removed = 0;
    for job in shared.store.unknown_jobs(found).await? {
        shared.store.files().remove_job(&job).await?;
        removed += 1;
    }
    Ok(removed)
}

/// Uploads that broke off and are of no job any more, or that nobody has continued for longer than a runner tries to.
pub(crate) async fn interrupted(shared: &Shared, now: Timestamp) -> Result<u64, StoreError> {
    let mut removed = 0;
    for id in shared.store.files().interrupted_jobs().await? {
        let lives = shared
            .store
            .job(&id)
            .await?
            .is_some_and(|job| !job.state.is_final());
        let unchanged = if lives { INTERRUPTED } else { Duration::ZERO };
        let files = shared.store.files().remove_interrupted(&id, unchanged, now);
        removed += u64::try_from(files.await?).unwrap_or(u64::MAX);
    }
    Ok(removed)
}

/// Bundles that were uploaded a day ago and that no unfinished job needs.
async fn bundles(shared: &Shared, now: Timestamp) -> Result<u64, StoreError> {
    let _nobody_begins = shared.bundles.lock().await;
    let needed: HashSet<String> = shared
        .store
        .unfinished_jobs()
        .await?
        .into_iter()
        .filter_map(|job| match job.repository {
            RepositorySource::Bundle { sha256, .. } => Some(sha256),
            RepositorySource::Url { .. } => None,
        })
        .collect();
    let mut removed = 0;
    for sha256 in shared.store.files().old_bundles(DAY, now).await? {
        // What has another name is not ours.
        if !needed.contains(&sha256) && is_sha256(&sha256) {
            shared.store.files().remove_bundle(&sha256).await?;
            removed += 1;
        }
    }
    Ok(removed)
}

fn is_sha256(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_set_is_not_believed() {
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        let passed = Duration::from_secs(900);
        assert!(is_steady(at(1000), at(1900), passed));
        assert!(is_steady(at(1000), at(1950), passed));
        for jumped in [1000 + 40 * 86_400, 2000, 1000, 500] {
            assert!(!is_steady(at(1000), at(jumped), passed), "{jumped}");
        }
    }
}
