//! Sandboxes as a person handles them: made without a job, started and stopped, paused, and pruned.

use agentlab_api::{
    CommandRequest, ErrorCode, Problem, Profile, PruneRequest, PruneView, SandboxId, SandboxRequest,
    SandboxState, SandboxView, WorkspaceId,
};
use agentlab_store::{SandboxRecord, Waiting, Write};

use crate::engine::{Engine, store_problem};
use crate::sandbox::asked::refused;
use crate::sandbox::driver;
use crate::sandbox::machine::{Request, State, Verdict};
use crate::sandbox::step::Step;
use crate::workspace_free::{self, Wanted};
use crate::{queue, request};

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
        let wanted = Wanted::within(request.workspace.as_deref(), request.workspace_wait_seconds)?;
        let workspace = workspace_free::free(&self.shared, wanted, &profile).await?;
        let given = workspace.as_ref().map(|free| free.id);
        let made = self.new_sandbox(request, profile, given, |_| Vec::new()).await;
        drop(workspace);
        made
    }

    /// The same with a workspace that nobody else can be given meanwhile, recorded together with what goes `with` it.
    pub(crate) async fn new_sandbox(
        &self,
        request: SandboxRequest,
        profile: Profile,
        workspace: Option<WorkspaceId>,
        with: impl FnOnce(&SandboxRecord) -> Vec<Write> + Send + 'static,
    ) -> Result<SandboxView, Problem> {
        let ttl_minutes = request::sandbox(&request, &profile)?;
        self.enforceable(&profile).await?;
        self.secrets_are_there(&profile).await?;
        let occupied = self.inventory(&profile).await?;
        let waiting = Waiting {
            workspace,
            profile,
            ttl_minutes,
            // Nothing but its lease, or a person, ends it.
            keepalive: true,
        };
        let made = queue::admit_sandbox(&self.shared, &waiting, request.name, occupied, with).await;
        let record = made.map_err(|error| store_problem(&error))?.map_err(|reason| {
            Problem::new(ErrorCode::LimitReached, reason)
                .with_stage(Step::Reserve.as_str())
                .with_hint(
                    "destroy sandboxes that are no longer needed, choose another name, or raise max_sandboxes",
                )
        })?;
        tracing::info!(sandbox = %record.id, vmid = %record.vmid, "sandbox requested");
        driver::spawn(&self.shared, record.clone(), None, false);
        Ok(record.view())
    }

    /// Has a sandbox started, stopped, paused or resumed, and returns once that is recorded; safe to repeat.
    ///
    /// # Errors
    /// There is none, its state does not allow it, or what it needs to start is not there.
    pub async fn change_sandbox(&self, selector: &str, request: Request) -> Result<SandboxView, Problem> {
        self.accepting()?;
        let record = self.select(selector).await?;
        if let Verdict::Refused(refusal) = State::of(&record).request(&request) {
            return Err(refused(&refusal));
        }
        if request == Request::Start {
            self.enforceable(&record.profile).await?;
            self.secrets_are_there(&record.profile).await?;
        }
        self.order(record.id, request).await
    }

    /// Has a lease begin anew.
    ///
    /// # Errors
    /// There is no such sandbox, it cannot have a lease any more, or not one so long.
    pub async fn renew_lease(&self, selector: &str, minutes: u32) -> Result<SandboxView, Problem> {
        request::lease(minutes)?;
        self.change_sandbox(selector, Request::Renew { minutes }).await
    }

    /// Takes down what its lease has ended and, when asked, what is stopped.
    ///
    /// # Errors
    /// The records cannot be read.
    pub async fn prune_sandboxes(&self, request: &PruneRequest) -> Result<PruneView, Problem> {
        let records = self.shared.store.sandboxes(false).await;
        let records = records.map_err(|error| store_problem(&error))?;
        let mut pruned = PruneView {
            count: 0,
            dry_run: request.dry_run,
            sandboxes: Vec::new(),
            refused: Vec::new(),
        };
        for record in records {
            let goes = match State::of(&record) {
                State::TimedOut => true,
                State::Unwinding { shown, .. } => shown == SandboxState::Timeout,
                State::Stopped => request.stopped,
                State::Requested
                | State::Provisioning { .. }
                | State::Booting
                | State::Ready
                | State::Running { .. }
                | State::Suspended { .. }
                | State::Failed { .. }
                | State::Destroyed => false,
            };
            if !goes {
                continue;
            }
            if request.dry_run {
                pruned.sandboxes.push(record.view());
                continue;
            }
            let vmid = record.vmid;
            match self.order(record.id, Request::Destroy { force: true }).await {
                Ok(view) => pruned.sandboxes.push(view),
                Err(problem) => pruned.refused.push(format!("Sandbox {vmid}: {}", problem.detail)),
            }
        }
        pruned.count = pruned.sandboxes.len();
        Ok(pruned)
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
            self.shared.used(record.id);
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
