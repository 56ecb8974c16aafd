//! What a driver makes of its guest's words.

use std::time::Duration;

use agentlab_api::{AgentMode, ErrorCode, InnerSandbox, JobState, LogStream, RepositorySource};
use agentlab_protocol::agent::AgentKind;
use agentlab_protocol::message::{
    Heartbeat, HeartbeatAnswer, JobOrder, Limits, LogBatch, Order, Phase, RedeemAnswer, Report, ReportStatus,
    Repository, Stream, TailnetLogin,
};
use agentlab_protocol::session::{derive, encode_secret};
use agentlab_store::{JobRecord, StoreError, TokenRecord, Write};
use tokio::time::Instant;

use super::clocks::host_deadline;
use super::driver::{Driver, JobEnd};
use super::inbox::Redemption;
use super::machine::{Event, State};
use super::perform::{chain, failure};
use super::pursue::lease_over;
use super::step::Step;
use super::vitals::Watchdog;
use crate::event::{self, StepEnd};
use crate::guest::{GuestRefusal, beside, within_quota};
use crate::journal::Point;
use crate::secrets::{Delivery, SecretsUnavailable};
use crate::upload::Unrecorded;
use crate::{push, report, request};

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
    alarmed: bool,
}

impl Progress {
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
    /// The rules of redemption. Every refusal looks the same outside.
    pub(crate) async fn redeem(&mut self, redemption: Redemption) -> Result<RedeemAnswer, GuestRefusal> {
        // Said before it was paused: it asks again when it goes on.
        if matches!(self.state, State::Suspended { .. }) {
            return Err(GuestRefusal::Unavailable("the sandbox is paused".to_owned()));
        }
        let may = matches!(
            self.state,
            State::Provisioning { at: Step::PowerOn } | State::Booting | State::Ready | State::Running { .. }
        );
        let token = self
            .shared
            .store
            .token(&redemption.token_sha256)
            .await
            .map_err(|error| later(&error))?;
        let Some(token) = token.filter(|token| may && token.sandbox == self.record.id) else {
            return Err(GuestRefusal::Unauthorized);
        };
        let key = hex::encode(redemption.key_sha256);
        match self.record.runner_key_sha256.as_deref() {
            None if self.is_too_old(&token) => Err(GuestRefusal::Unauthorized),
            None if matches!(self.state, State::Ready | State::Running { .. }) => {
                Err(GuestRefusal::Unauthorized)
            }
            None if !request::runner_fits(
                &redemption.runner_version,
                &self.shared.settings.runner_version,
            ) =>
            {
                self.other_runner(&redemption.runner_version).await
            }
            None => match self.shared.reveal(&self.record.profile).await {
                Ok(delivery) => self.first_redemption(&redemption, key, delivery).await,
                Err(error) => self.without_secrets(error).await,
            },
            // A lost answer must not kill a job: the same key gets the same answer until it is acknowledged.
            Some(known) if known == key && !self.record.acknowledged => {
                let delivery = self.shared.reveal(&self.record.profile).await;
                let delivery = delivery.map_err(|_| GuestRefusal::Unavailable("try again".to_owned()))?;
                self.answer(&redemption.key_sha256, delivery).await
            }
            Some(known) if known == key => Err(GuestRefusal::Unauthorized),
            Some(_) => self.second_key().await,
        }
    }

    /// By the clock that nobody sets, for as long as the process that issued it lives.
    fn is_too_old(&self, token: &TokenRecord) -> bool {
        match self.token_since {
            Some(since) => since.elapsed() >= self.shared.settings.token_ttl,
            None => token.expires_at <= self.shared.now(),
        }
    }

