//! Does what was recorded of volumes: one task per workspace at a time, again until it is done or refused. A process
//! that dies meanwhile leaves the task on the record, and the next one does it from its beginning.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use agentlab_api::{Problem, WorkspaceId, chain};
use agentlab_backend::{BackendError, Result};
use agentlab_store::{StoreError, WorkspaceRecord, WorkspaceSnapshot, WorkspaceTask, Write};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::event;
use crate::journal::Point;
use crate::sandbox::perform::backend_failure;
use crate::shared::Shared;
use crate::workspace_rebind;

/// An empty volume is made, and one removed, in no time; a copy takes as long as its bytes.
const DEADLINE: Duration = Duration::from_secs(60 * 60);
/// Between two looks that nobody asked for.
const LOOK: Duration = Duration::from_secs(30);

const PREFIX: &str = "ws-";

/// Name of a workspace's volume.
pub(crate) fn volume_name(id: WorkspaceId) -> String {
    format!("{PREFIX}{id}")
}

/// The workspace that a volume of this name was made for.
pub(crate) fn id_in(name: &str) -> Option<WorkspaceId> {
    name.strip_prefix(PREFIX)?.parse().ok()
}

/// Runs until the engine stops.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut under_way = HashSet::new();
    let mut tasks = JoinSet::new();
    loop {
        match shared.store.workspaces().await {
            Ok(records) => {
                for record in records {
                    let has_work = record.task.is_some() || record.rebind.is_some();
                    if !has_work || !under_way.insert(record.id) {
                        continue;
                    }
                    if record.task.is_some() {
                        tasks.spawn(until_done(shared.clone(), record.id));
                    } else {
                        tasks.spawn(workspace_rebind::until_done(shared.clone(), record.id));
                    }
                }
            }
            Err(error) => tracing::error!(error = %chain(&error), "workspaces cannot be read"),
        }
        tokio::select! {
            () = shared.stop.cancelled() => return,
            Some(ended) = tasks.join_next(), if !tasks.is_empty() => match ended {
                Ok(id) => drop(under_way.remove(&id)),
                // Which one it was is not known: all are looked at again.
                Err(_) => under_way.clear(),
            },
            () = shared.workspaces.news.notified() => {}
            () = sleep(LOOK) => {}
        }
    }
}

/// One workspace's task, to its end.
async fn until_done(shared: Arc<Shared>, id: WorkspaceId) -> WorkspaceId {
    let mut wait = shared.settings.teardown_retry_first;
    let mut begins_anew = None;
    loop {
        match once(&shared, id, &mut begins_anew).await {
            Ok(true) => return id,
            Ok(false) => {}
            Err(error) => tracing::error!(workspace = %id, error = %chain(&error), "could not record"),
        }
        sleep(wait).await;
        wait = wait.saturating_mul(2).min(shared.settings.teardown_retry_max);
    }
}

/// True when there is nothing more to do. `begins_anew`: before this process first asked for a new volume, there was none
/// of its name.
async fn once(
    shared: &Shared,
    id: WorkspaceId,
    begins_anew: &mut Option<bool>,
) -> std::result::Result<bool, StoreError> {
    let Some(record) = shared.store.workspace(id).await? else {
        return Ok(true);
    };
    let Some(task) = record.task.clone() else {
        return Ok(true);
    };
    if begins_anew.is_none() {
        let is_made = matches!(task, WorkspaceTask::Create | WorkspaceTask::Copy { .. });
        *begins_anew = Some(is_made && made_for(shared, id).await.is_ok_and(|made| made.is_empty()));
    }
    match perform(shared, &record, &task).await {
        Ok(volume) => {
            record_done(shared, record, task, volume).await?;
            shared.workspaces.ended();
            Ok(true)
        }
        Err(error) if error.is_transient() || task == WorkspaceTask::Delete => {
            tracing::warn!(workspace = %id, error = %chain(&error), "volume not worked on yet");
            record_trouble(shared, record, chain(&error)).await?;
            Ok(false)
        }
        Err(error) => {
            if *begins_anew == Some(true)
                && let Err(left) = undo(shared, id).await
            {
                record_trouble(shared, record, chain(&left)).await?;
                return Ok(false);
            }
            let failure = backend_failure("Workspace", &error);
            let mut problem = Problem::new(failure.code, failure.message).with_stage(failure.stage);
            problem.hint = failure.hint.or_else(|| hint_of(&error));
            let reason = problem.detail.clone();
            shared.workspaces.refuse(id, problem);
            if let Err(error) = record_refused(shared, record, task, &reason).await {
                drop(shared.workspaces.take_refusal(id));
                return Err(error);
            }
            shared.workspaces.ended();
            Ok(true)
        }
    }
}

/// Volumes that were made for a workspace.
async fn made_for(shared: &Shared, id: WorkspaceId) -> Result<Vec<String>> {
    let name = volume_name(id);
    let found = shared.backend.volumes().await?.volumes.into_iter();
    let made = found.filter(|volume| volume.name.as_deref() == Some(&name));
    Ok(made.map(|volume| volume.id).collect())
}

/// Removes what was made of a volume whose making was refused in the end. Only of one that this process has seen come
/// into being: of any other, as in a database that was restored from a backup, there may be work on it.
async fn undo(shared: &Shared, id: WorkspaceId) -> Result<()> {
    for volume in made_for(shared, id).await? {
        tracing::warn!(workspace = %id, volume, "volume half made; removing it");
        shared.backend.destroy_volume(&volume).await?;
    }
    Ok(())
}

