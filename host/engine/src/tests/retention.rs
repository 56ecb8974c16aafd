//! What is let go, and what never.

use std::time::Duration;

use agentlab_api::{JobState, JobView, SandboxState};
use agentlab_protocol::message::ReportStatus;

use super::lab::{Lab, request};
use crate::{GuestRefusal, Tunable};

/// Everything that has ended is old.
fn forget_at_once(lab: &Lab) {
    lab.engine().tune(Tunable {
        retention: Duration::ZERO,
        ..(*lab.engine().tunable()).clone()
    });
}

#[tokio::test]
async fn a_job_that_ended_long_ago_leaves_neither_record_nor_file() {
    let lab = Lab::new().await;
    let (old, young) = (lab.run().await, lab.run().await);
    for job in [&old, &young] {
        let guest = lab.running(job).await;
        guest.upload(&lab, "files/a", b"of both").await.unwrap();
        if job == &old {
            guest.upload(&lab, "files/b", b"of one alone").await.unwrap();
        }
    }
    let stored = async |bytes: &[u8]| {
        let sha256 = hex::encode(agentlab_protocol::session::sha256(bytes));
        lab.store.files().open_artifact(&sha256).await.unwrap().is_some()
    };
    lab.guest(&old)
        .await
        .clone()
        .redeem(&lab)
        .await
        .expect_err("its token is used up");
    lab.engine()
        .destroy_sandbox(&old.sandbox.unwrap().to_string(), false)
        .await
        .unwrap();
    lab.until_sandbox(&old, SandboxState::Destroyed).await;

    let shared = &lab.engine().shared;
    crate::retention::round(shared).await.unwrap();
    assert_eq!(lab.job(&old.id).await.state, JobState::Cancelled, "young yet");

    forget_at_once(&lab);
    crate::retention::round(shared).await.unwrap();
    assert!(lab.engine().job(&old.id).await.is_err());
    assert!(lab.store.sandbox(old.sandbox.unwrap()).await.unwrap().is_none());
    assert!(stored(b"of both").await && !stored(b"of one alone").await);
    // The other goes on as if nothing had been.
    assert_eq!(lab.engine().job_artifacts(&young.id).await.unwrap().len(), 1);
    let session = lab.guest(&young).await;
    assert_eq!(lab.sandbox(&young).await.state, SandboxState::Running);
    drop(session);
}

#[tokio::test]
async fn a_key_is_remembered_for_a_day_and_its_job_for_longer() {
    let lab = Lab::new().await;
    let key = || Some("k".to_owned());
    let first = lab.engine().create_job(request(), key()).await.unwrap();
    crate::retention::round(&lab.engine().shared).await.unwrap();
    let again = lab.engine().create_job(request(), key()).await.unwrap();
    assert_eq!(first.id, again.id);
}

#[tokio::test]
async fn a_kept_sandbox_outlives_the_record_of_its_job() {
    let lab = Lab::new().await;
    let kept = agentlab_api::JobRequest {
        keepalive: Some(true),
        ..request()
    };
    let job = lab.create(kept).await;
    let guest = lab.running(&job).await;
    guest
        .report(&lab, &job, ReportStatus::Completed, Some(0))
        .await
        .unwrap();
    lab.until_sandbox(&job, SandboxState::Ready).await;
    forget_at_once(&lab);
    crate::retention::round(&lab.engine().shared).await.unwrap();
    assert!(lab.engine().job(&job.id).await.is_err());
    assert_eq!(lab.sandbox(&job).await.state, SandboxState::Ready);
    lab.engine().destroy_sandbox("1000", false).await.unwrap();
    lab.until_sandbox(&job, SandboxState::Destroyed).await;
    lab.assert_empty().await;
}

#[tokio::test]
async fn a_dry_run_names_what_a_prune_takes() {
    let lab = Lab::new().await;
    let old = lab.run().await;
    let guest = lab.running(&old).await;
    guest.upload(&lab, "files/a", b"bytes").await.unwrap();
    lab.engine()
        .destroy_sandbox(&old.sandbox.unwrap().to_string(), false)
        .await
        .unwrap();
    lab.until_sandbox(&old, SandboxState::Destroyed).await;
    let prune = |dry_run| lab.engine().prune_jobs(agentlab_api::JobPruneRequest { dry_run });
    assert_eq!(prune(false).await.unwrap().count, 0, "young yet");

    forget_at_once(&lab);
    for dry_run in [true, true, false] {
        let view = prune(dry_run).await.unwrap();
        assert_eq!((view.dry_run, view.count, view.size_bytes), (dry_run, 1, 5));
        assert_eq!(view.jobs[0].id, old.id);
        assert_eq!(lab.engine().job(&old.id).await.is_ok(), dry_run);
    }
    assert_eq!(prune(false).await.unwrap().count, 0);
}

const ANNOUNCED: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

/// Sends a part of a file, which is all that ever comes over this connection.
async fn break_off(lab: &Lab, job: &JobView) {
    let files = lab.store.files();
    let hold = files.hold(ANNOUNCED).unwrap();
    let mut incoming = files
        .continue_artifact(&hold, (&job.id, "files/a"), 0, 100)
        .await
        .unwrap();
    incoming.write(b"a part").await.unwrap();
    incoming.keep().await;
}

async fn has_part(lab: &Lab, job: &JobView) -> bool {
    let kept = lab.store.files().kept_of_artifact(&job.id, "files/a", ANNOUNCED);
    kept.await.unwrap() > 0
}

#[tokio::test]
async fn what_broke_off_waits_for_an_hour_and_for_no_longer_than_its_job() {
    let mut lab = Lab::new().await;
    let job = lab.run().await;
    let guest = lab.running(&job).await;
    break_off(&lab, &job).await;
    let in_minutes = async |minutes: i64| {
        let now = jiff::Timestamp::now() + jiff::SignedDuration::from_mins(minutes);
        crate::retention::interrupted(&lab.engine().shared, now)
            .await
            .unwrap()
    };
    assert_eq!((in_minutes(58).await, has_part(&lab, &job).await), (0, true));
    assert_eq!((in_minutes(62).await, has_part(&lab, &job).await), (1, false));

    break_off(&lab, &job).await;
    lab.restart().await;
    assert!(
        has_part(&lab, &job).await,
        "a daemon that begins does not end a job"
    );
    guest
        .report(&lab, &job, ReportStatus::Completed, Some(0))
        .await
        .unwrap();
    lab.until_sandbox(&job, SandboxState::Destroyed).await;
    while has_part(&lab, &job).await {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn what_broke_off_gives_way_where_the_disk_is_too_full() {
    let mut lab = Lab::new().await;
    let job = lab.run().await;
    let guest = lab.running(&job).await;
    break_off(&lab, &job).await;
    lab.stop().await;
    lab.settings.artifact_disk_floor = u64::MAX;
    lab.start().await;
    assert!(has_part(&lab, &job).await);
    let refused = guest.upload(&lab, "files/b", b"bytes").await;
    assert!(
        matches!(refused, Err(GuestRefusal::Unavailable(_))),
        "{refused:?}"
    );
    assert!(!has_part(&lab, &job).await);
}
