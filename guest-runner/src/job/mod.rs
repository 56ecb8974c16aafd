//! One job, from its order to its report.
//!
//! ```text
//!   Idle ── Repository ── Agent ── Collect ── Upload ── Report
//!    │ tmpfs    │ clone     │ bwrap    │ git      │ sha256
//!    └──────────┴───────────┴── a failure goes straight to Upload: log and report always arrive
//!   beside it all: heartbeats (they bring a cancellation) and the live log
//! ```
//!
//! Whatever happens, the host gets a report: a failure of one phase is the job's result, not the runner's end.

mod adapter;
mod agent;
mod cause;
mod collect;
mod ending;
mod exposed;
mod files;
mod git;
mod hand_over;
mod heartbeat;
mod host;
mod layout;
mod life;
mod log;
mod operator;
pub(crate) mod process;
mod push;
mod render;
mod repository;
pub mod sandbox;
mod tailnet;
#[cfg(test)]
mod tests;
mod upload;
mod workspace;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use agentlab_protocol::message::{
    FailureCause, JobOrder, Phase, PushResult, RedeemAnswer, Report, ReportStatus, Repository, SecretSearch,
    VERSION,
};
use agentlab_protocol::secret::SecretText;
use agentlab_protocol::workspace::WorkspaceNews;
use tokio::sync::watch;

use self::agent::AgentSpec;
use self::collect::Work;
pub use self::host::HostLink;
pub use self::layout::Layout;
use self::life::Life;
pub(crate) use self::log::JobLog;
pub use self::operator::prepare_for_operator;
pub use self::process::AgentUser;
pub(crate) use self::process::end_user;
use self::sandbox::InnerSandbox;
use crate::link::LinkError;
use crate::redact::Needles;
use crate::secrets::{self, GitAccess, NamedSecret, SecretDir, SecretsError, named_secrets};
use crate::vitals;
use crate::workspace::{self as disk, WorkspaceError};

/// Longest message of a report, in characters.
const MAX_MESSAGE: usize = 4000;
/// How long the last of the live log may take before the report goes without it.
const LOG_PATIENCE: Duration = Duration::from_secs(10);

/// How a job ended, and whether the host knows.
#[derive(Debug)]
pub struct JobOutcome {
    /// As it was, or would have been, handed over.
    pub report: Report,
    /// Error: the host has no report.
    pub delivered: Result<(), LinkError>,
}

/// Runs the job to its end and hands the report over. Every secret of `answer` is kept out of all output; of the
/// agent's processes none is left. `deaths` are the runners of this machine that were killed: after one, an agent that had
/// begun does not begin again.
pub async fn run<H: HostLink>(
    order: JobOrder,
    answer: &RedeemAnswer,
    host: H,
    layout: Layout,
    deaths: u32,
) -> JobOutcome {
    let mut secrets = named_secrets(answer);
    secrets.extend(url_secret(&order.repository));
    let values = secrets.iter().map(|secret| secret.value.expose());
    let needles = Arc::new(Needles::new(values));
    let begun = life::begin(&layout, needles, answer.limits.max_log_bytes, deaths);
    let mut report = empty_report(&order);
    let (log, life) = match begun {
        Ok(begun) => begun,
        Err(words) => {
            fail(
                &mut report,
                Phase::Idle,
                format!("The log could not be begun: {words}"),
            );
            let delivered = host.report(&report).await;
            return JobOutcome { report, delivered };
        }
    };
    let (phase, phases) = watch::channel(Phase::Idle);
    let (cancel, cancelled) = watch::channel(false);
    let every = Duration::from_secs(answer.heartbeat_seconds.into());
    let job = Job {
        order: &order,
        answer,
        host: &host,
        layout: &layout,
        log: &log,
        secrets: &secrets,
        phase,
        cancelled,
        oom_kills: vitals::oom_kills(),
        disk: None,
    };
    tokio::select! {
        outcome = job.perform(report, life) => outcome,
        never = heartbeat::beat(&host, &layout, &log, every, phases, &cancel) => match never {},
        never = log.ship(&host) => match never {},
    }
}

