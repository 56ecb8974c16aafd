//! Workspaces: what an operator and a guest do with one in a story, and what is refused.

use std::time::Duration;

use agentlab_api::{
    ErrorCode, JobRequest, JobState, JobView, SandboxId, SandboxRequest, SandboxState, WorkspaceFork,
    WorkspaceRequest, WorkspaceState,
};
use agentlab_backend::Power;
use agentlab_backend::fake::Call;
use agentlab_protocol::message::{Phase, ReportStatus};
use agentlab_protocol::workspace::WorkspaceNews;
use agentlab_store::SandboxRecord;
use tokio::time::{Instant, sleep, timeout};

use super::lab::{Guest, Lab, request, vmid};
use crate::GuestRefusal;
use crate::sandbox::machine::Request;

pub(super) const NAME: &str = "w";
pub(super) const PACE: Duration = Duration::from_millis(50);
pub(super) const PATIENCE: Duration = Duration::from_secs(120);
/// What a guest writes on it.
pub(super) const WRITTEN: u64 = 7;

pub(super) fn wanted(name: &str) -> WorkspaceRequest {
    WorkspaceRequest {
        name: name.to_owned(),
        size_gb: 1,
    }
}

/// Asks for the story's workspace until it is there.
pub(super) async fn make(lab: &Lab) {
    loop {
        match lab.engine().workspace(NAME).await {
            Ok(view) if view.state != WorkspaceState::Creating => return,
            Ok(_) => {}
            Err(_) => drop(lab.engine().create_workspace(wanted(NAME)).await),
        }
        sleep(PACE).await;
    }
}

/// Nobody has it any more, what was written on it is there, and then it goes.
pub(super) async fn remove(lab: &Lab) {
    while let Ok(view) = lab.engine().workspace(NAME).await {
        if view.state == WorkspaceState::Detached {
            let volume = view.volume.unwrap();
            assert_eq!(lab.backend.holder(&volume), None);
            let content = lab.backend.volume(&volume).unwrap();
            assert_eq!(content, (1, if view.formatted { WRITTEN } else { 0 }));
            drop(lab.engine().delete_workspace(NAME).await);
        }
        sleep(PACE).await;
    }
    assert_eq!(lab.backend.volumes(), Vec::<String>::new());
}

/// A guest that has a workspace: it says so, and lets go of it at its end, or when it is asked to.
pub(super) async fn beat(guest: &Guest, lab: &Lab, phase: Phase) -> Result<(), GuestRefusal> {
    let news = match phase {
        Phase::Agent => {
            let volumes = lab.backend.volumes();
            lab.backend.write_volume(&volumes[0], WRITTEN);
            Some(WorkspaceNews::Mounted)
        }
        Phase::Report => Some(WorkspaceNews::Released),
        Phase::Idle | Phase::Repository | Phase::Collect | Phase::Upload | Phase::Push => None,
    };
    if guest.say(lab, phase, news).await?.release_workspace {
        guest.say(lab, phase, Some(WorkspaceNews::Released)).await?;
    }
    Ok(())
}

pub(super) fn on(workspace: &str) -> JobRequest {
    JobRequest {
        workspace: Some(workspace.to_owned()),
        ..request()
    }
}

pub(super) async fn lab_with_workspace() -> Lab {
    let lab = Lab::new().await;
    let made = lab.engine().create_workspace(wanted(NAME)).await.unwrap();
    assert_eq!(made.state, WorkspaceState::Detached);
    lab
}

pub(super) async fn job_on(lab: &Lab, workspace: &str) -> JobView {
    lab.engine().create_job(on(workspace), None).await.unwrap()
}

