//! The facade: what the daemon's two edges call, besides jobs (`job.rs`) and guests (`guest.rs`).

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use agentlab_api::{BackendTrouble, ErrorCode, Problem, Profile, SandboxId, SandboxView, Vmid, chain};
use agentlab_store::{SandboxPage, SandboxRecord, Store, StoreError};
use tokio::time::timeout;

use crate::request;
use crate::sandbox::inbox::Message;
use crate::sandbox::machine::{Request, State};
use crate::sandbox::reserve::bounds;
use crate::settings::{Parts, Settings, Tunable};
use crate::shared::{NoAnswer, Shared};

/// How long drivers may take to stop; what they leave half done is journalled.
const STOP: Duration = Duration::from_secs(5);
/// A start does not wait longer for a hypervisor: it is asked again beside what can be done without.
const ADOPT: Duration = Duration::from_secs(2);
const CONSOLE: Duration = Duration::from_secs(2);
/// Sandboxes of one answer.
const LONGEST_PAGE: u32 = 1000;

/// Everything of a running daemon that decides. Used as `Arc<Engine>`. Dropping it stops its tasks without waiting
/// for them; machines go on running either way.
pub struct Engine {
    pub(crate) shared: Arc<Shared>,
    /// Everything that an earlier process left has a driver again.
    settled: AtomicBool,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("settled", &self.is_settled())
            .finish_non_exhaustive()
    }
}

