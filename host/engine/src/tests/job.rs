use std::time::Duration;

use agentlab_api::{
    ErrorCode, EventKind, JobRequest, JobState, JobView, RepositorySource, SandboxState, SandboxView,
};
use agentlab_protocol::message::{LogBatch, LogPiece, Order, Phase, ReportStatus, Stream};

use super::lab::{Lab, request, vmid};
use crate::port::Trust;

#[tokio::test]
async fn a_job_runs_and_leaves_its_work_and_nothing_else() {
    let lab = Lab::new().await;
    let job = lab.run().await;
    assert_eq!((job.state, job.vmid), (JobState::Queued, Some(vmid(1000))));
    let mut guest = lab.boot(&job).await;
    assert_eq!(lab.wires.trust(vmid(1000)), Some(Trust::BootstrapOnly));
    assert!(lab.backend.holds_tap(vmid(1000)));
    let answer = guest.redeem(&lab).await.unwrap();
    assert!(matches!(answer.order, Order::Job(order) if order.job == job.id.as_str()));
    assert_eq!(
        lab.wires.trust(vmid(1000)),
        Some(Trust::Nat),
        "before the guest has its answer"
    );
    guest.acknowledge(&lab).await;
    assert!(!guest.beat(&lab, Phase::Agent).await.unwrap());
    let session = guest.authenticate(&lab).await.unwrap();
    let piece = |text: &str| LogPiece {
        stream: Stream::Stdout,
        text: text.into(),
    };
    let batch = LogBatch {
        first: 0,
        pieces: vec![piece("one\n"), piece("two\n")],
    };
    lab.engine().guest_logs(&session, batch.clone()).await.unwrap();
    lab.engine().guest_logs(&session, batch).await.unwrap();
    let overlap = LogBatch {
        first: 1,
        pieces: vec![piece("two\n"), piece("three\n")],
    };
    lab.engine().guest_logs(&session, overlap).await.unwrap();
    guest.upload(&lab, "work.bundle", b"bundle").await.unwrap();
    guest
        .report(&lab, &job, ReportStatus::Completed, Some(0))
        .await
        .unwrap();

    let done = lab.job(&job.id).await;
    assert_eq!(
        done.state,
        JobState::Completed,
        "final as soon as the report is taken"
    );
    assert_eq!(done.outcome.unwrap().commits, 1);
    lab.until_sandbox(&job, SandboxState::Destroyed).await;
    lab.assert_empty().await;

    let log = lab.store.files().read_log(&job.id, 0, 100).await.unwrap();
    let texts: Vec<&str> = log.iter().map(|record| record.text.as_str()).collect();
    assert_eq!(texts, ["one\n", "two\n", "three\n"]);
    let (view, _) = lab.engine().open_artifact(&job.id, "work.bundle").await.unwrap();
    assert_eq!(view.size_bytes, 6);
    assert_eq!(
        lab.wires.history(vmid(1000)),
        [Trust::Sealed, Trust::BootstrapOnly, Trust::Nat, Trust::Sealed],
        "sealed first, sealed last"
    );
    assert_steps(&lab, &job).await;
}

/// Each step once, in order, with its undo in the order in which things may be taken away.
async fn assert_steps(lab: &Lab, job: &JobView) {
    let steps: Vec<String> = lab
        .events(job)
        .await
        .iter()
        .filter(|event| event.kind == EventKind::SandboxStep)
        .map(|event| {
            format!(
                "{} {}",
                event.data["step"].as_str().unwrap(),
                event.data["outcome"].as_str().unwrap()
            )
        })
        .collect();
    let made = [
        "Reserve",
        "Clone",
        "Configure",
        "AttachWorkspace",
        "BindNetwork",
        "IssueToken",
        "Seed",
        "PowerOn",
    ];
    let undone = ["PowerOn", "Clone", "BindNetwork", "IssueToken", "Seed"];
    let expected: Vec<String> = made
        .iter()
        .chain(["AwaitGuest"].iter())
        .map(|step| format!("{step} done"))
        .chain(undone.iter().map(|step| format!("{step} undone")))
        .collect();
    assert_eq!(steps, expected);
}

#[tokio::test]
async fn the_serial_channel_is_served_again_whenever_it_ends() {
    let lab = Lab::new().await;
    let job = lab.run().await;
    let first = tokio::time::timeout(
        Duration::from_secs(60),
        lab.backend.next_guest_channel(vmid(1000)),
    )
    .await;
    drop(first.unwrap());
    let second = tokio::time::timeout(
        Duration::from_secs(60),
        lab.backend.next_guest_channel(vmid(1000)),
    )
    .await;
    second.unwrap();
    lab.until("served twice", || lab.door.served().len() == 2).await;
    assert_eq!(lab.door.served(), [job.sandbox.unwrap(); 2]);
}

