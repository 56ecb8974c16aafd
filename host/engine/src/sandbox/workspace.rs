//! The disk that a sandbox is given for `/work` and does not take along: attached before power-on, unmounted by its
//! guest where that still speaks, detached once the machine is off.

use std::time::Duration;

use agentlab_api::{ErrorCode, Problem, chain};
use agentlab_backend::{BackendError, Stamp};
use agentlab_protocol::workspace::{WorkspaceNews, WorkspaceOrder};
use agentlab_store::{SandboxRecord, StoreError, WorkspaceRecord, Write};
use tokio::time::{Instant, timeout};

use super::driver::{Driver, intent};
use super::inbox::WorkspaceChange;
use super::machine::State;
use super::perform::{failure, stamp_of};
use super::step::Step;
use crate::event;
use crate::guest::GuestRefusal;
use crate::journal::Point;
use crate::report;
use crate::shared::Shared;

/// Unmounting writes what is in memory; a slow disk takes a while.
const UNMOUNT: Duration = Duration::from_secs(20);
/// A detach that an operator waits for.
const DETACH: Duration = Duration::from_secs(30);

/// How far a guest is with letting go of its workspace. In memory only: after a restart it is asked again.
#[derive(Debug, Default)]
pub(crate) struct Parting {
    /// Its last heartbeat to this process.
    heard: Option<Instant>,
    /// It has let go, or cannot.
    over: bool,
    /// How long it is waited for.
    until: Option<Instant>,
    /// How long a guest is waited for that has not spoken to this process yet.
    listens: Option<Instant>,
}

impl Parting {
    /// The guest may be there, and has had no occasion to speak to this process.
    pub(super) fn listen(&mut self, until: Instant) {
        self.listens = Some(until);
    }
}

/// Attaches the sandbox's workspace, where it has one, at the size its record says.
pub(crate) async fn attach(
    shared: &Shared,
    record: &SandboxRecord,
    stamp: &Stamp,
) -> Result<(), BackendError> {
    let Some((workspace, volume)) = of(shared, record).await? else {
        return Ok(());
    };
    let backend = &shared.backend;
    backend.attach_volume(&volume, record.vmid, stamp).await?;
    backend
        .grow_volume(&volume, record.vmid, stamp, workspace.size_gb)
        .await
}

/// Detaches it. What is attached to another machine, or is gone, is not there any more.
pub(crate) async fn detach(
    shared: &Shared,
    record: &SandboxRecord,
    stamp: &Stamp,
) -> Result<(), BackendError> {
    match of(shared, record).await? {
        Some((_, volume)) => shared.backend.detach_volume(&volume, record.vmid, stamp).await,
        None => Ok(()),
    }
}

/// The workspace of a sandbox with its volume.
async fn of(
    shared: &Shared,
    record: &SandboxRecord,
) -> Result<Option<(WorkspaceRecord, String)>, BackendError> {
    let Some(id) = record.workspace else {
        return Ok(None);
    };
    let unreadable = |source: std::io::Error| BackendError::Storage {
        action: "reading the record of a workspace",
        path: id.to_string(),
        source,
    };
    let found = shared.store.workspace(id).await;
    let found = found.map_err(|error| unreadable(std::io::Error::other(error)))?;
    let with_volume = found.and_then(|found| found.volume.clone().map(|volume| (found, volume)));
    with_volume
        .map(Some)
        .ok_or_else(|| unreadable(std::io::ErrorKind::NotFound.into()))
}

impl Driver {
    /// What the guest is told of its workspace.
    pub(crate) async fn workspace_order(&mut self) -> Result<Option<WorkspaceOrder>, StoreError> {
        let Some(id) = self.record.workspace else {
            return Ok(None);
        };
        let found = self.shared.store.workspace(id).await?;
        Ok(found.map(|workspace| WorkspaceOrder {
            uuid: workspace.file_system.to_string(),
            make: !workspace.formatted,
            keep: self.record.keepalive,
        }))
    }

