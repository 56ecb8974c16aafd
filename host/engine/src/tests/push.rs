use agentlab_api::{ErrorCode, JobRequest, JobState, PushOutcome, PushTarget};
use agentlab_protocol::message::{Order, PushOrder, PushResult, Report, ReportStatus};

use super::lab::{Lab, request};

/// A world whose profile lets jobs push, with the token for it.
async fn lab() -> Lab {
    let mut lab = Lab::stopped().await;
    lab.profile["secrets"] = serde_json::json!(["git.token"]);
    lab.profile["behavior"]["push"] = serde_json::json!(["agentlab/*"]);
    lab.start().await;
    lab
}

fn pushing(branch: &str) -> JobRequest {
    JobRequest {
        push: Some(PushTarget {
            branch: branch.into(),
            url: None,
        }),
        ..request()
    }
}

#[tokio::test]
async fn a_guest_is_told_where_to_push_and_what_came_of_it_is_the_jobs() {
    let lab = lab().await;
    let refused = lab.engine().create_job(pushing("main"), None).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::InvalidValue);
    assert_eq!(refused.errors[0].pointer, "/push/branch");

    let job = lab
        .engine()
        .create_job(pushing("agentlab/x"), None)
        .await
        .unwrap();
    let mut guest = lab.boot(&job).await;
    let Order::Job(order) = guest.redeem(&lab).await.unwrap().order else {
        panic!("no job was ordered");
    };
    let wanted = PushOrder {
        url: job.repository.to_string(),
        branch: "agentlab/x".into(),
    };
    assert_eq!(order.push, Some(wanted));
    guest.acknowledge(&lab).await;
    let reason = "[remote rejected] (protected)".to_owned();
    let said = serde_json::json!({"version": 1, "job": job.id, "status": "completed", "exit_code": 0});
    let report = Report {
        status: ReportStatus::Completed,
        push: Some(PushResult::Refused {
            reason: reason.clone(),
        }),
        ..serde_json::from_value(said).unwrap()
    };
    let session = guest.authenticate(&lab).await.unwrap();
    lab.engine().report(&session, report).await.unwrap();
    let ended = lab.until_job(&job, JobState::Failed).await;
    let failure = ended.failure.unwrap();
    assert_eq!(
        (failure.code, failure.message.as_str()),
        (ErrorCode::PushRefused, reason.as_str())
    );
    assert_eq!(ended.outcome.unwrap().push, Some(PushOutcome::Refused { reason }));
}
