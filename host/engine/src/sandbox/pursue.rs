//! What a driver does for the state it is in, and what it makes of looks, clocks and requests.

use agentlab_api::{ErrorCode, Failure, JobState, chain};
use agentlab_backend::BackendError;
use agentlab_store::Write;
use tokio::time::Instant;

use super::clocks::Due;
use super::driver::{Done, Driver, JobEnd};
use super::inbox::Message;
use super::machine::{Effect, Event, Holder, Request, State, Verdict};
use super::perform::{PowerChange, failure};
use super::step::{Seen, Step};
use crate::event::{self, StepEnd};
use crate::journal::Point;
use crate::lease;
use crate::port::Trust;

impl Driver {
    /// Does, or begins, what the state asks for. Safe to call at any time: what was done already is not done again.
    pub(crate) async fn pursue(&mut self) {
        if std::mem::take(&mut self.look_wanted) {
            self.look();
        }
        if self.resumed {
            // What an earlier process left must be known first.
            if !self.clocks.is_waiting() {
                self.look();
            }
            return;
        }
        if self.state.is_up() {
            self.watch_machine();
        }
        let powers_off = self.stops_first || matches!(self.state, State::Stopped | State::TimedOut);
        if powers_off && self.powered.is_none() && self.awaits_release() {
            return;
        }
        let effects = if self.stops_first {
            State::Stopped.effects()
        } else {
            self.state.effects()
        };
        for effect in effects {
            self.perform(effect).await;
            if self.pending {
                // The state has changed; the new one has effects of its own.
                return;
            }
        }
        if matches!(self.state, State::Failed { kept: false, .. }) {
            // Kept to be read, until its lease is over.
            self.clocks.lease.take_up();
        }
    }

    async fn perform(&mut self, effect: Effect) {
        match effect {
            // The numbers were taken in the transaction that recorded the request.
            Effect::Run(Step::Reserve) if self.state == State::Requested => {
                self.happen(&Event::StepDone(Step::Reserve), None, Vec::new())
                    .await;
            }
            Effect::Run(_) if self.work.is_some() || self.clocks.is_waiting() => {}
            Effect::Run(step) => self.begin_step(step),
            // Its clock runs since the state was entered.
            Effect::AwaitGuest => {}
            Effect::Enforce => self.enforce().await,
            Effect::ShutDown => self.power(PowerChange::ShutDown),
            Effect::PowerOff => self.power(PowerChange::Off),
            Effect::Suspend => self.power(PowerChange::Suspend),
            Effect::Resume if self.record.paused_at.is_some() => self.power(PowerChange::Resume),
            Effect::Resume => {}
            Effect::Unwind => self.pursue_unwinding().await,
        }
    }

    /// Lets the network trust the guest as far as its state says. A guest that cannot be confined is ended.
    async fn enforce(&mut self) {
        let profile = &self.record.profile;
        let trust = if self.writes_back {
            // Whom it tells that it has written is beyond a sealed cable.
            Trust::BootstrapOnly
        } else {
            self.state.trust(profile.network.mode)
        };
        let trust = self.shared.deserved(trust, profile);
        if self.enforced == Some(trust) {
            return;
        }
        match super::perform::enforce(&self.shared, &self.record, trust, self.rebind).await {
            Ok(()) => {
                self.enforced = Some(trust);
                self.rebind = false;
            }
            Err(error) => {
                let cause = super::perform::network_failure("Enforce", &error);
                tracing::error!(sandbox = %self.record.id, %cause, "trust could not be set");
                match self.apply(&Event::StepFailed(cause), None, Vec::new()).await {
                    Ok(true) => {}
                    Ok(false) => self.clocks.retry_after(self.shared.settings.teardown_retry_first),
                    Err(error) => self.store_failed(&error),
                }
            }
        }
    }

    fn power(&mut self, change: PowerChange) {
        if self.work.is_some() || self.clocks.is_waiting() || self.powered == Some(change) {
            return;
        }
        let (shared, record) = (self.shared.clone(), self.record.clone());
        let writes_back = self.writes_back && change == PowerChange::ShutDown;
        self.begin(async move {
            if writes_back {
                super::perform::write_back(&shared, &record).await;
            }
            Done::Power {
                change,
                result: super::perform::power(shared, change, record).await,
            }
        });
    }

    pub(crate) async fn power_ended(&mut self, change: PowerChange, result: Result<(), BackendError>) {
        self.writes_back = false;
        match result {
            Ok(()) | Err(BackendError::NoSuchMachine { .. }) => {
                self.powered = Some(change);
                self.stops_first = false;
                if change == PowerChange::Resume
                    && let Err(error) = self.went_on().await
                {
                    self.powered = None;
                    self.store_failed(&error);
                }
                if matches!(change, PowerChange::Off | PowerChange::ShutDown) {
                    self.tasks.abort_all();
                    let cause = failure(ErrorCode::SandboxLost, "Stop", "Its machine was powered off");
                    if !self.happen(&Event::MachineStopped(cause), None, Vec::new()).await {
                        self.powered = None;
                    }
                }
            }
            // Teardown begins with the same, and says what it cannot do.
            Err(error) if self.state == State::TimedOut => {
                let cause = super::perform::backend_failure("Stop", &error);
                self.happen(&Event::MachineStopped(cause), None, Vec::new()).await;
            }
            Err(error) if self.stops_first => self.not_stopped(&error).await,
            Err(error) => {
                tracing::warn!(sandbox = %self.record.id, ?change, error = %chain(&error), "trying again");
                self.clocks.retry_after(self.shared.settings.teardown_retry_max);
            }
        }
    }

