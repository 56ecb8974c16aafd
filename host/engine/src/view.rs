//! Records as callers see them.

use std::net::IpAddr;

use agentlab_api::{ArtifactView, IdleView, JobView, SandboxView};
use agentlab_store::{ArtifactRecord, Idle, JobRecord, SandboxRecord, SandboxSummary};

/// `queue_position` for one that waits for a place.
pub(crate) fn job(record: JobRecord, queue_position: Option<u32>) -> JobView {
    JobView {
        id: record.id,
        state: record.state,
        queue_position,
        repository: record.repository,
        reference: record.reference,
        task: record.task,
        profile: record.profile,
        agent: record.agent,
        push: record.push,
        deadline_seconds: record.deadline_seconds,
        sandbox: record.sandbox,
        vmid: record.vmid,
        channel: record.channel,
        outcome: record.outcome,
        failure: record.failure,
        created_at: record.created_at,
        started_at: record.started_at,
        finished_at: record.finished_at,
    }
}

/// One line of a list.
pub(crate) fn listed(record: SandboxSummary) -> SandboxView {
    SandboxView {
        id: record.id,
        vmid: record.vmid,
        name: record.name,
        profile: record.profile.name,
        state: record.state,
        address: IpAddr::V4(record.address),
        network_mode: record.profile.network.mode,
        job: record.job,
        workspace: record.workspace,
        keepalive: record.keepalive,
        lease_expires_at: record.lease_expires_at,
        idle: record.idle.map(idle),
        failure: record.failure,
        left_behind: record.left_behind,
        created_at: record.created_at,
        updated_at: record.updated_at,
    }
}

pub(crate) fn sandbox(record: SandboxRecord) -> SandboxView {
    SandboxView {
        id: record.id,
        vmid: record.vmid,
        name: record.name,
        profile: record.profile.name,
        state: record.state,
        address: IpAddr::V4(record.address),
        network_mode: record.profile.network.mode,
        job: record.job,
        workspace: record.workspace,
        keepalive: record.keepalive,
        lease_expires_at: record.lease_expires_at,
        idle: record.idle.map(idle),
        failure: record.failure,
        left_behind: record.left_behind,
        created_at: record.created_at,
        updated_at: record.updated_at,
    }
}

fn idle(record: Idle) -> IdleView {
    IdleView {
        since: record.since,
        stop_at: record.stop_at,
    }
}

pub(crate) fn artifact(record: ArtifactRecord) -> ArtifactView {
    ArtifactView {
        name: record.name,
        kind: record.kind,
        size_bytes: record.size_bytes,
        sha256: record.sha256,
        created_at: record.created_at,
    }
}
