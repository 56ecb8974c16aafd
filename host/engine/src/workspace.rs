//! Workspaces as an operator handles them. What is asked is recorded first, and done by `workspace_task.rs`.
//!
//! ```text
//!   create, fork, snapshot, restore, delete ─► record with its task ─► keeper ─► volume ─► record without
//!   attach, detach                          ─► the sandbox's own driver: who has it stands on the sandbox's record
//!   sandbox new, job run                    ─► the transaction that reserves the sandbox (`workspace_free.rs`)
//!   check                                   ─► records held against what the hypervisor has (`workspace_check.rs`)
//!   adopt                                   ─► a record for a volume that has none (`workspace_adopt.rs`)
//! ```

use std::time::Duration;

use agentlab_api::{
    ErrorCode, Problem, SandboxId, SandboxView, WorkspaceId, WorkspaceList, WorkspaceRequest,
    WorkspaceSnapshotView, WorkspaceState, WorkspaceView,
};
use agentlab_store::{SandboxRecord, StoreError, WorkspaceRecord, WorkspaceTask, Write};
use tokio::sync::{Mutex, MutexGuard, Notify, watch};
use tokio::time::{Instant, timeout_at};

use crate::engine::{Engine, no_answer, store_problem};
use crate::event;
use crate::journal::Point;
use crate::sandbox::inbox::{Message, WorkspaceChange};
use crate::shared::{NoAnswer, Shared};
use crate::workspace_free::{Wanted, at_rest, free};

/// Largest volume.
const LARGEST_GB: u32 = 16 * 1024;
const LONGEST_NAME: usize = 40;
/// How long a caller waits for what is done with a volume; it goes on without him.
const WAIT: Duration = Duration::from_secs(20);

/// What the engine keeps of workspaces besides their records.
#[derive(Debug)]
pub(crate) struct Workspaces {
    /// Held from the look at who has a workspace until that is recorded.
    order: Mutex<()>,
    /// There may be something to do.
    pub(crate) news: Notify,
    /// Counts what was done.
    done: watch::Sender<()>,
    refusals: std::sync::Mutex<Vec<(WorkspaceId, Problem)>>,
}

impl Default for Workspaces {
    fn default() -> Self {
        Self {
            order: Mutex::default(),
            news: Notify::new(),
            done: watch::Sender::new(()),
            refusals: std::sync::Mutex::default(),
        }
    }
}

impl Workspaces {
    /// Until it is dropped, nobody else gives, takes or changes a workspace.
    pub(crate) async fn alone(&self) -> MutexGuard<'_, ()> {
        self.order.lock().await
    }

    /// A task has ended, well or not.
    pub(crate) fn ended(&self) {
        self.done.send_replace(());
    }

    /// Said before it is recorded, so that whoever finds the task gone finds the reason.
    pub(crate) fn refuse(&self, id: WorkspaceId, problem: Problem) {
        let mut refusals = crate::shared::lock(&self.refusals);
        refusals.push((id, problem));
        // Nobody may have waited for some.
        let surplus = refusals.len().saturating_sub(64);
        refusals.drain(..surplus);
    }

    /// Why the last task of a workspace came to nothing, once.
    pub(crate) fn take_refusal(&self, id: WorkspaceId) -> Option<Problem> {
        let mut refusals = crate::shared::lock(&self.refusals);
        let at = refusals.iter().position(|(of, _)| *of == id)?;
        Some(refusals.remove(at).1)
    }
}

pub(crate) fn invalid(pointer: &str, detail: impl Into<String>) -> Problem {
    let detail = detail.into();
    Problem::new(ErrorCode::InvalidValue, detail.clone()).with_field(pointer, detail)
}

/// Becomes part of a path, and is typed by people.
pub(crate) fn check_name(name: &str) -> Result<(), Problem> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let fits = name.len() <= LONGEST_NAME
        && name.bytes().all(|byte| plain(byte) || byte == b'-')
        && name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase())
        && name.bytes().next_back().is_some_and(plain);
    if fits {
        return Ok(());
    }
    let text = format!(
        "a name is 1 to {LONGEST_NAME} lower-case letters, digits and hyphens, beginning with a letter"
    );
    Err(invalid("/name", text))
}

fn check_size(size_gb: u32) -> Result<(), Problem> {
    if (1..=LARGEST_GB).contains(&size_gb) {
        Ok(())
    } else {
        Err(invalid("/size_gb", format!("expected 1 to {LARGEST_GB} GiB")))
    }
}

/// A new record.
pub(crate) fn fresh(shared: &Shared, name: &str, size_gb: u32, task: WorkspaceTask) -> WorkspaceRecord {
    let (id, now) = (WorkspaceId::generate(), shared.now());
    WorkspaceRecord {
        id,
        name: name.to_owned(),
        size_gb,
        volume: None,
        file_system: id,
        formatted: false,
        snapshots: Vec::new(),
        task: Some(task),
        mounted_in: None,
        rebind: None,
        trouble: None,
        created_at: now,
        updated_at: now,
    }
}

