//! What a driver makes of an operator's requests.

use std::time::Duration;

use agentlab_api::{ErrorCode, JobState, Problem, chain};
use agentlab_store::{JobRecord, SandboxRecord, StoreError, Write};
use tokio::time::Instant;

use super::driver::{Driver, JobEnd};
use super::machine::{Event, Holder, Refusal, Request, State, Verdict};
use super::perform::failure;
use super::step::Step;
use crate::event;
use crate::journal::Point;
use crate::lease::Lease;

impl Driver {
    /// Decides on a request and records the decision. What it asks of the world follows.
    pub(crate) async fn requested(&mut self, request: &Request) -> Result<SandboxRecord, Problem> {
        match self.state.request(request) {
            Verdict::AlreadySo => {}
            Verdict::Moved(mut transition) => {
                if *request == Request::Start && self.record.workspace.is_some() {
                    // It may have been given since the machine was made.
                    transition.next = State::Provisioning {
                        at: Step::AttachWorkspace,
                    };
                }
                let recorded = match request {
                    Request::Renew { minutes } => self.renew(*minutes).await,
                    Request::Start => self.start_again(transition).await,
                    Request::Stop
                    | Request::Suspend
                    | Request::Resume
                    | Request::Assign(_)
                    | Request::Destroy { .. } => self.enter(transition, None, Vec::new()).await,
                };
                recorded.map_err(|error| unrecorded(&error))?;
            }
            Verdict::Refused(refusal) => return Err(refused(&refusal)),
        }
        Ok(self.record.clone())
    }

    /// Ends a job that nobody began; asks a guest that works on one.
    pub(crate) async fn cancel(&mut self) -> Result<JobRecord, Problem> {
        let Some(job) = self.job.clone() else {
            return Err(Problem::new(
                ErrorCode::StateConflict,
                "Its job has ended already",
            ));
        };
        let held = matches!(
            &self.state,
            State::Running {
                holder: Holder::Job(_)
            }
        );
        if held {
            if job.cancel_requested {
                return Ok(job);
            }
            let job = JobRecord {
                cancel_requested: true,
                ..job
            };
            let commit = self
                .shared
                .journal
                .commit(Point::Cancel, vec![Write::Job(Box::new(job.clone()))])
                .await;
            commit.map_err(|error| unrecorded(&error))?;
            self.clocks.cancel_requested(&self.shared.settings);
            self.job = Some(job.clone());
            return Ok(job);
        }
        let cause = failure(
            ErrorCode::Cancelled,
            &self.record.cursor,
            if self.state.is_up() {
                "Cancelled by an operator while it was paused"
            } else {
                "Cancelled by an operator before it began"
            },
        );
        let end = JobEnd {
            state: JobState::Cancelled,
            outcome: None,
            failure: Some(cause),
        };
        self.apply(&Event::JobEnded, Some(end), Vec::new())
            .await
            .map_err(|error| unrecorded(&error))?;
        let ended = self
            .shared
            .store
            .job(&job.id)
            .await
            .map_err(|error| unrecorded(&error))?;
        Ok(ended.unwrap_or(job))
    }

    /// The lease begins anew, with its warning.
    async fn renew(&mut self, minutes: u32) -> Result<(), StoreError> {
        let now = self.shared.now();
        let mut record = self.record.clone();
        record.lease_expires_at = Some(now + Duration::from_secs(u64::from(minutes) * 60));
        record.lease_warned = false;
        let writes = vec![
            event::lease_renewed(&record, minutes),
            Write::Sandbox(Box::new(record.clone())),
        ];
        self.shared.journal.commit(Point::LeaseRenewed, writes).await?;
        self.clocks.lease = Lease::begin(record.lease_expires_at, false, now, Instant::now());
        self.adopt(record);
        Ok(())
    }
}

/// A refusal for whoever asked.
pub(crate) fn refused(refusal: &Refusal) -> Problem {
    Problem::new(ErrorCode::StateConflict, refusal.to_string())
        .with_hint(format!("allowed now: {}", refusal.offers().join(", ")))
}

/// The request was not recorded, and so nothing of it was done.
fn unrecorded(error: &StoreError) -> Problem {
    Problem::new(
        ErrorCode::Internal,
        format!("The request could not be recorded: {}", chain(error)),
    )
    .with_hint("nothing was done; the daemon's log has more")
}