    async fn first_redemption(
        &mut self,
        redemption: &Redemption,
        key: String,
        delivery: Delivery,
    ) -> Result<RedeemAnswer, GuestRefusal> {
        let now = self.shared.now();
        self.workspace_begins();
        let before = self.record.clone();
        self.record.runner_key_sha256 = Some(key);
        self.record.acknowledged = false;
        self.record.failure = None;
        self.record.runner_version = Some(report::clean_line(&redemption.runner_version, 64));
        self.record.channel = Some(redemption.channel);
        self.record.last_heard_at = Some(now);
        let took = self.powered_on.map(|began| began.elapsed()).unwrap_or_default();
        let mut writes = vec![
            Write::Fact {
                sandbox: self.record.id,
                step: Step::AwaitGuest.as_str().to_owned(),
                undo: false,
            },
            event::redeemed(&self.record),
            event::step(&self.record, Step::AwaitGuest, false, took, &StepEnd::Done),
        ];
        let job = self.job.clone().map(|job| JobRecord {
            state: JobState::Running,
            started_at: Some(now),
            channel: Some(redemption.channel),
            ..job
        });
        if !delivery.names.is_empty() {
            writes.push(event::secrets_delivered(&self.record, &delivery));
        }
        if let Some(job) = &job {
            writes.push(Write::Job(Box::new(job.clone())));
            writes.push(event::job_started(job));
        }
        let up = Event::GuestUp(job.as_ref().map(|job| job.id.clone()));
        let earlier = std::mem::replace(&mut self.job, job);
        match self.apply(&up, None, writes).await {
            Ok(true) => {}
            Ok(false) => return Err(GuestRefusal::Unauthorized),
            Err(error) => {
                *self.record = before;
                self.job = earlier;
                return Err(later(&error));
            }
        }
        if let Some(job) = self.job.clone() {
            tracing::info!(job = %job.id, sandbox = %self.record.id, state = %job.state, "job");
            self.clocks
                .job_begins(&job, &self.record, &self.shared, Duration::ZERO);
        }
        // The guest goes to work on this answer: its network must stand before.
        self.pending = false;
        self.pursue().await;
        if self.state.is_up() && !matches!(self.state, State::Failed { .. }) {
            self.answer(&redemption.key_sha256, delivery).await
        } else {
            Err(GuestRefusal::Unavailable(
                "the sandbox is being taken down".to_owned(),
            ))
        }
    }

    /// A template that did not say which runner it carries turns out to carry one that this daemon does not understand.
    async fn other_runner(&mut self, version: &str) -> Result<RedeemAnswer, GuestRefusal> {
        let text = format!(
            "Template {} carries runner {}, this daemon needs {}",
            self.record.profile.template_vmid,
            report::clean_line(version, 40),
            self.shared.settings.runner_version
        );
        let hint = "build the template again, with the runner of this version".to_owned();
        self.not_begun(ErrorCode::TemplateUnavailable, text, Some(hint))
            .await
    }

    /// The bundles changed since the sandbox was asked for: without what its profile names, it is not begun.
    async fn without_secrets(&mut self, error: SecretsUnavailable) -> Result<RedeemAnswer, GuestRefusal> {
        let text = format!(
            "The secrets of profile `{}` cannot be given: {error}",
            self.record.profile.name
        );
        self.not_begun(ErrorCode::SecretsUnavailable, text, error.hint)
            .await
    }

    async fn not_begun(
        &mut self,
        code: ErrorCode,
        text: String,
        hint: Option<String>,
    ) -> Result<RedeemAnswer, GuestRefusal> {
        tracing::error!(sandbox = %self.record.id, "{text}");
        let mut cause = failure(code, Step::AwaitGuest.as_str(), text);
        cause.hint = hint;
        self.apply(&Event::GuestLost(cause), None, Vec::new())
            .await
            .map_err(|error| later(&error))?;
        Err(GuestRefusal::Unauthorized)
    }

