//! A sandbox that an earlier process left where it was: what the hypervisor still does for it is waited for, what runs is
//! looked at, and then it goes on from its record.

use std::time::Duration;

use agentlab_api::ErrorCode;
use agentlab_store::Write;

use super::driver::{Done, Driver};
use super::machine::{Event, State};
use super::perform::failure;
use super::step::{Resume, Seen, Step, resume};
use crate::lease::until;
use crate::task;

impl Driver {
    /// Takes up what an earlier process had begun. What the hypervisor still does for it ends first.
    pub(crate) async fn take_up(&mut self) {
        let changing = match self.state {
            State::Provisioning { .. }
            | State::Suspended { .. }
            | State::Stopped
            | State::TimedOut
            | State::Unwinding { .. } => true,
            State::Requested
            | State::Booting
            | State::Ready
            | State::Running { .. }
            | State::Failed { .. }
            | State::Destroyed => false,
        };
        // What cannot be read is found out by doing it again.
        let open = if changing {
            task::open(&self.shared, self.record.id).await.unwrap_or_default()
        } else {
            None
        };
        let Some(task) = open else {
            return self.go_on().await;
        };
        let (shared, sandbox) = (self.shared.clone(), self.record.id);
        self.begin(async move {
            let end = task::finish(&shared, &task).await;
            tracing::info!(%sandbox, %task, ?end, "what an earlier process had begun");
            Done::Awaited
        });
    }

    /// Goes on from where the earlier process was.
    pub(crate) async fn go_on(&mut self) {
        if self.may_have_to_stop() {
            return self.look();
        }
        match self.state.clone() {
            State::Provisioning { at: Step::PowerOn } => self.look(),
            State::Provisioning { at } => self.go_on_at(at).await,
            State::Booting
            | State::Ready
            | State::Running { .. }
            | State::Suspended { .. }
            | State::Failed { kept: true, .. } => {
                self.resumed = false;
                if let Some(job) = self.job.clone()
                    && let Some(started) = job.started_at
                {
                    let seen = self.record.paused_at.unwrap_or_else(|| self.shared.now());
                    let paused = Duration::from_secs(job.paused_seconds);
                    let spent = until(started, seen).saturating_sub(paused);
                    self.clocks.job_begins(&job, &self.record, &self.shared, spent);
                }
                self.clocks.entered(&self.state, &self.shared.settings, None);
                // The guest may speak before the hypervisor does; trust follows the look.
                self.watch_machine();
                self.remove_seed_of_earlier_process();
                self.look();
            }
            // Those that want a machine off are looked at before.
            State::Requested
            | State::Stopped
            | State::TimedOut
            | State::Unwinding { .. }
            | State::Failed { kept: false, .. }
            | State::Destroyed => {
                self.resumed = false;
                self.pending = true;
            }
        }
    }

    /// Goes on with the step that an earlier process was at.
    pub(crate) async fn go_on_at(&mut self, at: Step) {
        let open = match self.shared.store.open_intents(self.record.id).await {
            Ok(intents) => intents
                .iter()
                .any(|intent| !intent.undo && intent.step == at.as_str()),
            // Repeating a step that is done is harmless.
            Err(_) => true,
        };
        self.resumed = false;
        if let Resume::Run(step) = resume(at, open, Seen::Unknown) {
            self.go_on_from(step).await;
        }
    }

    /// The first look after a restart. True when it decided everything.
    pub(crate) async fn resume_with(&mut self, seen: Seen) -> bool {
        if self.may_have_to_stop() {
            self.resume_stop(seen).await;
            return true;
        }
        match self.state.clone() {
            State::Provisioning { at } => match resume(at, true, seen) {
                Resume::Run(step) => self.go_on_from(step).await,
                Resume::Await => {
                    let fact = Write::Fact {
                        sandbox: self.record.id,
                        step: at.as_str().to_owned(),
                        undo: false,
                    };
                    self.happen(&Event::StepDone(at), None, vec![fact]).await;
                }
                Resume::Off | Resume::Gone => {
                    let cause = failure(
                        ErrorCode::SandboxLost,
                        at.as_str(),
                        "Its machine went away over a restart",
                    );
                    self.happen(&Event::StepFailed(cause), None, Vec::new()).await;
                }
                Resume::LookAgain => {
                    self.resumed = true;
                    self.clocks
                        .unreadable(seen == Seen::Unreadable, &self.shared.settings);
                    self.clocks.retry_after(self.shared.settings.teardown_retry_first);
                }
            },
            State::Requested
            | State::Booting
            | State::Ready
            | State::Running { .. }
            | State::Suspended { .. }
            | State::Stopped
            | State::TimedOut
            | State::Unwinding { .. }
            | State::Failed { .. }
            | State::Destroyed => return false,
        }
        true
    }

    /// Sets the cursor to a step that is begun, again perhaps.
    async fn go_on_from(&mut self, step: Step) {
        let next = State::Provisioning { at: step };
        let effects = next.effects();
        let transition = super::machine::Transition { next, effects };
        if let Err(error) = self.enter(transition, None, Vec::new()).await {
            self.store_failed(&error);
        }
    }
}
