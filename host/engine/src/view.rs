//! Records as callers see them.

use agentlab_api::{ArtifactView, JobView};
use agentlab_store::{ArtifactRecord, JobRecord};

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

pub(crate) fn artifact(record: ArtifactRecord) -> ArtifactView {
    ArtifactView {
        name: record.name,
        kind: record.kind,
        size_bytes: record.size_bytes,
        sha256: record.sha256,
        created_at: record.created_at,
    }
}
