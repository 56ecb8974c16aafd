use std::time::Duration;

use agentlab_api::{ErrorCode, JobState, SandboxId, SandboxState};
use agentlab_backend::fake::Call;
use agentlab_backend::{BackendError, Machine, Power, Stamp};
use agentlab_protocol::message::Phase;

use super::lab::{Lab, request, vmid};
use super::steps::{refused, unreachable};
use crate::port::{Disturbance, Port, Trust};

async fn assert_undone(lab: &Lab, stage: &str, code: ErrorCode) {
    let job = lab.run().await;
    let failed = lab.until_sandbox(&job, SandboxState::Failed).await;
    let failure = failed.failure.unwrap();
    assert_eq!((failure.stage.as_str(), failure.code), (stage, code));
    let job = lab.until_job(&job, JobState::Failed).await;
    assert_eq!(job.failure.unwrap().stage, stage);
    lab.assert_empty().await;
    // The record stays until somebody has read it.
    let id = job.sandbox.unwrap().to_string();
    lab.engine().destroy_sandbox(&id, false).await.unwrap();
    assert_eq!(
        lab.engine().sandbox(&id).await.unwrap().state,
        SandboxState::Destroyed
    );
}

#[tokio::test]
async fn failing_at_any_step_leaves_nothing_behind() {
    for (call, stage) in [
        (Call::CloneTemplate, "Clone"),
        (Call::Configure, "Configure"),
        (Call::PlaceSeed, "Seed"),
        (Call::PowerOn, "PowerOn"),
    ] {
        let lab = Lab::new().await;
        lab.backend.fail_next(call, refused());
        assert_undone(&lab, stage, ErrorCode::BackendFailed).await;
    }
    for (call, stage) in [("attach", "BindNetwork"), ("set_trust", "PowerOn")] {
        let lab = Lab::new().await;
        lab.wires.fail_next(call);
        assert_undone(&lab, stage, ErrorCode::NetworkUnenforced).await;
    }
}

#[tokio::test]
async fn an_effect_whose_answer_is_refused_after_the_fact_is_undone_too() {
    for (call, stage) in [
        (Call::CloneTemplate, "Clone"),
        (Call::Configure, "Configure"),
        (Call::PowerOn, "PowerOn"),
    ] {
        let lab = Lab::new().await;
        lab.backend.lose_answer(call, refused());
        assert_undone(&lab, stage, ErrorCode::BackendFailed).await;
    }
}

#[tokio::test]
async fn a_lost_answer_is_asked_for_again_and_harms_nothing() {
    for call in [
        Call::CloneTemplate,
        Call::Configure,
        Call::PlaceSeed,
        Call::PowerOn,
    ] {
        let lab = Lab::new().await;
        lab.backend.lose_answer(call, unreachable());
        let job = lab.run().await;
        lab.running(&job).await;
        assert_eq!(lab.backend.power_ons(vmid(1000)), 1, "{call:?}");
        lab.engine().destroy_sandbox("1000", false).await.unwrap();
        lab.until_sandbox(&job, SandboxState::Destroyed).await;
        lab.assert_empty().await;
    }
}

#[tokio::test]
async fn every_undo_is_repeated_until_nothing_is_left() {
    for call in [Call::PowerOff, Call::Destroy, Call::RemoveSeed] {
        let lab = Lab::new().await;
        let job = lab.run().await;
        lab.running(&job).await;
        for _ in 0..3 {
            lab.backend.fail_next(call, refused());
        }
        lab.engine().destroy_sandbox("1000", false).await.unwrap();
        lab.until_sandbox(&job, SandboxState::Destroyed).await;
        assert_eq!(lab.alarms(&job).await, 1, "{call:?}: told once, not at every try");
        lab.assert_empty().await;
    }
    let lab = Lab::new().await;
    let job = lab.run().await;
    lab.running(&job).await;
    lab.wires.fail_next("detach");
    lab.engine().destroy_sandbox("1000", false).await.unwrap();
    lab.until_sandbox(&job, SandboxState::Destroyed).await;
    lab.assert_empty().await;
}

