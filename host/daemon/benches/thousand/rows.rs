//! The records of a thousand sandboxes.

use agentlab_api::{
    ErrorCode, Failure, JobId, JobOutcome, JobState, Profile, RepositorySource, SandboxId, SandboxState, Vmid,
};
use agentlab_store::{JobRecord, SandboxRecord, Store, StoreOptions, Write};
use anyhow::Result;
use jiff::{Timestamp, ToSpan as _};

use crate::lab::Lab;

pub(crate) const ROWS: u32 = 1000;

/// All over: 19 of 20 destroyed, the others failed and kept for their cause.
pub(crate) fn over(lab: &Lab) -> Result<()> {
    fill(lab, |number, record| {
        record.unwinding = true;
        record.cursor.clear();
        if number % 20 == 0 {
            record.state = SandboxState::Failed;
            record.failure = Some(Failure {
                code: ErrorCode::GuestSilent,
                stage: "AwaitGuest".into(),
                message: "The guest did not answer within 300 s of power-on; its console is empty".into(),
                hint: None,
            });
        } else {
            record.state = SandboxState::Destroyed;
        }
    })
}

/// All running, held by their operators.
pub(crate) fn live(lab: &Lab) -> Result<()> {
    fill(lab, |_, record| {
        record.state = SandboxState::Running;
        record.job = None;
        record.keepalive = true;
        record.acknowledged = true;
    })
}

fn fill(lab: &Lab, state: impl Fn(u32, &mut SandboxRecord)) -> Result<()> {
    let config = lab.config()?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(async {
        let store = Store::open(StoreOptions {
            database_path: config.db_path.clone(),
            files_dir: config.data_dir.clone(),
            disk_floor_bytes: 0,
        })
        .await?;
        let mut writes = Vec::new();
        for number in 0..ROWS {
            let (job, mut sandbox) = pair(number)?;
            state(number, &mut sandbox);
            writes.push(Write::Sandbox(Box::new(sandbox)));
            writes.push(Write::Job(Box::new(job)));
        }
        store.commit(writes).await?;
        store.close().await;
        Ok(())
    })
}

/// Of the stamp of a machine.
pub(crate) fn nonce(vmid: Vmid) -> String {
    format!("{:032x}", u32::from(vmid))
}

fn pair(number: u32) -> Result<(JobRecord, SandboxRecord)> {
    let profile: Profile =
        serde_json::from_value(serde_json::json!({"name": "demo", "template_vmid": 9000}))?;
    let created_at = Timestamp::now() - i64::from(ROWS - number).seconds();
    let [.., high, low] = number.saturating_add(2).to_be_bytes();
    let (id, job) = (SandboxId::generate(), JobId::generate()?);
    let vmid = Vmid::try_from(1000 + number)?;
    let sandbox = SandboxRecord {
        id,
        vmid,
        name: job.as_str().replace('_', "-"),
        profile,
        state: SandboxState::Running,
        cursor: "AwaitGuest".into(),
        unwinding: false,
        nonce: nonce(vmid),
        mac: [2, 0xa1, 0, 0, high, low],
        address: [10, 77, high, low].into(),
        job: Some(job.clone()),
        workspace: None,
        keepalive: false,
        lease_expires_at: Some(created_at + 12.hours()),
        lease_warned: false,
        runner_key_sha256: Some("0".repeat(64)),
        acknowledged: false,
        runner_version: Some(env!("CARGO_PKG_VERSION").into()),
        channel: Some(agentlab_api::ChannelKind::Serial),
        last_heard_at: Some(created_at),
        powered_on_at: Some(created_at),
        paused_at: None,
        idle: None,
        failure: None,
        left_behind: Vec::new(),
        created_at,
        updated_at: created_at,
    };
    let job = JobRecord {
        id: job,
        state: JobState::Completed,
        repository: RepositorySource::Url {
            url: "https://example.org/some/repository.git".into(),
        },
        reference: Some("main".into()),
        task: "Make the tests pass, and say in the commit what was wrong with them.\n".into(),
        profile: "demo".into(),
        agent: "shell".into(),
        push: None,
        retention_days: None,
        deadline_seconds: 7200,
        sandbox: Some(id),
        vmid: Some(vmid),
        channel: Some(agentlab_api::ChannelKind::Serial),
        cancel_requested: false,
        next_log_piece: 40,
        outcome: Some(JobOutcome {
            exit_code: Some(0),
            base_commit: Some("0".repeat(40)),
            head_commit: Some("1".repeat(40)),
            commits: 1,
            uncommitted: false,
            agent_milliseconds: 60_000,
            push: None,
            exposed_secrets: Vec::new(),
            secrets_unsearched: None,
        }),
        failure: None,
        created_at,
        started_at: Some(created_at),
        paused_seconds: 0,
        finished_at: Some(created_at + 1.minute()),
        waiting: None,
    };
    Ok((job, sandbox))
}