#[tokio::test]
async fn one_sandbox_at_a_time_has_a_workspace() {
    let lab = lab_with_workspace().await;
    let job = job_on(&lab, NAME).await;
    let guest = lab.running(&job).await;
    let record = lab.record(&job).await;
    let view = lab.engine().workspace(NAME).await.unwrap();
    assert_eq!(
        (view.state, view.vmid),
        (WorkspaceState::Attached, Some(record.vmid))
    );
    assert_eq!(lab.backend.holder(&view.volume.unwrap()), Some(record.vmid));

    let second = lab.engine().create_job(on(NAME), None).await.unwrap_err();
    assert_eq!(second.code, ErrorCode::StateConflict);
    assert!(second.detail.contains(&record.vmid.to_string()), "{second:?}");
    for problem in [
        lab.engine().delete_workspace(NAME).await.unwrap_err(),
        lab.engine()
            .snapshot_workspace(NAME, "s".into())
            .await
            .unwrap_err(),
        lab.engine().detach_workspace(NAME).await.unwrap_err(),
    ] {
        assert_eq!(problem.code, ErrorCode::StateConflict, "{problem:?}");
    }

    guest
        .report(&lab, &job, ReportStatus::Completed, Some(0))
        .await
        .unwrap();
    lab.until_sandbox(&job, SandboxState::Destroyed).await;
    assert_eq!(
        lab.engine().workspace(NAME).await.unwrap().state,
        WorkspaceState::Detached
    );
    job_on(&lab, NAME).await;
    assert!(lab.engine().create_job(on("x"), None).await.unwrap_err().code == ErrorCode::NotFound);
}

#[tokio::test]
async fn a_file_system_is_made_once_and_only_where_no_guest_has_seen_one() {
    let lab = lab_with_workspace().await;
    for make in [true, false] {
        let job = job_on(&lab, NAME).await;
        let mut guest = lab.boot(&job).await;
        let order = guest.redeem(&lab).await.unwrap().workspace.unwrap();
        assert_eq!(order.make, make);
        guest.acknowledge(&lab).await;
        for news in [WorkspaceNews::Mounted, WorkspaceNews::Released] {
            guest.say(&lab, Phase::Idle, Some(news)).await.unwrap();
        }
        guest
            .report(&lab, &job, ReportStatus::Completed, Some(0))
            .await
            .unwrap();
        lab.until_sandbox(&job, SandboxState::Destroyed).await;
    }
}

#[tokio::test]
async fn power_goes_only_once_the_guest_has_let_go_and_a_silent_guest_is_not_waited_for() {
    let lab = lab_with_workspace().await;
    let job = job_on(&lab, NAME).await;
    let guest = lab.running(&job).await;
    assert!(
        !guest
            .say(&lab, Phase::Agent, None)
            .await
            .unwrap()
            .release_workspace
    );
    let id = job.sandbox.unwrap().to_string();
    lab.engine().destroy_sandbox(&id, false).await.unwrap();
    sleep(PACE * 4).await;
    let vmid = lab.record(&job).await.vmid;
    assert_eq!(
        lab.backend.power(vmid),
        Some(Power::Running),
        "the plug was pulled"
    );
    let asked = guest.say(&lab, Phase::Agent, None).await.unwrap();
    assert!(asked.release_workspace);
    guest
        .say(&lab, Phase::Agent, Some(WorkspaceNews::Released))
        .await
        .unwrap();
    lab.until_sandbox(&job, SandboxState::Destroyed).await;

    let job = job_on(&lab, NAME).await;
    lab.running(&job).await;
    let (id, began) = (job.sandbox.unwrap().to_string(), Instant::now());
    lab.engine().destroy_sandbox(&id, false).await.unwrap();
    lab.until_sandbox(&job, SandboxState::Destroyed).await;
    assert!(
        began.elapsed() < lab.settings.heartbeat_interval,
        "a guest that never spoke was waited for"
    );
}

#[tokio::test]
async fn a_job_whose_workspace_cannot_be_used_fails_for_that_reason() {
    let lab = lab_with_workspace().await;
    let job = job_on(&lab, NAME).await;
    let guest = lab.running(&job).await;
    let said = serde_json::json!({
        "version": 1, "job": job.id, "status": "failed", "failed_phase": "idle", "cause": "workspace",
        "message": "The workspace cannot be used: e2fsck: bad magic", "inner_sandbox": "none",
    });
    let session = guest.authenticate(&lab).await.unwrap();
    let report = serde_json::from_value(said).unwrap();
    lab.engine().report(&session, report).await.unwrap();
    let ended = lab.until_job(&job, JobState::Failed).await;
    assert_eq!(ended.failure.unwrap().code, ErrorCode::WorkspaceUnusable);
}