/// Who has a workspace, of all sandboxes that are not gone.
pub(crate) fn holder(live: &[SandboxRecord], id: WorkspaceId) -> Option<&SandboxRecord> {
    live.iter().find(|record| record.workspace == Some(id))
}

/// One workspace by UUID or name.
pub(crate) async fn select(shared: &Shared, selector: &str) -> Result<WorkspaceRecord, Problem> {
    let all = shared.store.workspaces().await;
    let all = all.map_err(|error| store_problem(&error))?;
    let id = selector.parse::<WorkspaceId>().ok();
    let found = all
        .into_iter()
        .find(|record| Some(record.id) == id || record.name == selector);
    found.ok_or_else(|| {
        let shown: String = selector.escape_debug().take(80).collect();
        Problem::new(ErrorCode::NotFound, format!("There is no workspace `{shown}`"))
            .with_hint("`agentlab workspace list` shows all; `agentlab workspace create` makes one")
    })
}

/// As callers see it.
fn shown(record: WorkspaceRecord, live: &[SandboxRecord]) -> WorkspaceView {
    let holder = holder(live, record.id);
    let state = match (&record.task, holder) {
        (Some(WorkspaceTask::Create | WorkspaceTask::Copy { .. }), _) => WorkspaceState::Creating,
        (Some(WorkspaceTask::Delete), _) => WorkspaceState::Deleting,
        (Some(_), _) => WorkspaceState::Busy,
        (None, Some(_)) => WorkspaceState::Attached,
        (None, None) => WorkspaceState::Detached,
    };
    let snapshots = record.snapshots.into_iter().map(|one| WorkspaceSnapshotView {
        name: one.name,
        created_at: one.created_at,
    });
    WorkspaceView {
        id: record.id,
        name: record.name,
        size_gb: record.size_gb,
        state,
        volume: record.volume,
        formatted: record.formatted,
        sandbox: holder.map(|sandbox| sandbox.id),
        vmid: holder.map(|sandbox| sandbox.vmid),
        snapshots: snapshots.collect(),
        moving_to: record.rebind.map(|rebind| rebind.to),
        trouble: record.trouble,
        created_at: record.created_at,
        updated_at: record.updated_at,
    }
}

pub(crate) async fn view_of(shared: &Shared, record: WorkspaceRecord) -> Result<WorkspaceView, Problem> {
    let live = shared.store.sandboxes(false).await;
    Ok(shown(record, &live.map_err(|error| store_problem(&error))?))
}

impl Engine {
    /// Has an empty workspace made.
    ///
    /// # Errors
    /// The name is taken or none, or the back end has no volumes.
    pub async fn create_workspace(&self, request: WorkspaceRequest) -> Result<WorkspaceView, Problem> {
        self.accepting()?;
        check_name(&request.name)?;
        check_size(request.size_gb)?;
        let record = fresh(
            &self.shared,
            &request.name,
            request.size_gb,
            WorkspaceTask::Create,
        );
        self.begin_workspace(record).await
    }

    /// All workspaces, by name.
    ///
    /// # Errors
    /// The records cannot be read.
    pub async fn workspaces(&self) -> Result<WorkspaceList, Problem> {
        let store = &self.shared.store;
        let all = store.workspaces().await.map_err(|error| store_problem(&error))?;
        let live = store
            .sandboxes(false)
            .await
            .map_err(|error| store_problem(&error))?;
        Ok(WorkspaceList {
            workspaces: all.into_iter().map(|record| shown(record, &live)).collect(),
        })
    }

    /// One of them, by UUID or name.
    ///
    /// # Errors
    /// There is none.
    pub async fn workspace(&self, selector: &str) -> Result<WorkspaceView, Problem> {
        view_of(&self.shared, select(&self.shared, selector).await?).await
    }

    /// Has a workspace that nobody has removed, with its snapshots.
    ///
    /// # Errors
    /// There is none, or somebody has it.
    pub async fn delete_workspace(&self, selector: &str) -> Result<WorkspaceView, Problem> {
        let alone = self.shared.workspaces.alone().await;
        let record = select(&self.shared, selector).await?;
        if record.task == Some(WorkspaceTask::Delete) {
            drop(alone);
            return view_of(&self.shared, record).await;
        }
        self.task(alone, record, WorkspaceTask::Delete).await
    }

    /// Has a workspace be larger from when a sandbox has it next.
    ///
    /// # Errors
    /// It would shrink, or is being worked on.
    pub async fn resize_workspace(&self, selector: &str, size_gb: u32) -> Result<WorkspaceView, Problem> {
        check_size(size_gb)?;
        let _alone = self.shared.workspaces.alone().await;
        let record = select(&self.shared, selector).await?;
        if size_gb < record.size_gb {
            let text = format!(
                "workspace `{}` has {} GiB and cannot shrink",
                record.name, record.size_gb
            );
            return Err(invalid("/size_gb", text)
                .with_hint("make a smaller one with `agentlab workspace create` and copy its files"));
        }
        let record = WorkspaceRecord { size_gb, ..record };
        self.record_workspace(&record, "is to have another size").await?;
        view_of(&self.shared, record).await
    }

