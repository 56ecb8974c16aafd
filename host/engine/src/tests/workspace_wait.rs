//! Waiting for a workspace that somebody has.

use std::time::Duration;

use agentlab_api::{ErrorCode, JobRequest, JobState, SandboxState};
use agentlab_backend::fake::Call;
use agentlab_protocol::message::ReportStatus;
use tokio::time::{Instant, sleep, timeout};

use super::lab::Lab;
use super::workspace::{NAME, PACE, PATIENCE, held, job_on, lab_with_workspace, on, until, wanted};

fn waiting(seconds: u32) -> JobRequest {
    JobRequest {
        workspace_wait_seconds: Some(seconds),
        ..on(NAME)
    }
}

async fn end_of(lab: &Lab, job: &agentlab_api::JobView, guest: &super::lab::Guest) {
    guest
        .report(lab, job, ReportStatus::Completed, Some(0))
        .await
        .unwrap();
    lab.until_job(job, JobState::Completed).await;
}

#[tokio::test]
async fn a_busy_workspace_is_waited_for_and_of_several_that_wait_each_gets_it_in_turn() {
    let lab = lab_with_workspace().await;
    let first = job_on(&lab, NAME).await;
    let guest = lab.running(&first).await;
    let ask = || timeout(PATIENCE, lab.engine().create_job(waiting(100), None));
    let life = async {
        sleep(PACE * 4).await;
        end_of(&lab, &first, &guest).await;
    };
    let (one, ()) = tokio::join!(ask(), life);
    let one = one.unwrap().unwrap();
    let guest = lab.running(&one).await;
    assert_eq!(lab.engine().workspace(NAME).await.unwrap().sandbox, one.sandbox);
    let (other, ()) = tokio::join!(ask(), end_of(&lab, &one, &guest));
    assert_ne!(other.unwrap().unwrap().id, one.id);
}

#[tokio::test]
async fn a_wait_that_ends_in_vain_names_who_has_the_workspace_and_holds_nobody_up() {
    let lab = lab_with_workspace().await;
    let job = job_on(&lab, NAME).await;
    let guest = lab.running(&job).await;
    let holder = lab.record(&job).await.vmid.to_string();
    let before = Instant::now();
    let asked = lab.engine().create_job(waiting(1), None);
    // Others make and change theirs meanwhile.
    let others = async {
        let made = super::workspace::wanted("other");
        lab.engine().create_workspace(made).await.unwrap();
        lab.engine().resize_workspace("other", 2).await.unwrap();
        before.elapsed()
    };
    let (refused, _) = tokio::join!(asked, others);
    let refused = refused.unwrap_err();
    assert_eq!(refused.code, ErrorCode::StateConflict);
    assert!(before.elapsed() >= Duration::from_secs(1));
    let said = format!("{} {}", refused.detail, refused.errors[0].detail);
    assert!(said.contains(&holder) && said.contains(job.id.as_str()), "{said}");
    assert!(said.contains("waited 1 s"), "{said}");
    end_of(&lab, &job, &guest).await;
}

#[tokio::test]
async fn whoever_gives_up_waiting_gets_nothing_later() {
    let lab = lab_with_workspace().await;
    let job = job_on(&lab, NAME).await;
    let guest = lab.running(&job).await;
    let gave_up = timeout(PACE, lab.engine().create_job(waiting(100), None)).await;
    assert!(gave_up.is_err());
    end_of(&lab, &job, &guest).await;
    super::workspace::until_detached(&lab).await;
    assert_eq!(lab.engine().jobs(None, None).await.unwrap().jobs.len(), 1);
}

#[tokio::test]
async fn the_same_key_gives_the_same_job_however_long_somebody_was_ready_to_wait() {
    let lab = lab_with_workspace().await;
    let key = || Some("k".to_owned());
    let job = lab.engine().create_job(waiting(5), key()).await.unwrap();
    let again = lab.engine().create_job(waiting(9), key()).await.unwrap();
    assert_eq!(again.id, job.id);
}

/// Volumes are worked on one after the other: a copy of a large one takes minutes.
#[tokio::test(start_paused = true)]
async fn a_sandbox_waits_with_its_workspace_for_as_long_as_provisioning_may_take() {
    let lab = Lab::with(|settings| settings.provisioning_timeout = Duration::from_secs(600)).await;
    lab.engine().create_workspace(wanted(NAME)).await.unwrap();
    let hang = lab.backend.hang_next(Call::AttachVolume);
    let id = held(&lab, Some(NAME)).await;
    hang.reached().await;
    sleep(Duration::from_secs(300)).await;
    hang.release();
    until(&lab, id, SandboxState::Booting).await;
}
