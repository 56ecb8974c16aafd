//! Records of workspaces against what the hypervisor has, after a daemon that died, a database that was restored, and a
//! person who attached something by hand.

use agentlab_api::{
    ErrorCode, SandboxState, WorkspaceAdopt, WorkspaceFinding, WorkspaceFindingKind, WorkspaceId,
};
use agentlab_backend::BackendError;
use agentlab_backend::fake::Call;
use agentlab_store::Write;
use tokio::time::sleep;

use super::lab::{Lab, vmid};
use super::workspace::{NAME, PACE, WRITTEN, answer, held, lab_with_workspace, until, wanted};

fn adopt(volume: &str) -> WorkspaceAdopt {
    WorkspaceAdopt {
        volume: volume.to_owned(),
        file_system: None,
    }
}

async fn findings(lab: &Lab, selector: &str) -> Vec<WorkspaceFinding> {
    let checked = lab.engine().check_workspaces(selector).await.unwrap();
    assert_eq!(
        checked.is_wrong(),
        checked.findings.iter().any(|finding| finding.wrong)
    );
    checked.findings
}

async fn kinds(lab: &Lab) -> Vec<WorkspaceFindingKind> {
    findings(lab, "-")
        .await
        .iter()
        .map(|finding| finding.kind)
        .collect()
}

fn told_of(lab: &Lab, volume: &str) -> bool {
    let alarms = lab.engine().shared.alarms();
    alarms.iter().any(|alarm| alarm.contains(volume))
}

#[tokio::test]
async fn a_volume_whose_record_was_lost_is_told_of_kept_and_becomes_a_workspace_again() {
    let mut lab = lab_with_workspace().await;
    let view = lab.engine().workspace(NAME).await.unwrap();
    let volume = view.volume.unwrap();
    lab.backend.write_volume(&volume, WRITTEN);
    lab.engine()
        .snapshot_workspace(NAME, "before".into())
        .await
        .unwrap();
    // As a backup of the database has it that is older than the workspace.
    lab.store
        .commit(vec![Write::ForgetWorkspace(view.id)])
        .await
        .unwrap();
    lab.restart().await;
    while !told_of(&lab, &volume) {
        sleep(PACE).await;
    }
    // However often the hypervisor is looked at.
    sleep(PACE * 10).await;
    assert_eq!(lab.backend.volume(&volume), Some((1, WRITTEN)));
    let found = findings(&lab, "-").await;
    assert_eq!(found[0].kind, WorkspaceFindingKind::Orphan);
    assert!(found[0].detail.contains(&view.id.to_string()) && found[0].hint.contains("adopt"));

    let nothing = lab
        .engine()
        .adopt_workspace("back", adopt("ws-x"))
        .await
        .unwrap_err();
    assert_eq!(nothing.code, ErrorCode::NotFound);
    let back = lab
        .engine()
        .adopt_workspace("back", adopt(&volume))
        .await
        .unwrap();
    assert_eq!((back.id, back.size_gb, back.formatted), (view.id, 1, true));
    assert_eq!(back.snapshots[0].name, "before");
    assert_eq!(kinds(&lab).await, []);
    assert!(!told_of(&lab, &volume));
    let again = lab
        .engine()
        .adopt_workspace("other", adopt(&volume))
        .await
        .unwrap_err();
    assert!(again.detail.contains("`back`"), "{again:?}");
    // Its first guest may have named another file system than the one that its name tells of.
    let other = WorkspaceId::generate();
    let named = WorkspaceAdopt {
        file_system: Some(other),
        ..adopt(&volume)
    };
    lab.engine().adopt_workspace("back", named).await.unwrap();
    let record = lab.store.workspace(view.id).await.unwrap().unwrap();
    assert_eq!(record.file_system, other);
    assert_eq!(lab.backend.volume(&volume), Some((1, WRITTEN)));
    lab.engine().delete_workspace("back").await.unwrap();
    assert_eq!(lab.backend.volumes(), Vec::<String>::new());
}

#[tokio::test]
async fn a_check_names_each_difference_and_changes_nothing() {
    let lab = lab_with_workspace().await;
    assert_eq!(kinds(&lab).await, []);
    let id = held(&lab, Some(NAME)).await;
    answer(&lab, id).await;
    assert_eq!(kinds(&lab).await, []);
    let volume = lab.engine().workspace(NAME).await.unwrap().volume.unwrap();
    let calls = lab.backend.calls().len();

    lab.backend.give_volume(None, vmid(1000));
    assert_eq!(kinds(&lab).await, [WorkspaceFindingKind::NotAttached]);
    lab.backend.give_volume(Some(&volume), vmid(1000));
    lab.engine().resize_workspace(NAME, 2).await.unwrap();
    let grows = findings(&lab, NAME).await;
    assert!(
        !grows[0].wrong && grows[0].kind == WorkspaceFindingKind::SizeDiffers,
        "{grows:?}"
    );
    lab.backend.put_volume(&volume, Some(3));
    let larger = findings(&lab, NAME).await;
    assert!(
        larger[0].wrong && larger[0].hint.contains("resize w 3G"),
        "{larger:?}"
    );
    lab.backend.put_volume(&volume, Some(2));
    lab.backend.put_volume("somebodys", Some(1));
    assert_eq!(kinds(&lab).await, [WorkspaceFindingKind::Orphan]);
    assert_eq!(findings(&lab, NAME).await, []);
    lab.backend.put_volume("somebodys", None);
    let changing = |logged: &&agentlab_backend::fake::Logged| {
        matches!(
            logged.call,
            Call::DestroyVolume | Call::AttachVolume | Call::DetachVolume | Call::GrowVolume
        )
    };
    assert_eq!(lab.backend.calls()[calls..].iter().filter(changing).count(), 0);

    lab.engine().destroy_sandbox("one", true).await.unwrap();
    until(&lab, id, SandboxState::Destroyed).await;
    lab.backend.put_volume(&volume, None);
    let missing = findings(&lab, NAME).await;
    assert_eq!(missing[0].kind, WorkspaceFindingKind::VolumeMissing);
    // It is there under another name: what was made for it is given back.
    let moved = format!("{volume}-on-slow");
    lab.backend.put_volume(&moved, Some(2));
    assert!(findings(&lab, NAME).await[0].hint.contains(&moved));
    let back = lab.engine().adopt_workspace(NAME, adopt(&moved)).await.unwrap();
    assert_eq!(back.volume.as_ref(), Some(&moved));
    assert_eq!(kinds(&lab).await, []);
}

