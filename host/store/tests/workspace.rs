//! Workspaces in the records: one sandbox at a time, one name each.

#![allow(
    clippy::unwrap_used,
    clippy::tests_outside_test_module,
    reason = "this whole file is tests"
)]

mod support;

use agentlab_api::{SandboxState, WorkspaceId};
use agentlab_store::{SandboxRecord, StoreError, WorkspaceRecord, WorkspaceTask, Write};
use jiff::Timestamp;
use support::{open, put, sandbox};

fn workspace(name: &str) -> WorkspaceRecord {
    let id = WorkspaceId::generate();
    WorkspaceRecord {
        id,
        name: name.to_owned(),
        size_gb: 1,
        volume: None,
        file_system: id,
        formatted: false,
        snapshots: Vec::new(),
        task: Some(WorkspaceTask::Create),
        mounted_in: None,
        rebind: None,
        trouble: None,
        created_at: Timestamp::now(),
        updated_at: Timestamp::now(),
    }
}

fn record(workspace: &WorkspaceRecord) -> Write {
    Write::Workspace(Box::new(workspace.clone()))
}

fn with(vmid: u32, workspace: &WorkspaceRecord) -> SandboxRecord {
    SandboxRecord {
        workspace: Some(workspace.id),
        ..sandbox(vmid)
    }
}

fn is_conflict<T>(answer: &Result<T, StoreError>) -> bool {
    matches!(answer, Err(StoreError::Conflict(_)))
}

#[tokio::test]
async fn two_living_sandboxes_never_share_a_workspace() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await.unwrap();
    let work = workspace("w");
    let (mut one, other) = (with(1000, &work), with(1001, &work));
    assert!(
        store.commit(vec![put(&one)]).await.is_err(),
        "there is no such workspace yet"
    );
    store.commit(vec![record(&work), put(&one)]).await.unwrap();
    let answer = store.commit(vec![put(&other)]).await;
    assert!(is_conflict(&answer), "{answer:?}");
    let gone = store.commit(vec![Write::ForgetWorkspace(work.id)]).await;
    assert!(gone.is_err(), "a sandbox has it");

    // It is free once it is detached, also while the sandbox that had it fails to go.
    one.workspace = None;
    store.commit(vec![put(&one), put(&other)]).await.unwrap();
    let other = SandboxRecord {
        state: SandboxState::Destroyed,
        workspace: None,
        ..other
    };
    store
        .commit(vec![put(&other), Write::ForgetWorkspace(work.id)])
        .await
        .unwrap();
    assert_eq!(store.workspaces().await.unwrap(), []);
}

#[tokio::test]
async fn a_name_is_taken_until_its_workspace_is_forgotten() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await.unwrap();
    let (first, second) = (workspace("w"), workspace("w"));
    store.commit(vec![record(&first)]).await.unwrap();
    let answer = store.commit(vec![record(&second)]).await;
    assert!(is_conflict(&answer), "{answer:?}");
    let kept = store.workspace(first.id).await.unwrap().unwrap();
    assert_eq!(kept.task, Some(WorkspaceTask::Create));
    store
        .commit(vec![Write::ForgetWorkspace(first.id), record(&second)])
        .await
        .unwrap();
    assert_eq!(store.workspaces().await.unwrap()[0].id, second.id);
}
