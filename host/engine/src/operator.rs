//! Sandboxes without a job: a person holds them, from the moment their guest answers.

use agentlab_api::{
    CommandRequest, ErrorCode, Problem, SandboxId, SandboxRequest, SandboxState, SandboxView,
};
use agentlab_store::Waiting;

use crate::engine::{Engine, store_problem};
use crate::sandbox::driver;
use crate::sandbox::step::Step;
use crate::{queue, request, view};

/// Longest command line, all words together.
const WORDS_BYTES: usize = 128 << 10;

impl Engine {
    /// Records a sandbox and returns; provisioning goes on without the caller.
    ///
    /// # Errors
    /// Anything about the request that cannot be done, before anything is recorded.
    pub async fn create_sandbox(&self, request: SandboxRequest) -> Result<SandboxView, Problem> {
        self.accepting()?;
        let profile = request::profile(&self.shared.tunable().profiles, &request.profile)?.clone();
        let ttl_minutes = request::sandbox(&request, &profile)?;
        self.enforceable(&profile).await?;
        self.secrets_are_there(&profile).await?;
        let occupied = self.inventory(&profile).await?;
        let waiting = Waiting {
            profile,
            ttl_minutes,
            // Nothing but its lease, or a person, ends it.
            keepalive: true,
        };
        let made = queue::admit_sandbox(&self.shared, &waiting, request.name, occupied).await;
        let record = made.map_err(|error| store_problem(&error))?.map_err(|reason| {
            Problem::new(ErrorCode::LimitReached, reason)
                .with_stage(Step::Reserve.as_str())
                .with_hint(
                    "destroy sandboxes that are no longer needed, choose another name, or raise max_sandboxes",
                )
        })?;
        tracing::info!(sandbox = %record.id, vmid = %record.vmid, "sandbox requested");
        driver::spawn(&self.shared, record.clone(), None, false);
        Ok(view::sandbox(record))
    }

    /// The sandbox that a command is for, if its state allows one.
    ///
    /// # Errors
    /// There is none, it is not up, or the command cannot be one.
    pub async fn command(&self, selector: &str, request: &CommandRequest) -> Result<SandboxId, Problem> {
        request::command(request, WORDS_BYTES)?;
        let record = self.select(selector).await?;
        let up = matches!(record.state, SandboxState::Ready | SandboxState::Running);
        if up && !record.unwinding {
            return Ok(record.id);
        }
        let text = format!(
            "Sandbox {} is {}: no command can be run in it",
            record.vmid, record.state
        );
        let hint = match record.state {
            SandboxState::Requested | SandboxState::Provisioning | SandboxState::Booting => {
                "wait until it is RUNNING: `agentlab sandbox logs -f` shows how far it is"
            }
            SandboxState::Ready
            | SandboxState::Running
            | SandboxState::Suspended
            | SandboxState::Stopped
            | SandboxState::Timeout
            | SandboxState::Destroyed
            | SandboxState::Failed => "`agentlab sandbox list` shows those that run",
        };
        Err(Problem::new(ErrorCode::StateConflict, text).with_hint(hint))
    }
}