struct Job<'a, H> {
    order: &'a JobOrder,
    answer: &'a RedeemAnswer,
    host: &'a H,
    layout: &'a Layout,
    log: &'a JobLog,
    secrets: &'a [NamedSecret],
    phase: watch::Sender<Phase>,
    cancelled: watch::Receiver<bool>,
    /// Processes killed for want of memory before it began.
    oom_kills: u64,
    /// Size of the disk and what the agent left of it, before room is given back.
    disk: Option<(u64, u64)>,
}

/// What the agent and its git find in memory.
struct Given {
    access: GitAccess,
    environment: Option<PathBuf>,
    claude_settings: Option<PathBuf>,
    task: PathBuf,
}

/// Why a job stopped before its agent ended.
enum Stop {
    Failed(Phase, String),
    /// The disk that the work is to be on cannot be used.
    Workspace(WorkspaceError),
    Cancelled,
}

impl<H: HostLink> Job<'_, H> {
    async fn perform(mut self, mut report: Report, life: Life) -> JobOutcome {
        let work = match life {
            Life::First => self.live(&mut report).await,
            Life::Next { base } => self.salvage(&mut report, base).await,
        };
        // Nobody works with them any more, and what is uploaded from here on comes from elsewhere.
        if let Err(error) = secrets::wipe(&self.layout.run) {
            self.log.runner(&format!("The secrets were not wiped: {error}"));
        }
        report.cause = cause::of(
            &report,
            self.disk.unwrap_or_else(|| vitals::disk(&self.layout.work)),
            vitals::oom_kills() > self.oom_kills,
        );
        self.upload(&mut report, work).await;
        self.enter(Phase::Report);
        self.log.shipped(LOG_PATIENCE).await;
        self.release_workspace().await;
        upload::fit_message(&mut report);
        let delivered = self.host.report(&report).await;
        JobOutcome { report, delivered }
    }

    /// Repository, agent, and what it made.
    async fn live(&mut self, report: &mut Report) -> Work {
        match self.agent_phases(report).await {
            Ok(access) => {
                let work = self.collect(report).await;
                self.push(report, &work, &access).await;
                return work;
            }
            Err(Stop::Failed(phase, words)) => fail(report, phase, words),
            Err(Stop::Workspace(error)) => {
                let words = format!("The workspace cannot be used: {error}");
                fail(report, Phase::Idle, words);
                report.cause = Some(FailureCause::Workspace);
            }
            Err(Stop::Cancelled) => {
                report.status = ReportStatus::Cancelled;
                report.message = Some("Cancelled before the agent began".to_owned());
            }
        }
        Work::default()
    }

    /// Before the report, because the machine's power goes soon after it.
    async fn release_workspace(&self) {
        let stays = self.answer.workspace.as_ref().is_none_or(|order| order.keep);
        if !stays && let Some(news) = disk::release(self.layout).await {
            disk::tell(self.host, Phase::Report, news).await;
        }
    }

    fn enter(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }

    /// From the order to the agent's end.
    async fn agent_phases(&mut self, report: &mut Report) -> Result<GitAccess, Stop> {
        let given = self.furnish().await?;
        self.fetch_repository(&given.access, report).await?;
        self.run_agent(&given, report).await?;
        Ok(given.access)
    }

    /// The disk, the directories, and in memory what the agent is given.
    async fn furnish(&self) -> Result<Given, Stop> {
        let idle = |error: SecretsError| Stop::Failed(Phase::Idle, error.to_string());
        let (layout, order) = (self.layout, self.order);
        if let Some(workspace) = &self.answer.workspace {
            disk::mount(workspace, layout, true)
                .await
                .map_err(Stop::Workspace)?;
            disk::tell(self.host, Phase::Idle, WorkspaceNews::Mounted).await;
        }
        repository::prepare_directories(layout)
            .map_err(|error| Stop::Failed(Phase::Idle, error.to_string()))?;
        if let Err(error) = operator::authorize(&self.answer.authorized_keys, &layout.user) {
            self.log
                .runner(&format!("The operator's keys were not installed: {error}"));
        }
        let secrets = SecretDir::mount(&layout.run, layout.user.uid, layout.user.gid).map_err(idle)?;
        let url = origin(order);
        let git = self
            .answer
            .git
            .as_ref()
            .map(|git| secrets.write_git(git, url))
            .transpose();
        let mut access = git.map_err(idle)?.unwrap_or_default();
        if let Some(path) = &layout.authorities {
            let path = path.display().to_string();
            access.environment.push(("GIT_SSL_CAINFO".to_owned(), path));
        }
        let environment = secrets
            .write_environment(&self.answer.environment)
            .map_err(idle)?;
        self.join_tailnet(&secrets).await;
        let claude_settings = self.answer.claude_settings.as_ref();
        let claude_settings = claude_settings
            .map(|settings| secrets.write("claude-settings.json", settings.expose().as_bytes()))
            .transpose()
            .map_err(idle)?;
        let task = secrets.write("task", order.task.as_bytes()).map_err(idle)?;
        Ok(Given {
            access,
            environment,
            claude_settings,
            task,
        })
    }

    async fn fetch_repository(&mut self, access: &GitAccess, report: &mut Report) -> Result<(), Stop> {
        let (layout, order) = (self.layout, self.order);
        self.enter(Phase::Repository);
        let prepared = tokio::select! {
            prepared = repository::prepare(order, layout, access, self.host, self.log) => prepared,
            () = agent::cancelled(&mut self.cancelled) => {
                process::end_user(layout.user.uid).await;
                return Err(Stop::Cancelled);
            }
        };
        report.base_commit = prepared.map_err(|error| Stop::Failed(Phase::Repository, error.to_string()))?;
        life::note_base(&layout.spool, report.base_commit.as_deref()).map_err(|error| {
            Stop::Failed(Phase::Repository, format!("Its base could not be noted: {error}"))
        })?;
        if let Err(error) = life::set_aside(&layout.spool) {
            self.log
                .runner(&format!("No room was set aside for the work: {error}"));
        }
        workspace::import_previous(layout, self.log).await;
        Ok(())
    }

    async fn run_agent(&mut self, given: &Given, report: &mut Report) -> Result<(), Stop> {
        let layout = self.layout;
        self.enter(Phase::Agent);
        let sandbox = self.inner_sandbox();
        let spec = AgentSpec {
            order: self.order,
            layout,
            task: &given.task,
            environment: given.environment.clone(),
            claude_settings: given.claude_settings.clone(),
            sandbox,
            git_environment: &given.access.environment,
        };
        sandbox.as_str().clone_into(&mut report.inner_sandbox);
        let ended = agent::run(&spec, self.log, &mut self.cancelled).await;
        self.disk = Some(vitals::disk(&layout.work));
        // It could not be begun, or not be waited for: in both cases nothing of it may stay.
        if ended.is_err() {
            process::end_user(layout.user.uid).await;
        }
        let end = ended.map_err(|error| Stop::Failed(Phase::Agent, error.to_string()))?;
        self.note_end(&end, report);
        Ok(())
    }

    /// A machine that has not joined does its job all the same.
    async fn join_tailnet(&self, secrets: &SecretDir) {
        let Some(login) = &self.answer.tailnet else { return };
        let text = match tailnet::join(login, secrets, self.layout).await {
            Ok(()) => format!("The machine joined the tailnet as {}", login.hostname),
            Err(words) => format!("The tailnet was not joined: {words}"),
        };
        self.log.runner(&text);
    }

    /// What the profile asks for, unless the template switches it off.
    fn inner_sandbox(&self) -> InnerSandbox {
        if !self.order.inner_sandbox {
            return InnerSandbox::None;
        }
        let settings = std::fs::read_to_string(&self.layout.settings).unwrap_or_default();
        if sandbox::switched_off(&settings) {
            let path = self.layout.settings.display();
            self.log.runner(&format!(
                "The inner sandbox is switched off in {path}: the agent runs without one"
            ));
            return InnerSandbox::None;
        }
        if self.order.hardened {
            InnerSandbox::Hardened
        } else {
            InnerSandbox::Bubblewrap
        }
    }

    async fn collect(&self, report: &mut Report) -> Work {
        self.enter(Phase::Collect);
        life::give_room(&self.layout.spool);
        let limit = self.answer.limits.max_total_bytes;
        let mut work = collect::collect(self.layout, report.base_commit.as_deref(), limit, self.log).await;
        report.head_commit.clone_from(&work.head);
        report.commits = work.commits;
        report.uncommitted = work.uncommitted;
        let rest = if work.uncommitted {
            ", and changes that are not committed"
        } else {
            ""
        };
        let commits = if work.commits == 1 { "commit" } else { "commits" };
        self.log
            .runner(&format!("Collected {} {commits}{rest}", work.commits));
        self.look_for_secrets(report, &mut work).await;
        work
    }

    /// Names in the report what of the work is a secret, and keeps such commits from going to an origin: as well as
    /// those of which nobody knows.
    async fn look_for_secrets(&self, report: &mut Report, work: &mut Work) {
        let cancelled = self.cancelled.clone();
        let findings = exposed::find(work, self.secrets, (self.layout, self.log), cancelled).await;
        for one in &findings.places {
            self.log.runner(&format!("ALARM: the work holds a secret: {one}"));
        }
        work.withheld = exposed::forbids_push(&findings.places);
        report.exposed_secrets = findings.places;
        report.secret_search = Some(match findings.incomplete {
            None => SecretSearch::Complete,
            Some(error) => {
                let words = format!("ALARM: the work could not be searched to its end for secrets: {error}");
                self.log.runner(&words);
                work.withheld.get_or_insert(words);
                let reason = bounded(&self.log.redact(&error.to_string()));
                SecretSearch::Incomplete { reason }
            }
        });
    }

    /// To the origin, where that was ordered and the agent ended well.
    async fn push(&self, report: &mut Report, work: &Work, access: &GitAccess) {
        let Some(order) = &self.order.push else { return };
        if report.status != ReportStatus::Completed {
            return;
        }
        self.enter(Phase::Push);
        let result = push::push(order, work, self.layout, access, self.log).await;
        if let PushResult::Refused { reason } = &result {
            fail(report, Phase::Push, reason.clone());
        }
        report.push = Some(result);
    }
}