#[tokio::test]
async fn a_held_sandbox_without_its_workspace_is_taken_down() {
    let lab = lab_with_workspace().await;
    let id = held(&lab, Some(NAME)).await;
    let guest = answer(&lab, id).await;
    let reason = "e2fsck: \u{1b}[31mbad magic".to_owned();
    guest
        .say(&lab, Phase::Idle, Some(WorkspaceNews::Failed { reason }))
        .await
        .unwrap();
    let failure = until(&lab, id, SandboxState::Failed).await.failure.unwrap();
    assert_eq!(failure.code, ErrorCode::WorkspaceUnusable);
    assert!(
        failure.message.contains("bad magic") && !failure.message.contains('\u{1b}'),
        "{failure:?}"
    );
    until_detached(&lab).await;
}

#[tokio::test]
async fn a_stopped_sandbox_gets_a_workspace_and_gives_it_back() {
    let lab = lab_with_workspace().await;
    let id = held(&lab, None).await;
    answer(&lab, id).await;
    let refused = lab.engine().attach_workspace(NAME, "one").await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::StateConflict);
    lab.engine().change_sandbox("one", Request::Stop).await.unwrap();
    lab.until("it is off", || {
        lab.backend.power(vmid(1000)) == Some(Power::Stopped)
    })
    .await;
    let view = attached(&lab).await;
    assert_eq!(view.vmid, Some(vmid(1000)));
    let volume = view.volume.unwrap();
    assert_eq!(lab.backend.holder(&volume), None, "from its next start on");

    lab.engine().change_sandbox("one", Request::Start).await.unwrap();
    answer(&lab, id).await;
    assert_eq!(lab.backend.holder(&volume), Some(vmid(1000)));
    lab.engine().change_sandbox("one", Request::Stop).await.unwrap();
    lab.until("it is off", || {
        lab.backend.power(vmid(1000)) == Some(Power::Stopped)
    })
    .await;
    while lab.engine().detach_workspace(NAME).await.is_err() {
        sleep(PACE).await;
    }
    assert_eq!(lab.backend.holder(&volume), None);
    let view = lab.engine().workspace(NAME).await.unwrap();
    assert_eq!(view.state, WorkspaceState::Detached);
    lab.engine().destroy_sandbox("one", false).await.unwrap();
    until(&lab, id, SandboxState::Destroyed).await;
    lab.assert_empty().await;
}

/// A sandbox without a job.
pub(super) async fn held(lab: &Lab, workspace: Option<&str>) -> SandboxId {
    let asked = SandboxRequest {
        profile: "demo".into(),
        name: Some("one".into()),
        ttl_minutes: None,
        workspace: workspace.map(str::to_owned),
        workspace_wait_seconds: None,
    };
    lab.engine().create_sandbox(asked).await.unwrap().id
}

pub(super) async fn until(lab: &Lab, id: SandboxId, state: SandboxState) -> SandboxRecord {
    let look = async {
        loop {
            let record = lab.store.sandbox(id).await.unwrap().unwrap();
            if record.state == state {
                return record;
            }
            sleep(PACE).await;
        }
    };
    timeout(PATIENCE, look).await.expect("it never came to that")
}

pub(super) async fn until_detached(lab: &Lab) {
    let look = async {
        while lab.engine().workspace(NAME).await.unwrap().state != WorkspaceState::Detached {
            sleep(PACE).await;
        }
    };
    timeout(PATIENCE, look).await.expect("it is never free again");
}

/// Plays the guest of a machine that boots, until it is let in.
pub(super) async fn answer(lab: &Lab, id: SandboxId) -> Guest {
    lab.let_in(&until(lab, id, SandboxState::Booting).await).await
}

/// Its driver may still be busy with the end of its machine.
async fn attached(lab: &Lab) -> agentlab_api::WorkspaceView {
    loop {
        match lab.engine().attach_workspace(NAME, "one").await {
            Ok(view) => return view,
            Err(problem) => assert_eq!(problem.code, ErrorCode::StateConflict),
        }
        sleep(PACE).await;
    }
}

