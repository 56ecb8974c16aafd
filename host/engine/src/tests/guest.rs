use std::net::Ipv4Addr;
use std::time::Duration;

use agentlab_api::{ErrorCode, JobState, SandboxState};
use agentlab_backend::BackendError;
use agentlab_backend::fake::Call;
use agentlab_protocol::message::{Phase, Report, ReportStatus};

use super::lab::{Guest, Lab, vmid};
use crate::port::Trust;
use crate::{GuestOrigin, GuestRefusal};

#[tokio::test]
async fn the_same_key_gets_the_same_answer_until_it_is_acknowledged_even_after_a_restart() {
    let mut lab = Lab::new().await;
    let job = lab.run().await;
    let mut guest = lab.boot(&job).await;
    let first = guest.redeem(&lab).await.unwrap();
    lab.restart().await;
    let second = guest.redeem(&lab).await.unwrap();
    assert_eq!(first.session.expose(), second.session.expose());
    guest.acknowledge(&lab).await;
    guest.acknowledge(&lab).await;
    assert_eq!(
        guest.clone().redeem(&lab).await.unwrap_err(),
        GuestRefusal::Unauthorized
    );
    assert!(guest.beat(&lab, Phase::Agent).await.is_ok());
    assert_eq!(lab.alarms(&job).await, 0);
}

#[tokio::test]
async fn a_seed_goes_when_its_guest_has_the_answer_and_not_before_also_after_a_refusal_or_a_restart() {
    let mut lab = Lab::new().await;
    let job = lab.run().await;
    let mut guest = lab.boot(&job).await;
    guest.redeem(&lab).await.unwrap();
    assert!(
        lab.backend.seed(vmid(1000)).is_some(),
        "a runner that is killed now reads it again"
    );
    let refused = || BackendError::Refused {
        action: "remove_seed",
        vmid: vmid(1000),
        reason: "no".to_owned(),
        hint: None,
    };
    for _ in 0..2 {
        lab.backend.fail_next(Call::RemoveSeed, refused());
    }
    guest.acknowledge(&lab).await;
    lab.until("the seed is gone", || lab.backend.seed(vmid(1000)).is_none())
        .await;

    let job = lab.run().await;
    let mut guest = lab.boot(&job).await;
    guest.redeem(&lab).await.unwrap();
    lab.backend.fail_next(Call::RemoveSeed, refused());
    guest.acknowledge(&lab).await;
    lab.restart().await;
    lab.until("the seed is gone", || lab.backend.seed(vmid(1001)).is_none())
        .await;
}

#[tokio::test]
async fn a_guest_with_another_runner_is_given_nothing_and_its_job_says_which_it_has() {
    let lab = Lab::new().await;
    let job = lab.run().await;
    let mut guest = Guest {
        runner_version: "0.9.0",
        ..lab.boot(&job).await
    };
    assert_eq!(guest.redeem(&lab).await.unwrap_err(), GuestRefusal::Unauthorized);
    let cause = lab.until_job(&job, JobState::Failed).await.failure.unwrap();
    assert_eq!(cause.code, ErrorCode::TemplateUnavailable);
    assert!(
        cause.message.contains("carries runner 0.9.0"),
        "{}",
        cause.message
    );
    lab.until_sandbox(&job, SandboxState::Failed).await;
    lab.assert_empty().await;
}

#[tokio::test]
async fn a_second_key_revokes_everything_fails_the_sandbox_and_raises_an_alarm() {
    let lab = Lab::new().await;
    let job = lab.run().await;
    let mut guest = lab.boot(&job).await;
    guest.redeem(&lab).await.unwrap();
    let mut thief = Guest {
        key: [8; 32],
        ..guest.clone()
    };
    assert_eq!(thief.redeem(&lab).await.unwrap_err(), GuestRefusal::Unauthorized);
    assert_eq!(
        guest.authenticate(&lab).await.unwrap_err(),
        GuestRefusal::Unauthorized,
        "the first one too"
    );
    let failed = lab.until_sandbox(&job, SandboxState::Failed).await;
    assert!(failed.failure.unwrap().message.contains("two keys"));
    assert_eq!(
        lab.until_job(&job, JobState::Failed).await.failure.unwrap().code,
        ErrorCode::SandboxLost
    );
    assert_eq!(lab.alarms(&job).await, 1);
    lab.assert_empty().await;
}

