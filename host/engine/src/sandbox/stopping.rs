//! A stop that is not over yet: its machine runs, and its guest has something to write down, or a workspace to let go of.
//!
//! ```text
//!   stop ─► STOPPED ─► guest lets go ─► guest writes back ─► sealed ─► off ─┬─► (rests)
//!              │                                                           └─► first step of the next start
//!              └─ start meanwhile: PROVISIONING is recorded at once, and begins when the machine is off
//! ```
//!
//! After a restart nobody remembers how far that was. The machine is looked at, and a guest that runs is listened for, so
//! that it can be asked again.

use std::time::Duration;

use agentlab_store::StoreError;
use tokio::time::Instant;

use super::driver::Driver;
use super::machine::{Event, State, Transition};
use super::perform::{PowerChange, backend_failure};
use super::step::{Seen, Step};

/// How long a guest that lost its host over a restart has to find it again, on top of two heartbeats.
const FOUND_AGAIN: Duration = Duration::from_secs(20);

impl Driver {
    /// Whether this process has seen the machine of a stopped sandbox off.
    pub(crate) fn is_off(&self) -> bool {
        self.work.is_none() && self.powered == Some(PowerChange::ShutDown)
    }

    /// Records a start. Its steps must not meet a machine that is still being stopped.
    pub(crate) async fn start_again(&mut self, transition: Transition) -> Result<(), StoreError> {
        let (is_off, writes_back) = (self.is_off(), self.writes_back);
        self.enter(transition, None, Vec::new()).await?;
        self.stops_first = !is_off;
        self.writes_back = writes_back;
        Ok(())
    }

    /// What it cannot stop, it cannot start again. It stays stopped with that reason, and the stop goes on.
    pub(crate) async fn not_stopped(&mut self, error: &agentlab_backend::BackendError) {
        self.stops_first = false;
        let cause = backend_failure("Stop", error);
        self.happen(&Event::StepFailed(cause), None, Vec::new()).await;
    }

    /// Whether an earlier process may have left the machine on in a state that wants it off.
    pub(crate) fn may_have_to_stop(&self) -> bool {
        match self.state {
            State::Provisioning { at } => at < Step::PowerOn && self.record.runner_version.is_some(),
            State::Stopped | State::TimedOut | State::Unwinding { .. } => true,
            State::Requested
            | State::Booting
            | State::Ready
            | State::Running { .. }
            | State::Suspended { .. }
            | State::Failed { .. }
            | State::Destroyed => false,
        }
    }

    /// Goes on with a stop that an earlier process had begun, now that the machine was looked at.
    pub(crate) async fn resume_stop(&mut self, seen: Seen) {
        self.pending = true;
        let start = if let State::Provisioning { at } = self.state {
            Some(at)
        } else {
            None
        };
        if seen == Seen::Unknown {
            self.resumed = true;
            self.clocks.retry_after(self.shared.settings.teardown_retry_first);
            return;
        }
        if let Some(at) = start {
            self.go_on_at(at).await;
        }
        let may_run = matches!(seen, Seen::Running | Seen::Unreadable);
        self.stops_first = may_run && start.is_some();
        if seen == Seen::Running {
            tracing::info!(sandbox = %self.record.id, "its machine runs still; its guest is listened for");
            self.watch_machine();
            let patience = self.shared.settings.heartbeat_interval * 2 + FOUND_AGAIN;
            self.parting.listen(Instant::now() + patience);
            self.writes_back = start.is_some() || self.state == State::Stopped;
        } else if seen == Seen::Stopped && self.state == State::Stopped {
            self.powered = Some(PowerChange::ShutDown);
        }
    }
}
