//! What a start does with what an earlier process left. Every live record gets a driver, which goes on from its
//! cursor; what has no record is reconciliation's business.

use std::sync::Arc;
use std::time::Duration;

use agentlab_api::{ErrorCode, JobState, chain};
use agentlab_backend::BackendError;
use agentlab_store::{JobRecord, StoreError, Write};
use tokio::time::timeout;

use crate::event;
use crate::journal::Point;
use crate::sandbox::driver;
use crate::sandbox::machine::State;
use crate::sandbox::perform::failure;
use crate::shared::Shared;

/// Jobs looked at for bundles that nobody needs any more.
const RECENT: u32 = 200;

/// Asks the back end to take up what runs. False when it could not be reached: nothing is concluded then.
pub(crate) async fn adopt(shared: &Shared, patience: Duration) -> Result<bool, BackendError> {
    match timeout(patience, shared.backend.adopt()).await {
        Ok(Ok(machines)) => {
            tracing::info!(machines = machines.len(), "back end adopted");
            reached(shared).await;
            Ok(true)
        }
        Ok(Err(error)) if error.is_transient() => {
            unreached(shared, &chain(&error));
            Ok(false)
        }
        Ok(Err(error)) => Err(error),
        Err(_) => {
            unreached(shared, &format!("no answer within {} s", patience.as_secs()));
            Ok(false)
        }
    }
}

/// Says once that the hypervisor does not answer.
pub(crate) fn unreached(shared: &Shared, reason: &str) -> bool {
    tracing::warn!(%reason, "back end unreachable; nothing is concluded");
    shared.condition.unreached(shared.now(), reason)
}

/// Says once that it answers again.
pub(crate) async fn reached(shared: &Shared) {
    if !shared.condition.reached() {
        return;
    }
    let text = "The back end can be reached again";
    tracing::info!("{text}");
    let told = vec![event::host_alarm(text.to_owned())];
    if let Err(error) = shared.journal.commit(Point::Told, told).await {
        tracing::error!(error = %chain(&error), "the end of an alarm could not be recorded");
    }
}

/// Gives every live record a driver. Only records are read here; the drivers do the slow part.
pub(crate) async fn take_up(shared: &Arc<Shared>) -> Result<(), StoreError> {
    let mut jobs = shared.store.unfinished_jobs().await?;
    for record in shared.store.sandboxes(false).await? {
        let mine = jobs.iter().position(|job| job.sandbox == Some(record.id));
        let job = mine.map(|position| jobs.swap_remove(position));
        if shared.has_living_driver(record.id) {
            continue;
        }
        driver::spawn(shared, record, job, true);
    }
    // One that waits has no sandbox to have lost.
    for job in jobs.into_iter().filter(|job| job.waiting.is_none()) {
        abandoned(shared, job).await?;
    }
    for job in shared.store.jobs(None, RECENT).await?.0 {
        if job.state.is_final() {
            shared.job_ended(&job);
        }
    }
    Ok(())
}

/// A job whose sandbox is gone can only be lost. Both end in one transaction, so only a damaged or restored database
/// shows one; it must not look alive forever.
async fn abandoned(shared: &Shared, job: JobRecord) -> Result<(), StoreError> {
    let sandbox = match job.sandbox {
        Some(id) => shared.store.sandbox(id).await?,
        None => None,
    };
    if sandbox.is_some_and(|record| State::of(&record) != State::Destroyed) {
        return Ok(());
    }
    // It may have ended between the two reads.
    let Some(job) = shared
        .store
        .job(&job.id)
        .await?
        .filter(|job| !job.state.is_final())
    else {
        return Ok(());
    };
    let cause = failure(
        ErrorCode::SandboxLost,
        "Recovery",
        "Its sandbox is gone and nobody recorded its end",
    );
    let job = JobRecord {
        state: JobState::Failed,
        failure: Some(cause),
        finished_at: Some(shared.now()),
        ..job
    };
    shared
        .journal
        .commit(
            Point::Abandoned,
            vec![event::job_finished(&job), Write::Job(Box::new(job))],
        )
        .await
        .map(drop)
}
