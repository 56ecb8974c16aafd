use std::time::Duration;

use agentlab_api::{JobState, SandboxState};
use agentlab_backend::fake::Call;
use agentlab_backend::{BackendError, Machine, Power};
use agentlab_protocol::message::{Phase, ReportStatus};

use super::lab::{Lab, vmid};
use crate::port::Trust;

#[tokio::test]
async fn a_restart_in_the_midst_of_any_step_ends_in_the_same_place() {
    for call in [
        Call::CloneTemplate,
        Call::Configure,
        Call::PlaceSeed,
        Call::PowerOn,
    ] {
        let mut lab = Lab::new().await;
        let hang = lab.backend.hang_next(call);
        let job = lab.run().await;
        hang.reached().await;
        lab.stop().await;
        drop(hang);
        lab.start().await;
        let guest = lab.running(&job).await;
        assert_eq!(lab.backend.power_ons(vmid(1000)), 1, "{call:?}");
        guest
            .report(&lab, &job, ReportStatus::Completed, Some(0))
            .await
            .unwrap();
        lab.until_sandbox(&job, SandboxState::Destroyed).await;
        lab.assert_empty().await;
    }
}

#[tokio::test]
async fn a_machine_that_was_powered_on_unseen_is_not_given_another_seed() {
    let mut lab = Lab::with(|settings| settings.teardown_retry_first = Duration::from_secs(60)).await;
    let lost = BackendError::Unreachable {
        backend: "fake",
        action: "power_on",
        reason: "cut".into(),
    };
    lab.backend.lose_answer(Call::PowerOn, lost);
    let job = lab.run().await;
    lab.until("it runs", || {
        lab.backend.power(vmid(1000)) == Some(Power::Running)
    })
    .await;
    let mut guest = lab.guest(&job).await;
    lab.settings.teardown_retry_first = Duration::from_millis(20);
    lab.restart().await;
    lab.until_sandbox(&job, SandboxState::Booting).await;
    assert_eq!(lab.backend.power_ons(vmid(1000)), 1);
    guest.redeem(&lab).await.unwrap();
}

#[tokio::test]
async fn a_running_job_survives_a_restart_with_the_same_session() {
    let mut lab = Lab::new().await;
    let job = lab.run().await;
    let guest = lab.running(&job).await;
    guest.beat(&lab, Phase::Agent).await.unwrap();
    lab.stop().await;
    assert_eq!(
        lab.backend.power(vmid(1000)),
        Some(Power::Running),
        "stopping the daemon stops no machine"
    );
    lab.wires.forget(vmid(1000));
    lab.start().await;
    assert!(!guest.beat(&lab, Phase::Agent).await.unwrap());
    lab.until("trusted as before", || {
        lab.wires.trust(vmid(1000)) == Some(Trust::Nat)
    })
    .await;
    guest.upload(&lab, "work.bundle", b"x").await.unwrap();
    guest
        .report(&lab, &job, ReportStatus::Completed, Some(0))
        .await
        .unwrap();
    assert_eq!(lab.job(&job.id).await.state, JobState::Completed);
    lab.until_sandbox(&job, SandboxState::Destroyed).await;
    lab.assert_empty().await;
}

#[tokio::test(start_paused = true)]
async fn a_start_under_a_stamp_that_cannot_be_read_is_given_up_when_a_boot_would_be() {
    let mut lab = Lab::new().await;
    let hang = lab.backend.hang_next(Call::PowerOn);
    let job = lab.run().await;
    hang.reached().await;
    lab.stop().await;
    drop(hang);
    let theirs = Machine {
        vmid: vmid(1000),
        name: "theirs".into(),
        power: Power::Running,
        stamp: None,
    };
    lab.backend.plant(theirs);
    lab.start().await;
    tokio::time::sleep(lab.settings.boot_timeout / 2).await;
    assert_eq!(
        lab.job(&job.id).await.state,
        JobState::Queued,
        "it may still be told"
    );
    let failed = lab.until_sandbox(&job, SandboxState::Failed).await;
    let failure = failed.failure.unwrap();
    assert!(failure.message.contains("stamp that cannot be read"), "{failure}");
    assert_eq!(lab.job(&job.id).await.state, JobState::Failed);
    assert_eq!(
        lab.backend.power(vmid(1000)),
        Some(Power::Running),
        "it may be anybody's"
    );
}

#[tokio::test]
async fn a_machine_that_died_while_nobody_looked_fails_its_job() {
    let mut lab = Lab::new().await;
    let job = lab.run().await;
    lab.running(&job).await;
    lab.stop().await;
    lab.backend.stop(vmid(1000));
    lab.start().await;
    lab.until_job(&job, JobState::Failed).await;
    lab.until_sandbox(&job, SandboxState::Failed).await;
    lab.assert_empty().await;
}

