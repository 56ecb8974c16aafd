//! What a driver makes of the words of a guest that has begun.

use std::time::Duration;

use agentlab_api::{JobState, LogStream, chain};
use agentlab_protocol::message::{Heartbeat, HeartbeatAnswer, LogBatch, Phase, Report, ReportStatus, Stream};
use agentlab_store::{JobRecord, StoreError, Write};
use tokio::time::Instant;

use super::clocks::host_deadline;
use super::driver::{Driver, JobEnd};
use super::machine::{Event, State};
use super::pursue::lease_over;
use super::step::Step;
use super::vitals::Watchdog;
use crate::event;
use crate::guest::{GuestRefusal, beside, within_quota};
use crate::journal::Point;
use crate::upload::Unrecorded;
use crate::{exposed, report};

/// Phase changes of one job that make an event; a guest that flaps is not worth more.
const PROGRESS_EVENTS: u32 = 200;
/// How often a mere sign of life is written down.
const HEARD_EVERY: Duration = Duration::from_secs(30);
/// The only copy of the work is in the machine then.
const KEPT_HINT: &str = "its machine is kept, sealed, until its lease ends; before the job runs again, raise the \
    profile's `artifacts` bounds or make room on the host's disk";
const PIECES: usize = 10_000;
const PIECE_BYTES: usize = 256 << 10;

/// What the guest said it is busy with.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    phase: Option<Phase>,
    told: u32,
    watchdog: Watchdog,
    written: Option<Instant>,
    /// Where the log ended after the last batch.
    log_end: Option<u64>,
    /// Somebody tried a dead token with another key, and the alarm was given.
    pub(super) alarmed: bool,
}

impl Progress {
    /// Whether its agent has ended, and its work is on the way.
    pub(crate) fn hands_over(&self) -> bool {
        matches!(
            self.phase,
            Some(Phase::Collect | Phase::Push | Phase::Upload | Phase::Report)
        )
    }

    /// Where something went wrong, as well as the host can tell.
    pub(crate) fn stage(&self, state: &State) -> String {
        match (state, self.phase) {
            (State::Running { .. }, Some(phase)) => report::stage_of(phase).to_owned(),
            (State::Running { .. } | State::Ready, None) => "Running".to_owned(),
            (State::Requested, _) => Step::Reserve.as_str().to_owned(),
            (State::Provisioning { at }, _) => at.as_str().to_owned(),
            (State::Booting, _) => Step::AwaitGuest.as_str().to_owned(),
            (other, _) => other.shown().as_str().to_owned(),
        }
    }
}

impl Driver {
    /// The answer arrived: the token buys nothing any more. Its hash stays until the end, to know it again.
    pub(crate) async fn acknowledge(&mut self) -> Result<(), GuestRefusal> {
        self.clocks.heard(&self.shared.settings);
        if self.record.acknowledged {
            return Ok(());
        }
        let mut record = self.record.clone();
        record.acknowledged = true;
        record.last_heard_at = Some(self.shared.now());
        let commit = self
            .shared
            .journal
            .commit(Point::Acknowledge, vec![Write::Sandbox(Box::new(record.clone()))])
            .await;
        commit.map_err(|error| later(&error))?;
        self.adopt(record);
        self.remove_spent_seed();
        Ok(())
    }

    pub(crate) async fn heartbeat(&mut self, beat: &Heartbeat) -> Result<HeartbeatAnswer, GuestRefusal> {
        self.clocks.heard(&self.shared.settings);
        if let Some(news) = &beat.workspace {
            self.workspace_news(news).await?;
        }
        // Every guest begins idle: that is no news.
        let changed = self.progress.phase.unwrap_or(Phase::Idle) != beat.phase;
        self.progress.phase = Some(beat.phase);
        let mut writes = Vec::new();
        if changed
            && self.progress.told < PROGRESS_EVENTS
            && let Some(job) = &self.job
        {
            self.progress.told += 1;
            let said = report::clean_line(&beat.message, 200);
            writes.push(event::job_progress(job, &beat.phase.to_string(), &said));
        }
        if let Some(vitals) = &beat.vitals {
            let signs = self
                .progress
                .watchdog
                .look(vitals, self.shared.settings.agent_stuck_after);
            for sign in signs {
                // A guest that makes trouble come and go is not worth more either.
                if self.progress.told >= PROGRESS_EVENTS {
                    break;
                }
                self.progress.told += 1;
                writes.push(event::trouble(&self.record, sign, vitals));
            }
        }
        if !writes.is_empty() || self.progress.written.is_none_or(|at| at.elapsed() >= HEARD_EVERY) {
            let mut record = self.record.clone();
            record.last_heard_at = Some(self.shared.now());
            writes.push(Write::Sandbox(Box::new(record.clone())));
            self.shared
                .journal
                .commit(Point::Heartbeat, writes)
                .await
                .map_err(|error| later(&error))?;
            self.adopt(record);
            self.progress.written = Some(Instant::now());
        }
        // A guest that works on for a job which has ended is told to stop.
        let idle = matches!(beat.phase, Phase::Idle | Phase::Report);
        let ends = |job: &JobRecord| job.cancel_requested || self.clocks.is_lease_over();
        let cancel = self.job.as_ref().map_or(!idle, ends);
        Ok(HeartbeatAnswer {
            cancel,
            release_workspace: self.parting_with_workspace(),
        })
    }

