//! Takes a sandbox down: every undo up to the last step begun, in order, each again and again until it has succeeded.
//! What cannot be undone yet is said on the record, and once by an alarm.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use agentlab_api::{SandboxState, chain};
use agentlab_backend::{BackendError, Stamp};
use agentlab_store::{SandboxRecord, Write};
use tokio::time::Instant;

use super::driver::{Done, Driver, intent};
use super::machine::{Event, State};
use super::perform::{gone_is_fine, look};
use super::step::{Seen, Step};
use crate::event::{self, StepEnd};
use crate::journal::Point;
use crate::settings::Settings;
use crate::shared::Shared;

/// How far a teardown is. In memory only: after a restart all undos are done again, which is harmless.
#[derive(Debug)]
pub(crate) struct Unwinding {
    done: BTreeSet<Step>,
    /// Tried in this round.
    tried: BTreeSet<Step>,
    left: BTreeMap<Step, String>,
    wait: Duration,
    alarmed: bool,
    /// Recorded with the next commit: losing them costs a repetition, waiting for each costs a sync to disk.
    unwritten: Vec<Write>,
}

impl Unwinding {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self {
            done: BTreeSet::new(),
            tried: BTreeSet::new(),
            left: BTreeMap::new(),
            wait: settings.teardown_retry_first,
            alarmed: false,
            unwritten: Vec::new(),
        }
    }

    /// The next undo of this round whose conditions are met.
    fn next(&self, plan: &[Step]) -> Option<Step> {
        let ready = |step: &Step| {
            step.undo_after()
                .iter()
                .all(|before| !plan.contains(before) || self.done.contains(before))
        };
        plan.iter()
            .copied()
            .find(|step| !self.done.contains(step) && !self.tried.contains(step) && ready(step))
    }
}

impl Driver {
    /// The next undo, the end, or a pause.
    pub(crate) async fn pursue_unwinding(&mut self) {
        if self.work.is_some() || self.clocks.is_waiting() {
            return;
        }
        // One that was up before had begun them all, wherever its next start stands.
        let last = match self.record.runner_version {
            Some(_) => Step::AwaitGuest,
            None => Step::named(&self.record.cursor).unwrap_or(Step::AwaitGuest),
        };
        let plan = last.undo_plan();
        let powered = plan.contains(&Step::PowerOn) && !self.unwinding.done.contains(&Step::PowerOn);
        if powered && self.awaits_release() {
            return;
        }
        if let Some(step) = self.unwinding.next(&plan) {
            self.begin_undo(step).await;
        } else if plan.iter().all(|step| self.unwinding.done.contains(step)) {
            self.tasks.abort_all();
            let writes = std::mem::take(&mut self.unwinding.unwritten);
            self.happen(&Event::Unwound, None, writes).await;
        } else {
            self.pause_unwinding(&plan).await;
        }
    }

    async fn begin_undo(&mut self, step: Step) {
        if !leaves_something(step, &self.record) {
            self.unwinding.done.insert(step);
            self.pending = true;
            return;
        }
        let mut writes = std::mem::take(&mut self.unwinding.unwritten);
        writes.push(intent(&self.record, step, true));
        if let Err(error) = self
            .shared
            .journal
            .commit(Point::Undo(step), writes.clone())
            .await
        {
            writes.pop();
            self.unwinding.unwritten = writes;
            self.store_failed(&error);
            return;
        }
        self.unwinding.tried.insert(step);
        let (shared, record) = (self.shared.clone(), self.record.clone());
        self.begin(async move {
            let began = Instant::now();
            let result = super::perform::undo(shared, step, record).await;
            Done::Undo {
                step,
                took: began.elapsed(),
                result,
            }
        });
    }

    pub(crate) fn undo_ended(&mut self, step: Step, took: Duration, result: Result<(), String>) {
        match result {
            Ok(()) => {
                self.unwinding.done.insert(step);
                self.unwinding.left.remove(&step);
                let fact = |undo| Write::Fact {
                    sandbox: self.record.id,
                    step: step.as_str().to_owned(),
                    undo,
                };
                let ended = event::step(&self.record, step, true, took, &StepEnd::Done);
                self.unwinding.unwritten.extend([fact(true), fact(false), ended]);
                match step {
                    Step::PowerOn => self.powered_off(),
                    Step::AttachWorkspace => {
                        let free = self.workspace_detached();
                        self.unwinding.unwritten.extend(free);
                    }
                    Step::Reserve
                    | Step::Clone
                    | Step::Configure
                    | Step::BindNetwork
                    | Step::IssueToken
                    | Step::Seed
                    | Step::AwaitGuest => {}
                }
            }
            Err(reason) => {
                tracing::warn!(sandbox = %self.record.id, %step, %reason, "not undone yet");
                if !self.unwinding.left.contains_key(&step) {
                    let ended = event::step(&self.record, step, true, took, &StepEnd::Failed(&reason));
                    self.unwinding.unwritten.push(ended);
                }
                self.unwinding
                    .left
                    .insert(step, super::perform::left(step, &self.record, &reason));
            }
        }
    }

