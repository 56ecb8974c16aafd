//! What is told to people and programs. One place, so that words and data stay the same everywhere.

use std::time::Duration;

use agentlab_api::{EventKind, JobState, SandboxState};
use agentlab_protocol::message::Vitals;
use agentlab_store::{JobRecord, NewEvent, SandboxRecord, WorkspaceRecord, Write};
use serde_json::{Value, json};

use crate::port::Denied;
use crate::sandbox::step::Step;
use crate::sandbox::vitals::Sign;
use crate::secrets::Delivery;

/// How a step went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StepEnd<'a> {
    Done,
    Failed(&'a str),
}

fn event(kind: EventKind, record: &SandboxRecord, message: String, data: Value) -> Write {
    Write::Event(NewEvent {
        kind,
        sandbox: Some(record.id),
        job: record.job.clone(),
        message,
        data,
    })
}

fn of_job(kind: EventKind, job: &JobRecord, message: String, data: Value) -> Write {
    Write::Event(NewEvent {
        kind,
        sandbox: job.sandbox,
        job: Some(job.id.clone()),
        message,
        data,
    })
}

pub(crate) fn milliseconds(took: Duration) -> u64 {
    u64::try_from(took.as_millis()).unwrap_or(u64::MAX)
}

/// A step, or its undo, ended.
pub(crate) fn step(
    record: &SandboxRecord,
    step: Step,
    undo: bool,
    took: Duration,
    end: &StepEnd<'_>,
) -> Write {
    let milliseconds = milliseconds(took);
    let (word, what) = match (end, undo) {
        (StepEnd::Done, false) => ("done", format!("{step} done in {milliseconds} ms")),
        (StepEnd::Done, true) => ("undone", format!("{step} undone in {milliseconds} ms")),
        (StepEnd::Failed(reason), false) => ("failed", format!("{step} failed: {reason}")),
        (StepEnd::Failed(reason), true) => ("left", format!("{step} could not be undone yet: {reason}")),
    };
    let data = json!({
        "step": step.as_str(), "milliseconds": milliseconds, "undo": undo, "outcome": word, "vmid": record.vmid,
    });
    event(EventKind::SandboxStep, record, what, data)
}

/// Its start waits for others.
pub(crate) fn waits_for_turn(record: &SandboxRecord, step: Step, ahead: usize) -> Write {
    let others = match ahead {
        0 => "it is the next".to_owned(),
        1 => "1 other waits before it".to_owned(),
        ahead => format!("{ahead} others wait before it"),
    };
    let message = format!("{step} waits for its turn, {others}");
    let data = json!({
        "step": step.as_str(), "outcome": "waiting", "ahead": ahead, "vmid": record.vmid,
    });
    event(EventKind::SandboxStep, record, message, data)
}

/// A step is asked for again and again, because nobody answers.
pub(crate) fn waits_for_backend(record: &SandboxRecord, step: Step, reason: &str) -> Write {
    let message = format!("{step} waits for the back end: {reason}");
    let data = json!({"step": step.as_str(), "outcome": "waiting", "vmid": record.vmid});
    event(EventKind::SandboxStep, record, message, data)
}

/// A sandbox shows another state.
pub(crate) fn state(record: &SandboxRecord, previous: SandboxState) -> Write {
    let mut message = format!("Sandbox {} is {}", record.vmid, record.state);
    // One that could not be started again is STOPPED with a cause.
    let has_cause = match record.state {
        SandboxState::Failed => true,
        SandboxState::Stopped => !record.unwinding,
        SandboxState::Requested
        | SandboxState::Provisioning
        | SandboxState::Booting
        | SandboxState::Ready
        | SandboxState::Running
        | SandboxState::Suspended
        | SandboxState::Timeout
        | SandboxState::Destroyed => false,
    };
    if has_cause && let Some(failure) = &record.failure {
        message = format!("{message}: {failure}");
    }
    let data = json!({
        "state": record.state, "previous": previous, "vmid": record.vmid, "failure": record.failure,
    });
    event(EventKind::SandboxState, record, message, data)
}

/// A sandbox that shows the same state has nothing left outside the records: a failed one stays on the list for its
/// cause only.
pub(crate) fn nothing_left(record: &SandboxRecord) -> Write {
    let message = format!("Nothing of sandbox {} is left", record.vmid);
    let data = json!({
        "state": record.state, "previous": record.state, "vmid": record.vmid, "failure": record.failure,
    });
    event(EventKind::SandboxState, record, message, data)
}

