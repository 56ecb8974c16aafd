//! What goes on after it had stood still: a pause that ends, and a start that fails on a disk with work on it.

use std::time::Duration;

use agentlab_store::{JobRecord, SandboxRecord, StoreError, Write};

use super::driver::Driver;
use super::machine::{Event, State};
use crate::journal::Point;
use crate::lease::until;

impl Driver {
    /// Notes when a pause begins. It lasts until the machine is known to go on, whoever is killed in between; what never
    /// goes on has no pause any more.
    pub(crate) fn keep_pause(&self, next: &State, record: &mut SandboxRecord) {
        match next {
            State::Suspended { .. } => {
                record.paused_at.get_or_insert(self.shared.now());
            }
            State::Ready | State::Running { .. } => {}
            State::Requested
            | State::Provisioning { .. }
            | State::Booting
            | State::Stopped
            | State::TimedOut
            | State::Unwinding { .. }
            | State::Failed { .. }
            | State::Destroyed => record.paused_at = None,
        }
    }

    /// The machine goes on. The deadline of its job does not count the pause.
    pub(crate) async fn went_on(&mut self) -> Result<(), StoreError> {
        let mut record = self.record.clone();
        let Some(since) = record.paused_at.take() else {
            return Ok(());
        };
        let pause = until(since, self.shared.now());
        let mut writes = vec![Write::Sandbox(Box::new(record.clone()))];
        let job = self.job.clone().map(|job| JobRecord {
            paused_seconds: job.paused_seconds.saturating_add(whole_seconds(pause)),
            ..job
        });
        writes.extend(job.clone().map(|job| Write::Job(Box::new(job))));
        self.shared.journal.commit(Point::WentOn, writes).await?;
        self.job = job;
        self.adopt(record);
        Ok(())
    }

    /// What a failure is to a sandbox that had been up before and was to start again. The cause stays on its record.
    pub(crate) fn start_failed(&mut self, event: &Event) -> Option<Event> {
        let starting = matches!(self.state, State::Provisioning { .. } | State::Booting);
        match event {
            // A machine that stops while the next start is prepared is the one that was asked to stop.
            Event::MachineStopped(_) if self.state != State::Booting => None,
            Event::StepFailed(cause) | Event::GuestLost(cause) | Event::MachineStopped(cause)
                if starting && self.record.runner_version.is_some() =>
            {
                self.record.failure = Some(cause.clone());
                Some(Event::StartFailed)
            }
            Event::StepDone(_)
            | Event::VmidTaken
            | Event::StepFailed(_)
            | Event::StartFailed
            | Event::GuestUp(_)
            | Event::GuestLost(_)
            | Event::JobEnded
            | Event::LeaseExpired
            | Event::MachineStopped(_)
            | Event::MachineGone(_)
            | Event::Unwound => None,
        }
    }
}

/// Rather one too many than a deadline that comes early.
fn whole_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}
