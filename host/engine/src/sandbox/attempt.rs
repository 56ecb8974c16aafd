//! One step, tried again for as long as that makes sense. A refusal is final; a lost answer is asked for again, since every
//! step is safe to repeat; a hypervisor that does not answer at all is waited for.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use agentlab_api::{ErrorCode, Failure, chain};
use agentlab_backend::BackendError;
use agentlab_store::{SandboxRecord, Write};
use tokio::time::error::Elapsed;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::perform::{
    Kit, Produced, StepError, StepTrouble, backend_failure, failure, network_failure, once,
};
use super::step::Step;
use crate::event;
use crate::journal::Point;
use crate::shared::Shared;

/// Between two looks at the line of machines that wait for their start.
const TURN: Duration = Duration::from_millis(500);
/// Tries of a step whose answer was lost.
const TRIES: u32 = 3;

/// Does one step. The deadline covers one try.
pub(crate) async fn step(shared: Arc<Shared>, step: Step, kit: Kit) -> Result<Produced, StepError> {
    let record = kit.record.clone();
    let mut kit = kit;
    let mut tries = 1;
    let (began, mut wait) = (Instant::now(), shared.settings.teardown_retry_first);
    loop {
        let deadline = step.deadline(&shared.settings);
        let work = once(&shared, step, &mut kit);
        let error = match in_turn(&shared, step, &record, deadline, work).await {
            Ok(Ok(produced)) => {
                if changes(step) {
                    takes_changes(&shared);
                }
                return Ok(produced);
            }
            Ok(Err(StepTrouble::Backend(error)))
                if error.is_transient() && (tries < TRIES || waits(&shared, &error, began)) =>
            {
                tracing::warn!(sandbox = %record.id, %step, tries, error = %chain(&error), "answer lost, repeating");
                if changes(step) {
                    takes_no_changes(&shared, &error);
                }
                if tries == TRIES {
                    let reason = chain(&error);
                    tell(&shared, &record, event::waits_for_backend(&record, step, &reason)).await;
                }
                tries += 1;
                sleep(wait).await;
                wait = wait.saturating_mul(2).min(shared.settings.teardown_retry_max);
                continue;
            }
            Ok(Err(StepTrouble::Backend(error @ BackendError::Conflict { .. }))) if step == Step::Clone => {
                return Err(StepError::Taken(backend_failure(step.as_str(), &error)));
            }
            Ok(Err(StepTrouble::Backend(error @ BackendError::TimedOut { .. }))) => {
                overdue(step, chain(&error))
            }
            Ok(Err(StepTrouble::Backend(error))) => backend_failure(step.as_str(), &error),
            Ok(Err(StepTrouble::Network(error))) => network_failure(step.as_str(), &error),
            Ok(Err(StepTrouble::Own(reason))) => failure(ErrorCode::Internal, step.as_str(), reason),
            Err(_) => {
                let seconds = deadline.as_secs();
                overdue(
                    step,
                    format!("{step} of VM {} did not end within {seconds} s", record.vmid),
                )
            }
        };
        return Err(StepError::Failed(error));
    }
}

/// The back end answers, and makes the VM too slowly: told apart from one that nobody hears, and from a guest that is silent.
fn overdue(step: Step, message: String) -> Failure {
    let hint = "the guest had not begun: look at the load of the host and of its storage, or allow more by \
                `provisioning_timeout` (on Proxmox VE also `proxmox_command_timeout`, of one task)";
    Failure {
        hint: Some(hint.to_owned()),
        ..failure(ErrorCode::ProvisioningTimeout, step.as_str(), message)
    }
}

/// Bounds one try of a step. Waiting for a turn, to be cloned or to start, does not count, and is told once.
async fn in_turn<T>(
    shared: &Shared,
    step: Step,
    record: &SandboxRecord,
    deadline: Duration,
    work: impl Future<Output = T>,
) -> Result<T, Elapsed> {
    if !matches!(step, Step::Clone | Step::PowerOn) {
        return timeout(deadline, work).await;
    }
    let mut work = std::pin::pin!(work);
    let (mut until, mut told) = (Instant::now() + deadline, false);
    loop {
        // A look now and then costs nothing; that a turn has come is heard from the call itself.
        let look = until.min(Instant::now() + TURN);
        match timeout_at(look, work.as_mut()).await {
            Ok(done) => return Ok(done),
            Err(elapsed) => match shared.backend.waits_behind(record.vmid) {
                Some(ahead) => {
                    until = Instant::now() + deadline;
                    if !std::mem::replace(&mut told, true) {
                        tell(shared, record, event::waits_for_turn(record, step, ahead)).await;
                    }
                }
                None if Instant::now() >= until => return Err(elapsed),
                None => {}
            },
        }
    }
}

async fn tell(shared: &Shared, record: &SandboxRecord, told: Write) {
    if let Err(error) = shared.journal.commit(Point::Told, vec![told]).await {
        tracing::warn!(sandbox = %record.id, error = %chain(&error), "that it waits could not be recorded");
    }
}

/// One that does not answer at all may be starting again: nothing is concluded for as long as provisioning may take.
fn waits(shared: &Shared, error: &BackendError, began: Instant) -> bool {
    matches!(error, BackendError::Unreachable { .. })
        && began.elapsed() < shared.settings.provisioning_timeout
}

/// Whether a step asks the hypervisor to change anything.
fn changes(step: Step) -> bool {
    match step {
        Step::Clone | Step::Configure | Step::AttachWorkspace | Step::Seed | Step::PowerOn => true,
        Step::Reserve | Step::BindNetwork | Step::IssueToken | Step::AwaitGuest => false,
    }
}

/// A cluster without quorum answers every question and takes no change; operators see why in the status.
pub(super) fn takes_no_changes(shared: &Shared, error: &BackendError) {
    if matches!(error, BackendError::Unreachable { .. }) {
        shared.condition.takes_no_changes(shared.now(), &chain(error));
    }
}

pub(super) fn takes_changes(shared: &Shared) {
    shared.condition.takes_changes();
}