#[tokio::test]
async fn states_of_a_workspace_are_kept_gone_back_to_and_copied() {
    let lab = lab_with_workspace().await;
    let engine = lab.engine();
    let volume = engine.workspace(NAME).await.unwrap().volume.unwrap();
    lab.backend.write_volume(&volume, 1);
    let view = engine.snapshot_workspace(NAME, "first".into()).await.unwrap();
    assert_eq!(view.snapshots[0].name, "first");
    lab.backend.write_volume(&volume, 2);
    let fork = |name: &str, from: Option<&str>| WorkspaceFork {
        name: name.to_owned(),
        from_snapshot: from.map(str::to_owned),
    };
    let now = engine.fork_workspace(NAME, fork("now", None)).await.unwrap();
    let then = engine
        .fork_workspace(NAME, fork("then", Some("first")))
        .await
        .unwrap();
    let content = |volume: &Option<String>| lab.backend.volume(volume.as_deref().unwrap()).unwrap().1;
    assert_eq!((content(&now.volume), content(&then.volume)), (2, 1));
    engine.restore_workspace(NAME, "first".into()).await.unwrap();
    assert_eq!(lab.backend.volume(&volume).unwrap().1, 1);
    for problem in [
        engine.snapshot_workspace(NAME, "first".into()).await.unwrap_err(),
        engine.restore_workspace(NAME, "absent".into()).await.unwrap_err(),
        engine.fork_workspace(NAME, fork("now", None)).await.unwrap_err(),
        engine.create_workspace(wanted("Bad name")).await.unwrap_err(),
        engine.resize_workspace("now", 0).await.unwrap_err(),
    ] {
        assert!(
            matches!(
                problem.code,
                ErrorCode::StateConflict | ErrorCode::NotFound | ErrorCode::InvalidValue
            ),
            "{problem:?}"
        );
    }
    engine.resize_workspace(NAME, 3).await.unwrap();
    assert_eq!(
        lab.backend.volume(&volume).unwrap().0,
        1,
        "it grows when it is attached next"
    );
    let job = job_on(&lab, NAME).await;
    lab.boot(&job).await;
    assert_eq!(lab.backend.volume(&volume).unwrap().0, 3);
}

#[tokio::test]
async fn a_workspace_that_nobody_has_goes_to_another_storage_without_its_snapshots() {
    let lab = lab_with_workspace().await;
    let engine = lab.engine();
    let before = engine.workspace(NAME).await.unwrap().volume.unwrap();
    lab.backend.write_volume(&before, WRITTEN);
    engine.snapshot_workspace(NAME, "first".into()).await.unwrap();
    for (storage, code) in [
        ("fast", ErrorCode::StateConflict),
        ("a b", ErrorCode::InvalidValue),
    ] {
        let problem = engine.move_workspace(NAME, storage.into()).await.unwrap_err();
        assert_eq!(problem.code, code, "{problem:?}");
    }
    engine.forget_snapshot(NAME, "first".into()).await.unwrap();
    let after = engine.move_workspace(NAME, "fast".into()).await.unwrap();
    let after = after.volume.unwrap();
    assert_eq!(lab.backend.volumes(), std::slice::from_ref(&after));
    assert_eq!(lab.backend.volume(&after), Some((1, WRITTEN)));
    let job = job_on(&lab, NAME).await;
    lab.boot(&job).await;
    let problem = engine.move_workspace(NAME, "slow".into()).await.unwrap_err();
    assert_eq!(problem.code, ErrorCode::StateConflict);
}

#[tokio::test]
async fn what_the_back_end_refuses_is_answered_and_leaves_no_record() {
    let lab = Lab::new().await;
    let unsupported = agentlab_backend::BackendError::Unsupported { what: "volumes" };
    lab.backend.fail_next(Call::CreateVolume, unsupported);
    let problem = lab.engine().create_workspace(wanted("a")).await.unwrap_err();
    assert_eq!(problem.code, ErrorCode::BackendFailed);
    assert!(problem.hint.is_some(), "{problem:?}");
    assert!(lab.engine().workspaces().await.unwrap().workspaces.is_empty());
    lab.engine().create_workspace(wanted("a")).await.unwrap();
}
