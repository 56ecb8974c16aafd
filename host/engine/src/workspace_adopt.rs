//! A volume that belongs to no workspace becomes one, when a person says so. What is on it stays as it is: whether there is
//! work on it nobody here can know.

use agentlab_api::{ErrorCode, Problem, WorkspaceAdopt, WorkspaceView};
use agentlab_backend::{Volume, VolumeList};
use agentlab_store::{WorkspaceRecord, WorkspaceSnapshot, WorkspaceTask};

use crate::engine::{Engine, store_problem};
use crate::workspace::{check_name, fresh, view_of};
use crate::workspace_check::{Found, GIB, found, look_again, without_workspace};
use crate::workspace_free::at_rest;
use crate::workspace_task::id_in;

impl Engine {
    /// Makes a workspace of a volume that belongs to none, or gives one back its volume; asked again, says what the file
    /// system on it is. No file system is ever made on it.
    ///
    /// # Errors
    /// There is no such volume, it belongs to another workspace, or a machine has it.
    pub async fn adopt_workspace(
        &self,
        name: &str,
        request: WorkspaceAdopt,
    ) -> Result<WorkspaceView, Problem> {
        self.accepting()?;
        check_name(name)?;
        let alone = self.shared.workspaces.alone().await;
        let found = found(&self.shared).await?;
        let volume = adoptable(&found, &request.volume)?;
        let recorded = self.shared.store.workspaces().await;
        let recorded = recorded.map_err(|error| store_problem(&error))?;
        if let Some(other) = owner(&recorded, volume).filter(|other| other.name != name) {
            return Err(taken(volume, other));
        }
        let record = match recorded.iter().find(|record| record.name == name) {
            Some(record) => {
                at_rest(&self.shared, record).await?;
                given_back(record, volume, &found.list)?
            }
            None if without_workspace(&recorded, &found.list).all(|free| free.id != volume.id) => {
                return Err(on_its_way(volume));
            }
            None => self.adopted(name, volume, &recorded),
        };
        let record = WorkspaceRecord {
            file_system: request.file_system.unwrap_or(record.file_system),
            ..record
        };
        self.record_workspace(&record, "is adopted").await?;
        drop(alone);
        tracing::info!(workspace = %record.id, name, volume = volume.id, "volume adopted");
        look_again(&self.shared).await;
        view_of(&self.shared, record).await
    }

    fn adopted(&self, name: &str, volume: &Volume, recorded: &[WorkspaceRecord]) -> WorkspaceRecord {
        let size_gb = u32::try_from(volume.bytes.div_ceil(GIB)).unwrap_or(u32::MAX);
        let fresh = fresh(&self.shared, name, size_gb, WorkspaceTask::Create);
        let made_for = volume.name.as_deref().and_then(id_in);
        let lost = made_for.filter(|id| recorded.iter().all(|record| record.id != *id));
        let now = self.shared.now();
        let snapshots = volume.snapshots.iter().map(|name| WorkspaceSnapshot {
            name: name.clone(),
            formatted: true,
            created_at: now,
        });
        WorkspaceRecord {
            id: lost.unwrap_or(fresh.id),
            volume: Some(volume.id.clone()),
            file_system: made_for.unwrap_or(fresh.file_system),
            // Whatever is on it stays: at worst its first guest says that there is nothing.
            formatted: true,
            snapshots: snapshots.collect(),
            task: None,
            ..fresh
        }
    }
}

fn owner<'a>(recorded: &'a [WorkspaceRecord], volume: &Volume) -> Option<&'a WorkspaceRecord> {
    recorded
        .iter()
        .find(|record| record.volume.as_ref() == Some(&volume.id))
}

fn taken(volume: &Volume, by: &WorkspaceRecord) -> Problem {
    let text = format!("{} is the volume of workspace `{}`", volume.id, by.name);
    Problem::new(ErrorCode::StateConflict, text)
        .with_hint("`agentlab workspace check` names those that belong to none")
}

/// PVE may have made it already for a workspace that does not know of it yet.
fn on_its_way(volume: &Volume) -> Problem {
    let text = format!("{} is, or may be, what a workspace is about to get", volume.id);
    Problem::new(ErrorCode::StateConflict, text).with_hint(
        "`agentlab workspace list` shows which is being made, copied or moved: ask again when it is done",
    )
}

fn adoptable<'a>(found: &'a Found, id: &str) -> Result<&'a Volume, Problem> {
    let shown: String = id.escape_debug().take(120).collect();
    let volume = found.list.volumes.iter().find(|volume| volume.id == id);
    let Some(volume) = volume else {
        let unread = &found.list.unread;
        let why = if unread.is_empty() {
            String::new()
        } else {
            format!(" ({})", unread.join("; "))
        };
        let text = format!("There is no volume `{shown}` of ours{why}");
        return Err(Problem::new(ErrorCode::NotFound, text)
            .with_hint("`agentlab workspace check` names those that belong to none"));
    };
    match found.holders.iter().find(|(held, _)| held == id) {
        Some((_, vmid)) => Err(
            Problem::new(ErrorCode::StateConflict, format!("VM {vmid} has {shown}"))
                .with_hint("detach it there first: one machine at a time has a volume"),
        ),
        None => Ok(volume),
    }
}

/// A workspace that is there already: its own volume, or the one that was made for it where its own is gone.
fn given_back(
    record: &WorkspaceRecord,
    volume: &Volume,
    list: &VolumeList,
) -> Result<WorkspaceRecord, Problem> {
    if record.volume.as_ref() == Some(&volume.id) {
        return Ok(record.clone());
    }
    let is_its = volume.name.as_deref().and_then(id_in) == Some(record.id);
    let has_one = list
        .volumes
        .iter()
        .any(|one| record.volume.as_ref() == Some(&one.id));
    if is_its && !has_one && list.unread.is_empty() {
        return Ok(WorkspaceRecord {
            volume: Some(volume.id.clone()),
            ..record.clone()
        });
    }
    let text = format!(
        "There is a workspace `{}` already, with another volume",
        record.name
    );
    Err(Problem::new(ErrorCode::StateConflict, text).with_hint("choose another name"))
}
