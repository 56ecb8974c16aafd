//! Workspaces as the engine writes them.

use agentlab_api::{SandboxId, WorkspaceId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{Store, StoreError};

/// One workspace, from request until its volume is gone. Its name is unique. Who has it stands on the sandbox's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkspaceRecord {
    /// Identity for all time.
    pub id: WorkspaceId,
    /// Name.
    pub name: String,
    /// Size that its volume has, or gets when a sandbox has it next, in GiB.
    pub size_gb: u32,
    /// Its volume in the back end's words; `None` until there is one.
    pub volume: Option<String>,
    /// UUID of the file system on it: its own, or that of the workspace it was forked from.
    pub file_system: WorkspaceId,
    /// A guest has said that there is one of that UUID on it. From then on none is made again.
    pub formatted: bool,
    /// States to go back to, oldest first.
    pub snapshots: Vec<WorkspaceSnapshot>,
    /// What is to be done with its volume, and may have been begun. Nobody can have it meanwhile.
    pub task: Option<WorkspaceTask>,
    /// The sandbox whose guest has said that it is mounted, and not since that it is not.
    #[serde(default)]
    pub mounted_in: Option<SandboxId>,
    /// It goes from one sandbox to another.
    pub rebind: Option<Rebind>,
    /// Why the task, or what was asked for last, was not done.
    pub trouble: Option<String>,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When this record last changed; set by the store.
    pub updated_at: Timestamp,
}

/// A state of a workspace that was kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkspaceSnapshot {
    /// Its name.
    pub name: String,
    /// Whether there was a file system on it.
    pub formatted: bool,
    /// When it was taken.
    pub created_at: Timestamp,
}

/// What is to be done with a volume. Each can be done again from its beginning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "task", rename_all = "snake_case")]
pub enum WorkspaceTask {
    /// Make an empty one.
    Create,
    /// Make a copy.
    Copy {
        /// Of whose volume.
        of: WorkspaceId,
        /// As this snapshot of it, or as it is.
        snapshot: Option<String>,
    },
    /// Keep its state.
    Snapshot {
        /// Under this name.
        name: String,
    },
    /// Go back.
    Restore {
        /// To this snapshot.
        name: String,
    },
    /// Remove a snapshot.
    Forget {
        /// Which.
        name: String,
    },
    /// Take it elsewhere.
    Move {
        /// To this storage of the hypervisor's.
        storage: String,
    },
    /// Remove it with all its snapshots.
    Delete,
}

/// The way of a workspace from one sandbox to another. Each part of it is found in the records of the two, so that it
/// goes on from anywhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rebind {
    /// Who has it, or had it.
    pub from: SandboxId,
    /// Who gets it.
    pub to: SandboxId,
    /// Leave the first one stopped.
    pub keep_old: bool,
    /// The second one failed: it goes back to the first.
    pub back: bool,
}

impl Store {
    /// One workspace.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn workspace(&self, id: WorkspaceId) -> Result<Option<WorkspaceRecord>, StoreError> {
        self.database.workspace(id).await
    }

    /// All workspaces, by name.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn workspaces(&self) -> Result<Vec<WorkspaceRecord>, StoreError> {
        self.database.workspaces().await
    }
}
