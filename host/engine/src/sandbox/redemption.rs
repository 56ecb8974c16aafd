//! How a guest begins: it redeems its token, once and with one key, and is told what to do.

use std::time::Duration;

use agentlab_api::{AgentMode, ErrorCode, InnerSandbox, JobState, RepositorySource};
use agentlab_protocol::agent::AgentKind;
use agentlab_protocol::message::{JobOrder, Limits, Order, RedeemAnswer, Repository, TailnetLogin};
use agentlab_protocol::session::{derive, encode_secret};
use agentlab_store::{JobRecord, TokenRecord, Write};

use super::driver::Driver;
use super::inbox::Redemption;
use super::machine::{Event, State};
use super::perform::failure;
use super::session::later;
use super::step::Step;
use crate::event::{self, StepEnd};
use crate::guest::GuestRefusal;
use crate::journal::Point;
use crate::secrets::{Delivery, SecretsUnavailable};
use crate::{push, report, request};

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
}
