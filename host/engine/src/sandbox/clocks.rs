//! Everything a driver waits for. By tokio's clock, which nobody sets back; wall time only says where to begin.

use std::time::Duration;

use agentlab_store::{JobRecord, SandboxRecord};
use tokio::time::Instant;

use super::machine::State;
use crate::lease::Lease;
use crate::settings::Settings;
use crate::shared::Shared;

/// A silence seen this much too late was our own: the process, or the host, did not run.
const STALL: Duration = Duration::from_secs(5);
/// How fast the host expects artifacts to arrive at the least.
const UPLOAD_BYTES_PER_SECOND: u64 = 8 << 20;
/// What the host adds to the kill grace before it ends a cancelled job itself.
const CANCEL_SLACK: Duration = Duration::from_secs(30);
/// How long a guest that has been heard to collect its work may take for that.
const COLLECT: Duration = Duration::from_secs(120);

/// What has come due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    Lease,
    /// The guest had time to hand over what it made, and has not ended its job.
    LeaseGrace,
    Boot,
    JobDeadline,
    Silence,
    Cancel,
    Retry,
    Abandon,
}

#[derive(Debug)]
pub(crate) struct Clocks {
    pub(crate) lease: Lease,
    lease_grace: Option<Instant>,
    /// Until when a guest that was asked to end may hand over its work, for whichever reason it was asked.
    handing_over: Option<Instant>,
    boot: Option<Instant>,
    job_deadline: Option<Instant>,
    /// What is left of the deadline of a job whose machine is paused: neither runs meanwhile.
    held: Option<Duration>,
    silence: Option<Instant>,
    cancel: Option<Instant>,
    retry: Option<Instant>,
    abandon: Option<Instant>,
}

impl Clocks {
    pub(crate) fn begin(record: &SandboxRecord, shared: &Shared, resumed: bool) -> Self {
        let (end, warned, now) = (record.lease_expires_at, record.lease_warned, Instant::now());
        let lease = if resumed {
            Lease::resume(end, warned, record.created_at, shared.now(), now)
        } else {
            // A new lease is whole, whatever has happened to the wall clock since it was written down.
            Lease::begin(end, warned, record.created_at, now)
        };
        Self {
            lease,
            lease_grace: None,
            handing_over: None,
            boot: None,
            job_deadline: None,
            held: None,
            silence: None,
            cancel: None,
            retry: None,
            abandon: None,
        }
    }

    /// The earliest of all.
    pub(crate) fn next(&self) -> Option<Instant> {
        let all = [
            self.lease.wake_at(),
            self.lease_grace,
            self.boot,
            self.job_deadline,
            self.silence,
            self.cancel,
            self.retry,
            self.abandon,
        ];
        all.into_iter().flatten().min()
    }

    /// What has come due, each once. The lease is asked for its own reading.
    pub(crate) fn due(&mut self, now: Instant, settings: &Settings) -> Vec<Due> {
        let mut due = Vec::new();
        if self.lease.wake_at().is_some_and(|at| at <= now) {
            due.push(Due::Lease);
        }
        if let Some(at) = self.silence.filter(|at| *at + STALL < now) {
            tracing::warn!(late = ?(now - at), "the daemon itself did not run; guests get another chance to speak");
            self.silence = Some(now + settings.heartbeat_silence);
        }
        let slots = [
            (&mut self.lease_grace, Due::LeaseGrace),
            (&mut self.boot, Due::Boot),
            (&mut self.job_deadline, Due::JobDeadline),
            (&mut self.silence, Due::Silence),
            (&mut self.cancel, Due::Cancel),
            (&mut self.retry, Due::Retry),
            (&mut self.abandon, Due::Abandon),
        ];
        for (slot, what) in slots {
            if slot.is_some_and(|at| at <= now) {
                *slot = None;
                due.push(what);
            }
        }
        due
    }

    /// Another state was entered. `abandon`: how long a call under way may still take, when there is one.
    pub(crate) fn entered(&mut self, state: &State, settings: &Settings, abandon: Option<Duration>) {
        let now = Instant::now();
        self.retry = None;
        self.boot = matches!(state, State::Booting).then(|| now + settings.boot_timeout);
        if matches!(state, State::Suspended { .. }) {
            self.hold(now);
        } else if let Some(left) = self.held.take() {
            self.job_deadline = Some(now + left);
            self.heard(settings);
        }
        if matches!(state, State::Unwinding { .. }) {
            self.abandon = abandon.map(|patience| now + patience);
        }
        if !state.holds_something() || matches!(state, State::Unwinding { .. } | State::TimedOut) {
            self.lease.rest();
        }
    }

