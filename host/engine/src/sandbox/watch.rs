//! What goes on beside a running machine: its channel is served, and its end is noticed.

use std::sync::Arc;
use std::time::Duration;

use agentlab_api::{ChannelKind, SandboxId, Vmid};
use agentlab_backend::BackendError;
use tokio::time::{sleep, timeout};

use super::driver::Driver;
use crate::shared::Shared;

const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
const OPEN: Duration = Duration::from_secs(30);

/// Why a task beside the machine ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The machine has no such channel, or no way to be watched.
    Nothing,
    /// The machine no longer runs, as it seems: look.
    Machine,
}

impl Driver {
    /// Begins both for a machine that was just powered on, or found running.
    pub(crate) fn watch_machine(&mut self) {
        if !self.tasks.is_empty() {
            return;
        }
        let (shared, vmid, sandbox) = (self.shared.clone(), self.record.vmid, self.record.id);
        self.tasks.spawn(end_of_machine(shared.clone(), vmid));
        if shared
            .channels_of(&self.record.profile)
            .contains(&ChannelKind::Serial)
        {
            self.tasks.spawn(serve_channel(shared, sandbox, vmid));
        }
    }

    pub(crate) fn task_ended(&mut self, ended: Result<Ended, tokio::task::JoinError>) {
        match ended {
            Ok(Ended::Machine) => {
                self.look_wanted = true;
                self.pending = true;
            }
            Ok(Ended::Nothing) => {}
            Err(error) if error.is_cancelled() => {}
            Err(error) => {
                tracing::error!(sandbox = %self.record.id, %error, "a task beside the machine broke")
            }
        }
    }
}

async fn end_of_machine(shared: Arc<Shared>, vmid: Vmid) -> Ended {
    loop {
        match shared.backend.stopped(vmid).await {
            Ok(()) | Err(BackendError::NoSuchMachine { .. }) => return Ended::Machine,
            // Then reconciliation notices.
            Err(BackendError::Unsupported { .. }) => return Ended::Nothing,
            Err(_) => sleep(LONGEST_WAIT).await,
        }
    }
}

/// Hands the serial channel to the door for as long as the machine runs; a stream that ends is opened again.
async fn serve_channel(shared: Arc<Shared>, sandbox: SandboxId, vmid: Vmid) -> Ended {
    let mut wait = FIRST_WAIT;
    loop {
        match timeout(OPEN, shared.backend.open_channel(vmid)).await {
            Ok(Ok(Some(stream))) => {
                wait = FIRST_WAIT;
                shared.door.serve(sandbox, stream).await;
            }
            Ok(Ok(None) | Err(BackendError::Unsupported { .. })) => return Ended::Nothing,
            Ok(Err(error)) => {
                tracing::debug!(%sandbox, %error, "channel cannot be opened");
                wait = wait.saturating_mul(2).min(LONGEST_WAIT);
            }
            Err(_) => wait = LONGEST_WAIT,
        }
        sleep(wait).await;
    }
}
