//! Sandboxes in a person's hands: what was asked for is done, safe to repeat, and never costs the work on the disk.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use agentlab_api::{ErrorCode, EventKind, JobState, PruneRequest, SandboxRequest, SandboxState, SandboxView};
use agentlab_backend::fake::Call;
use agentlab_backend::{BackendError, Machine, Power};
use agentlab_store::{EventFilter, SandboxRecord};
use jiff::SignedDuration;
use tokio::time::sleep;

use super::lab::{Lab, vmid};
use super::process::WallClock;
use crate::port::Trust;
use crate::sandbox::machine::Request;

const ONE: &str = "1000";

/// A sandbox without a job, whose guest has answered.
pub(super) async fn held(lab: &Lab) -> SandboxView {
    let request = SandboxRequest {
        profile: "demo".into(),
        name: None,
        ttl_minutes: None,
        workspace: None,
        workspace_wait_seconds: None,
    };
    let view = lab.engine().create_sandbox(request).await.unwrap();
    answer(lab, &view).await;
    view
}

/// Plays the guest of a machine that boots, until it is let in.
async fn answer(lab: &Lab, view: &SandboxView) {
    until(lab, view, SandboxState::Booting).await;
    lab.let_in(&record(lab, view).await).await;
}

pub(super) async fn record(lab: &Lab, view: &SandboxView) -> SandboxRecord {
    lab.store.sandbox(view.id).await.unwrap().unwrap()
}