/// Why the engine cannot run.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The settings contradict themselves.
    #[error("The settings cannot be used: {0}")]
    Settings(String),
    /// The records cannot be read.
    #[error("The records cannot be read")]
    Store(#[from] StoreError),
    /// The hypervisor refused to say what runs.
    #[error("The back end cannot take up what an earlier process left running")]
    Backend(#[from] agentlab_backend::BackendError),
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

impl Engine {
    /// Takes up what an earlier process left, and begins. Slow work goes on in tasks of its own; a hypervisor that
    /// cannot be reached yet is asked again until it answers.
    ///
    /// # Errors
    /// The settings, the records or the back end do not allow it.
    pub async fn start(settings: Settings, parts: Parts) -> Result<Arc<Self>, StartError> {
        Self::start_on(Shared::new(settings, parts)).await
    }

    /// The same with somebody who sees every commit.
    #[cfg(test)]
    pub(crate) async fn start_observed(
        settings: Settings,
        parts: Parts,
        observer: Arc<dyn crate::Observer>,
    ) -> Result<Arc<Self>, StartError> {
        let mut shared = Shared::new(settings, parts);
        shared.journal.observer = Some(observer);
        Self::start_on(shared).await
    }

    async fn start_on(shared: Shared) -> Result<Arc<Self>, StartError> {
        check(&shared.settings)?;
        let shared = Arc::new(shared);
        shared.backend.keep_ledger(crate::task::Ledger::of(&shared));
        let engine = Arc::new(Self {
            shared,
            settled: AtomicBool::new(false),
        });
        if crate::recover::adopt(&engine.shared, ADOPT).await? {
            crate::recover::take_up(&engine.shared).await?;
            engine.settle();
        }
        let (weak, shared) = (Arc::downgrade(&engine), engine.shared.clone());
        engine
            .shared
            .tasks
            .spawn(crate::queue::run(weak.clone(), shared.clone()));
        engine.shared.tasks.spawn(crate::retention::run(shared.clone()));
        engine
            .shared
            .tasks
            .spawn(crate::workspace_task::run(shared.clone()));
        engine
            .shared
            .tasks
            .spawn(crate::workspace_check::run(weak.clone(), shared.clone()));
        engine.shared.tasks.spawn(crate::vigil::run(shared.clone()));
        engine.shared.tasks.spawn(crate::idle::run(shared.clone()));
        engine.shared.tasks.spawn(crate::reconcile::run(weak, shared));
        Ok(engine)
    }

    pub(crate) fn settle(&self) {
        self.settled.store(true, Ordering::Release);
        self.shared.queue.look();
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Acquire) && !self.shared.stop.is_cancelled()
    }

    /// Refuses new work while stopping, or before the old is taken up.
    pub(crate) fn accepting(&self) -> Result<(), Problem> {
        if self.shared.stop.is_cancelled() {
            return Err(Problem::new(ErrorCode::ShuttingDown, "The daemon is stopping"));
        }
        if !self.is_settled() {
            return Err(Problem::new(
                ErrorCode::BackendUnreachable,
                "The back end has not answered since the start",
            )
            .with_hint("`agentlab status` shows why"));
        }
        Ok(())
    }

    /// Stops all drivers, within five seconds. Machines go on running and are found again by the next start.
    pub async fn shutdown(&self) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        if timeout(STOP, self.shared.tasks.wait()).await.is_err() {
            tracing::warn!("some drivers did not stop in time; the journal knows what they were at");
        }
    }

    /// A page of sandboxes, newest first.
    ///
    /// # Errors
    /// The cursor is not one of ours.
    pub async fn sandboxes(
        &self,
        include_destroyed: bool,
        cursor: Option<String>,
        limit: Option<u32>,
    ) -> Result<SandboxPage, Problem> {
        let before = request::cursor(cursor)?;
        let limit = limit.unwrap_or(LONGEST_PAGE).clamp(1, LONGEST_PAGE);
        let store = &self.shared.store;
        let page = store.sandbox_page(include_destroyed, before, limit).await;
        page.map_err(|error| store_problem(&error))
    }

    /// One sandbox by UUID, VMID or name. VMIDs and names are used again: the living one comes first, then the newest.
    ///
    /// # Errors
    /// There is none.
    pub async fn sandbox(&self, selector: &str) -> Result<SandboxView, Problem> {
        let record = self.select(selector).await?;
        Ok(SandboxView {
            backend_trouble: self.backend_trouble(),
            ..record.view()
        })
    }

    /// Why what is shown of sandboxes may not be how they are.
    #[must_use]
    pub fn backend_trouble(&self) -> Option<BackendTrouble> {
        self.shared.condition.trouble()
    }

    /// Whether nothing more happens to a sandbox by itself: it is kept on purpose, or nothing of it is left outside
    /// the records.
    ///
    /// # Errors
    /// There is none.
    pub async fn is_at_rest(&self, id: SandboxId) -> Result<bool, Problem> {
        let record = self.select(&id.to_string()).await?;
        let state = State::of(&record);
        let is_kept = record.keepalive || matches!(state, State::Failed { kept: true, .. });
        Ok(is_kept || !state.holds_something())
    }

    pub(crate) async fn select(&self, selector: &str) -> Result<SandboxRecord, Problem> {
        let store = &self.shared.store;
        let absent = || {
            let shown: String = selector.escape_debug().take(80).collect();
            Problem::new(ErrorCode::NotFound, format!("There is no sandbox `{shown}`"))
                .with_hint("`agentlab sandbox list` shows all; a UUID, a VMID or a name is taken")
        };
        if let Ok(id) = selector.parse::<SandboxId>() {
            return store
                .sandbox(id)
                .await
                .map_err(|error| store_problem(&error))?
                .ok_or_else(absent);
        }
        let found = store.sandbox_named(selector.parse::<Vmid>().ok(), selector).await;
        found.map_err(|error| store_problem(&error))?.ok_or_else(absent)
    }

    /// Asks for a sandbox to be taken down and returns at once; safe to repeat.
    ///
    /// # Errors
    /// There is none, or its state does not allow it without `force`.
    pub async fn destroy_sandbox(&self, selector: &str, force: bool) -> Result<SandboxView, Problem> {
        let record = self.select(selector).await?;
        if State::of(&record) == State::Destroyed {
            return Ok(record.view());
        }
        self.order(record.id, Request::Destroy { force }).await
    }

    /// Has a sandbox's driver decide on a request.
    pub(crate) async fn order(&self, id: SandboxId, request: Request) -> Result<SandboxView, Problem> {
        let handle = self.shared.driver(id).ok_or_else(|| no_answer(NoAnswer::Gone))?;
        match handle.ask(|reply| Message::Request { request, reply }).await {
            Ok(Ok(record)) => Ok(record.view()),
            Ok(Err(problem)) => Err(problem),
            Err(why) => Err(no_answer(why)),
        }
    }

    /// The last bytes of a machine's console, as the guest chose them.
    ///
    /// # Errors
    /// There is no such sandbox, or its machine is gone.
    pub async fn console(&self, selector: &str, max_bytes: usize) -> Result<Vec<u8>, Problem> {
        let record = self.select(selector).await?;
        if !State::of(&record).holds_something() {
            let text = format!(
                "Sandbox {} is {}: its console is gone with its machine",
                record.vmid, record.state
            );
            return Err(Problem::new(ErrorCode::StateConflict, text)
                .with_hint("`agentlab job logs` keeps what the agent printed"));
        }
        match timeout(CONSOLE, self.shared.backend.console(record.vmid, max_bytes)).await {
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err(agentlab_backend::BackendError::NoSuchMachine { .. })) => Err(Problem::new(
                ErrorCode::NotFound,
                format!("Sandbox {} has no machine yet", record.vmid),
            )),
            Ok(Err(error)) => {
                let failure = crate::sandbox::perform::backend_failure("Console", &error);
                Err(Problem::new(failure.code, failure.message))
            }
            Err(_) => Err(Problem::new(
                ErrorCode::BackendUnreachable,
                "The back end did not show the console in time",
            )),
        }
    }

    /// Profiles, and what else may change while it runs.
    #[must_use]
    pub fn tunable(&self) -> Arc<Tunable> {
        self.shared.tunable()
    }

    /// Changes that from now on. What was begun goes on as it was asked for.
    pub fn tune(&self, tunable: Tunable) {
        self.shared.tune(tunable);
        self.shared.queue.look();
    }

    /// Shows an alarm in the status until [`Engine::clear_alarm`]; false when it is shown already.
    pub fn raise_alarm(&self, alarm: &str) -> bool {
        self.shared.raise(alarm)
    }

    /// Takes back every alarm that begins so.
    pub fn clear_alarm(&self, beginning: &str) {
        self.shared.clear(beginning);
    }

    /// One profile, as the next sandbox would be made from it.
    ///
    /// # Errors
    /// There is none of that name; the nearest is in the hint.
    pub fn profile(&self, name: &str) -> Result<Profile, Problem> {
        crate::request::profile(&self.shared.tunable().profiles, name).cloned()
    }

    /// The store, for reading events and logs.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.shared.store
    }
}

