//! One task and one ordered inbox per sandbox: the only writer of its record.
//!
//! ```text
//!   inbox ─────────┐
//!   slow call done ┼─► event ─► machine.rs ─► commit (record, job, intent, events: one transaction) ─► pursue
//!   clocks ────────┘                                                                                    │
//!            ▲                                    at most one slow call at a time, never awaited in line │
//!            └───────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! What to do next is read from the recorded state, never remembered beside it: a driver that is dropped at any
//! instruction and begun again goes on from the same place.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use agentlab_api::{Failure, JobOutcome, JobState, Vmid, chain};
use agentlab_backend::BackendError;
use agentlab_protocol::secret::Secret32;
use agentlab_store::{Intent, JobRecord, SandboxRecord, StoreError, Write};
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::clocks::Clocks;
use super::inbox::Message;
use super::kept::Kept;
use super::machine::{Event, Holder, State, Transition};
use super::perform::{Kit, PowerChange, Produced, StepError, stamp_of};
use super::step::{Seen, Step};
use super::unused::Unused;
use super::unwind::Unwinding;
use super::watch::Ended;
use crate::event;
use crate::journal::Point;
use crate::port::Trust;
use crate::shared::{Handle, Shared};
use crate::task;

/// Messages that may wait; a guest that sends faster waits for its answers.
const INBOX: usize = 64;
/// Wait before a refused commit is tried again.
pub(crate) const STORE_RETRY: Duration = Duration::from_secs(2);
/// How long a step under way may go on after its sandbox was given up, so that its outcome need not be guessed.
const ABANDON: Duration = Duration::from_secs(3);

/// How a job ends.
#[derive(Debug, Clone)]
pub(crate) struct JobEnd {
    pub(crate) state: JobState,
    pub(crate) outcome: Option<JobOutcome>,
    pub(crate) failure: Option<Failure>,
}

/// What a slow call came to.
#[derive(Debug)]
pub(crate) enum Done {
    Step {
        step: Step,
        took: Duration,
        result: Result<Produced, StepError>,
    },
    Undo {
        step: Step,
        took: Duration,
        result: Result<(), String>,
    },
    Power {
        change: PowerChange,
        result: Result<(), BackendError>,
    },
    Looked(Seen),
    /// What an earlier process had begun has ended, or will not be waited for any longer.
    Awaited,
}

type Work = Pin<Box<dyn Future<Output = Done> + Send>>;

/// See the module.
pub(crate) struct Driver {
    pub(crate) shared: Arc<Shared>,
    pub(crate) record: Kept,
    pub(crate) state: State,
    /// The job that holds it, until it is final.
    pub(crate) job: Option<JobRecord>,
    inbox: mpsc::Receiver<Box<Message>>,
    orders: mpsc::Receiver<Box<Message>>,
    known: watch::Sender<Arc<SandboxRecord>>,
    pub(crate) work: Option<Work>,
    /// The state asks for something that has not been begun.
    pub(crate) pending: bool,
    pub(crate) look_wanted: bool,
    pub(crate) token: Option<Secret32>,
    /// When the time to redeem the token began, if this process issued it.
    pub(crate) token_since: Option<Instant>,
    pub(crate) tap: Option<std::os::fd::OwnedFd>,
    /// VMIDs that turned out to be taken.
    pub(crate) tried: BTreeSet<Vmid>,
    pub(crate) clocks: Clocks,
    pub(crate) unwinding: Unwinding,
    /// Channel and watch of a running machine.
    pub(crate) tasks: JoinSet<Ended>,
    pub(crate) powered_on: Option<Instant>,
    /// The trust that stands, as far as this driver has set it.
    pub(crate) enforced: Option<Trust>,
    /// The cable may have to be bound anew before trust is set.
    pub(crate) rebind: bool,
    /// The power change that was made for the present state.
    pub(crate) powered: Option<PowerChange>,
    /// What the guest said it is busy with.
    pub(crate) progress: super::session::Progress,
    /// Its guest is to let go of the workspace before its power goes.
    pub(crate) parting: super::workspace::Parting,
    /// It was told to stop while it was up, and its guest may still write down what it holds in memory.
    pub(crate) writes_back: bool,
    /// It is to start, once the machine of its last run is off.
    pub(crate) stops_first: bool,
    /// Takes away the seed that its guest has used. Ends with this value.
    pub(crate) spent_seed: Option<JoinSet<()>>,
    /// Since when nobody uses it.
    pub(crate) unused: Unused,
    pub(crate) resumed: bool,
}