#[tokio::test]
async fn after_the_acknowledgement_a_second_key_only_raises_an_alarm() {
    let lab = Lab::new().await;
    let job = lab.run().await;
    let guest = lab.running(&job).await;
    for _ in 0..3 {
        let mut thief = Guest {
            key: [8; 32],
            ..guest.clone()
        };
        assert_eq!(thief.redeem(&lab).await.unwrap_err(), GuestRefusal::Unauthorized);
    }
    assert_eq!(lab.alarms(&job).await, 1);
    assert!(guest.beat(&lab, Phase::Agent).await.is_ok(), "the job goes on");
}

#[tokio::test]
async fn a_token_is_worth_nothing_anywhere_else_and_every_refusal_looks_the_same() {
    let lab = Lab::new().await;
    let (one, two) = (lab.run().await, lab.run().await);
    let guest = lab.boot(&one).await;
    let other = lab.boot(&two).await;
    let refused = [
        Guest {
            origin: other.origin,
            ..guest.clone()
        },
        Guest {
            origin: GuestOrigin::Channel(two.sandbox.unwrap()),
            ..guest.clone()
        },
        Guest {
            origin: GuestOrigin::Address(Ipv4Addr::new(10, 77, 9, 9)),
            ..guest.clone()
        },
        guest.wrong_token(),
        {
            let mut wrong = guest.clone();
            wrong.seed.vmid = 1001;
            wrong
        },
    ];
    for mut wrong in refused {
        assert_eq!(
            wrong.redeem(&lab).await.unwrap_err(),
            GuestRefusal::Unauthorized,
            "{:?}",
            wrong.origin
        );
    }
    let mut right = Guest {
        origin: GuestOrigin::Channel(one.sandbox.unwrap()),
        ..guest
    };
    right.redeem(&lab).await.unwrap();
    let elsewhere = Guest {
        origin: other.origin,
        ..right.clone()
    };
    assert_eq!(
        elsewhere.authenticate(&lab).await.unwrap_err(),
        GuestRefusal::Unauthorized
    );
    assert_eq!(lab.alarms(&one).await + lab.alarms(&two).await, 0);
}

#[tokio::test]
async fn a_token_that_is_too_old_is_refused() {
    let lab = Lab::with(|settings| settings.token_ttl = Duration::from_millis(1)).await;
    let job = lab.run().await;
    let mut guest = lab.boot(&job).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(guest.redeem(&lab).await.unwrap_err(), GuestRefusal::Unauthorized);
}

#[tokio::test]
async fn artifacts_stay_within_the_profile() {
    let lab = Lab::new().await;
    let job = lab.run().await;
    let guest = lab.running(&job).await;
    let refused =
        |result: Result<(), GuestRefusal>| assert!(matches!(result, Err(GuestRefusal::TooLarge(_))));
    guest.upload(&lab, "files/a", &[1; 900]).await.unwrap();
    refused(guest.upload(&lab, "files/b", &[1; 1001]).await);
    refused(guest.upload(&lab, "files/b", &[1; 601]).await);
    guest.upload(&lab, "files/b", &[1; 1]).await.unwrap();
    guest.upload(&lab, "files/c", &[1; 1]).await.unwrap();
    refused(guest.upload(&lab, "files/d", &[1; 1]).await);
    let posing = guest.upload(&lab, "report.json", b"{}").await;
    assert!(matches!(posing, Err(GuestRefusal::Conflict(_))), "{posing:?}");
    guest
        .report(&lab, &job, ReportStatus::Completed, Some(0))
        .await
        .unwrap();
    let late = guest.upload(&lab, "files/a", b"x").await;
    assert!(late.is_err(), "nothing changes after the end");
    let files = lab.engine().job_artifacts(&job.id).await.unwrap();
    assert_eq!(files.iter().map(|file| file.size_bytes).sum::<u64>(), 902);
}