#[tokio::test]
async fn an_agent_that_fails_keeps_its_code_and_its_files() {
    let lab = Lab::new().await;
    let job = lab.run().await;
    let guest = lab.running(&job).await;
    guest.upload(&lab, "files/log", b"x").await.unwrap();
    guest
        .report(&lab, &job, ReportStatus::Failed, Some(7))
        .await
        .unwrap();
    let done = lab.until_job(&job, JobState::Failed).await;
    assert_eq!(done.outcome.unwrap().exit_code, Some(7));
    assert_eq!(done.failure.unwrap().code, ErrorCode::AgentFailed);
    assert_eq!(lab.engine().job_artifacts(&job.id).await.unwrap().len(), 1);
    lab.until_sandbox(&job, SandboxState::Destroyed).await;
    lab.assert_empty().await;
}

#[tokio::test(start_paused = true)]
async fn a_job_whose_lease_ends_hands_over_what_it_made_before_it_times_out() {
    for restarted in [false, true] {
        let mut lab = Lab::new().await;
        let short = JobRequest {
            ttl_minutes: Some(1),
            ..request()
        };
        let job = lab.create(short).await;
        let guest = lab.running(&job).await;
        while !guest.beat(&lab, Phase::Agent).await.unwrap() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        if restarted {
            lab.stop().await;
            lab.start().await;
            while !guest.beat(&lab, Phase::Agent).await.unwrap() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
        guest.upload(&lab, "files/a", b"bytes").await.unwrap();
        guest
            .report(&lab, &job, ReportStatus::Cancelled, Some(143))
            .await
            .unwrap();
        let done = lab.until_job(&job, JobState::Timeout).await;
        let failure = done.failure.unwrap();
        assert_eq!(
            (failure.code, failure.stage.as_str()),
            (ErrorCode::AgentTimeout, "Lease")
        );
        assert_eq!(done.outcome.unwrap().exit_code, Some(143));
        assert_eq!(lab.engine().job_artifacts(&job.id).await.unwrap().len(), 1);
        lab.until_sandbox(&job, SandboxState::Destroyed).await;
        lab.assert_empty().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_that_outlives_its_job_does_not_outlive_its_lease_for_that() {
    let lab = Lab::new().await;
    let kept = JobRequest {
        ttl_minutes: Some(1),
        keepalive: Some(true),
        ..request()
    };
    let job = lab.create(kept).await;
    let guest = lab.running(&job).await;
    while !guest.beat(&lab, Phase::Agent).await.unwrap() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    guest
        .report(&lab, &job, ReportStatus::Completed, Some(0))
        .await
        .unwrap();
    lab.until_job(&job, JobState::Completed).await;
    lab.until_sandbox(&job, SandboxState::Destroyed).await;
}

#[tokio::test]
async fn keepalive_keeps_the_sandbox_after_its_job_until_somebody_destroys_it() {
    let lab = Lab::new().await;
    let job = lab
        .create(JobRequest {
            keepalive: Some(true),
            ..request()
        })
        .await;
    let guest = lab.running(&job).await;
    guest
        .report(&lab, &job, ReportStatus::Completed, Some(0))
        .await
        .unwrap();
    let kept = lab.until_sandbox(&job, SandboxState::Ready).await;
    assert_eq!(kept.job, None);
    // A report that comes again, or logs that come late, change nothing.
    guest
        .report(&lab, &job, ReportStatus::Failed, Some(1))
        .await
        .unwrap();
    assert_eq!(lab.job(&job.id).await.state, JobState::Completed);
    lab.engine().destroy_sandbox("1000", false).await.unwrap();
    lab.engine().destroy_sandbox("1000", false).await.unwrap();
    lab.until_sandbox(&job, SandboxState::Destroyed).await;
    lab.assert_empty().await;
}

#[tokio::test]
async fn the_same_idempotency_key_makes_one_job() {
    let lab = Lab::new().await;
    let key = || Some("k1".to_owned());
    let (first, second) = tokio::join!(
        lab.engine().create_job(request(), key()),
        lab.engine().create_job(request(), key())
    );
    assert_eq!(first.unwrap().id, second.unwrap().id);
    let other = JobRequest {
        task: "false".into(),
        ..request()
    };
    let problem = lab.engine().create_job(other, key()).await.unwrap_err();
    assert_eq!(problem.code, ErrorCode::IdempotencyConflict);
    assert_eq!(lab.store.sandboxes(true).await.unwrap().len(), 1);
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_before_anything_is_made() {
    let lab = Lab::with(|settings| settings.max_sandboxes = 1).await;
    lab.wires.without(Trust::Nat);
    let unenforced = lab.engine().create_job(request(), None).await.unwrap_err();
    assert_eq!(unenforced.code, ErrorCode::NetworkUnenforced);
    let hint = unenforced.hint.unwrap();
    assert!(
        hint.contains("set `uplink` in config.yaml") && hint.contains("{mode: \"off\"}"),
        "{hint}"
    );
    lab.wires.without(Trust::Allowlist);
    let bundle = RepositorySource::Bundle {
        sha256: "0".repeat(64),
        label: "x".into(),
    };
    let missing = JobRequest {
        repository: bundle,
        ..request()
    };
    assert_eq!(
        lab.engine().create_job(missing, None).await.unwrap_err().code,
        ErrorCode::InvalidValue
    );
    lab.backend.set_unreachable(Some("down"));
    assert_eq!(
        lab.engine().create_job(request(), None).await.unwrap_err().code,
        ErrorCode::BackendUnreachable
    );
    lab.backend.set_unreachable(None);
    lab.backend.remove_template(vmid(9000));
    assert_eq!(
        lab.engine().create_job(request(), None).await.unwrap_err().code,
        ErrorCode::TemplateUnavailable
    );
    assert!(lab.store.sandboxes(true).await.unwrap().is_empty());
}

#[tokio::test]
async fn no_more_sandboxes_exist_than_allowed() {
    let lab = Lab::with(|settings| {
        settings.max_sandboxes = 1;
        settings.max_queued_jobs = 0;
    })
    .await;
    lab.run().await;
    let problem = lab.engine().create_job(request(), None).await.unwrap_err();
    assert_eq!(problem.code, ErrorCode::LimitReached);
}

#[tokio::test]
async fn a_hundred_jobs_at_once_never_share_a_number() {
    let lab = Lab::with(|settings| {
        settings.max_sandboxes = 200;
        settings.max_queued_jobs = 0;
    })
    .await;
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let engine = lab.engine().clone();
        asking.spawn(async move { engine.create_job(request(), None).await.unwrap().vmid.unwrap() });
    }
    let mut vmids = asking.join_all().await;
    vmids.sort();
    vmids.dedup();
    assert_eq!(vmids.len(), 100);
    assert_eq!(
        lab.engine().create_job(request(), None).await.unwrap_err().code,
        ErrorCode::LimitReached
    );
}

#[tokio::test]
async fn cancel_ends_a_queued_job_at_once_and_asks_a_running_one() {
    let lab = Lab::new().await;
    let queued = lab.run().await;
    let ended = lab.engine().cancel_job(&queued.id).await.unwrap();
    assert_eq!(ended.state, JobState::Cancelled);
    lab.until_sandbox(&queued, SandboxState::Destroyed).await;

    let job = lab.run().await;
    let guest = lab.running(&job).await;
    assert!(!guest.beat(&lab, Phase::Agent).await.unwrap());
    lab.engine().cancel_job(&job.id).await.unwrap();
    assert!(
        guest.beat(&lab, Phase::Agent).await.unwrap(),
        "the next heartbeat says so"
    );
    guest
        .report(&lab, &job, ReportStatus::Cancelled, Some(143))
        .await
        .unwrap();
    assert_eq!(lab.job(&job.id).await.state, JobState::Cancelled);
    let again = lab.engine().cancel_job(&job.id).await.unwrap();
    assert_eq!(again.state, JobState::Cancelled);
    lab.until_sandbox(&job, SandboxState::Destroyed).await;
    lab.assert_empty().await;
}

#[tokio::test]
async fn a_list_shows_of_each_sandbox_what_showing_it_does() {
    let lab = Lab::new().await;
    let (running, failed) = (lab.run().await, lab.run().await);
    lab.running(&running).await;
    lab.boot(&failed).await;
    lab.backend.stop(failed.vmid.unwrap());
    lab.until_sandbox(&failed, SandboxState::Failed).await;
    let listed = lab.engine().sandboxes(false, None, None).await.unwrap();
    let listed: Vec<SandboxView> = serde_json::from_str(&listed.sandboxes).unwrap();
    assert_eq!(listed.len(), 2);
    for one in listed {
        assert_eq!(lab.engine().sandbox(&one.id.to_string()).await.unwrap(), one);
    }
}

#[tokio::test]
async fn status_counts_and_names_what_is_wrong() {
    let lab = Lab::new().await;
    lab.run().await;
    let status = lab.engine().status().await.unwrap();
    assert_eq!(status.backend.kind, "fake");
    assert_eq!(status.backend.templates.len(), 1);
    assert_eq!(status.jobs_in(JobState::Queued), 1);
    lab.backend.set_unreachable(Some("cable cut"));
    let status = lab.engine().status().await.unwrap();
    assert!(
        status.alarms.iter().any(|alarm| alarm.contains("cable cut")),
        "{:?}",
        status.alarms
    );
    assert_eq!(status.backend.kind, "fake", "as last seen");
}
