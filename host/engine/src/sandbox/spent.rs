//! A seed is spent once its guest has the answer to its token. It is taken away then and not with its machine: whoever may
//! look at the hypervisor's records could read it for as long.
//!
//! Nothing depends on it: what cannot be removed now goes with the machine, by the step that undoes it. So nothing of
//! this is recorded, and the next process does it once more.

use std::sync::Arc;
use std::time::Duration;

use agentlab_api::chain;
use agentlab_backend::BackendError;
use agentlab_store::SandboxRecord;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::driver::Driver;
use super::machine::State;
use super::perform::stamp_of;
use crate::shared::Shared;

const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// The next process asks for its machines one after another: at its start others are in a hurry.
const TURN: Duration = Duration::from_millis(100);
const TURNS: u32 = 60;

impl Driver {
    /// The guest was heard to have its answer.
    pub(crate) fn remove_spent_seed(&mut self) {
        self.remove_seed_after(Duration::ZERO);
    }

    /// An earlier process may not have come to it.
    pub(crate) fn remove_seed_of_earlier_process(&mut self) {
        if self.record.acknowledged && outlives_its_seed(&self.state) {
            self.remove_seed_after(TURN * (u32::from(self.record.vmid) % TURNS));
        }
    }

    fn remove_seed_after(&mut self, wait: Duration) {
        let mut task = JoinSet::new();
        task.spawn(remove(self.shared.clone(), self.record.clone(), wait));
        self.spent_seed = Some(task);
    }

    /// The next power-on places another seed, which must stay.
    pub(crate) fn keep_seed_unless_spent(&mut self) {
        if !outlives_its_seed(&self.state) {
            self.spent_seed = None;
        }
    }
}

/// Whether a sandbox in this state goes on without another power-on.
fn outlives_its_seed(state: &State) -> bool {
    match state {
        State::Ready | State::Running { .. } | State::Suspended { .. } => true,
        State::Requested
        | State::Provisioning { .. }
        | State::Booting
        | State::Stopped
        | State::TimedOut
        | State::Unwinding { .. }
        | State::Failed { .. }
        | State::Destroyed => false,
    }
}

async fn remove(shared: Arc<Shared>, record: SandboxRecord, mut wait: Duration) {
    let stamp = stamp_of(&record);
    sleep(wait).await;
    loop {
        match shared.backend.remove_seed(record.vmid, &stamp).await {
            Ok(()) | Err(BackendError::NoSuchMachine { .. }) => return,
            Err(error @ BackendError::NotOurs { .. }) => {
                tracing::warn!(sandbox = %record.id, error = %chain(&error), "its spent seed was left alone");
                return;
            }
            Err(error) => {
                tracing::warn!(sandbox = %record.id, error = %chain(&error), "its spent seed is not removed yet");
                wait = wait.saturating_mul(2).clamp(FIRST_WAIT, LONGEST_WAIT);
                sleep(wait).await;
            }
        }
    }
}