pub(super) async fn until(lab: &Lab, view: &SandboxView, state: SandboxState) {
    let look = async {
        while record(lab, view).await.state != state {
            sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(600), look).await;
    assert!(waited.is_ok(), "never {state}: {:#?}", record(lab, view).await);
}

async fn change(lab: &Lab, request: Request) -> SandboxView {
    lab.engine().change_sandbox(ONE, request).await.unwrap()
}

async fn destroyed(lab: &Lab, view: &SandboxView) {
    lab.engine().destroy_sandbox(ONE, true).await.unwrap();
    until(lab, view, SandboxState::Destroyed).await;
    lab.assert_empty().await;
}

#[tokio::test(start_paused = true)]
async fn a_stopped_sandbox_keeps_its_disk_sealed_and_starts_with_another_token() {
    let lab = Lab::new().await;
    let view = held(&lab).await;
    let (stamp, seed) = (lab.backend.stamp(vmid(1000)), lab.backend.booted_with(vmid(1000)));
    for _ in 0..2 {
        assert_eq!(change(&lab, Request::Stop).await.state, SandboxState::Stopped);
    }
    lab.until("off", || lab.backend.power(vmid(1000)) == Some(Power::Stopped))
        .await;
    assert_eq!(lab.wires.trust(vmid(1000)), Some(Trust::Sealed));
    let started = change(&lab, Request::Start).await;
    assert_eq!(started.state, SandboxState::Provisioning);
    change(&lab, Request::Start).await;
    answer(&lab, &view).await;
    until(&lab, &view, SandboxState::Running).await;
    assert_eq!(lab.backend.stamp(vmid(1000)), stamp, "the same machine");
    assert_ne!(lab.backend.booted_with(vmid(1000)), seed, "another token");
    destroyed(&lab, &view).await;
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_is_stopped_writes_its_disks_while_it_is_heard_and_is_sealed_before_its_power_goes() {
    for mute in [false, true] {
        let mut lab = Lab::stopped().await;
        lab.profile["network"] = serde_json::json!({"mode": "nat"});
        lab.start().await;
        let view = held(&lab).await;
        lab.until("trusted", || lab.wires.trust(vmid(1000)) == Some(Trust::Nat))
            .await;
        lab.door.is_mute.store(mute, Ordering::Relaxed);
        lab.backend.delay(Some(Call::PowerOff), Duration::from_secs(3));
        change(&lab, Request::Stop).await;
        lab.until("sealed", || lab.wires.trust(vmid(1000)) == Some(Trust::Sealed))
            .await;
        assert_eq!(lab.backend.power(vmid(1000)), Some(Power::Running));
        lab.until("off", || lab.backend.power(vmid(1000)) == Some(Power::Stopped))
            .await;
        assert_eq!(lab.door.asked(vmid(1000)), [Trust::BootstrapOnly], "mute: {mute}");
        destroyed(&lab, &view).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_switched_itself_off_is_not_asked_to_write_and_is_sealed_at_once() {
    let lab = Lab::new().await;
    let view = held(&lab).await;
    lab.backend.stop(vmid(1000));
    until(&lab, &view, SandboxState::Stopped).await;
    lab.until("sealed", || lab.wires.trust(vmid(1000)) == Some(Trust::Sealed))
        .await;
    assert_eq!(lab.door.asked(vmid(1000)), []);
    destroyed(&lab, &view).await;
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_started_again_stays_stopped_with_its_disk_and_says_why() {
    let mut lab = Lab::new().await;
    let view = held(&lab).await;
    change(&lab, Request::Stop).await;
    lab.backend.fail_next(
        Call::PowerOn,
        BackendError::Refused {
            action: "power on",
            vmid: vmid(1000),
            reason: "not enough memory".into(),
            hint: None,
        },
    );
    change(&lab, Request::Start).await;
    let why = async |lab: &Lab| record(lab, &view).await.failure.map(|failure| failure.message);
    while why(&lab).await.is_none() {
        sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(record(&lab, &view).await.state, SandboxState::Stopped);
    assert!(why(&lab).await.unwrap().contains("not enough memory"));

    // A guest that stays silent is no reason to lose its disk either, nor is a restart meanwhile.
    change(&lab, Request::Start).await;
    until(&lab, &view, SandboxState::Booting).await;
    lab.restart().await;
    until(&lab, &view, SandboxState::Stopped).await;
    assert!(
        why(&lab).await.unwrap().contains("did not answer"),
        "{:?}",
        why(&lab).await
    );
    assert!(lab.backend.vmids().contains(&vmid(1000)));

    change(&lab, Request::Start).await;
    answer(&lab, &view).await;
    assert_eq!(why(&lab).await, None, "it is over");
    destroyed(&lab, &view).await;
}

#[tokio::test(start_paused = true)]
async fn a_pause_counts_neither_as_silence_nor_against_the_deadline_of_a_job() {
    let mut lab = Lab::stopped().await;
    lab.settings.reconcile_interval = Duration::from_secs(60);
    // Wall time that goes with the test's own, over restarts too.
    let clock = WallClock::new();
    clock.process_begins();
    lab.clock = Arc::new(clock);
    lab.start().await;
    let job = lab.run().await;
    let guest = lab.running(&job).await;
    change(&lab, Request::Suspend).await;
    lab.until("frozen", || {
        lab.backend.power(vmid(1000)) == Some(Power::Suspended)
    })
    .await;
    for restarts in 0..2 {
        // Longer than its deadline with all that is added to it.
        sleep(Duration::from_secs(1800)).await;
        let seen = lab.job(&job.id).await;
        assert_eq!(
            seen.state,
            JobState::Running,
            "after {restarts} restarts: {seen:#?}"
        );
        lab.restart().await;
    }
    change(&lab, Request::Resume).await;
    lab.until("thawed", || lab.backend.power(vmid(1000)) == Some(Power::Running))
        .await;
    guest
        .beat(&lab, agentlab_protocol::message::Phase::Agent)
        .await
        .unwrap();
    sleep(Duration::from_secs(30)).await;
    assert_eq!(lab.job(&job.id).await.state, JobState::Running);
    // Whoever says nothing from here on is silent.
    sleep(lab.settings.heartbeat_silence).await;
    lab.until_job(&job, JobState::Failed).await;
    lab.until_sandbox(&job, SandboxState::Failed).await;
    lab.assert_empty().await;
}

#[tokio::test(start_paused = true)]
async fn a_renewed_lease_begins_anew_with_its_warning() {
    let lab = Lab::with(|settings| settings.reconcile_interval = Duration::from_secs(60)).await;
    let view = held(&lab).await;
    let engine = lab.engine();
    for minutes in [0, u32::MAX] {
        let problem = engine.renew_lease(ONE, minutes).await.unwrap_err();
        assert_eq!(problem.code, ErrorCode::InvalidValue);
    }
    change(&lab, Request::Stop).await;
    let renewed = engine.renew_lease(ONE, 60).await.unwrap();
    assert_eq!(
        renewed.state,
        SandboxState::Stopped,
        "what is stopped keeps its work"
    );
    let warned = async || record(&lab, &view).await.lease_warned;
    sleep(Duration::from_secs(54 * 60)).await;
    assert!(!warned().await);
    sleep(Duration::from_secs(2 * 60)).await;
    assert!(warned().await);
    engine.renew_lease(ONE, 60).await.unwrap();
    sleep(Duration::from_secs(10 * 60)).await;
    assert_eq!(record(&lab, &view).await.state, SandboxState::Stopped);
    assert!(!warned().await);
    sleep(Duration::from_secs(51 * 60)).await;
    until(&lab, &view, SandboxState::Destroyed).await;
    let problem = engine.renew_lease(&view.id.to_string(), 60).await.unwrap_err();
    assert_eq!(problem.code, ErrorCode::StateConflict);
    assert_eq!(problem.hint.as_deref(), Some("allowed now: show"));
    lab.assert_empty().await;
}

#[tokio::test(start_paused = true)]
async fn a_host_that_boots_with_a_clock_that_is_years_off_ends_no_lease() {
    let clock = WallClock::new();
    clock.process_begins();
    let mut lab = Lab::stopped().await;
    lab.settings.reconcile_interval = Duration::from_secs(60);
    lab.clock = Arc::new(clock.clone());
    lab.start().await;
    let view = held(&lab).await;
    change(&lab, Request::Stop).await;
    lab.engine().renew_lease(ONE, 60).await.unwrap();

    for years in [10, -10] {
        lab.stop().await;
        clock.jump_to(SignedDuration::from_hours(years * 365 * 24));
        lab.start().await;
        sleep(Duration::from_secs(60)).await;
        clock.jump_to(SignedDuration::ZERO);
        sleep(Duration::from_secs(10 * 60)).await;
        assert_eq!(record(&lab, &view).await.state, SandboxState::Stopped, "{years}");
    }
    sleep(Duration::from_secs(51 * 60)).await;
    until(&lab, &view, SandboxState::Destroyed).await;
    lab.assert_empty().await;
}

#[tokio::test(start_paused = true)]
async fn prune_takes_what_its_lease_ended_and_only_when_asked_what_is_stopped() {
    let lab = Lab::new().await;
    let (stopped, ended, runs) = (held(&lab).await, held(&lab).await, held(&lab).await);
    let engine = lab.engine();
    engine.change_sandbox(ONE, Request::Stop).await.unwrap();
    // Its machine does not go.
    lab.backend.delay(Some(Call::PowerOff), Duration::from_secs(3600));
    engine.renew_lease("1001", 1).await.unwrap();
    until(&lab, &ended, SandboxState::Timeout).await;
    let prune = async |stopped, dry_run| {
        let request = PruneRequest { stopped, dry_run };
        let pruned = engine.prune_sandboxes(&request).await.unwrap();
        assert_eq!(pruned.count, pruned.sandboxes.len());
        let mut vmids: Vec<u32> = pruned.sandboxes.iter().map(|one| one.vmid.into()).collect();
        vmids.sort_unstable();
        vmids
    };
    assert_eq!(prune(true, true).await, [1000, 1001]);
    assert_eq!(prune(false, true).await, [1001]);
    assert_eq!(
        record(&lab, &stopped).await.state,
        SandboxState::Stopped,
        "only shown"
    );
    lab.backend.delay(Some(Call::PowerOff), Duration::ZERO);
    assert_eq!(prune(false, false).await, [1001]);
    until(&lab, &ended, SandboxState::Destroyed).await;
    assert_eq!(record(&lab, &stopped).await.state, SandboxState::Stopped);
    assert_eq!(prune(true, false).await, [1000]);
    until(&lab, &stopped, SandboxState::Destroyed).await;
    assert_eq!(prune(true, false).await, Vec::<u32>::new());
    assert_eq!(record(&lab, &runs).await.state, SandboxState::Running);
    engine.destroy_sandbox("1002", false).await.unwrap();
    until(&lab, &runs, SandboxState::Destroyed).await;
    lab.assert_empty().await;
}

#[tokio::test]
async fn a_machine_whose_stamp_somebody_wrote_over_is_left_alone_and_that_is_told() {
    let lab = Lab::new().await;
    let view = held(&lab).await;
    lab.backend.plant(Machine {
        vmid: vmid(1000),
        name: "mine now".into(),
        power: Power::Running,
        stamp: None,
    });
    lab.engine().destroy_sandbox(ONE, true).await.unwrap();
    until(&lab, &view, SandboxState::Destroyed).await;
    assert_eq!(lab.backend.power(vmid(1000)), Some(Power::Running));
    assert_eq!(lab.wires.ports(), []);
    let told = lab.store.events(&EventFilter::default(), 0, 1000).await.unwrap();
    let told = told.iter().filter(|event| event.kind == EventKind::Alarm);
    let told: Vec<&str> = told.map(|event| event.message.as_str()).collect();
    assert!(
        matches!(told.as_slice(), [one] if one.contains("VM 1000 is left where it is") && one.contains("by hand")),
        "{told:?}"
    );
}