    /// Gives a workspace to a stopped sandbox, from its next start on.
    ///
    /// # Errors
    /// Somebody has it, or the sandbox is not stopped or has another.
    pub async fn attach_workspace(&self, selector: &str, sandbox: &str) -> Result<WorkspaceView, Problem> {
        self.accepting()?;
        let sandbox = self.select(sandbox).await?;
        let record = select(&self.shared, selector).await?;
        if sandbox.workspace == Some(record.id) {
            return view_of(&self.shared, record).await;
        }
        let free = free(&self.shared, Wanted::at_once(Some(selector)), &sandbox.profile).await?;
        let id = free.as_ref().map_or(record.id, |free| free.id);
        self.change_workspace_of(sandbox.id, WorkspaceChange::Take(id))
            .await?;
        drop(free);
        self.workspace(selector).await
    }

    /// Takes a workspace from the stopped sandbox that has it.
    ///
    /// # Errors
    /// The sandbox is not stopped.
    pub async fn detach_workspace(&self, selector: &str) -> Result<WorkspaceView, Problem> {
        let record = select(&self.shared, selector).await?;
        if record.rebind.is_some() {
            let text = format!("Workspace `{}` is on its way to another sandbox", record.name);
            return Err(Problem::new(ErrorCode::StateConflict, text).with_hint("wait until it is there"));
        }
        let live = self.shared.store.sandboxes(false).await;
        let live = live.map_err(|error| store_problem(&error))?;
        if let Some(sandbox) = holder(&live, record.id) {
            self.change_workspace_of(sandbox.id, WorkspaceChange::Give)
                .await?;
        }
        self.workspace(selector).await
    }

    async fn change_workspace_of(
        &self,
        sandbox: SandboxId,
        change: WorkspaceChange,
    ) -> Result<SandboxView, Problem> {
        let handle = self
            .shared
            .driver(sandbox)
            .ok_or_else(|| no_answer(NoAnswer::Gone))?;
        match handle.ask(|reply| Message::Workspace { change, reply }).await {
            Ok(Ok(record)) => Ok(record.view()),
            Ok(Err(problem)) => Err(problem),
            Err(why) => Err(no_answer(why)),
        }
    }

    /// Records a new workspace with its task, and waits a while for it.
    pub(crate) async fn begin_workspace(&self, record: WorkspaceRecord) -> Result<WorkspaceView, Problem> {
        self.record_workspace(&record, "is requested").await?;
        tracing::info!(workspace = %record.id, name = record.name, "workspace requested");
        self.finished(record).await
    }

    /// Records what is to be done with a workspace that nobody has, and waits a while for it.
    pub(crate) async fn task(
        &self,
        alone: MutexGuard<'_, ()>,
        record: WorkspaceRecord,
        task: WorkspaceTask,
    ) -> Result<WorkspaceView, Problem> {
        at_rest(&self.shared, &record).await?;
        let record = WorkspaceRecord {
            task: Some(task),
            trouble: None,
            ..record
        };
        self.record_workspace(&record, "is to be changed").await?;
        drop(alone);
        self.finished(record).await
    }

    pub(crate) async fn record_workspace(&self, record: &WorkspaceRecord, what: &str) -> Result<(), Problem> {
        let writes = vec![
            Write::Workspace(Box::new(record.clone())),
            event::workspace(record, None, what),
        ];
        // Of an earlier task, whose caller went away.
        drop(self.shared.workspaces.take_refusal(record.id));
        let written = self.shared.journal.commit(Point::Workspace, writes).await;
        match written {
            Ok(_) => {
                self.shared.workspaces.news.notify_one();
                Ok(())
            }
            Err(StoreError::Conflict(reason)) => {
                Err(Problem::new(ErrorCode::StateConflict, reason).with_hint("choose another name"))
            }
            Err(error) => Err(store_problem(&error)),
        }
    }

    /// Waits until a workspace has no task, but not for ever: then it is shown as it is. One that is gone is shown as
    /// it was `last`.
    async fn finished(&self, mut last: WorkspaceRecord) -> Result<WorkspaceView, Problem> {
        let shared = &self.shared;
        let until = Instant::now() + WAIT;
        let mut done = shared.workspaces.done.subscribe();
        loop {
            done.mark_unchanged();
            let now = shared.store.workspace(last.id).await;
            let now = now.map_err(|error| store_problem(&error))?;
            let is_over = now.as_ref().is_none_or(|record| record.task.is_none());
            if is_over && let Some(problem) = shared.workspaces.take_refusal(last.id) {
                return Err(problem);
            }
            last = now.unwrap_or(last);
            if is_over || timeout_at(until, done.changed()).await.is_err() {
                return view_of(shared, last).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_can_be_typed_and_stand_in_a_path() {
        for name in ["a", "work", "feature-login-2", &"a".repeat(40)] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in [
            "",
            "-a",
            "a-",
            "1a",
            "A",
            "a b",
            "a/b",
            "..",
            "a.b",
            "ä",
            &"a".repeat(41),
        ] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}