    /// Asks the hypervisor what has become of the machine, unless a slow call is under way anyway.
    pub(crate) fn look(&mut self) {
        let looks = self.state.is_up() || self.state == State::Stopped || self.resumed;
        if self.work.is_some() || !looks {
            return;
        }
        let (shared, record) = (self.shared.clone(), self.record.clone());
        self.begin(async move { Done::Looked(super::perform::look(shared, record).await) });
    }

    pub(crate) async fn looked(&mut self, seen: Seen) {
        if std::mem::take(&mut self.resumed) && self.resume_with(seen).await {
            return;
        }
        let stage = self.progress.stage(&self.state);
        let vmid = self.record.vmid;
        match seen {
            Seen::Running | Seen::Unreadable | Seen::Unknown => {}
            Seen::Stopped => {
                let words = super::perform::last_words(&self.shared, vmid).await;
                let text = format!("VM {vmid} stopped by itself{words}");
                let cause = failure(ErrorCode::SandboxLost, &stage, text);
                self.tasks.abort_all();
                self.happen(&Event::MachineStopped(cause), None, Vec::new()).await;
                self.writes_back = false;
            }
            Seen::Absent => {
                let cause = failure(
                    ErrorCode::SandboxLost,
                    &stage,
                    format!("VM {vmid} is gone from the back end"),
                );
                self.tasks.abort_all();
                self.happen(&Event::MachineGone(cause), None, Vec::new()).await;
            }
        }
    }

    /// A clock has run out. What could not be recorded comes due again.
    pub(crate) async fn tick(&mut self) {
        let settings = self.shared.settings.clone();
        for due in self.clocks.due(Instant::now(), &settings) {
            let recorded = match due {
                Due::Cancel | Due::LeaseGrace
                    if self.progress.hands_over() && self.clocks.hand_over(due, &self.record) =>
                {
                    true
                }
                Due::Retry => {
                    self.pending = true;
                    true
                }
                Due::Abandon => {
                    self.abandon();
                    true
                }
                Due::Lease => {
                    self.lease_due().await;
                    true
                }
                Due::LeaseGrace => {
                    let text = "; the guest did not hand over its work in time";
                    self.lease_expired(text).await
                }
                Due::Boot => self.boot_overdue().await,
                Due::Silence => {
                    let seconds = settings.heartbeat_silence.as_secs();
                    let seen = super::perform::standing(&self.shared, &self.record).await;
                    let text = format!("The guest fell silent: nothing was heard for {seconds} s{seen}");
                    let cause = failure(ErrorCode::SandboxLost, &self.progress.stage(&self.state), text);
                    self.happen(&Event::GuestLost(cause), None, Vec::new()).await
                }
                Due::JobDeadline => {
                    let text = "The guest did not end its job in time, so the host did";
                    self.end_job(JobState::Timeout, ErrorCode::AgentTimeout, text)
                        .await
                }
                Due::Cancel => {
                    let text = "Cancelled by an operator; the guest did not end in time, so the host did";
                    self.end_job(JobState::Cancelled, ErrorCode::Cancelled, text)
                        .await
                }
            };
            if !recorded {
                self.clocks.again(due, super::driver::STORE_RETRY);
            }
        }
    }

    async fn boot_overdue(&mut self) -> bool {
        if self.state != State::Booting {
            return self.never_told_apart().await;
        }
        let allowed = self.shared.settings.boot_timeout;
        let seen = super::perform::standing(&self.shared, &self.record).await;
        let words = super::perform::last_words(&self.shared, self.record.vmid).await;
        let text = format!(
            "The guest did not answer within {} s of power-on{seen}{words}",
            allowed.as_secs()
        );
        let mut cause = failure(ErrorCode::GuestSilent, Step::AwaitGuest.as_str(), text);
        cause.hint = Some(
            "`agentlab-template verify` checks the template; a slow host needs a longer `boot_timeout`"
                .to_owned(),
        );
        let ended = StepEnd::Failed(&cause.message);
        let told = vec![event::step(
            &self.record,
            Step::AwaitGuest,
            false,
            allowed,
            &ended,
        )];
        self.happen(&Event::StepFailed(cause.clone()), None, told).await
    }

    /// Whether a machine was started before a restart is not to be found out: nothing of ours is touched by ending it.
    async fn never_told_apart(&mut self) -> bool {
        let text = format!(
            "VM {} has carried a stamp that cannot be read for {} s, so that its start could not be taken up",
            self.record.vmid,
            self.shared.settings.boot_timeout.as_secs()
        );
        let mut cause = failure(ErrorCode::SandboxLost, Step::PowerOn.as_str(), text);
        cause.hint = Some(
            "somebody changed its description or may not let us read it; the machine itself is left alone"
                .to_owned(),
        );
        self.happen(&Event::StepFailed(cause), None, Vec::new()).await
    }

