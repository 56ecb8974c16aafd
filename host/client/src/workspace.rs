//! Workspaces. A selector is a UUID or a name.

use agentlab_api::{
    WorkspaceAdopt, WorkspaceAttach, WorkspaceCheck, WorkspaceFork, WorkspaceList, WorkspaceMove,
    WorkspaceRebind, WorkspaceRequest, WorkspaceResize, WorkspaceSnapshotRequest, WorkspaceView,
};
use serde::Serialize;

use crate::Client;
use crate::connection::Call;
use crate::error::Result;
use crate::path::encode;

impl Client {
    /// All workspaces, by name.
    ///
    /// # Errors
    /// See [`crate::ClientError`].
    pub async fn workspaces(&self) -> Result<WorkspaceList> {
        self.call(Call::get("/v1/workspaces")).await
    }

    /// One workspace.
    ///
    /// # Errors
    /// See [`crate::ClientError`].
    pub async fn workspace(&self, selector: &str) -> Result<WorkspaceView> {
        let target = format!("/v1/workspaces/{}", encode(selector, false));
        self.call(Call::get(target)).await
    }

    /// Has one made; answered when it is there, or still being made after a while.
    ///
    /// # Errors
    /// See [`crate::ClientError`].
    pub async fn create_workspace(&self, request: &WorkspaceRequest) -> Result<WorkspaceView> {
        self.call(Call::post("/v1/workspaces", request)?).await
    }

    /// Compares one, or with `-` all, with what the hypervisor has. Nothing is changed.
    ///
    /// # Errors
    /// See [`crate::ClientError`].
    pub async fn check_workspaces(&self, selector: &str) -> Result<WorkspaceCheck> {
        let target = format!("/v1/workspaces/{}/check", encode(selector, false));
        self.call(Call::get(target)).await
    }

    /// Makes a workspace of a volume that belongs to none.
    ///
    /// # Errors
    /// See [`crate::ClientError`].
    pub async fn adopt_workspace(&self, name: &str, adopt: &WorkspaceAdopt) -> Result<WorkspaceView> {
        self.change(name, "adopt", adopt).await
    }

    /// Has one removed that nobody has.
    ///
    /// # Errors
    /// See [`crate::ClientError`].
    pub async fn delete_workspace(&self, selector: &str) -> Result<WorkspaceView> {
        self.change(selector, "delete", &serde_json::json!({})).await
    }

    /// Has one be larger from when a sandbox has it next.
    ///
    /// # Errors
    /// See [`crate::ClientError`].
    pub async fn resize_workspace(&self, selector: &str, size_gb: u32) -> Result<WorkspaceView> {
        self.change(selector, "resize", &WorkspaceResize { size_gb })
            .await
    }

    /// Gives one to a stopped sandbox.
    ///
    /// # Errors
    /// See [`crate::ClientError`].
    pub async fn attach_workspace(&self, selector: &str, sandbox: &str) -> Result<WorkspaceView> {
        let sandbox = sandbox.to_owned();
        self.change(selector, "attach", &WorkspaceAttach { sandbox })
            .await
    }

    /// Takes one from the stopped sandbox that has it.
    ///
    /// # Errors
    /// See [`crate::ClientError`].
    pub async fn detach_workspace(&self, selector: &str) -> Result<WorkspaceView> {
        self.change(selector, "detach", &serde_json::json!({})).await
    }

    /// Has its state kept.
    ///
    /// # Errors
    /// See [`crate::ClientError`].
    pub async fn snapshot_workspace(&self, selector: &str, name: &str) -> Result<WorkspaceView> {
        let name = name.to_owned();
        self.change(selector, "snapshots", &WorkspaceSnapshotRequest { name })
            .await
    }

    /// Has one go back to a snapshot.
    ///
    /// # Errors
    /// See [`crate::ClientError`].
    pub async fn restore_workspace(&self, selector: &str, snapshot: &str) -> Result<WorkspaceView> {
        let verb = format!("snapshots/{}/restore", encode(snapshot, false));
        self.change(selector, &verb, &serde_json::json!({})).await
    }

    /// Has a snapshot removed.
    ///
    /// # Errors
    /// See [`crate::ClientError`].
    pub async fn delete_workspace_snapshot(&self, selector: &str, snapshot: &str) -> Result<WorkspaceView> {
        let verb = format!("snapshots/{}/delete", encode(snapshot, false));
        self.change(selector, &verb, &serde_json::json!({})).await
    }

    /// Has a copy made.
    ///
    /// # Errors
    /// See [`crate::ClientError`].
    pub async fn fork_workspace(&self, selector: &str, fork: &WorkspaceFork) -> Result<WorkspaceView> {
        self.change(selector, "fork", fork).await
    }

    /// Has its volume taken to another storage.
    ///
    /// # Errors
    /// See [`crate::ClientError`].
    pub async fn move_workspace(&self, selector: &str, storage: &str) -> Result<WorkspaceView> {
        let storage = storage.to_owned();
        self.change(selector, "move", &WorkspaceMove { storage }).await
    }

    /// Has a new sandbox made and the workspace handed to it; answered at once.
    ///
    /// # Errors
    /// See [`crate::ClientError`].
    pub async fn rebind_workspace(&self, selector: &str, rebind: &WorkspaceRebind) -> Result<WorkspaceView> {
        self.change(selector, "rebind", rebind).await
    }

    async fn change(&self, selector: &str, verb: &str, body: &impl Serialize) -> Result<WorkspaceView> {
        let target = format!("/v1/workspaces/{}/{verb}", encode(selector, false));
        self.call(Call::post(target, body)?).await
    }
}
