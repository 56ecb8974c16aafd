//! What the traits promise of volumes beyond who has them: whose they are, and states of them.

use agentlab_backend::{Backend, BackendError, Power, SnapshotHolds};

use crate::suite::{Rig, cloned, no_cable, power, vmid};

/// Every back end here has them; a genuine node may have been given no number that owns volumes.
async fn has_volumes(backend: &dyn Backend) -> bool {
    backend.info().await.unwrap().capabilities.volumes
}

/// Names that would be somebody else's, or lead elsewhere.
pub(crate) async fn a_volume_of_somebody_else_is_never_touched(rig: &mut dyn Rig) {
    if !has_volumes(rig.backend()).await {
        return;
    }
    let backend = rig.backend();
    let spec = cloned(backend, 1000).await;
    for name in ["../vm/1000", "local:9000/base-9000-disk-0.qcow2", "", "a b"] {
        assert!(backend.create_volume(name, 1).await.is_err(), "{name:?}");
        assert!(backend.destroy_volume(name).await.is_err(), "{name:?}");
        let answer = backend.attach_volume(name, spec.vmid, &spec.stamp).await;
        assert!(answer.is_err(), "{name:?}");
    }
    assert_eq!(power(backend, vmid(1000)).await, Some(Power::Stopped));
}

pub(crate) async fn a_state_of_a_volume_is_kept_gone_back_to_and_copied(rig: &mut dyn Rig) {
    if !has_volumes(rig.backend()).await {
        return;
    }
    let volume = rig.backend().create_volume("ws-states", 1).await.unwrap();
    for _ in 0..2 {
        let backend = rig.backend();
        for name in ["one", "two"] {
            backend.take_volume_snapshot(&volume, name).await.unwrap();
        }
        backend.roll_back_volume(&volume, "one").await.unwrap();
        rig.restart().await;
    }
    let backend = rig.backend();
    let answer = backend.roll_back_volume(&volume, "absent").await;
    assert!(answer.is_err(), "{answer:?}");
    assert!(
        backend
            .copy_volume(&volume, Some("absent"), "ws-none")
            .await
            .is_err()
    );
    let mut copies = Vec::new();
    for (snapshot, name) in [(Some("one"), "ws-then"), (None, "ws-now")] {
        let copy = backend.copy_volume(&volume, snapshot, name).await.unwrap();
        assert_eq!(backend.copy_volume(&volume, snapshot, name).await.unwrap(), copy);
        copies.push(copy);
    }
    assert!(copies[0] != copies[1] && !copies.contains(&volume));
    // A copy is as good as any.
    let spec = cloned(backend, 1000).await;
    let (at, ours) = (spec.vmid, &spec.stamp);
    backend.attach_volume(&copies[0], at, ours).await.unwrap();
    assert!(backend.destroy_volume(&copies[0]).await.is_err());
    backend.grow_volume(&copies[0], at, ours, 2).await.unwrap();
    backend.detach_volume(&copies[0], at, ours).await.unwrap();
    backend.take_volume_snapshot(&copies[0], "one").await.unwrap();
    backend.destroy(at, ours).await.unwrap();
    for _ in 0..2 {
        backend.delete_volume_snapshot(&volume, "two").await.unwrap();
    }
    // What is left of snapshots goes with the volume.
    for gone in copies.iter().chain([&volume]) {
        for _ in 0..2 {
            backend.destroy_volume(gone).await.unwrap();
        }
    }
    assert_eq!(rig.leftovers(), Vec::<String>::new());
}