/// Where the repository comes from, and its work may go: the host that git's credentials are for.
fn origin(order: &JobOrder) -> Option<&str> {
    match (&order.repository, &order.push) {
        (Repository::Url { url }, _) => Some(url),
        (Repository::Bundle { .. }, push) => push.as_ref().map(|push| push.url.as_str()),
    }
}

/// The password, or the only name, of a URL that carries one.
fn url_secret(repository: &Repository) -> Option<NamedSecret> {
    let Repository::Url { url } = repository else {
        return None;
    };
    let (_, rest) = url.split_once("://")?;
    let (user, _) = rest.split('/').next()?.rsplit_once('@')?;
    let password = user.split_once(':').map_or(user, |(_, password)| password);
    Some(NamedSecret {
        name: "the password in the repository's URL".to_owned(),
        value: SecretText::new(password.to_owned()),
    })
}

fn empty_report(order: &JobOrder) -> Report {
    Report {
        version: VERSION,
        job: order.job.clone(),
        status: ReportStatus::Failed,
        failed_phase: None,
        cause: None,
        message: None,
        exit_code: None,
        base_commit: None,
        head_commit: None,
        commits: 0,
        uncommitted: false,
        agent_milliseconds: 0,
        push: None,
        exposed_secrets: Vec::new(),
        secret_search: None,
        artifacts: Vec::new(),
        left_out: Vec::new(),
        inner_sandbox: "none".to_owned(),
    }
}

/// The words are bounded once no secret is in them any more, in [`Job::settle`].
fn fail(report: &mut Report, phase: Phase, words: String) {
    report.status = ReportStatus::Failed;
    report.failed_phase = Some(phase);
    report.message = Some(words);
}

/// The end of git's words says most; the beginning says what failed.
fn bounded(words: &str) -> String {
    let count = words.chars().count();
    if count <= MAX_MESSAGE {
        return words.to_owned();
    }
    let half = MAX_MESSAGE / 2 - 3;
    let head: String = words.chars().take(half).collect();
    let tail: String = words.chars().skip(count - half).collect();
    format!("{head} ... {tail}")
}
