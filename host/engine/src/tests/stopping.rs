//! A stop takes its time. What is asked for meanwhile, and a daemon that dies meanwhile, cost a guest neither the workspace
//! it has mounted nor what it has not written yet.

use std::time::Duration;

use agentlab_api::{ErrorCode, SandboxId, SandboxState};
use agentlab_backend::fake::Call;
use agentlab_backend::{BackendError, Power};
use agentlab_protocol::message::Phase;
use agentlab_protocol::workspace::WorkspaceNews;
use tokio::time::sleep;

use super::lab::{Guest, Lab, vmid};
use super::workspace::{NAME, PACE, held, lab_with_workspace, until};
use crate::sandbox::machine::Request;

const ONE: &str = "one";

fn is(lab: &Lab, power: Power) -> bool {
    lab.backend.power(vmid(1000)) == Some(power)
}

/// A sandbox whose guest has its workspace mounted.
async fn mounted(lab: &Lab) -> (SandboxId, Guest) {
    let id = held(lab, Some(NAME)).await;
    let guest = lab.let_in(&until(lab, id, SandboxState::Booting).await).await;
    let news = Some(WorkspaceNews::Mounted);
    guest.say(lab, Phase::Idle, news).await.unwrap();
    (id, guest)
}

/// Beats until the host asks the guest to let go. Meanwhile its machine has to run, with its disk.
async fn until_asked(lab: &Lab, guest: &Guest) {
    let volume = lab.engine().workspace(NAME).await.unwrap().volume.unwrap();
    loop {
        assert!(is(lab, Power::Running), "the plug was pulled");
        assert_eq!(lab.backend.holder(&volume), Some(vmid(1000)));
        match guest.say(lab, Phase::Idle, None).await {
            Ok(answer) if answer.release_workspace => return,
            // One that is not heard yet says it again.
            Ok(_) | Err(_) => sleep(PACE).await,
        }
    }
}

async fn let_go(lab: &Lab, guest: &Guest) {
    let news = Some(WorkspaceNews::Released);
    guest.say(lab, Phase::Idle, news).await.unwrap();
}

async fn change(lab: &Lab, request: Request) -> SandboxState {
    lab.engine().change_sandbox(ONE, request).await.unwrap().state
}

/// The machine was off in between, and its next guest has the workspace.
async fn started_anew(lab: &Lab, id: SandboxId) {
    let record = until(lab, id, SandboxState::Booting).await;
    assert_eq!(lab.backend.power_ons(vmid(1000)), 2);
    lab.let_in(&record).await;
    assert_eq!(until(lab, id, SandboxState::Running).await.failure, None);
}

#[tokio::test]
async fn a_start_that_comes_while_a_guest_lets_go_of_its_workspace_begins_when_the_machine_is_off() {
    // Also where the daemon dies in between.
    for restarts in [false, true] {
        let mut lab = lab_with_workspace().await;
        let (id, guest) = mounted(&lab).await;
        assert_eq!(change(&lab, Request::Stop).await, SandboxState::Stopped);
        lab.backend.forget_calls();
        assert_eq!(change(&lab, Request::Start).await, SandboxState::Provisioning);
        if restarts {
            lab.restart().await;
        }
        until_asked(&lab, &guest).await;
        for call in [Call::AttachVolume, Call::PlaceSeed, Call::PowerOn] {
            assert_eq!(lab.backend.count(call), 0, "{call:?}");
        }
        let_go(&lab, &guest).await;
        started_anew(&lab, id).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_start_that_comes_while_a_machine_is_switched_off_lets_its_guest_write_first() {
    let lab = lab_with_workspace().await;
    let id = held(&lab, None).await;
    lab.let_in(&until(&lab, id, SandboxState::Booting).await).await;
    lab.backend.delay(Some(Call::PowerOff), Duration::from_secs(3));
    change(&lab, Request::Stop).await;
    change(&lab, Request::Start).await;
    started_anew(&lab, id).await;
    assert_eq!(lab.door.asked(vmid(1000)).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_switched_off_is_not_started_and_says_why_until_it_is_off() {
    let lab = lab_with_workspace().await;
    let id = held(&lab, None).await;
    lab.let_in(&until(&lab, id, SandboxState::Booting).await).await;
    for _ in 0..2 {
        let refused = BackendError::Refused {
            action: "power off",
            vmid: vmid(1000),
            reason: "no such luck".into(),
            hint: None,
        };
        lab.backend.fail_next(Call::PowerOff, refused);
    }
    change(&lab, Request::Stop).await;
    change(&lab, Request::Start).await;
    let record = until(&lab, id, SandboxState::Stopped).await;
    let cause = record.failure.unwrap();
    assert_eq!(
        (cause.stage.as_str(), cause.code),
        ("Stop", ErrorCode::BackendFailed)
    );
    assert!(cause.message.contains("no such luck"), "{cause}");
    lab.until("off", || is(&lab, Power::Stopped)).await;
    change(&lab, Request::Start).await;
    started_anew(&lab, id).await;
}

#[tokio::test]
async fn a_guest_is_asked_again_to_let_go_when_the_daemon_died_in_the_midst_of_a_stop() {
    for destroys in [false, true] {
        let mut lab = lab_with_workspace().await;
        let (id, guest) = mounted(&lab).await;
        if destroys {
            lab.engine().destroy_sandbox(ONE, false).await.unwrap();
        } else {
            change(&lab, Request::Stop).await;
        }
        until_asked(&lab, &guest).await;
        lab.restart().await;
        until_asked(&lab, &guest).await;
        let_go(&lab, &guest).await;
        if destroys {
            until(&lab, id, SandboxState::Destroyed).await;
            assert_eq!(lab.backend.vmids(), []);
        } else {
            lab.until("off", || is(&lab, Power::Stopped)).await;
            assert_eq!(
                lab.door.asked(vmid(1000)).len(),
                1,
                "its own disk is written, too"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_is_not_heard_after_a_restart_is_not_waited_for_for_ever() {
    let mut lab = lab_with_workspace().await;
    let (id, guest) = mounted(&lab).await;
    lab.engine().destroy_sandbox(ONE, false).await.unwrap();
    until_asked(&lab, &guest).await;
    lab.restart().await;
    until(&lab, id, SandboxState::Destroyed).await;
}

#[tokio::test]
async fn nobody_takes_the_disk_of_a_stopped_sandbox_before_its_machine_is_off() {
    let lab = lab_with_workspace().await;
    let (_, guest) = mounted(&lab).await;
    change(&lab, Request::Stop).await;
    let problem = lab.engine().detach_workspace(NAME).await.unwrap_err();
    assert_eq!(problem.code, ErrorCode::StateConflict);
    assert!(problem.detail.contains("still being stopped"), "{problem:?}");
    assert!(problem.hint.unwrap().contains("again in a moment"));
    until_asked(&lab, &guest).await;
    let_go(&lab, &guest).await;
    while lab.engine().detach_workspace(NAME).await.is_err() {
        sleep(PACE).await;
    }
    assert!(is(&lab, Power::Stopped));
}