fn hint_of(error: &BackendError) -> Option<String> {
    matches!(error, BackendError::Unsupported { .. }).then(|| {
        "on Proxmox VE set `proxmox_volume_vmid` and `proxmox_storage`; QEMU keeps all volumes in one directory"
            .to_owned()
    })
}

/// Does it; the volume there is afterwards.
async fn perform(shared: &Shared, record: &WorkspaceRecord, task: &WorkspaceTask) -> Result<Option<String>> {
    let work = async {
        let backend = &shared.backend;
        let name = volume_name(record.id);
        let volume = record.volume.as_deref();
        match (task, volume) {
            (WorkspaceTask::Create, _) => backend.create_volume(&name, record.size_gb).await.map(Some),
            (WorkspaceTask::Copy { of, snapshot }, _) => {
                let source = source_volume(shared, *of).await?;
                let copied = backend.copy_volume(&source, snapshot.as_deref(), &name).await;
                copied.map(Some)
            }
            (WorkspaceTask::Delete, Some(volume)) => backend.destroy_volume(volume).await.map(|()| None),
            (WorkspaceTask::Snapshot { name }, Some(volume)) => backend
                .take_volume_snapshot(volume, name)
                .await
                .map(|()| record.volume.clone()),
            (WorkspaceTask::Restore { name }, Some(volume)) => backend
                .roll_back_volume(volume, name)
                .await
                .map(|()| record.volume.clone()),
            (WorkspaceTask::Forget { name }, Some(volume)) => backend
                .delete_volume_snapshot(volume, name)
                .await
                .map(|()| record.volume.clone()),
            (WorkspaceTask::Move { storage }, Some(volume)) => {
                backend.move_volume(volume, &name, storage).await.map(Some)
            }
            (_, None) => Ok(None),
        }
    };
    timeout(DEADLINE, work).await.unwrap_or_else(|_| {
        Err(BackendError::Unreachable {
            backend: "volume",
            action: "work on a workspace",
            reason: format!("it did not end within {} s", DEADLINE.as_secs()),
        })
    })
}

async fn source_volume(shared: &Shared, of: WorkspaceId) -> Result<String> {
    let source = shared.store.workspace(of).await.ok().flatten();
    let volume = source.and_then(|source| source.volume);
    volume.ok_or_else(|| BackendError::Storage {
        action: "copying a workspace",
        path: of.to_string(),
        source: std::io::ErrorKind::NotFound.into(),
    })
}

async fn record_done(
    shared: &Shared,
    record: WorkspaceRecord,
    task: WorkspaceTask,
    volume: Option<String>,
) -> std::result::Result<(), StoreError> {
    let (before, now) = (record.clone(), shared.now());
    let mut record = WorkspaceRecord {
        volume,
        task: None,
        trouble: None,
        ..record
    };
    let what = match task {
        WorkspaceTask::Create => "is made",
        WorkspaceTask::Copy { .. } => "is made as a copy",
        WorkspaceTask::Delete => "is gone",
        WorkspaceTask::Snapshot { name } => {
            record.snapshots.retain(|known| known.name != name);
            record.snapshots.push(WorkspaceSnapshot {
                name,
                formatted: record.formatted,
                created_at: now,
            });
            "has another snapshot"
        }
        WorkspaceTask::Restore { name } => {
            let then = record.snapshots.iter().find(|known| known.name == name);
            record.formatted = then.map_or(record.formatted, |then| then.formatted);
            "is what its snapshot was"
        }
        WorkspaceTask::Forget { name } => {
            record.snapshots.retain(|known| known.name != name);
            "has a snapshot less"
        }
        WorkspaceTask::Move { .. } => "is on another storage",
    };
    let told = event::workspace(&record, None, what);
    let write = if before.task == Some(WorkspaceTask::Delete) {
        Write::ForgetWorkspace(record.id)
    } else {
        Write::Workspace(Box::new(record))
    };
    let written = shared.journal.commit(Point::Workspace, vec![write, told]).await;
    written.map(drop)
}

/// Written once, so that it can be read why it takes so long.
async fn record_trouble(
    shared: &Shared,
    record: WorkspaceRecord,
    trouble: String,
) -> std::result::Result<(), StoreError> {
    if record.trouble.as_ref() == Some(&trouble) {
        return Ok(());
    }
    let record = WorkspaceRecord {
        trouble: Some(trouble),
        ..record
    };
    let write = Write::Workspace(Box::new(record));
    shared
        .journal
        .commit(Point::Workspace, vec![write])
        .await
        .map(drop)
}

/// Nothing was done. What was to be made anew is forgotten; what there was stays as it is.
async fn record_refused(
    shared: &Shared,
    record: WorkspaceRecord,
    task: WorkspaceTask,
    reason: &str,
) -> std::result::Result<(), StoreError> {
    let told = event::workspace(&record, None, &format!("could not be changed: {reason}"));
    let write = match task {
        WorkspaceTask::Create | WorkspaceTask::Copy { .. } => Write::ForgetWorkspace(record.id),
        WorkspaceTask::Snapshot { .. }
        | WorkspaceTask::Restore { .. }
        | WorkspaceTask::Forget { .. }
        | WorkspaceTask::Move { .. }
        | WorkspaceTask::Delete => Write::Workspace(Box::new(WorkspaceRecord {
            task: None,
            trouble: Some(reason.to_owned()),
            ..record
        })),
    };
    shared
        .journal
        .commit(Point::Workspace, vec![write, told])
        .await
        .map(drop)
}