#[tokio::test]
async fn work_that_did_not_arrive_fails_the_job_and_its_only_copy_is_kept_sealed() {
    let lab = Lab::new().await;
    let job = lab.run().await;
    let guest = lab.running(&job).await;
    let session = guest.authenticate(&lab).await.unwrap();
    let report = Report {
        version: 1,
        job: job.id.to_string(),
        status: ReportStatus::Completed,
        failed_phase: None,
        cause: None,
        message: None,
        exit_code: Some(0),
        base_commit: None,
        head_commit: None,
        commits: 1,
        uncommitted: false,
        agent_milliseconds: 5,
        push: None,
        exposed_secrets: vec![],
        secret_search: None,
        artifacts: vec![],
        left_out: vec!["work.bundle: 2000 bytes, more than 1500".into()],
        inner_sandbox: "bubblewrap".into(),
    };
    lab.engine().report(&session, report).await.unwrap();
    let failure = lab.until_job(&job, JobState::Failed).await.failure.unwrap();
    assert_eq!(
        (failure.code, failure.stage.as_str()),
        (ErrorCode::LimitReached, "Upload")
    );
    assert!(failure.message.contains("more than 1500"), "{}", failure.message);
    lab.until_sandbox(&job, SandboxState::Failed).await;
    let vmid = job.vmid.unwrap();
    lab.until("sealed", || lab.wires.trust(vmid) == Some(Trust::Sealed))
        .await;
    assert_eq!(lab.backend.power(vmid), Some(agentlab_backend::Power::Running));
    let selector = job.sandbox.unwrap().to_string();
    lab.engine().destroy_sandbox(&selector, false).await.unwrap();
    lab.until_sandbox(&job, SandboxState::Destroyed).await;
    lab.assert_empty().await;
}

#[tokio::test]
async fn a_guest_whose_profile_names_only_the_serial_channel_is_heard_nowhere_else() {
    let mut lab = Lab::stopped().await;
    lab.profile["network"] = serde_json::json!({"mode": "off", "channels": ["serial"]});
    lab.start().await;
    let job = lab.run().await;
    let mut guest = lab.boot(&job).await;
    let vmid = job.vmid.unwrap();
    assert_eq!(lab.wires.trust(vmid), Some(Trust::Sealed));
    guest.origin = GuestOrigin::Address(guest.seed.address);
    assert_eq!(guest.redeem(&lab).await.unwrap_err(), GuestRefusal::Unauthorized);
    guest.origin = GuestOrigin::Channel(job.sandbox.unwrap());
    guest.redeem(&lab).await.unwrap();
    guest.acknowledge(&lab).await;
    assert_eq!(lab.wires.trust(vmid), Some(Trust::Sealed));
}

#[tokio::test]
async fn phases_are_told_but_a_flapping_guest_does_not_fill_the_events() {
    let lab = Lab::new().await;
    let job = lab.run().await;
    let guest = lab.running(&job).await;
    for round in 0..300 {
        guest
            .beat(
                &lab,
                if round % 2 == 0 {
                    Phase::Agent
                } else {
                    Phase::Collect
                },
            )
            .await
            .unwrap();
    }
    let told = lab
        .events(&job)
        .await
        .iter()
        .filter(|event| event.kind.as_str() == "job.progress")
        .count();
    assert_eq!(told, 200);
}

#[tokio::test]
async fn nobody_speaks_for_a_sandbox_that_is_gone() {
    let lab = Lab::new().await;
    let job = lab.run().await;
    let guest = lab.running(&job).await;
    lab.engine()
        .destroy_sandbox(&job.sandbox.unwrap().to_string(), false)
        .await
        .unwrap();
    assert_eq!(
        lab.until_job(&job, JobState::Cancelled)
            .await
            .failure
            .unwrap()
            .code,
        ErrorCode::Cancelled
    );
    lab.until_sandbox(&job, SandboxState::Destroyed).await;
    lab.until("the driver has ended", || {
        lab.engine().shared.driver(job.sandbox.unwrap()).is_none()
    })
    .await;
    assert_eq!(
        guest.beat(&lab, Phase::Agent).await.unwrap_err(),
        GuestRefusal::Unauthorized
    );
    lab.assert_empty().await;
}