#[tokio::test]
async fn what_is_left_is_said_and_never_called_destroyed() {
    let lab = Lab::new().await;
    let job = lab.run().await;
    lab.running(&job).await;
    lab.backend.set_unreachable(Some("cable cut"));
    lab.engine().destroy_sandbox("1000", false).await.unwrap();
    let said = async {
        loop {
            let view = lab.sandbox(&job).await;
            if !view.left_behind.is_empty() {
                return view;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let view = tokio::time::timeout(Duration::from_secs(10), said).await.unwrap();
    assert_ne!(view.state, SandboxState::Destroyed);
    assert!(
        view.left_behind.iter().any(|left| left.contains("cable cut")),
        "{:?}",
        view.left_behind
    );
    assert_eq!(
        lab.wires.trust(vmid(1000)),
        Some(Trust::Sealed),
        "the port stays, sealed, while its machine may run"
    );
    assert!(
        lab.engine()
            .status()
            .await
            .unwrap()
            .alarms
            .iter()
            .any(|alarm| alarm.contains("left behind"))
    );
    lab.backend.set_unreachable(None);
    lab.until_sandbox(&job, SandboxState::Destroyed).await;
    lab.assert_empty().await;
}

#[tokio::test]
async fn destroy_during_a_hanging_clone_cancels_and_undoes() {
    let lab = Lab::new().await;
    let hang = lab.backend.hang_next(Call::CloneTemplate);
    let job = lab.run().await;
    hang.reached().await;
    let other = lab.run().await;
    lab.running(&other).await;
    lab.engine().destroy_sandbox("1000", false).await.unwrap();
    let failure = lab.until_job(&job, JobState::Cancelled).await.failure.unwrap();
    assert_eq!(
        (failure.code, failure.stage.as_str()),
        (ErrorCode::Cancelled, "Clone")
    );
    lab.until_sandbox(&job, SandboxState::Destroyed).await;
    drop(hang);
    assert_eq!(
        lab.backend.vmids(),
        [vmid(1001)],
        "the other one was not disturbed"
    );
}

#[tokio::test]
async fn a_job_whose_sandbox_is_taken_away_says_how_far_it_was() {
    for (phase, stage) in [(None, "Running"), (Some(Phase::Agent), "Agent")] {
        let lab = Lab::new().await;
        let job = lab.run().await;
        let guest = lab.running(&job).await;
        if let Some(phase) = phase {
            guest.beat(&lab, phase).await.unwrap();
        }
        lab.engine().destroy_sandbox("1000", false).await.unwrap();
        let failure = lab.until_job(&job, JobState::Cancelled).await.failure.unwrap();
        assert_eq!(failure.stage, stage);
        lab.until_sandbox(&job, SandboxState::Destroyed).await;
        lab.assert_empty().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_never_ends_fails_at_its_own_deadline() {
    let lab = Lab::new().await;
    let _hang = lab.backend.hang_next(Call::Configure);
    assert_undone(&lab, "Configure", ErrorCode::ProvisioningTimeout).await;
}

#[tokio::test(start_paused = true)]
async fn a_back_end_that_takes_no_changes_is_shown_waited_for_and_given_up_in_the_end() {
    let lab = Lab::with(|settings| settings.teardown_retry_first = Duration::from_millis(500)).await;
    let no_quorum = || BackendError::Unreachable {
        backend: "fake",
        action: "clone",
        reason: "the cluster is not quorate".into(),
    };
    for _ in 0..6 {
        lab.backend.fail_next(Call::CloneTemplate, no_quorum());
    }
    let job = lab.run().await;
    let is_shown = async || {
        let alarms = lab.engine().status().await.unwrap().alarms;
        alarms
            .iter()
            .any(|alarm| alarm.contains("takes no changes") && alarm.contains("not quorate"))
    };
    while !is_shown().await {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    lab.running(&job).await;
    assert!(!is_shown().await, "it takes them again");
    let told = lab.messages(&job).await;
    let waits = told
        .iter()
        .filter(|line| line.contains("Clone waits for the back end"));
    assert_eq!(waits.count(), 1, "{told:#?}");

    for _ in 0..1000 {
        lab.backend.fail_next(Call::CloneTemplate, no_quorum());
    }
    let job = lab.run().await;
    tokio::time::sleep(lab.settings.provisioning_timeout / 2).await;
    assert_eq!(lab.job(&job.id).await.state, JobState::Queued);
    let failed = lab.until_job(&job, JobState::Failed).await.failure.unwrap();
    assert_eq!(failed.code, ErrorCode::BackendUnreachable);
    assert!(failed.message.contains("not quorate"), "{failed}");
}

#[tokio::test]
async fn a_vmid_somebody_else_has_is_left_alone_and_another_is_taken() {
    let lab = Lab::new().await;
    lab.backend.fail_next(Call::List, refused());
    // Hidden from the list that chose it, there when it is cloned.
    let hang = lab.backend.hang_next(Call::CloneTemplate);
    let job = lab.run_or_retry().await;
    hang.reached().await;
    let foreign = Machine {
        vmid: vmid(1000),
        name: "theirs".into(),
        power: Power::Running,
        stamp: None,
    };
    lab.backend.plant(foreign);
    hang.release();
    lab.until_sandbox(&job, SandboxState::Booting).await;
    let view = lab.job(&job.id).await;
    assert_eq!(view.vmid, Some(vmid(1001)));
    lab.running(&view).await;
    lab.engine().destroy_sandbox("1001", false).await.unwrap();
    lab.until_sandbox(&job, SandboxState::Destroyed).await;
    assert_eq!(lab.backend.vmids(), [vmid(1000)]);
    assert_eq!(lab.backend.power(vmid(1000)), Some(Power::Running), "theirs");
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_never_answers_fails_the_boot() {
    let lab = Lab::new().await;
    assert_undone(&lab, "AwaitGuest", ErrorCode::GuestSilent).await;
}

#[tokio::test]
async fn only_what_was_provably_ours_is_taken_away() {
    let lab = Lab::new().await;
    let job = lab.run().await;
    lab.running(&job).await;
    let ours = lab.backend.stamp(vmid(1000)).unwrap();
    lab.engine().destroy_sandbox("1000", false).await.unwrap();
    lab.until_sandbox(&job, SandboxState::Destroyed).await;

    let stranger = Stamp {
        sandbox: SandboxId::generate(),
        nonce: "a".repeat(32),
    };
    let forged = Stamp {
        nonce: "b".repeat(32),
        ..ours.clone()
    };
    for (raw, stamp) in [
        (1010, Some(ours)),
        (1011, Some(stranger)),
        (1012, Some(forged)),
        (1013, None),
    ] {
        lab.backend.plant(Machine {
            vmid: vmid(raw),
            name: "x".into(),
            power: Power::Running,
            stamp,
        });
    }
    lab.wires.plant(Port {
        vmid: vmid(1010),
        mac: agentlab_backend::MacAddress([2; 6]),
        address: "10.77.0.9".parse().unwrap(),
    });
    lab.until("the orphan is gone", || lab.backend.power(vmid(1010)).is_none())
        .await;
    lab.until("its port too", || lab.wires.ports().is_empty()).await;
    lab.until("alarms", || lab.engine().shared.alarms().len() == 2)
        .await;
    assert_eq!(lab.backend.vmids(), [vmid(1011), vmid(1012), vmid(1013)]);
}

#[tokio::test]
async fn a_policy_that_somebody_else_was_at_is_told_with_what_was_found() {
    let lab = Lab::new().await;
    let alarm = |text: &'static str| {
        let engine = lab.engine().clone();
        move || engine.shared.alarms().iter().any(|alarm| alarm.contains(text))
    };
    lab.wires.disturb(Disturbance::Broken("no answer".into()));
    lab.until("alarm", alarm("no answer")).await;
    lab.wires.disturb(Disturbance::Broken("no answer".into()));
    lab.wires.disturb(Disturbance::Whole);
    lab.until("no alarm", || !alarm("packet policy")()).await;
    let found = (0..9).map(|number| format!("chain {number}: is missing"));
    lab.wires.disturb(Disturbance::Repaired(found.collect()));
    let told = async {
        loop {
            let filter = agentlab_store::EventFilter::default();
            let events = lab.store.events(&filter, 0, 100).await.unwrap();
            let words: Vec<String> = events.into_iter().map(|event| event.message).collect();
            if words.len() == 3 {
                return words;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let words = tokio::time::timeout(Duration::from_secs(10), told).await.unwrap();
    assert!(words[0].contains("does not stand: no answer"), "{words:?}");
    assert!(words[1].contains("stands again"), "{words:?}");
    assert!(
        words[2].contains("chain 0: is missing") && words[2].contains("and 4 more"),
        "{words:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_ends_stops_and_destroys_and_times_the_job_out() {
    let lab = Lab::new().await;
    let job = lab.run().await;
    lab.running(&job).await;
    let mut lab = lab;
    lab.stop().await;
    let mut record = lab.record(&job).await;
    record.lease_expires_at = Some(jiff::Timestamp::now() + Duration::from_millis(300));
    lab.store
        .commit(vec![agentlab_store::Write::Sandbox(Box::new(record))])
        .await
        .unwrap();
    lab.start().await;
    assert_eq!(
        lab.until_job(&job, JobState::Timeout)
            .await
            .failure
            .unwrap()
            .stage,
        "Lease"
    );
    lab.until_sandbox(&job, SandboxState::Destroyed).await;
    let words = lab.messages(&job).await;
    assert!(
        words.iter().any(|word| word.starts_with("lease.expiring")),
        "{words:#?}"
    );
    assert!(words.iter().any(|word| word.contains("is TIMEOUT")), "{words:#?}");
    lab.assert_empty().await;
}

impl Lab {
    /// The list call that was told to fail refuses the first request; the second goes through.
    async fn run_or_retry(&self) -> agentlab_api::JobView {
        match self.engine().create_job(request(), None).await {
            Ok(job) => job,
            Err(_) => self.run().await,
        }
    }
}
