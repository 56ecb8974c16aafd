use agentlab_api::{ErrorCode, EventKind, JobState, SandboxState};

use super::lab::{Lab, request};
use crate::GuestRefusal;

/// A world with one variable in its bundle, and a profile that names it.
async fn lab() -> Lab {
    let mut lab = Lab::stopped().await;
    lab.profile["secrets"] = serde_json::json!(["env.TOKEN"]);
    lab.secrets
        .variables
        .lock()
        .unwrap()
        .insert("TOKEN".into(), "s3cr3t-value".into());
    lab.start().await;
    lab
}

#[tokio::test]
async fn a_repeated_redemption_is_given_the_same_and_told_once_without_the_value() {
    let mut lab = lab().await;
    let job = lab.run().await;
    let mut guest = lab.boot(&job).await;
    for _ in 0..2 {
        let answer = guest.redeem(&lab).await.unwrap();
        assert_eq!(answer.environment["TOKEN"].expose(), "s3cr3t-value");
        lab.restart().await;
    }
    let events = lab.events(&job).await;
    let told: Vec<_> = events
        .iter()
        .filter(|event| event.kind == EventKind::SecretsDelivered)
        .collect();
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].data["names"], serde_json::json!(["env.TOKEN"]));
    assert!(!format!("{events:?}").contains("s3cr3t-value"));
}

#[tokio::test]
async fn a_job_whose_secrets_are_not_there_is_not_recorded() {
    let lab = lab().await;
    lab.secrets.variables.lock().unwrap().clear();
    let problem = lab.engine().create_job(request(), None).await.unwrap_err();
    assert_eq!(problem.code, ErrorCode::SecretsUnavailable);
    assert_eq!(problem.hint.as_deref(), Some("set it"));
    lab.assert_empty().await;
}

#[tokio::test]
async fn a_guest_whose_secrets_went_away_meanwhile_is_given_nothing_and_taken_down() {
    let lab = lab().await;
    let job = lab.run().await;
    let mut guest = lab.boot(&job).await;
    lab.secrets.variables.lock().unwrap().clear();
    assert_eq!(guest.redeem(&lab).await.unwrap_err(), GuestRefusal::Unauthorized);
    let ended = lab.until_job(&job, JobState::Failed).await;
    let cause = ended.failure.unwrap();
    assert_eq!(cause.code, ErrorCode::SecretsUnavailable);
    assert!(cause.message.contains("env.TOKEN"), "{}", cause.message);
    lab.until_sandbox(&job, SandboxState::Failed).await;
    // It comes back too late.
    lab.secrets
        .variables
        .lock()
        .unwrap()
        .insert("TOKEN".into(), "s3cr3t-value".into());
    assert_eq!(guest.redeem(&lab).await.unwrap_err(), GuestRefusal::Unauthorized);
    lab.assert_empty().await;
}
