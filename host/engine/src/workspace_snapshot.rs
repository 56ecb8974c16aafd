//! States of a workspace that are kept, gone back to, copied and moved, while nobody has it.

use agentlab_api::{ErrorCode, Problem, WorkspaceFork, WorkspaceView};
use agentlab_store::{WorkspaceRecord, WorkspaceSnapshot, WorkspaceTask};

use crate::engine::Engine;
use crate::workspace::{check_name, fresh, select};
use crate::workspace_free::at_rest;

const MOST_SNAPSHOTS: usize = 32;

impl Engine {
    /// Has a copy made of a workspace that nobody has, or of a snapshot.
    ///
    /// # Errors
    /// As [`Engine::create_workspace`]; the workspace is attached, or has no such snapshot.
    pub async fn fork_workspace(
        &self,
        selector: &str,
        request: WorkspaceFork,
    ) -> Result<WorkspaceView, Problem> {
        self.accepting()?;
        check_name(&request.name)?;
        let alone = self.shared.workspaces.alone().await;
        let of = select(&self.shared, selector).await?;
        let formatted = match &request.from_snapshot {
            Some(name) => snapshot(&of, name)?.formatted,
            None => of.formatted,
        };
        at_rest(&self.shared, &of).await?;
        let task = WorkspaceTask::Copy {
            of: of.id,
            snapshot: request.from_snapshot,
        };
        let record = WorkspaceRecord {
            file_system: of.file_system,
            formatted,
            ..fresh(&self.shared, &request.name, of.size_gb, task)
        };
        drop(alone);
        self.begin_workspace(record).await
    }

    /// Has the state of a workspace that nobody has kept.
    ///
    /// # Errors
    /// Somebody has it, there is such a snapshot, or the back end cannot.
    pub async fn snapshot_workspace(&self, selector: &str, name: String) -> Result<WorkspaceView, Problem> {
        self.accepting()?;
        check_name(&name)?;
        let alone = self.shared.workspaces.alone().await;
        let record = select(&self.shared, selector).await?;
        if record.snapshots.iter().any(|known| known.name == name) {
            let text = format!("Workspace `{}` has a snapshot `{name}` already", record.name);
            return Err(Problem::new(ErrorCode::StateConflict, text).with_hint("choose another name"));
        }
        if record.snapshots.len() >= MOST_SNAPSHOTS {
            let text = format!(
                "Workspace `{}` has {MOST_SNAPSHOTS} snapshots, which is the most",
                record.name
            );
            return Err(Problem::new(ErrorCode::LimitReached, text)
                .with_hint("`agentlab workspace snapshot delete` removes one"));
        }
        self.task(alone, record, WorkspaceTask::Snapshot { name }).await
    }

    /// Has a workspace that nobody has go back to a snapshot.
    ///
    /// # Errors
    /// Somebody has it, or there is no such snapshot.
    pub async fn restore_workspace(&self, selector: &str, name: String) -> Result<WorkspaceView, Problem> {
        self.accepting()?;
        let alone = self.shared.workspaces.alone().await;
        let record = select(&self.shared, selector).await?;
        snapshot(&record, &name)?;
        self.task(alone, record, WorkspaceTask::Restore { name }).await
    }

    /// Has the volume of a workspace that nobody has taken to another storage.
    ///
    /// # Errors
    /// Somebody has it, it has snapshots, or the back end knows no such storage.
    pub async fn move_workspace(&self, selector: &str, storage: String) -> Result<WorkspaceView, Problem> {
        self.accepting()?;
        check_storage(&storage)?;
        let alone = self.shared.workspaces.alone().await;
        let record = select(&self.shared, selector).await?;
        if !record.snapshots.is_empty() {
            let text = format!(
                "Workspace `{}` has snapshots, which no storage hands over",
                record.name
            );
            return Err(Problem::new(ErrorCode::StateConflict, text).with_hint(
                "`agentlab workspace snapshot delete` removes one; a fork has none, and can be moved",
            ));
        }
        self.task(alone, record, WorkspaceTask::Move { storage }).await
    }

    /// Has a snapshot removed.
    ///
    /// # Errors
    /// There is none, or somebody has the workspace.
    pub async fn forget_snapshot(&self, selector: &str, name: String) -> Result<WorkspaceView, Problem> {
        self.accepting()?;
        let alone = self.shared.workspaces.alone().await;
        let record = select(&self.shared, selector).await?;
        snapshot(&record, &name)?;
        self.task(alone, record, WorkspaceTask::Forget { name }).await
    }
}

/// As hypervisors call their storages; which there are is for them to say.
fn check_storage(storage: &str) -> Result<(), Problem> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let begins = storage
        .bytes()
        .next()
        .is_some_and(|byte| byte.is_ascii_alphabetic());
    if begins && storage.len() <= 100 && storage.bytes().all(plain) {
        return Ok(());
    }
    let text = "the name of a storage is letters, digits, `-`, `_` and `.`, beginning with a letter";
    Err(Problem::new(ErrorCode::InvalidValue, text).with_field("/storage", text))
}

fn snapshot<'a>(record: &'a WorkspaceRecord, name: &str) -> Result<&'a WorkspaceSnapshot, Problem> {
    let found = record.snapshots.iter().find(|known| known.name == name);
    found.ok_or_else(|| {
        let shown: String = name.escape_debug().take(80).collect();
        let text = format!("Workspace `{}` has no snapshot `{shown}`", record.name);
        let names: Vec<&str> = record.snapshots.iter().map(|one| one.name.as_str()).collect();
        let hint = if names.is_empty() {
            "it has none".to_owned()
        } else {
            format!("there are: {}", names.join(", "))
        };
        Problem::new(ErrorCode::NotFound, text).with_hint(hint)
    })
}