    /// A start that an earlier process began cannot be told from somebody else's, or can again: it has as long as a boot.
    pub(crate) fn unreadable(&mut self, is_so: bool, settings: &Settings) {
        let until = self
            .boot
            .unwrap_or_else(|| Instant::now() + settings.boot_timeout);
        self.boot = is_so.then_some(until);
    }

    /// A paused guest neither works nor speaks.
    fn hold(&mut self, now: Instant) {
        self.silence = None;
        if let Some(at) = self.job_deadline.take() {
            self.held = Some(at.saturating_duration_since(now));
        }
    }

    /// The guest works on a job from here on, or has for a while when the process is new.
    pub(crate) fn job_begins(
        &mut self,
        job: &JobRecord,
        record: &SandboxRecord,
        shared: &Shared,
        spent: Duration,
    ) {
        let settings = &shared.settings;
        let whole = host_deadline(job, record, settings);
        self.job_deadline = Some(Instant::now() + whole.saturating_sub(spent));
        self.heard(settings);
        if job.cancel_requested {
            self.cancel_requested(settings);
        }
    }

    /// A sign of life.
    pub(crate) fn heard(&mut self, settings: &Settings) {
        if self.job_deadline.is_some() {
            self.silence = Some(Instant::now() + settings.heartbeat_silence);
        }
    }

    /// The guest has been told, or will be at its next word.
    pub(crate) fn cancel_requested(&mut self, settings: &Settings) {
        if self.cancel.is_none() {
            self.cancel = Some(Instant::now() + settings.kill_grace + CANCEL_SLACK);
        }
    }

    /// The lease ran out under a job: its guest has as long as a cancelled one to hand over what it made.
    pub(crate) fn lease_ran_out(&mut self, settings: &Settings) {
        self.lease.rest();
        self.lease_grace = Some(Instant::now() + settings.kill_grace + CANCEL_SLACK);
    }

    /// The guest has done as it was asked, and its work is on the way: it has as long as that takes, once. Returns
    /// whether any of that time is left.
    pub(crate) fn hand_over(&mut self, due: Due, record: &SandboxRecord) -> bool {
        let now = Instant::now();
        let until = self
            .handing_over
            .get_or_insert_with(|| now + COLLECT + upload_time(record));
        let left = until.saturating_duration_since(now);
        if left.is_zero() {
            return false;
        }
        self.again(due, left);
        true
    }

    /// Whether a guest is to end its job for that.
    pub(crate) fn is_lease_over(&self) -> bool {
        self.lease_grace.is_some()
    }

    pub(crate) fn job_over(&mut self) {
        if self.lease_grace.take().is_some() {
            // Of a sandbox that outlives its job.
            self.lease.take_up();
        }
        self.handing_over = None;
        self.job_deadline = None;
        self.held = None;
        self.silence = None;
        self.cancel = None;
    }

    pub(crate) fn retry_after(&mut self, wait: Duration) {
        self.retry = Some(Instant::now() + wait);
    }

    /// What was waited for is there.
    pub(crate) fn retry_now(&mut self) {
        self.retry = None;
    }

    /// Brings something back that has come due and could not be dealt with.
    pub(crate) fn again(&mut self, due: Due, wait: Duration) {
        let at = Some(Instant::now() + wait);
        match due {
            Due::Lease => self.lease.put_off(wait),
            Due::LeaseGrace => self.lease_grace = at,
            Due::Boot => self.boot = at,
            Due::JobDeadline => self.job_deadline = at,
            Due::Silence => self.silence = at,
            Due::Cancel => self.cancel = at,
            Due::Retry => self.retry = at,
            Due::Abandon => self.abandon = at,
        }
    }

    pub(crate) fn is_waiting(&self) -> bool {
        self.retry.is_some()
    }
}

/// When the host ends a job that its guest will not end.
pub(crate) fn host_deadline(job: &JobRecord, record: &SandboxRecord, settings: &Settings) -> Duration {
    Duration::from_secs(u64::from(job.deadline_seconds))
        .saturating_add(settings.kill_grace)
        .saturating_add(settings.host_deadline_slack)
        .saturating_add(upload_time(record))
}

/// How long a guest may take to hand over all that its profile allows.
fn upload_time(record: &SandboxRecord) -> Duration {
    Duration::from_secs(record.profile.artifacts.max_total_bytes / UPLOAD_BYTES_PER_SECOND)
}