#[tokio::test]
async fn a_teardown_goes_on_after_a_restart_at_any_undo() {
    for call in [Call::PowerOff, Call::Destroy, Call::RemoveSeed] {
        let mut lab = Lab::new().await;
        let job = lab.run().await;
        let guest = lab.running(&job).await;
        let hang = lab.backend.hang_next(call);
        guest
            .report(&lab, &job, ReportStatus::Completed, Some(0))
            .await
            .unwrap();
        hang.reached().await;
        lab.stop().await;
        drop(hang);
        lab.start().await;
        lab.until_sandbox(&job, SandboxState::Destroyed).await;
        assert_eq!(lab.job(&job.id).await.state, JobState::Completed);
        lab.assert_empty().await;
    }
}

#[tokio::test]
async fn a_failure_is_still_undone_and_still_told_after_a_restart() {
    let mut lab = Lab::new().await;
    let refused = BackendError::Refused {
        action: "configure",
        vmid: vmid(1000),
        reason: "no".into(),
        hint: None,
    };
    lab.backend.fail_next(Call::Configure, refused);
    let hang = lab.backend.hang_next(Call::Destroy);
    let job = lab.run().await;
    hang.reached().await;
    lab.stop().await;
    drop(hang);
    lab.start().await;
    let failed = lab.until_sandbox(&job, SandboxState::Failed).await;
    assert_eq!(failed.failure.unwrap().stage, "Configure");
    lab.assert_empty().await;
    lab.restart().await;
    lab.engine()
        .destroy_sandbox(&job.sandbox.unwrap().to_string(), false)
        .await
        .unwrap();
    lab.until_sandbox(&job, SandboxState::Destroyed).await;
}

#[tokio::test]
async fn a_hypervisor_that_is_down_at_start_is_asked_again_and_nothing_is_concluded_meanwhile() {
    let mut lab = Lab::new().await;
    let job = lab.run().await;
    let guest = lab.running(&job).await;
    lab.stop().await;
    lab.backend.set_unreachable(Some("still booting"));
    lab.start().await;
    let refused = guest.beat(&lab, Phase::Agent).await.unwrap_err();
    assert!(
        matches!(refused, crate::GuestRefusal::Unavailable(_)),
        "a guest tries again, it does not give up"
    );
    assert!(
        lab.engine()
            .create_job(super::lab::request(), None)
            .await
            .is_err()
    );
    lab.backend.set_unreachable(None);
    lab.until("taken up", || lab.engine().is_settled()).await;
    assert!(guest.beat(&lab, Phase::Agent).await.is_ok());
    assert_eq!(lab.job(&job.id).await.state, JobState::Running);
}

#[tokio::test]
async fn a_cancelled_job_is_still_cancelled_after_a_restart() {
    let mut lab = Lab::new().await;
    let job = lab.run().await;
    let guest = lab.running(&job).await;
    lab.engine().cancel_job(&job.id).await.unwrap();
    lab.restart().await;
    assert!(guest.beat(&lab, Phase::Agent).await.unwrap());
    guest
        .report(&lab, &job, ReportStatus::Failed, Some(143))
        .await
        .unwrap();
    assert_eq!(lab.job(&job.id).await.state, JobState::Cancelled);
}

#[tokio::test]
async fn a_daemon_that_dies_at_any_moment_leaves_nothing_in_the_end() {
    let mut lab = Lab::new().await;
    for milliseconds in [0, 1, 2, 3, 5, 8, 13, 21, 34, 55] {
        let job = lab.run().await;
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        lab.restart().await;
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        lab.engine()
            .destroy_sandbox(&job.sandbox.unwrap().to_string(), false)
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        lab.restart().await;
        lab.until_sandbox(&job, SandboxState::Destroyed).await;
        assert_eq!(lab.job(&job.id).await.state, JobState::Cancelled);
        lab.assert_empty().await;
    }
}

#[tokio::test]
async fn a_job_that_nobody_ended_does_not_look_alive_forever() {
    let mut lab = Lab::new().await;
    let job = lab.run().await;
    lab.engine().destroy_sandbox("1000", false).await.unwrap();
    lab.until_sandbox(&job, SandboxState::Destroyed).await;
    lab.stop().await;
    let mut record = lab.store.job(&job.id).await.unwrap().unwrap();
    record.state = JobState::Running;
    lab.store
        .commit(vec![agentlab_store::Write::Job(Box::new(record))])
        .await
        .unwrap();
    lab.start().await;
    let lost = lab.until_job(&job, JobState::Failed).await;
    assert_eq!(lost.failure.unwrap().stage, "Recovery");
}