    /// Two parties hold the token. Nothing that either says counts any more.
    async fn second_key(&mut self) -> Result<RedeemAnswer, GuestRefusal> {
        if self.record.acknowledged {
            if !std::mem::replace(&mut self.progress.alarmed, true) {
                let text = format!(
                    "A redeemed token of sandbox {} was presented with another key",
                    self.record.vmid
                );
                let told = self
                    .shared
                    .journal
                    .commit(Point::Told, vec![event::alarm(&self.record, text)])
                    .await;
                told.map_err(|error| later(&error))?;
            }
            return Err(GuestRefusal::Unauthorized);
        }
        let text = format!(
            "The token of sandbox {} was redeemed with two keys: it is in foreign hands",
            self.record.vmid
        );
        tracing::error!(sandbox = %self.record.id, "{text}");
        let before = self.record.clone();
        self.record.runner_key_sha256 = None;
        let writes = vec![
            Write::ForgetTokens(self.record.id),
            event::alarm(&self.record, text.clone()),
        ];
        let cause = failure(ErrorCode::SandboxLost, Step::AwaitGuest.as_str(), text);
        if let Err(error) = self.apply(&Event::GuestLost(cause), None, writes).await {
            *self.record = before;
            return Err(later(&error));
        }
        Err(GuestRefusal::Unauthorized)
    }

    async fn answer(
        &mut self,
        key_sha256: &[u8; 32],
        delivery: Delivery,
    ) -> Result<RedeemAnswer, GuestRefusal> {
        let workspace = self.workspace_order().await.map_err(|error| later(&error))?;
        let settings = &self.shared.settings;
        let rules = &self.record.profile.artifacts;
        let seconds = |time: Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX).max(1);
        Ok(RedeemAnswer {
            session: encode_secret(&derive(
                &self.shared.host_key,
                self.record.id.as_bytes(),
                key_sha256,
            )),
            order: self
                .job
                .as_ref()
                .map_or(Order::Hold, |job| Order::Job(Box::new(self.order(job)))),
            git: delivery.git,
            environment: delivery.environment,
            claude_settings: delivery.claude_settings,
            authorized_keys: [settings.operator_keys.clone(), delivery.authorized_keys].concat(),
            tailnet: delivery.tailnet.map(|login| TailnetLogin {
                hostname: login
                    .hostname
                    .replace("{vmid}", &self.record.vmid.to_string())
                    .replace("{name}", &self.record.name),
                ..login
            }),
            limits: Limits {
                max_file_bytes: rules.max_file_bytes,
                max_total_bytes: rules.max_total_bytes,
                max_files: rules.max_files,
                max_log_bytes: settings.max_log_bytes,
            },
            heartbeat_seconds: seconds(settings.heartbeat_interval),
            workspace,
        })
    }

    fn order(&self, job: &JobRecord) -> JobOrder {
        let behavior = &self.record.profile.behavior;
        let grace = self.shared.settings.kill_grace.as_secs();
        JobOrder {
            job: job.id.to_string(),
            repository: match &job.repository {
                RepositorySource::Url { url } => Repository::Url { url: url.clone() },
                RepositorySource::Bundle { sha256, .. } => Repository::Bundle {
                    sha256: sha256.clone(),
                },
            },
            reference: job.reference.clone(),
            submodules: behavior.submodules,
            task: job.task.clone(),
            agent: job.agent.clone(),
            mode: match behavior.mode {
                AgentMode::Dangerous => agentlab_protocol::agent::AgentMode::Dangerous,
                AgentMode::Safe => agentlab_protocol::agent::AgentMode::Safe,
            },
            agent_command: if job.agent == AgentKind::Command.as_str() {
                behavior.agent_command.clone()
            } else {
                Vec::new()
            },
            // Written for the profile's agent, and for no other that a job may choose.
            agent_args: if job.agent == self.record.profile.agent() {
                behavior.agent_args.clone()
            } else {
                Vec::new()
            },
            deadline_seconds: job.deadline_seconds,
            kill_grace_seconds: u32::try_from(grace).unwrap_or(u32::MAX),
            inner_sandbox: behavior.inner_sandbox != InnerSandbox::None,
            hardened: behavior.inner_sandbox == InnerSandbox::Hardened,
            inner_sandbox_args: behavior.inner_sandbox_args.clone(),
            push: push::order(job),
        }
    }

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
        let alarm = end.outcome.as_ref().and_then(report::alarm);
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
fn later(error: &StoreError) -> GuestRefusal {
    tracing::error!(error = %chain(error), "a guest's request could not be recorded");
    GuestRefusal::Unavailable("try again".to_owned())
}
