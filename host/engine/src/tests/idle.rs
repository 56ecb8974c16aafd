//! Sandboxes that nobody uses, from the last login to the stop.

use std::sync::Arc;
use std::time::Duration;

use agentlab_api::{CommandRequest, CommandUser, EventKind, SandboxState, SandboxView};
use agentlab_backend::fake::Call;
use agentlab_backend::{BackendError, Power, Usage};
use agentlab_store::EventFilter;
use tokio::time::sleep;

use super::lab::{Lab, vmid};
use super::operator::{held, record, until};
use super::process::WallClock;
use crate::IdleRules;

const MINUTE: Duration = Duration::from_secs(60);

/// A sandbox that is stopped when nobody has used it for half an hour.
async fn watched() -> (Lab, SandboxView) {
    let mut lab = Lab::stopped().await;
    lab.settings.idle = Some(IdleRules {
        interval: MINUTE,
        window: 30 * MINUTE,
        cpu_share: 0.05,
    });
    lab.settings.reconcile_interval = MINUTE;
    let clock = WallClock::new();
    clock.process_begins();
    lab.clock = Arc::new(clock);
    lab.start().await;
    let view = held(&lab).await;
    (lab, view)
}

async fn is_idle(lab: &Lab, view: &SandboxView) -> bool {
    record(lab, view).await.idle.is_some()
}

async fn runs(lab: &Lab, view: &SandboxView) -> bool {
    record(lab, view).await.state == SandboxState::Running
}

#[tokio::test(start_paused = true)]
async fn nobody_for_half_an_hour_stops_a_sandbox_and_says_so_before() {
    let (lab, view) = watched().await;
    sleep(5 * MINUTE).await;
    let shown = lab.engine().sandbox("1000").await.unwrap().idle.unwrap();
    let whole = shown.stop_at.duration_since(shown.since);
    assert_eq!(whole.as_secs(), 1800);
    sleep(20 * MINUTE).await;
    assert!(runs(&lab, &view).await);
    sleep(10 * MINUTE).await;
    until(&lab, &view, SandboxState::Stopped).await;
    lab.until("off", || lab.backend.power(vmid(1000)) == Some(Power::Stopped))
        .await;
    let filter = EventFilter {
        sandbox: Some(view.id),
        job: None,
    };
    let events = lab.store.events(&filter, 0, 1000).await.unwrap();
    let told: Vec<&str> = events
        .iter()
        .filter(|event| event.kind == EventKind::SandboxIdle)
        .map(|event| event.message.as_str())
        .collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(
        told[0].contains("for 30 min") && told[1].contains("sandbox start 1000"),
        "{told:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_login_a_command_work_and_a_probe_that_fails_each_begin_the_half_hour_anew() {
    let (lab, view) = watched().await;
    let one = vmid(1000);
    // Each comes when it had nearly been stopped, and is over a moment later.
    sleep(28 * MINUTE).await;
    assert!(is_idle(&lab, &view).await);
    lab.wires.log_in(one, true);
    sleep(2 * MINUTE).await;
    assert!(!is_idle(&lab, &view).await, "somebody is logged in");
    lab.wires.log_in(one, false);

    sleep(28 * MINUTE).await;
    let request = CommandRequest {
        words: vec!["true".to_owned()],
        user: CommandUser::Agent,
        directory: None,
        terminal: None,
    };
    lab.engine().command("1000", &request).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    assert!(!is_idle(&lab, &view).await, "somebody asked for a command");

    sleep(28 * MINUTE).await;
    let usage = Usage {
        cpu_seconds: 1000.0,
        memory_bytes: 0,
    };
    lab.backend.set_usage(one, usage);
    sleep(2 * MINUTE).await;
    assert!(runs(&lab, &view).await, "it computes");

    sleep(26 * MINUTE).await;
    let unreachable = BackendError::Unreachable {
        backend: "fake",
        action: "loads",
        reason: "cable cut".into(),
    };
    lab.backend.fail_next(Call::Loads, unreachable);
    sleep(10 * MINUTE).await;
    assert!(runs(&lab, &view).await, "that nobody is there was not told");
    lab.wires.fail_next("reached");
    sleep(25 * MINUTE).await;
    assert!(runs(&lab, &view).await, "nor then");
    until(&lab, &view, SandboxState::Stopped).await;
}

#[tokio::test(start_paused = true)]
async fn a_session_keeps_a_sandbox_up_for_as_long_as_it_lasts() {
    let (lab, view) = watched().await;
    let session = lab.engine().occupy(view.id);
    let other = lab.engine().occupy(view.id);
    sleep(60 * MINUTE).await;
    drop(session);
    sleep(31 * MINUTE).await;
    assert!(runs(&lab, &view).await, "one is still there");
    drop(other);
    sleep(29 * MINUTE).await;
    assert!(runs(&lab, &view).await);
    sleep(3 * MINUTE).await;
    until(&lab, &view, SandboxState::Stopped).await;
}

#[tokio::test(start_paused = true)]
async fn a_restart_neither_forgets_that_nobody_was_there_nor_makes_it_longer() {
    let (mut lab, view) = watched().await;
    sleep(20 * MINUTE).await;
    lab.stop().await;
    // Nobody looked.
    sleep(60 * MINUTE).await;
    lab.start().await;
    sleep(5 * MINUTE).await;
    assert!(runs(&lab, &view).await, "25 minutes were seen at most");
    assert!(is_idle(&lab, &view).await);
    lab.wires.log_in(vmid(1000), true);
    sleep(2 * MINUTE).await;
    lab.wires.log_in(vmid(1000), false);
    // Whoever was there a moment before a restart is not forgotten.
    lab.restart().await;
    sleep(28 * MINUTE).await;
    assert!(runs(&lab, &view).await);
    sleep(10 * MINUTE).await;
    until(&lab, &view, SandboxState::Stopped).await;
}
