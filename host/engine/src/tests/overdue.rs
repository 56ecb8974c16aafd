//! What took too long, and whose time it was: the host's before the guest begins, the guest's afterwards.

use std::time::Duration;

use agentlab_api::{ErrorCode, EventKind, Failure, JobState, JobView, SandboxState};
use agentlab_backend::BackendError;
use agentlab_backend::fake::Call;

use super::lab::{Lab, vmid};

/// The cause, in the words of everything that an operator can ask.
async fn told_everywhere(lab: &Lab, job: &JobView) -> Failure {
    let shown = lab
        .until_sandbox(job, SandboxState::Failed)
        .await
        .failure
        .unwrap();
    let ended = lab.until_job(job, JobState::Failed).await.failure.unwrap();
    assert_eq!(shown, ended);
    let events = lab.events(job).await;
    let failed = events
        .iter()
        .find(|event| {
            event.kind == EventKind::SandboxState && event.data["failure"] != serde_json::Value::Null
        })
        .unwrap();
    let told: Failure = serde_json::from_value(failed.data["failure"].clone()).unwrap();
    assert_eq!(shown, told);
    assert!(failed.message.contains(shown.code.as_str()), "{failed:?}");
    lab.assert_empty().await;
    shown
}

#[tokio::test(start_paused = true)]
async fn a_step_before_the_guest_begins_that_takes_too_long_is_a_provisioning_timeout() {
    let late = || BackendError::TimedOut {
        action: "clone",
        vmid: vmid(1000),
        seconds: 120,
    };
    // The back end says nothing for too long, or says itself that a task of its does not end.
    for hangs in [true, false] {
        let lab = Lab::new().await;
        let hang = hangs.then(|| lab.backend.hang_next(Call::CloneTemplate));
        for _ in 0..3 {
            lab.backend.fail_next(Call::CloneTemplate, late());
        }
        let job = lab.run().await;
        let cause = told_everywhere(&lab, &job).await;
        assert_eq!(
            (cause.code, cause.stage.as_str()),
            (ErrorCode::ProvisioningTimeout, "Clone")
        );
        assert!(cause.message.contains("did not end within"), "{cause}");
        assert!(cause.hint.unwrap().contains("`provisioning_timeout`"));
        drop(hang);
    }
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_takes_too_long_is_silent_and_no_provisioning_timeout() {
    let lab = Lab::with(|settings| settings.provisioning_timeout = Duration::from_secs(10)).await;
    let job = lab.run().await;
    let cause = told_everywhere(&lab, &job).await;
    assert_eq!(
        (cause.code, cause.stage.as_str()),
        (ErrorCode::GuestSilent, "AwaitGuest")
    );
    assert!(cause.message.contains("within 60 s of power-on"), "{cause}");
    assert!(cause.hint.unwrap().contains("`boot_timeout`"));
}