/// Adds a driver for a recorded sandbox. `resumed` for one that an earlier process, or a lost driver, had begun.
/// Nothing happens when a living one exists.
pub(crate) fn spawn(shared: &Arc<Shared>, record: SandboxRecord, job: Option<JobRecord>, resumed: bool) {
    let (sender, inbox) = mpsc::channel(INBOX);
    let (commander, orders) = mpsc::channel(INBOX);
    let record = Kept::new(record);
    let (known, watching) = watch::channel(record.share());
    if !shared.register(&record, Handle::new(sender, commander, watching)) {
        return;
    }
    let state = State::of(&record);
    let clocks = Clocks::begin(&record, shared, resumed);
    let driver = Box::new(Driver {
        shared: shared.clone(),
        state,
        job: job.filter(|job| !job.state.is_final()),
        inbox,
        orders,
        known,
        work: None,
        pending: !resumed,
        look_wanted: false,
        token: None,
        token_since: None,
        tap: None,
        tried: BTreeSet::new(),
        clocks,
        unwinding: Unwinding::new(&shared.settings),
        tasks: JoinSet::new(),
        powered_on: None,
        enforced: None,
        rebind: resumed,
        powered: None,
        progress: super::session::Progress::default(),
        parting: super::workspace::Parting::default(),
        writes_back: false,
        stops_first: false,
        spent_seed: None,
        unused: Unused::begin(&record),
        resumed,
        record,
    });
    shared.tasks.spawn(driver.run());
}

impl Driver {
    /// What it does is boxed: a driver spends its life waiting, and there may be a thousand of them. Unboxed, each would
    /// keep room for the largest thing that any of them ever does.
    async fn run(mut self: Box<Self>) {
        let stop = self.shared.stop.clone();
        if self.resumed {
            Box::pin(self.take_up()).await;
        }
        loop {
            while std::mem::take(&mut self.pending) && !stop.is_cancelled() {
                Box::pin(self.pursue()).await;
            }
            if self.state == State::Destroyed {
                break;
            }
            let wake = self.clocks.next();
            tokio::select! {
                // A guest that talks without end holds up neither an operator nor a clock.
                biased;
                () = stop.cancelled() => break,
                Some(order) = self.orders.recv() => Box::pin(self.receive(*order)).await,
                done = under_way(&mut self.work) => {
                    self.work = None;
                    Box::pin(self.done(done)).await;
                }
                Some(ended) = self.tasks.join_next(), if !self.tasks.is_empty() => self.task_ended(ended),
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => Box::pin(self.tick()).await,
                message = self.inbox.recv() => match message {
                    Some(message) => Box::pin(self.receive(*message)).await,
                    None => break,
                },
            }
        }
        if self.state == State::Destroyed {
            self.shared.unregister(&self.record);
        }
    }

    /// Feeds an event to the machine and records what follows, with `extra` in the same transaction. False when
    /// the event changes nothing here; `extra` is then recorded alone.
    pub(crate) async fn apply(
        &mut self,
        event: &Event,
        job_end: Option<JobEnd>,
        extra: Vec<Write>,
    ) -> Result<bool, StoreError> {
        let again = self.start_failed(event);
        match self
            .state
            .event(again.as_ref().unwrap_or(event), self.record.keepalive)
        {
            Some(transition) => self.enter(transition, job_end, extra).await.map(|()| true),
            None => {
                if !extra.is_empty() {
                    self.shared.journal.commit(Point::Told, extra).await?;
                }
                Ok(false)
            }
        }
    }