/// A sandbox was recorded.
pub(crate) fn requested(record: &SandboxRecord) -> Write {
    let message = format!("Sandbox {} is {} as {}", record.vmid, record.state, record.name);
    let data = json!({"state": record.state, "vmid": record.vmid, "profile": record.profile.name});
    event(EventKind::SandboxState, record, message, data)
}

/// A guest redeemed its token.
pub(crate) fn redeemed(record: &SandboxRecord) -> Write {
    let version = record.runner_version.as_deref().unwrap_or("?");
    let message = format!("Guest of {} redeemed its token, runner {version}", record.vmid);
    let data = json!({"vmid": record.vmid, "channel": record.channel, "runner_version": version});
    event(EventKind::SandboxRedeemed, record, message, data)
}

/// A guest was given secrets: which, and of which state of the bundle.
pub(crate) fn secrets_delivered(record: &SandboxRecord, delivery: &Delivery) -> Write {
    let message = format!(
        "Sandbox {} was given {} of secrets bundle {}",
        record.vmid,
        delivery.names.join(", "),
        delivery.bundle
    );
    let data = json!({
        "vmid": record.vmid, "profile": record.profile.name, "bundle": delivery.bundle,
        "fingerprint": delivery.fingerprint, "names": delivery.names,
    });
    event(EventKind::SecretsDelivered, record, message, data)
}

/// The lease is about to end.
pub(crate) fn lease_expiring(record: &SandboxRecord, left: Duration) -> Write {
    let message = format!("Lease of sandbox {} ends in {} s", record.vmid, left.as_secs());
    event(
        EventKind::LeaseExpiring,
        record,
        message,
        json!({"vmid": record.vmid, "seconds": left.as_secs()}),
    )
}

/// What became of a workspace, at a sandbox of it or without.
pub(crate) fn workspace(workspace: &WorkspaceRecord, at: Option<&SandboxRecord>, what: &str) -> Write {
    Write::Event(NewEvent {
        kind: EventKind::Workspace,
        sandbox: at.map(|record| record.id),
        job: at.and_then(|record| record.job.clone()),
        message: format!("Workspace {} {what}", workspace.name),
        data: json!({"workspace": workspace.id, "name": workspace.name, "size_gb": workspace.size_gb}),
    })
}

/// Nobody uses a sandbox any more.
pub(crate) fn unused(record: &SandboxRecord, window: Duration) -> Write {
    let minutes = window.as_secs() / 60;
    let message = format!(
        "Nobody uses sandbox {}; it is stopped when that has been so for {minutes} min",
        record.vmid
    );
    let data = json!({"vmid": record.vmid, "idle": record.idle, "minutes": minutes});
    event(EventKind::SandboxIdle, record, message, data)
}

/// Somebody does again.
pub(crate) fn used_again(record: &SandboxRecord) -> Write {
    let message = format!("Sandbox {} is used again", record.vmid);
    event(
        EventKind::SandboxIdle,
        record,
        message,
        json!({"vmid": record.vmid}),
    )
}

/// It is stopped for that.
pub(crate) fn idle_stopped(record: &SandboxRecord, spent: Duration) -> Write {
    let minutes = spent.as_secs() / 60;
    let message = format!(
        "Nobody has used sandbox {} for {minutes} min: it is stopped, with its disk; `agentlab sandbox start {}` goes on",
        record.vmid, record.vmid
    );
    let data = json!({"vmid": record.vmid, "idle_for_minutes": minutes, "stopped": true});
    event(EventKind::SandboxIdle, record, message, data)
}

/// The lease begins anew.
pub(crate) fn lease_renewed(record: &SandboxRecord, minutes: u32) -> Write {
    let message = format!("Lease of sandbox {} is {minutes} min from now on", record.vmid);
    event(
        EventKind::LeaseRenewed,
        record,
        message,
        json!({"vmid": record.vmid, "minutes": minutes, "expires_at": record.lease_expires_at}),
    )
}

/// Something an operator should look at.
pub(crate) fn alarm(record: &SandboxRecord, message: String) -> Write {
    event(EventKind::Alarm, record, message, json!({"vmid": record.vmid}))
}

/// The same, of no sandbox of ours.
pub(crate) fn host_alarm(message: String) -> Write {
    Write::Event(NewEvent {
        kind: EventKind::Alarm,
        sandbox: None,
        job: None,
        message,
        data: Value::Null,
    })
}