/// Nobody goes back on what a guest writes at the moment.
pub(crate) async fn a_volume_that_a_running_machine_has_is_left_as_it_is(rig: &mut dyn Rig) {
    if !has_volumes(rig.backend()).await {
        return;
    }
    let backend = rig.backend();
    let spec = cloned(backend, 1000).await;
    let volume = backend.create_volume("ws-busy", 1).await.unwrap();
    backend.take_volume_snapshot(&volume, "one").await.unwrap();
    backend
        .attach_volume(&volume, spec.vmid, &spec.stamp)
        .await
        .unwrap();
    backend
        .power_on(spec.vmid, &spec.stamp, no_cable())
        .await
        .unwrap();
    let answers = [
        backend.take_volume_snapshot(&volume, "two").await,
        backend.roll_back_volume(&volume, "one").await,
        backend.copy_volume(&volume, None, "ws-copy").await.map(drop),
    ];
    for answer in answers {
        assert!(matches!(answer, Err(BackendError::Refused { .. })), "{answer:?}");
    }
    backend.destroy(spec.vmid, &spec.stamp).await.unwrap();
    backend.destroy_volume(&volume).await.unwrap();
    assert_eq!(rig.leftovers(), Vec::<String>::new());
}

pub(crate) async fn every_volume_is_listed_with_its_size_and_whoever_has_it(rig: &mut dyn Rig) {
    if !has_volumes(rig.backend()).await {
        return;
    }
    let backend = rig.backend();
    let spec = cloned(backend, 1000).await;
    let mut made = Vec::new();
    for (name, size_gb) in [("ws-first", 1), ("ws-other", 2)] {
        made.push(backend.create_volume(name, size_gb).await.unwrap());
    }
    backend
        .attach_volume(&made[1], spec.vmid, &spec.stamp)
        .await
        .unwrap();
    rig.restart().await;
    let backend = rig.backend();
    // What is nobody's copy, and no volume, is cleared; volumes are not.
    for _ in 0..2 {
        backend.settle_volumes().await.unwrap();
    }
    let list = backend.volumes().await.unwrap();
    let ours = list.volumes.iter().filter(|one| made.contains(&one.id));
    let mut seen: Vec<_> = ours.map(|one| (one.name.as_deref(), one.bytes >> 30)).collect();
    seen.sort();
    assert_eq!(seen, [(Some("ws-first"), 1), (Some("ws-other"), 2)]);
    assert!(list.unread.is_empty(), "{list:?}");
    assert!(made.iter().all(|volume| backend.owns_volume(volume)) && !backend.owns_volume("../x"));
    let holders = backend.volume_holders().await.unwrap();
    assert_eq!(holders, [(made[1].clone(), spec.vmid)]);
    // It outlives whoever has it.
    backend.destroy(spec.vmid, &spec.stamp).await.unwrap();
    assert_eq!(backend.volume_holders().await.unwrap(), []);
    assert_eq!(backend.volumes().await.unwrap().volumes.len(), list.volumes.len());
    for volume in &made {
        backend.destroy_volume(volume).await.unwrap();
    }
    assert_eq!(rig.leftovers(), Vec::<String>::new());
}

/// What somebody worked on since a sandbox was as its snapshot is not undone with it.
pub(crate) async fn a_sandbox_that_goes_back_leaves_its_volume_as_it_is(rig: &mut dyn Rig) {
    let backend = rig.backend();
    let able = backend.info().await.unwrap().capabilities;
    if !able.volumes || !able.snapshots {
        return;
    }
    let spec = cloned(backend, 1000).await;
    let (at, ours) = (spec.vmid, &spec.stamp);
    let volume = backend.create_volume("ws-kept", 1).await.unwrap();
    backend
        .take_snapshot(at, ours, "clean", SnapshotHolds::Disks)
        .await
        .unwrap();
    backend.attach_volume(&volume, at, ours).await.unwrap();
    let taken = backend
        .take_snapshot(at, ours, "more", SnapshotHolds::Disks)
        .await;
    assert!(matches!(taken, Err(BackendError::Refused { .. })), "{taken:?}");
    let answer = backend.roll_back(at, ours, "clean").await;
    assert!(matches!(answer, Err(BackendError::Refused { .. })), "{answer:?}");
    assert_eq!(backend.volume_holders().await.unwrap(), [(volume.clone(), at)]);
    backend.detach_volume(&volume, at, ours).await.unwrap();
    backend.roll_back(at, ours, "clean").await.unwrap();
    backend.destroy(at, ours).await.unwrap();
    backend.destroy_volume(&volume).await.unwrap();
    assert_eq!(rig.leftovers(), Vec::<String>::new());
}