    /// The same where nobody waits for an answer. False when it could not be recorded: then nothing has changed,
    /// and the state is pursued again in a moment.
    pub(crate) async fn happen(&mut self, event: &Event, job_end: Option<JobEnd>, extra: Vec<Write>) -> bool {
        match self.apply(event, job_end, extra).await {
            Ok(_) => true,
            Err(error) => {
                self.store_failed(&error);
                false
            }
        }
    }

    /// An effect that cannot be journalled is not tried.
    pub(crate) fn store_failed(&mut self, error: &StoreError) {
        tracing::error!(sandbox = %self.record.id, error = %chain(error), "could not record; trying again");
        self.clocks.retry_after(STORE_RETRY);
    }

    /// Records a transition: sandbox, job, intent and events in one commit. Effects follow in `pursue`.
    pub(crate) async fn enter(
        &mut self,
        transition: Transition,
        job_end: Option<JobEnd>,
        mut writes: Vec<Write>,
    ) -> Result<(), StoreError> {
        let mut record = self.record.clone();
        let previous = record.state;
        transition.next.write_to(&mut record);
        // Another state, another clock.
        record.idle = None;
        if let Some(step) = begun(&transition.next) {
            writes.push(intent(&record, step, false));
        }
        // Whatever was being done has ended, or is not waited for any more.
        writes.push(task::over(record.id));
        let mut job = self.job.clone();
        self.keep_pause(&transition.next, &mut record);
        let end = job_end.or_else(|| self.forced_end(&transition.next));
        if let (Some(job), Some(end)) = (job.as_mut(), end) {
            self.finish_job(job, end, &mut writes);
        }
        if !transition.next.holds_something() {
            writes.push(Write::ForgetTokens(record.id));
            record.left_behind.clear();
            record.workspace = None;
            for step in Step::ALL {
                for undo in [false, true] {
                    writes.push(Write::Fact {
                        sandbox: record.id,
                        step: step.as_str().to_owned(),
                        undo,
                    });
                }
            }
        }
        if record.state != previous {
            tracing::info!(sandbox = %record.id, vmid = %record.vmid, state = %record.state, "sandbox");
            writes.push(event::state(&record, previous));
        } else if self.state.holds_something() && !transition.next.holds_something() {
            writes.push(event::nothing_left(&record));
        }
        writes.push(Write::Sandbox(Box::new(record.clone())));
        let point = Point::enter(&transition.next);
        self.shared.journal.commit(point, writes).await?;
        self.adopt(record);
        if !transition.next.holds_something() {
            self.shared.queue.look();
        }
        if let Some(job) = job.as_ref().filter(|job| job.state.is_final()) {
            self.shared.job_ended(job);
        }
        self.job = job.filter(|job| !job.state.is_final());
        let giving_up = self.work.is_some() && !matches!(self.state, State::Unwinding { .. });
        self.clocks.entered(
            &transition.next,
            &self.shared.settings,
            giving_up.then_some(ABANDON),
        );
        if self.job.is_none() {
            self.clocks.job_over();
        }
        self.powered = None;
        self.stops_first = false;
        let was_up = matches!(self.state, State::Ready | State::Running { .. }) && self.enforced.is_some();
        self.writes_back = was_up && transition.next == State::Stopped;
        self.state = transition.next;
        self.keep_seed_unless_spent();
        self.pending = true;
        Ok(())
    }

    /// Takes over a record that was just committed.
    pub(crate) fn adopt(&mut self, record: SandboxRecord) {
        self.record = Kept::new(record);
        self.known.send_replace(self.record.share());
    }

