//! A guest that falls silent or goes on, and a machine that stops or vanishes.

use std::time::Duration;

use agentlab_api::{ErrorCode, JobRequest, JobState, SandboxState};
use agentlab_backend::Power;
use agentlab_backend::fake::Call;
use agentlab_protocol::message::Phase;
use tokio::time::Instant;

use super::lab::{Lab, request, vmid};
use crate::port::Trust;

#[tokio::test(start_paused = true)]
async fn a_guest_that_falls_silent_is_given_up() {
    let lab = Lab::with(|settings| settings.heartbeat_silence = Duration::from_secs(10)).await;
    let job = lab.run().await;
    lab.running(&job).await;
    let failed = lab.until_job(&job, JobState::Failed).await;
    let failure = failed.failure.unwrap();
    assert_eq!(failure.code, ErrorCode::SandboxLost);
    assert!(failure.message.contains("silent"));
    lab.until_sandbox(&job, SandboxState::Failed).await;
    lab.assert_empty().await;
}

#[tokio::test(start_paused = true)]
async fn the_host_ends_a_job_its_guest_will_not_end() {
    let lab = Lab::with(|settings| {
        settings.host_deadline_slack = Duration::ZERO;
        settings.kill_grace = Duration::ZERO;
    })
    .await;
    let job = lab
        .create(JobRequest {
            deadline_seconds: Some(10),
            ..request()
        })
        .await;
    lab.running(&job).await;
    let ended = lab.until_job(&job, JobState::Timeout).await;
    assert_eq!(ended.failure.unwrap().code, ErrorCode::AgentTimeout);
    lab.until_sandbox(&job, SandboxState::Destroyed).await;
    lab.assert_empty().await;
}

#[tokio::test]
async fn the_host_ends_a_cancelled_job_whose_guest_goes_on() {
    let lab = Lab::new().await;
    let job = lab.run().await;
    lab.running(&job).await;
    lab.engine().cancel_job(&job.id).await.unwrap();
    assert_eq!(
        lab.job(&job.id).await.state,
        JobState::Running,
        "the guest is asked first"
    );
    tokio::time::pause();
    tokio::time::advance(lab.settings.kill_grace + Duration::from_secs(31)).await;
    tokio::time::resume();
    let ended = lab.until_job(&job, JobState::Cancelled).await;
    assert!(ended.failure.unwrap().message.contains("the host"));
    lab.until_sandbox(&job, SandboxState::Destroyed).await;
    lab.assert_empty().await;
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_is_asked_to_end_may_hand_over_its_work_for_as_long_as_that_takes() {
    let lab = Lab::with(|settings| settings.heartbeat_silence = Duration::from_secs(3600)).await;
    let job = lab.run().await;
    let guest = lab.running(&job).await;
    lab.engine().cancel_job(&job.id).await.unwrap();
    assert!(guest.beat(&lab, Phase::Upload).await.unwrap());
    let asked = Instant::now();
    tokio::time::sleep(lab.settings.kill_grace + Duration::from_secs(60)).await;
    assert_eq!(
        lab.job(&job.id).await.state,
        JobState::Running,
        "its work still comes"
    );
    // It is not waited for without end.
    let ended = lab.until_job(&job, JobState::Cancelled).await;
    assert!(ended.failure.unwrap().message.contains("the host"));
    assert!(asked.elapsed() > Duration::from_secs(150));
    lab.until_sandbox(&job, SandboxState::Destroyed).await;
    lab.assert_empty().await;
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_is_asked_to_end_a_second_time_keeps_the_time_for_its_work() {
    let lab = Lab::with(|settings| settings.heartbeat_silence = Duration::from_secs(3600)).await;
    let short = JobRequest {
        ttl_minutes: Some(1),
        ..request()
    };
    let job = lab.create(short).await;
    let guest = lab.running(&job).await;
    while !guest.beat(&lab, Phase::Upload).await.unwrap() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    // Its lease is over. Its operator is told nothing of that yet, and asks too.
    tokio::time::sleep(Duration::from_secs(5)).await;
    lab.engine().cancel_job(&job.id).await.unwrap();
    tokio::time::sleep(lab.settings.kill_grace + Duration::from_secs(60)).await;
    assert_eq!(
        lab.job(&job.id).await.state,
        JobState::Running,
        "its work still comes"
    );
    lab.until_sandbox(&job, SandboxState::Destroyed).await;
    lab.assert_empty().await;
}

#[tokio::test]
async fn a_machine_that_stops_while_booting_is_quoted() {
    let lab = Lab::new().await;
    let job = lab.run().await;
    lab.boot(&job).await;
    lab.backend
        .print(vmid(1000), b"Kernel panic - not syncing: no init\x1b[0m\n");
    lab.backend.stop(vmid(1000));
    let failed = lab
        .until_sandbox(&job, SandboxState::Failed)
        .await
        .failure
        .unwrap();
    assert_eq!(
        (failed.stage.as_str(), failed.code),
        ("AwaitGuest", ErrorCode::SandboxLost)
    );
    assert!(failed.message.contains("no init"), "{failed}");
    assert!(!failed.message.contains('\u{1b}'));
    lab.assert_empty().await;
}

#[tokio::test]
async fn a_machine_that_stops_under_its_job_fails_both() {
    let lab = Lab::with(|settings| settings.reconcile_interval = Duration::from_secs(3600)).await;
    let job = lab.run().await;
    lab.running(&job).await;
    lab.backend.stop(vmid(1000));
    assert_eq!(
        lab.until_job(&job, JobState::Failed).await.failure.unwrap().code,
        ErrorCode::SandboxLost
    );
    lab.until_sandbox(&job, SandboxState::Failed).await;
    lab.assert_empty().await;
}

#[tokio::test]
async fn a_failed_sandbox_with_keepalive_keeps_its_machine_sealed() {
    let lab = Lab::with(|settings| settings.heartbeat_silence = Duration::from_millis(150)).await;
    let job = lab
        .create(JobRequest {
            keepalive: Some(true),
            ..request()
        })
        .await;
    lab.running(&job).await;
    lab.until_job(&job, JobState::Failed).await;
    lab.until_sandbox(&job, SandboxState::Failed).await;
    lab.until("sealed", || lab.wires.trust(vmid(1000)) == Some(Trust::Sealed))
        .await;
    assert_eq!(lab.backend.power(vmid(1000)), Some(Power::Running));
    lab.engine().destroy_sandbox("1000", false).await.unwrap();
    lab.until_sandbox(&job, SandboxState::Destroyed).await;
    lab.assert_empty().await;
}

#[tokio::test]
async fn a_machine_that_vanishes_is_noticed_and_an_unknown_answer_concludes_nothing() {
    let lab = Lab::new().await;
    let job = lab.run().await;
    let guest = lab.running(&job).await;
    lab.backend.set_unreachable(Some("cable cut"));
    lab.backend.forget_calls();
    lab.until("several looks", || lab.backend.count(Call::List) >= 3)
        .await;
    assert_eq!(lab.sandbox(&job).await.state, SandboxState::Running);
    assert!(
        guest
            .beat(&lab, agentlab_protocol::message::Phase::Agent)
            .await
            .is_ok()
    );
    lab.backend.set_unreachable(None);
    lab.backend.vanish(vmid(1000));
    assert_eq!(
        lab.until_job(&job, JobState::Failed).await.failure.unwrap().code,
        ErrorCode::SandboxLost
    );
    let gone = lab.until_sandbox(&job, SandboxState::Destroyed).await;
    assert!(gone.failure.unwrap().message.contains("gone"));
    lab.assert_empty().await;
}
