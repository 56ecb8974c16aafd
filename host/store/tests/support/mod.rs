//! Records as an engine would write them.

#![allow(dead_code, clippy::unwrap_used, reason = "each test program uses its part")]

use std::path::Path;

use agentlab_api::{
    ArtifactKind, EventKind, JobId, JobState, Profile, RepositorySource, SandboxId, SandboxState, Vmid,
};
use agentlab_store::{
    ArtifactRecord, JobRecord, NewEvent, SandboxRecord, Store, StoreError, StoreOptions, Write,
};
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

pub(crate) async fn open(directory: &Path) -> Result<Store, StoreError> {
    Store::open(StoreOptions {
        database_path: directory.join("agentlab.db"),
        files_dir: directory.to_owned(),
        disk_floor_bytes: 0,
    })
    .await
}

/// Stores an artifact and records it. Returns its hash.
pub(crate) async fn keep(store: &Store, job: &JobId, name: &str, bytes: &[u8]) -> String {
    let sha256 = hex::encode(Sha256::digest(bytes));
    let hold = store.files().hold(&sha256).unwrap();
    let mut incoming = store.files().receive_artifact(&hold, 1 << 20).await.unwrap();
    incoming.write(bytes).await.unwrap();
    let received = incoming.finish(None).await.unwrap();
    let record = artifact(job, name, &received.sha256, received.size_bytes);
    store.commit(vec![Write::Artifact(record)]).await.unwrap();
    hold.recorded();
    received.sha256
}

pub(crate) fn artifact(job: &JobId, name: &str, sha256: &str, size_bytes: u64) -> ArtifactRecord {
    ArtifactRecord {
        job: job.clone(),
        name: name.into(),
        kind: ArtifactKind::File,
        size_bytes,
        sha256: sha256.into(),
        created_at: Timestamp::now(),
    }
}

pub(crate) fn sandbox(vmid: u32) -> SandboxRecord {
    let profile: Profile =
        serde_json::from_value(serde_json::json!({"name": "demo", "template_vmid": 9000})).unwrap();
    let last = u8::try_from(vmid % 250).unwrap();
    SandboxRecord {
        id: SandboxId::generate(),
        vmid: Vmid::try_from(vmid).unwrap(),
        name: format!("sandbox-{vmid}"),
        profile,
        state: SandboxState::Requested,
        cursor: String::new(),
        unwinding: false,
        nonce: "0".repeat(32),
        mac: [2, 0, 0, 0, 0, last],
        address: [10, 77, 0, last].into(),
        job: None,
        workspace: None,
        keepalive: false,
        lease_expires_at: None,
        lease_warned: false,
        runner_key_sha256: None,
        acknowledged: false,
        runner_version: None,
        channel: None,
        last_heard_at: None,
        powered_on_at: None,
        paused_at: None,
        idle: None,
        failure: None,
        left_behind: Vec::new(),
        created_at: Timestamp::now(),
        updated_at: Timestamp::now(),
    }
}

pub(crate) fn job(sandbox: Option<SandboxId>) -> JobRecord {
    JobRecord {
        id: JobId::generate().unwrap(),
        state: JobState::Queued,
        repository: RepositorySource::Url {
            url: "https://example.org/a.git".into(),
        },
        reference: None,
        task: "true".into(),
        profile: "demo".into(),
        agent: "shell".into(),
        push: None,
        retention_days: None,
        deadline_seconds: 60,
        sandbox,
        vmid: None,
        channel: None,
        cancel_requested: false,
        next_log_piece: 0,
        outcome: None,
        failure: None,
        created_at: Timestamp::now(),
        started_at: None,
        paused_seconds: 0,
        finished_at: None,
        waiting: None,
    }
}

pub(crate) fn put(record: &SandboxRecord) -> Write {
    Write::Sandbox(Box::new(record.clone()))
}

pub(crate) fn event(sandbox: Option<SandboxId>, job: Option<&JobId>, message: &str) -> Write {
    Write::Event(NewEvent {
        kind: EventKind::SandboxStep,
        sandbox,
        job: job.cloned(),
        message: message.into(),
        data: serde_json::json!({"step": "Clone"}),
    })
}