    /// A heartbeat came; whether its guest is to let go of its workspace.
    pub(crate) fn parting_with_workspace(&mut self) -> bool {
        self.parting.heard = Some(Instant::now());
        if self.parting.listens.take().is_some() {
            self.clocks.retry_now();
            self.pending = true;
        }
        self.record.workspace.is_some() && self.parting.until.is_some() && !self.parting.over
    }

    /// What a guest says of its workspace. Its word: it is recorded that there is a file system, which only ever keeps
    /// us from ordering another; and its power goes a little earlier.
    pub(crate) async fn workspace_news(&mut self, news: &WorkspaceNews) -> Result<(), GuestRefusal> {
        let Some(id) = self.record.workspace else {
            return Ok(());
        };
        let recorded = |error: StoreError| {
            tracing::error!(error = %chain(&error), "news of a workspace could not be recorded");
            GuestRefusal::Unavailable("try again".to_owned())
        };
        let workspace = self.shared.store.workspace(id).await.map_err(recorded)?;
        let Some(workspace) = workspace else { return Ok(()) };
        let told = |what: &str| event::workspace(&workspace, Some(&self.record), what);
        let writes = match news {
            WorkspaceNews::Mounted => {
                let mounted = WorkspaceRecord {
                    formatted: true,
                    mounted_in: Some(self.record.id),
                    ..workspace.clone()
                };
                vec![Write::Workspace(Box::new(mounted)), told("is mounted")]
            }
            WorkspaceNews::Released => {
                let released = WorkspaceRecord {
                    mounted_in: None,
                    ..workspace.clone()
                };
                vec![Write::Workspace(Box::new(released)), told("is unmounted")]
            }
            WorkspaceNews::Held { reason } => {
                vec![told(&format!(
                    "could not be unmounted: {}",
                    report::clean_line(reason, 300)
                ))]
            }
            WorkspaceNews::Failed { reason } => {
                self.workspace_failed(&workspace, reason).await;
                return Ok(());
            }
        };
        let written = self.shared.journal.commit(Point::Workspace, writes).await;
        written.map_err(recorded)?;
        if matches!(news, WorkspaceNews::Released | WorkspaceNews::Held { .. }) {
            self.parting.over = true;
            if self.parting.until.is_some() {
                self.clocks.retry_now();
                self.pending = true;
            }
        }
        Ok(())
    }

    /// Nobody works in a sandbox that lacks the disk its work is to be on. A job's own report says the same.
    async fn workspace_failed(&mut self, workspace: &WorkspaceRecord, reason: &str) {
        self.parting.over = true;
        if self.job.is_some() {
            return;
        }
        let reason = report::clean(reason, 1000);
        let text = format!("Workspace `{}` cannot be used: {reason}", workspace.name);
        let mut cause = failure(ErrorCode::WorkspaceUnusable, Step::AwaitGuest.as_str(), text);
        cause.hint = Some(format!(
            "nothing was begun on another disk; `agentlab workspace snapshot restore {}` goes back to a snapshot",
            workspace.name
        ));
        self.take_away(cause).await;
    }

    /// Whether its power must wait until the guest has let go of its workspace: not for one that is silent, and not for
    /// ever.
    pub(crate) fn awaits_release(&mut self) -> bool {
        if self.record.workspace.is_none() || self.parting.over {
            return false;
        }
        let (now, settings) = (Instant::now(), &self.shared.settings);
        match self.parting.until {
            None => {
                let recently = settings.heartbeat_interval.saturating_mul(2);
                let speaks = self
                    .parting
                    .heard
                    .is_some_and(|heard| now.duration_since(heard) <= recently);
                match self.parting.listens {
                    _ if speaks => {
                        let until = now + settings.heartbeat_interval.saturating_add(UNMOUNT);
                        self.parting.until = Some(until);
                        self.waits_until(until)
                    }
                    Some(until) if now < until => self.waits_until(until),
                    Some(_) | None => {
                        self.parting.over = true;
                        false
                    }
                }
            }
            Some(until) if now < until => self.waits_until(until),
            Some(_) => {
                tracing::warn!(sandbox = %self.record.id, "the guest did not unmount its workspace in time");
                self.parting.over = true;
                false
            }
        }
    }