fn check(settings: &Settings) -> Result<(), StartError> {
    let wrong = |text: String| Err(StartError::Settings(text));
    if settings.vmid_first > settings.vmid_last {
        return wrong(format!(
            "VMID range {} to {} is empty",
            settings.vmid_first, settings.vmid_last
        ));
    }
    let (subnet, prefix) = settings.subnet;
    if !(1..=30).contains(&prefix) {
        return wrong(format!("subnet {subnet}/{prefix} leaves no room for guests"));
    }
    let (network, broadcast) = bounds(settings.subnet);
    if !(network..=broadcast).contains(&u32::from(settings.gateway)) {
        return wrong(format!(
            "gateway {} is not in {subnet}/{prefix}",
            settings.gateway
        ));
    }
    Ok(())
}

/// The driver is gone and took nothing, or it is busy and takes the request next.
pub(crate) fn no_answer(why: NoAnswer) -> Problem {
    match why {
        NoAnswer::Gone => Problem::new(ErrorCode::ShuttingDown, "The sandbox's driver did not answer")
            .with_hint("try again in a few seconds"),
        NoAnswer::Late => Problem::new(
            ErrorCode::BackendUnreachable,
            "The sandbox waits for something that hangs; the request is taken as soon as that ends",
        )
        .with_hint("`agentlab sandbox logs` shows when it was; asking again does no harm"),
    }
}

pub(crate) fn store_problem(error: &StoreError) -> Problem {
    Problem::new(error.code(), chain(error))
}