    async fn end_job(&mut self, state: JobState, code: ErrorCode, text: &str) -> bool {
        let cause = failure(code, &self.progress.stage(&self.state), text);
        let end = JobEnd {
            state,
            outcome: None,
            failure: Some(cause),
        };
        self.happen(&Event::JobEnded, Some(end), Vec::new()).await
    }

    async fn lease_due(&mut self) {
        match self.clocks.lease.due(Instant::now()) {
            lease::Due::Nothing => {}
            lease::Due::Warn { left } => {
                let mut record = self.record.clone();
                record.lease_warned = true;
                let writes = vec![
                    event::lease_expiring(&record, left),
                    Write::Sandbox(Box::new(record.clone())),
                ];
                match self.shared.journal.commit(Point::LeaseWarning, writes).await {
                    Ok(_) => {
                        self.clocks.lease.warned();
                        self.adopt(record);
                    }
                    Err(error) => {
                        self.clocks.lease.warn_later(super::driver::STORE_RETRY);
                        self.store_failed(&error);
                    }
                }
            }
            lease::Due::Expired if self.clocks.lease.is_doubtful() => {
                let (end, wall) = (self.record.lease_expires_at, self.shared.now());
                self.clocks.lease.confirm(end, wall, Instant::now());
            }
            lease::Due::Expired if self.may_hand_over() => {
                tracing::info!(vmid = %self.record.vmid, "lease over; its job is asked to end");
                self.clocks.lease_ran_out(&self.shared.settings);
            }
            lease::Due::Expired => {
                if !self.lease_expired("").await {
                    self.clocks
                        .lease
                        .put_off(self.shared.settings.teardown_retry_first);
                }
            }
        }
    }

    /// Whether a guest works on a job, and hears that it is to end it.
    fn may_hand_over(&self) -> bool {
        let works = matches!(
            &self.state,
            State::Running {
                holder: Holder::Job(_)
            }
        );
        works && self.job.is_some() && self.record.acknowledged
    }

    /// Whether that could be recorded. `more`: what there is to say besides.
    async fn lease_expired(&mut self, more: &str) -> bool {
        let end = self.job.is_some().then(|| JobEnd {
            state: JobState::Timeout,
            outcome: None,
            failure: Some(lease_over(more)),
        });
        match self.apply(&Event::LeaseExpired, end, Vec::new()).await {
            Ok(true) => true,
            Ok(false) => {
                self.clocks.lease.rest();
                true
            }
            Err(error) => {
                self.store_failed(&error);
                false
            }
        }
    }

    /// One message of the inbox.
    pub(crate) async fn receive(&mut self, message: Message) {
        match message {
            Message::Request { request, reply } => drop(reply.send(self.requested(&request).await)),
            Message::Cancel { reply } => drop(reply.send(self.cancel().await)),
            Message::Workspace { change, reply } => drop(reply.send(self.change_workspace(change).await)),
            Message::Look => {
                self.look_wanted = true;
                self.pending = true;
            }
            Message::Used { seen } => self.used(seen).await,
            Message::TakeAway { cause } => self.take_away(cause).await,
            Message::Redeem { redemption, reply } => drop(reply.send(self.redeem(redemption).await)),
            Message::Acknowledge { reply } => drop(reply.send(self.acknowledge().await)),
            Message::Heartbeat { beat, reply } => drop(reply.send(self.heartbeat(&beat).await)),
            Message::Heard => self.clocks.heard(&self.shared.settings),
            Message::Logs { batch, reply } => drop(reply.send(self.logs(batch).await)),
            Message::Stored { artifact, reply } => drop(reply.send(self.stored(artifact).await)),
            Message::Report { report, reply } => drop(reply.send(self.report(*report).await)),
        }
    }

    /// Keeping a machine is a favour that others do not pay for.
    pub(crate) async fn take_away(&mut self, cause: Failure) {
        let transition = if matches!(self.state, State::Failed { kept: true, .. }) {
            match self.state.request(&Request::Destroy { force: true }) {
                Verdict::Moved(transition) => Some(transition),
                Verdict::AlreadySo | Verdict::Refused(_) => None,
            }
        } else {
            self.state.event(&Event::GuestLost(cause), false)
        };
        if let Some(transition) = transition
            && let Err(error) = self.enter(transition, None, Vec::new()).await
        {
            self.store_failed(&error);
        }
    }
}

/// Why a job ends with the lease of its sandbox.
pub(crate) fn lease_over(more: &str) -> Failure {
    let text = format!("The lease of its sandbox ran out{more}");
    let mut cause = failure(ErrorCode::AgentTimeout, "Lease", text);
    cause.hint =
        Some("`agentlab sandbox lease renew` gives more time while a job runs, --ttl before".to_owned());
    cause
}