    /// Appends what is new. The file is first and knows its own last piece, so that a batch which comes again, after a
    /// crash between file and record, stands there once.
    pub(crate) async fn logs(&mut self, batch: LogBatch) -> Result<(), GuestRefusal> {
        self.clocks.heard(&self.shared.settings);
        let Some(job) = &self.job else { return Ok(()) };
        if batch.pieces.len() > PIECES || batch.pieces.iter().any(|piece| piece.text.len() > PIECE_BYTES) {
            return Err(GuestRefusal::TooLarge(format!(
                "at most {PIECES} pieces of {PIECE_BYTES} bytes each"
            )));
        }
        let count = u64::try_from(batch.pieces.len()).unwrap_or(u64::MAX);
        let Some(end) = batch.first.checked_add(count) else {
            return Err(GuestRefusal::Conflict("piece numbers run over".to_owned()));
        };
        if end <= job.next_log_piece {
            return Ok(());
        }
        let first = batch.first.max(job.next_log_piece);
        let known = usize::try_from(first - batch.first).unwrap_or(usize::MAX);
        let fresh: Vec<(LogStream, String)> = batch
            .pieces
            .into_iter()
            .skip(known)
            .map(|piece| (stream_of(piece.stream), piece.text))
            .collect();
        let job = JobRecord {
            next_log_piece: end,
            ..job.clone()
        };
        let (files, limit) = (self.shared.store.files(), self.shared.settings.max_log_bytes);
        let appended = files
            .append_log(&job.id, first, fresh, self.shared.now(), limit)
            .await;
        let end = appended.map_err(|error| later(&error))?;
        // Beyond its bound the log takes nothing more, and there is nothing to record.
        if self.progress.log_end.replace(end) == Some(end) {
            self.job = Some(job);
            return Ok(());
        }
        let commit = self
            .shared
            .journal
            .commit(Point::Log, vec![Write::Job(Box::new(job.clone()))])
            .await;
        commit.map_err(|error| later(&error))?;
        self.job = Some(job);
        Ok(())
    }

    /// A file is on disk; from here on it counts.
    pub(crate) async fn stored(&mut self, artifact: Unrecorded) -> Result<(), GuestRefusal> {
        self.clocks.heard(&self.shared.settings);
        let Unrecorded { record, hold } = artifact;
        if self.job.as_ref().is_none_or(|job| job.id != record.job) {
            return Err(GuestRefusal::Conflict("the job has ended".to_owned()));
        }
        let kept = self
            .shared
            .store
            .artifacts(&record.job)
            .await
            .map_err(|error| later(&error))?;
        let (name, kind) = (record.name.as_str(), record.kind);
        // Sent again, because the answer was lost or for no reason: nothing is new.
        if beside(&kept, name, &record.sha256)? {
            hold.recorded();
            return Ok(());
        }
        let rules = &self.record.profile.artifacts;
        within_quota(rules, &kept, (name, kind), record.size_bytes)?;
        let told = event::artifact_stored(&self.record, name, record.size_bytes, &record.sha256);
        let commit = self
            .shared
            .journal
            .commit(Point::Artifact, vec![Write::Artifact(record), told])
            .await;
        commit.map_err(|error| later(&error))?;
        hold.recorded();
        Ok(())
    }

    /// The guest's last word. One that comes late, or again, changes nothing.
    pub(crate) async fn report(&mut self, report: Report) -> Result<(), GuestRefusal> {
        self.clocks.heard(&self.shared.settings);
        let Some(job) = self.job.clone() else {
            return Ok(());
        };
        if report.version != 1 || report.job != job.id.as_str() {
            return Err(GuestRefusal::Conflict("not a report of this job".to_owned()));
        }
        let stored = self
            .shared
            .store
            .artifacts(&job.id)
            .await
            .map_err(|error| later(&error))?;
        let longest = event::milliseconds(host_deadline(&job, &self.record, &self.shared.settings));
        let end = report::judge(&report, &job, &stored, longest);
        let alarm = end.outcome.as_ref().and_then(exposed::alarm);
        let told = alarm.map(|text| event::alarm(&self.record, text));
        let told: Vec<Write> = told.into_iter().collect();
        let lost = report::lost_work(&report, &stored).is_some() && end.state != JobState::Cancelled;
        let kept = end.failure.clone().filter(|_| lost).and_then(|mut cause| {
            cause.hint = Some(KEPT_HINT.to_owned());
            let transition = self.state.event(&Event::GuestLost(cause.clone()), true)?;
            Some((transition, cause))
        });
        if let Some((transition, cause)) = kept {
            let end = JobEnd {
                failure: Some(cause),
                ..end
            };
            return self
                .enter(transition, Some(end), told)
                .await
                .map_err(|error| later(&error));
        }
        let over = self.clocks.is_lease_over() && !job.cancel_requested;
        let (event, end) = if over && report.status == ReportStatus::Cancelled {
            let end = JobEnd {
                state: JobState::Timeout,
                failure: Some(lease_over("")),
                ..end
            };
            (Event::LeaseExpired, end)
        } else {
            (Event::JobEnded, end)
        };
        self.apply(&event, Some(end), told)
            .await
            .map(drop)
            .map_err(|error| later(&error))
    }
}

fn stream_of(stream: Stream) -> LogStream {
    match stream {
        Stream::Stdout => LogStream::Stdout,
        Stream::Stderr => LogStream::Stderr,
        Stream::Runner => LogStream::Runner,
    }
}

/// The guest is asked to try again; the reason is for our log only.
pub(super) fn later(error: &StoreError) -> GuestRefusal {
    tracing::error!(error = %chain(error), "a guest's request could not be recorded");
    GuestRefusal::Unavailable("try again".to_owned())
}