    /// Nobody listens at the other end any more, and what was up is shown as off.
    fn powered_off(&mut self) {
        self.tasks.abort_all();
        let State::Unwinding { shown, .. } = &mut self.state else {
            return;
        };
        match shown {
            SandboxState::Booting | SandboxState::Ready | SandboxState::Running | SandboxState::Suspended => {
                let previous = std::mem::replace(shown, SandboxState::Stopped);
                let mut record = self.record.clone();
                self.state.write_to(&mut record);
                self.unwinding
                    .unwritten
                    .push(Write::Sandbox(Box::new(record.clone())));
                self.unwinding.unwritten.push(event::state(&record, previous));
                self.adopt(record);
            }
            SandboxState::Requested
            | SandboxState::Provisioning
            | SandboxState::Stopped
            | SandboxState::Timeout
            | SandboxState::Destroyed
            | SandboxState::Failed => {}
        }
    }

    /// A round is over and something is left: say so, wait, begin another.
    async fn pause_unwinding(&mut self, plan: &[Step]) {
        let mut left: Vec<String> = self.unwinding.left.values().cloned().collect();
        for step in plan.iter().filter(|step| !self.unwinding.done.contains(step)) {
            if !self.unwinding.left.contains_key(step) && leaves_something(*step, &self.record) {
                left.push(super::perform::left(*step, &self.record, "waits for the others"));
            }
        }
        let mut record = self.record.clone();
        let mut writes = std::mem::take(&mut self.unwinding.unwritten);
        if record.left_behind != left {
            record.left_behind.clone_from(&left);
            writes.push(Write::Sandbox(Box::new(record.clone())));
        }
        if !self.unwinding.alarmed {
            let text = format!(
                "Sandbox {} could not be taken down yet: {}",
                record.vmid,
                left.join("; ")
            );
            writes.push(event::alarm(&record, text));
        }
        if let Err(error) = self.shared.journal.commit(Point::Left, writes).await {
            self.store_failed(&error);
            return;
        }
        self.adopt(record);
        self.unwinding.alarmed = true;
        self.unwinding.tried.clear();
        self.clocks.retry_after(self.unwinding.wait);
        self.unwinding.wait = self
            .unwinding
            .wait
            .saturating_mul(2)
            .min(self.shared.settings.teardown_retry_max);
    }
}

/// Destroys the machine of a sandbox. One whose stamp somebody has written over is left alone, and that is told: nobody
/// here looks after it from then on.
pub(super) async fn destroy(
    shared: &Arc<Shared>,
    record: &SandboxRecord,
    stamp: &Stamp,
) -> Result<(), String> {
    let destroyed = shared.backend.destroy(record.vmid, stamp).await;
    if let Err(error @ BackendError::NotOurs { .. }) = &destroyed
        && was_made(record)
        && look(Arc::clone(shared), record.clone()).await == Seen::Unreadable
    {
        let text = format!(
            "VM {} is left where it is, with its disks and without a network: {}. It may be this sandbox's, and somebody \
             has changed its description; then remove it by hand",
            record.vmid,
            chain(error)
        );
        let told = vec![event::alarm(record, text)];
        let told = shared.journal.commit(Point::Told, told).await;
        told.map_err(|error| chain(&error))?;
    }
    gone_is_fine(shared, record, destroyed)
}

/// Whether its machine has existed for certain: one under its number before that is a stranger's.
fn was_made(record: &SandboxRecord) -> bool {
    record.powered_on_at.is_some() || Step::named(&record.cursor).is_some_and(|step| step > Step::Clone)
}

/// Steps whose undo asks anything of the world.
fn leaves_something(step: Step, record: &SandboxRecord) -> bool {
    match step {
        Step::Clone | Step::BindNetwork | Step::IssueToken | Step::Seed | Step::PowerOn => true,
        Step::AttachWorkspace => record.workspace.is_some(),
        Step::Reserve | Step::Configure | Step::AwaitGuest => false,
    }
}