    /// Looks again then at the latest, whatever other state is entered meanwhile.
    fn waits_until(&mut self, until: Instant) -> bool {
        self.clocks
            .retry_after(until.saturating_duration_since(Instant::now()));
        true
    }

    /// Another guest begins, which has let go of nothing yet.
    pub(crate) fn workspace_begins(&mut self) {
        self.parting = Parting::default();
    }

    /// It is detached: nobody has it any more.
    pub(crate) fn workspace_detached(&mut self) -> Option<Write> {
        let mut record = self.record.clone();
        record.workspace.take()?;
        self.adopt(record.clone());
        Some(Write::Sandbox(Box::new(record)))
    }

    /// Gives the stopped sandbox a workspace, or takes the one it has.
    pub(crate) async fn change_workspace(
        &mut self,
        change: WorkspaceChange,
    ) -> Result<SandboxRecord, Problem> {
        let conflict = |text: String| Problem::new(ErrorCode::StateConflict, text);
        if self.state == State::Stopped && !self.is_off() {
            let text = format!("Sandbox {} is still being stopped", self.record.vmid);
            return Err(conflict(text)
                .with_hint("its disk is its guest's until the machine is off: ask again in a moment"));
        }
        if self.state != State::Stopped {
            let text = format!("Sandbox {} is {}", self.record.vmid, self.state.shown());
            return Err(conflict(text).with_hint(
                "its workspace can be changed while it is STOPPED: `agentlab sandbox stop`, or \
                 `agentlab workspace rebind` to go on in a new sandbox",
            ));
        }
        match (change, self.record.workspace) {
            (WorkspaceChange::Take(id), Some(has)) if id != has => {
                let text = format!("Sandbox {} has another workspace", self.record.vmid);
                return Err(conflict(text).with_hint("detach that one first"));
            }
            (WorkspaceChange::Take(_), Some(_)) | (WorkspaceChange::Give, None) => {}
            (WorkspaceChange::Take(id), None) => {
                let mut record = self.record.clone();
                record.workspace = Some(id);
                self.record_workspace(record, Vec::new()).await?;
            }
            (WorkspaceChange::Give, Some(_)) => self.give_workspace_up().await?,
        }
        Ok(self.record.clone())
    }

    async fn give_workspace_up(&mut self) -> Result<(), Problem> {
        let begun = vec![intent(&self.record, Step::AttachWorkspace, true)];
        self.record_workspace(self.record.clone(), begun).await?;
        let stamp = stamp_of(&self.record);
        let detached = timeout(DETACH, detach(&self.shared, &self.record, &stamp)).await;
        let refused = |text: String| Problem::new(ErrorCode::BackendFailed, text);
        match detached {
            Ok(Ok(()) | Err(BackendError::NoSuchMachine { .. })) => {}
            Ok(Err(error)) => return Err(refused(chain(&error))),
            Err(_) => return Err(refused(format!("The volume was not detached within {DETACH:?}"))),
        }
        let mut record = self.record.clone();
        record.workspace = None;
        let fact = |undo| Write::Fact {
            sandbox: self.record.id,
            step: Step::AttachWorkspace.as_str().to_owned(),
            undo,
        };
        let facts = vec![fact(true), fact(false)];
        self.record_workspace(record, facts).await
    }

    async fn record_workspace(
        &mut self,
        record: SandboxRecord,
        mut writes: Vec<Write>,
    ) -> Result<(), Problem> {
        writes.push(Write::Sandbox(Box::new(record.clone())));
        let written = self.shared.journal.commit(Point::Workspace, writes).await;
        written.map_err(|error| crate::engine::store_problem(&error))?;
        self.adopt(record);
        Ok(())
    }
}