    /// A job does not outlive the state that could carry it.
    fn forced_end(&self, next: &State) -> Option<JobEnd> {
        self.job.as_ref()?;
        let failed = |failure: &Failure| JobEnd {
            state: JobState::Failed,
            outcome: None,
            failure: Some(failure.clone()),
        };
        match next {
            State::Unwinding {
                cause: Some(cause), ..
            }
            | State::Failed { cause, .. } => Some(failed(cause)),
            State::Unwinding { cause: None, .. } | State::Stopped | State::TimedOut | State::Destroyed => {
                let cause = super::perform::failure(
                    agentlab_api::ErrorCode::Cancelled,
                    &self.progress.stage(&self.state),
                    "Its sandbox was taken away by an operator",
                );
                Some(JobEnd {
                    state: JobState::Cancelled,
                    outcome: None,
                    failure: Some(cause),
                })
            }
            State::Requested
            | State::Provisioning { .. }
            | State::Booting
            | State::Ready
            | State::Running { .. }
            | State::Suspended { .. } => None,
        }
    }

    fn finish_job(&self, job: &mut JobRecord, end: JobEnd, writes: &mut Vec<Write>) {
        job.state = end.state;
        job.outcome = end.outcome;
        job.failure = end.failure;
        job.finished_at = Some(self.shared.now());
        tracing::info!(job = %job.id, sandbox = %self.record.id, state = %job.state, "job");
        writes.push(event::job_finished(job));
        writes.push(Write::Job(Box::new(job.clone())));
    }

    /// A slow call has ended.
    async fn done(&mut self, done: Done) {
        match done {
            Done::Step { step, took, result } => self.step_ended(step, took, result).await,
            Done::Undo { step, took, result } => self.undo_ended(step, took, result),
            Done::Power { change, result } => self.power_ended(change, result).await,
            Done::Looked(seen) => self.looked(seen).await,
            Done::Awaited => self.go_on().await,
        }
        self.pending = true;
    }

    /// Begins a slow call. The caller has made sure that none is under way.
    pub(crate) fn begin(&mut self, work: impl Future<Output = Done> + Send + 'static) {
        self.work = Some(Box::pin(work));
    }

    /// Begins a forward step whose intent is recorded.
    pub(crate) fn begin_step(&mut self, step: Step) {
        // Only the machine takes the descriptor; a step that dropped it would leave the cable without an end.
        let tap = if step == Step::PowerOn {
            self.tap.take()
        } else {
            None
        };
        let kit = Kit {
            record: self.record.clone(),
            token: self.token.clone(),
            tap,
        };
        let shared = self.shared.clone();
        self.begin(async move {
            let began = Instant::now();
            let result = super::attempt::step(shared, step, kit).await;
            Done::Step {
                step,
                took: began.elapsed(),
                result,
            }
        });
    }

    /// Lets go of a step under way whose sandbox was given up meanwhile.
    pub(crate) fn abandon(&mut self) {
        if self.work.take().is_some() {
            tracing::warn!(sandbox = %self.record.id, "gave up waiting for a call under way");
        }
        self.pending = true;
    }
}

/// The step that a state begins, if any.
fn begun(state: &State) -> Option<Step> {
    match state {
        State::Provisioning { at } => Some(*at),
        State::Booting => Some(Step::AwaitGuest),
        State::Requested
        | State::Ready
        | State::Running {
            holder: Holder::Job(_) | Holder::Operator,
        }
        | State::Suspended { .. }
        | State::Stopped
        | State::TimedOut
        | State::Unwinding { .. }
        | State::Failed { .. }
        | State::Destroyed => None,
    }
}

/// An intent says all that is needed to find its effect again.
pub(crate) fn intent(record: &SandboxRecord, step: Step, undo: bool) -> Write {
    Write::Intent(Intent {
        sandbox: record.id,
        step: step.as_str().to_owned(),
        undo,
        detail: json!({"vmid": record.vmid, "stamp": stamp_of(record).to_string()}),
    })
}

/// Resolves when the call under way does; never when there is none.
async fn under_way(work: &mut Option<Work>) -> Done {
    match work {
        Some(work) => work.await,
        None => std::future::pending().await,
    }
}