/// A guest was refused something by the packet policy.
pub(crate) fn network_denied(record: &SandboxRecord, denied: &Denied) -> Write {
    let Denied {
        vmid,
        target,
        rule,
        hint,
        count,
    } = denied;
    let others = match count {
        0 | 1 => String::new(),
        count => format!(" ({count} refusals since the last of these)"),
    };
    let message = format!("Sandbox {vmid} was refused {target}: {hint}{others}");
    let data = json!({"vmid": vmid, "target": target, "rule": rule, "hint": hint, "count": count});
    event(EventKind::NetworkDenied, record, message, data)
}

/// A job was recorded. `position` is its place in the line, from 1; 0 for one that need not wait.
pub(crate) fn job_queued(job: &JobRecord, position: usize) -> Write {
    let mut message = format!("Job {} is queued with profile {}", job.id, job.profile);
    if position > 0 {
        message += &format!(", in place {position}");
    }
    of_job(
        EventKind::JobQueued,
        job,
        message,
        json!({"profile": job.profile, "vmid": job.vmid, "queue_position": (position > 0).then_some(position)}),
    )
}

/// A guest began a job.
pub(crate) fn job_started(job: &JobRecord) -> Write {
    let message = format!("Job {} is running", job.id);
    of_job(
        EventKind::JobStarted,
        job,
        message,
        json!({"channel": job.channel, "vmid": job.vmid}),
    )
}

/// The guest does something else now. The text is the guest's, cleaned and cut.
pub(crate) fn job_progress(job: &JobRecord, phase: &str, said: &str) -> Write {
    let message = if said.is_empty() {
        format!("Phase {phase}")
    } else {
        format!("Phase {phase}: {said}")
    };
    of_job(
        EventKind::JobProgress,
        job,
        message,
        json!({"phase": phase, "message": said}),
    )
}

/// A guest's machine, or its agent, is in trouble or out of it again, by the guest's own word.
pub(crate) fn trouble(record: &SandboxRecord, sign: Sign, vitals: &Vitals) -> Write {
    let mib = |bytes: u64| bytes >> 20;
    let (word, message) = match sign {
        Sign::OutOfMemory => (
            "out_of_memory",
            format!(
                "The guest of {} killed processes for want of memory; {} of {} MiB are available",
                record.vmid,
                mib(vitals.memory_available_bytes),
                mib(vitals.memory_total_bytes)
            ),
        ),
        Sign::DiskLow => (
            "disk_low",
            format!(
                "The disk of {} is nearly full: {} of {} MiB are free",
                record.vmid,
                mib(vitals.disk_free_bytes),
                mib(vitals.disk_total_bytes)
            ),
        ),
        Sign::Stuck => (
            "stuck",
            format!(
                "The agent in {} has neither printed nor computed anything for {} s",
                record.vmid, vitals.quiet_seconds
            ),
        ),
        Sign::MovesAgain => ("moves_again", format!("The agent in {} moves again", record.vmid)),
    };
    let data = json!({"vmid": record.vmid, "sign": word, "vitals": vitals});
    event(EventKind::SandboxTrouble, record, message, data)
}

/// A job is final.
pub(crate) fn job_finished(job: &JobRecord) -> Write {
    let exit_code = job.outcome.as_ref().and_then(|outcome| outcome.exit_code);
    let message = match (&job.failure, job.state) {
        (Some(failure), state) => format!("Job {} is {state}: {}", job.id, failure.message),
        (None, JobState::Completed) => {
            let commits = job.outcome.as_ref().map_or(0, |outcome| outcome.commits);
            let noun = if commits == 1 { "commit" } else { "commits" };
            format!("Job {} is COMPLETED with {commits} {noun}", job.id)
        }
        (None, state) => format!("Job {} is {state}", job.id),
    };
    let data = json!({
        "state": job.state, "exit_code": exit_code, "outcome": job.outcome, "failure": job.failure,
    });
    of_job(EventKind::JobFinished, job, message, data)
}

/// A file arrived.
pub(crate) fn artifact_stored(record: &SandboxRecord, name: &str, size_bytes: u64, sha256: &str) -> Write {
    let message = format!("Artifact {name} arrived, {size_bytes} bytes");
    let data = json!({"name": name, "size_bytes": size_bytes, "sha256": sha256});
    event(EventKind::ArtifactStored, record, message, data)
}
