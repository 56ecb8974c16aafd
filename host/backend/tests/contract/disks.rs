//! What the traits promise of volumes and snapshots, to those that have them.

use agentlab_backend::{BackendError, Power, SnapshotHolds};

use crate::suite::{Rig, cloned, no_cable, power, stamp, vmid};

pub(crate) async fn a_volume_goes_to_one_machine_at_a_time_and_outlives_it(rig: &mut dyn Rig) {
    let backend = rig.backend();
    if !backend.info().await.unwrap().capabilities.volumes {
        let answer = backend.create_volume("work-1", 1).await;
        assert!(
            matches!(answer, Err(BackendError::Unsupported { .. })),
            "{answer:?}"
        );
        return;
    }
    let first = cloned(backend, 1000).await;
    let second = cloned(backend, 1001).await;
    let volume = backend.create_volume("work-1", 1).await.unwrap();
    assert_eq!(backend.create_volume("work-1", 1).await.unwrap(), volume);
    for _ in 0..2 {
        backend
            .attach_volume(&volume, first.vmid, &first.stamp)
            .await
            .unwrap();
    }
    let answers = [
        backend.attach_volume(&volume, second.vmid, &second.stamp).await,
        backend.destroy_volume(&volume).await,
    ];
    for answer in answers {
        assert!(matches!(answer, Err(BackendError::Refused { .. })), "{answer:?}");
    }
    let foreign = stamp();
    let answers = [
        backend.attach_volume(&volume, second.vmid, &foreign).await,
        backend.grow_volume(&volume, first.vmid, &foreign, 2).await,
        backend.detach_volume(&volume, first.vmid, &foreign).await,
    ];
    for answer in answers {
        assert!(matches!(answer, Err(BackendError::NotOurs { .. })), "{answer:?}");
    }
    for _ in 0..2 {
        backend
            .grow_volume(&volume, first.vmid, &first.stamp, 2)
            .await
            .unwrap();
    }
    backend.destroy(first.vmid, &first.stamp).await.unwrap();
    backend
        .attach_volume(&volume, second.vmid, &second.stamp)
        .await
        .unwrap();
    rig.restart().await;
    let backend = rig.backend();
    let third = cloned(backend, 1002).await;
    let answer = backend.attach_volume(&volume, third.vmid, &third.stamp).await;
    assert!(matches!(answer, Err(BackendError::Refused { .. })), "{answer:?}");
    for _ in 0..2 {
        backend
            .detach_volume(&volume, second.vmid, &second.stamp)
            .await
            .unwrap();
    }
    for _ in 0..2 {
        backend.destroy_volume(&volume).await.unwrap();
    }
    for spec in [&second, &third] {
        backend.destroy(spec.vmid, &spec.stamp).await.unwrap();
    }
    backend
        .detach_volume(&volume, vmid(1003), &foreign)
        .await
        .unwrap();
    assert_eq!(rig.leftovers(), Vec::<String>::new());
}

pub(crate) async fn snapshots_with_memory_and_without_are_gone_back_to(rig: &mut dyn Rig) {
    let backend = rig.backend();
    let spec = cloned(backend, 1000).await;
    let (at, ours) = (spec.vmid, &spec.stamp);
    let take = |name: &'static str, holds| backend.take_snapshot(at, ours, name, holds);
    if !backend.info().await.unwrap().capabilities.snapshots {
        let answer = take("clean", SnapshotHolds::Disks).await;
        assert!(
            matches!(answer, Err(BackendError::Unsupported { .. })),
            "{answer:?}"
        );
        return;
    }
    // A machine that is off has no memory to keep.
    take("clean", SnapshotHolds::Memory).await.unwrap();
    backend.power_on(at, ours, no_cable()).await.unwrap();
    for _ in 0..2 {
        take("live", SnapshotHolds::Memory).await.unwrap();
        take("disks", SnapshotHolds::Disks).await.unwrap();
    }
    let mut names = backend.snapshots(at).await.unwrap();
    names.sort();
    assert_eq!(names, ["clean", "disks", "live"]);
    for (name, wanted) in [
        ("live", Power::Running),
        ("disks", Power::Stopped),
        ("live", Power::Running),
        ("clean", Power::Stopped),
    ] {
        backend.roll_back(at, ours, name).await.unwrap();
        assert_eq!(power(backend, at).await, Some(wanted), "{name}");
    }
    let answer = backend.roll_back(at, ours, "nope").await;
    assert!(matches!(answer, Err(BackendError::Refused { .. })), "{answer:?}");
    for name in ["current", "x", "9a", "a b", "--force"] {
        assert!(take(name, SnapshotHolds::Disks).await.is_err(), "{name}");
    }
    let foreign = stamp();
    let answers = [
        backend
            .take_snapshot(at, &foreign, "more", SnapshotHolds::Disks)
            .await,
        backend.roll_back(at, &foreign, "clean").await,
        backend.delete_snapshot(at, &foreign, "clean").await,
    ];
    for answer in answers {
        assert!(matches!(answer, Err(BackendError::NotOurs { .. })), "{answer:?}");
    }
    for _ in 0..2 {
        backend.delete_snapshot(at, ours, "live").await.unwrap();
    }
    assert_eq!(backend.snapshots(at).await.unwrap().len(), 2);
    backend.destroy(at, ours).await.unwrap();
    assert_eq!(rig.leftovers(), Vec::<String>::new());
}