#[tokio::test]
async fn a_volume_that_another_machine_has_is_named_with_it_and_not_adopted() {
    let lab = lab_with_workspace().await;
    let id = held(&lab, None).await;
    answer(&lab, id).await;
    let volume = lab.engine().workspace(NAME).await.unwrap().volume.unwrap();
    for held in [&volume, "ws-lost"] {
        lab.backend.put_volume(held, Some(1));
        lab.backend.give_volume(Some(held), vmid(1000));
        let found = findings(&lab, "-").await;
        assert!(
            found
                .iter()
                .any(|one| one.detail.contains("VM 1000") || one.hint.contains("VM 1000")),
            "{found:?}"
        );
    }
    let problem = lab
        .engine()
        .adopt_workspace("a", adopt("ws-lost"))
        .await
        .unwrap_err();
    assert!(problem.detail.contains("VM 1000"), "{problem:?}");
    assert!(lab.engine().workspace("a").await.is_err());
}

#[tokio::test]
async fn a_volume_never_becomes_the_volume_of_two_workspaces() {
    let lab = lab_with_workspace().await;
    let view = lab.engine().workspace(NAME).await.unwrap();
    let volume = view.volume.unwrap();
    let conflicts = async |name: &str, volume: &str| {
        let adopted = lab.engine().adopt_workspace(name, adopt(volume)).await;
        assert_eq!(adopted.unwrap_err().code, ErrorCode::StateConflict);
    };
    // Made, and its workspace does not know of it yet.
    let hang = lab.backend.hang_next(Call::CreateVolume);
    let mut record = lab.store.workspace(view.id).await.unwrap().unwrap();
    (record.volume, record.task) = (None, Some(agentlab_store::WorkspaceTask::Create));
    let write = Write::Workspace(Box::new(record));
    lab.store.commit(vec![write]).await.unwrap();
    lab.engine().shared.workspaces.news.notify_one();
    hang.reached().await;
    conflicts("second", &volume).await;
    hang.release();
    while lab.engine().workspace(NAME).await.unwrap().volume.is_none() {
        sleep(PACE).await;
    }
    // Found under another name, and given to another workspace first.
    let moved = format!("{volume}-on-slow");
    lab.backend.put_volume(&volume, None);
    lab.backend.put_volume(&moved, Some(1));
    lab.engine()
        .adopt_workspace("second", adopt(&moved))
        .await
        .unwrap();
    conflicts(NAME, &moved).await;
    assert_eq!(lab.engine().workspace(NAME).await.unwrap().volume, Some(volume));
}

fn broken() -> BackendError {
    BackendError::Storage {
        action: "making a volume",
        path: "there".into(),
        source: std::io::ErrorKind::PermissionDenied.into(),
    }
}

#[tokio::test]
async fn a_volume_that_was_made_though_its_making_was_refused_goes_again_and_one_that_was_there_stays() {
    let lab = Lab::new().await;
    lab.backend.lose_answer(Call::CreateVolume, broken());
    let refused = lab.engine().create_workspace(wanted("a")).await.unwrap_err();
    assert!(refused.detail.contains("making a volume"), "{refused:?}");
    assert_eq!(lab.backend.volumes(), Vec::<String>::new());

    // A restored database says of a workspace that was used since that it is being made.
    let mut lab = lab_with_workspace().await;
    let view = lab.engine().workspace(NAME).await.unwrap();
    let volume = view.volume.unwrap();
    lab.backend.write_volume(&volume, WRITTEN);
    let mut record = lab.store.workspace(view.id).await.unwrap().unwrap();
    (record.volume, record.task) = (None, Some(agentlab_store::WorkspaceTask::Create));
    lab.store
        .commit(vec![Write::Workspace(Box::new(record))])
        .await
        .unwrap();
    lab.backend.fail_next(Call::CreateVolume, broken());
    lab.restart().await;
    while !told_of(&lab, &volume) {
        lab.engine().shared.workspaces.news.notify_one();
        sleep(PACE).await;
        crate::workspace_check::look_again(&lab.engine().shared).await;
    }
    assert_eq!(lab.backend.volume(&volume), Some((1, WRITTEN)));
}
