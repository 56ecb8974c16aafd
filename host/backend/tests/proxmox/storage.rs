//! Clones, volumes and snapshots on storages of different kinds.

use agentlab_backend::proxmox::connect;
use agentlab_backend::{BackendError, CloneMode, PowerOn, SnapshotHolds};
use pve_sim::{Plugin, PveSim, Scale, Setup, Version};

use crate::lab::{options, shape, spec, stamp, vmid};
use crate::ownership::{backend, settings};

const QUICK: Scale = Scale(0.01);
/// A storage of each kind that differs in what it can.
const EACH: [Plugin; 5] = [
    Plugin::Dir,
    Plugin::Zfs,
    Plugin::LvmThin,
    Plugin::Rbd,
    Plugin::Lvm,
];

async fn node_with(plugin: Plugin) -> PveSim {
    let mut setup = Setup::lab(Version::V9, QUICK);
    setup.storages.push(("fast".into(), plugin, false));
    setup.template_storage = "fast".into();
    setup.in_process().listen("127.0.0.1:0").await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clone_is_linked_where_the_storage_can_and_full_where_it_cannot() {
    for plugin in EACH {
        let node = node_with(plugin).await;
        let mut options = options();
        options.node = None;
        let auto = connect(settings(&node, options.clone())).unwrap();
        auto.clone_template(&spec()).await.unwrap();
        auto.destroy(vmid(1000), &stamp()).await.unwrap();
        options.clone = CloneMode::Linked;
        let linked = connect(settings(&node, options.clone()))
            .unwrap()
            .clone_template(&spec())
            .await;
        if plugin == Plugin::Lvm {
            assert!(
                matches!(&linked, Err(BackendError::Refused { hint: Some(hint), .. }) if hint.contains("proxmox_clone_mode")),
                "{linked:?}"
            );
        } else {
            linked.unwrap();
            auto.destroy(vmid(1000), &stamp()).await.unwrap();
        }
        options.clone = CloneMode::Full;
        options.storage = Some("fast".into());
        connect(settings(&node, options))
            .unwrap()
            .clone_template(&spec())
            .await
            .unwrap();
        auto.destroy(vmid(1000), &stamp()).await.unwrap();
        assert_eq!(node.left(), Vec::<String>::new(), "{plugin:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_asked_for_twice_is_one_whatever_its_storage_calls_it() {
    for plugin in EACH {
        let node = node_with(plugin).await;
        let mut options = options();
        options.node = None;
        options.volume_owner = Some(vmid(777));
        options.storage = Some("fast".into());
        let backend = connect(settings(&node, options)).unwrap();
        let volume = backend.create_volume("work-1", 1).await.unwrap();
        assert_eq!(
            backend.create_volume("work-1", 1).await.unwrap(),
            volume,
            "{plugin:?}"
        );
        assert!(backend.create_volume("work-1", 2).await.is_err(), "{plugin:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workspace_takes_a_place_that_its_template_left_free_and_is_never_booted_from() {
    let mut setup = Setup::lab(Version::V9, QUICK);
    let drive = "local:9000/vm-9000-cloudinit.qcow2";
    setup.volumes.push((drive.into(), 9000, 4 << 20));
    setup
        .template
        .insert("scsi1".into(), format!("{drive},media=cdrom"));
    let node = setup.in_process().listen("127.0.0.1:0").await.unwrap();
    let root = node.operator().config(9000).unwrap()["scsi0"].clone();
    for (key, value) in [("sata0", Some(root.as_str())), ("scsi0", None), ("boot", None)] {
        node.operator().configure(9000, key, value);
    }
    let backend = backend(&node);
    backend.clone_template(&spec()).await.unwrap();
    backend.configure(vmid(1000), &stamp(), &shape()).await.unwrap();
    let volume = backend.create_volume("work-1", 1).await.unwrap();
    for _ in 0..2 {
        backend
            .attach_volume(&volume, vmid(1000), &stamp())
            .await
            .unwrap();
    }
    let config = node.operator().config(1000).unwrap();
    assert!(config["scsi1"].contains("cloudinit"), "{config:?}");
    assert!(config["scsi2"].starts_with(&volume), "{config:?}");
    assert_eq!(config["boot"], "order=sata0");
    let second = backend.create_volume("work-2", 1).await.unwrap();
    let answer = backend.attach_volume(&second, vmid(1000), &stamp()).await;
    assert!(
        matches!(&answer, Err(BackendError::Refused { reason, .. }) if reason.contains(&volume)),
        "{answer:?}"
    );
    backend
        .detach_volume(&volume, vmid(1000), &stamp())
        .await
        .unwrap();
    assert!(!node.operator().config(1000).unwrap().contains_key("scsi2"));
}

/// Two nodes; the daemon is on the second, and the template is on the first.
async fn cluster_with_shared(shared: bool) -> PveSim {
    let mut setup = Setup::lab(Version::V9, QUICK);
    setup.nodes.push("pve9b".into());
    setup.storages.push(("ceph".into(), Plugin::Rbd, shared));
    setup.template_storage = "ceph".into();
    setup.in_process().listen("127.0.0.1:0").await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_template_on_another_node_is_cloned_to_ours_where_its_storage_is_shared_and_nowhere_else() {
    for shared in [true, false] {
        let node = cluster_with_shared(shared).await;
        let mut options = options();
        options.node = Some("pve9b".into());
        let backend = connect(settings(&node, options)).unwrap();
        let answer = backend.clone_template(&spec()).await;
        if !shared {
            assert!(
                matches!(&answer, Err(BackendError::Template { hint: Some(hint), .. }) if hint.contains("nodes share")),
                "{answer:?}"
            );
            assert_eq!(node.left(), Vec::<String>::new());
            continue;
        }
        answer.unwrap();
        backend.configure(vmid(1000), &stamp(), &shape()).await.unwrap();
        backend
            .power_on(vmid(1000), &stamp(), PowerOn { nic: None })
            .await
            .unwrap();
        backend.destroy(vmid(1000), &stamp()).await.unwrap();
        assert_eq!(node.left(), Vec::<String>::new());
        assert_eq!(node.audit().foreign_touched, Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_is_attached_to_one_machine_at_a_time_and_outlives_it() {
    let node = PveSim::start(Version::V9, QUICK).await.unwrap();
    let backend = backend(&node);
    let mut other = spec();
    other.vmid = vmid(1001);
    other.name = "sandbox-1001".into();
    other.stamp.nonce = "fedcba9876543210".repeat(2);
    for spec in [&spec(), &other] {
        backend.clone_template(spec).await.unwrap();
        backend.configure(spec.vmid, &spec.stamp, &shape()).await.unwrap();
    }
    let volume = backend.create_volume("work-1", 1).await.unwrap();
    assert_eq!(backend.create_volume("work-1", 1).await.unwrap(), volume);
    assert!(backend.create_volume("work-1", 2).await.is_err());
    assert!(backend.create_volume("../x", 1).await.is_err());
    for _ in 0..2 {
        backend
            .attach_volume(&volume, vmid(1000), &stamp())
            .await
            .unwrap();
    }
    let answer = backend.attach_volume(&volume, vmid(1001), &other.stamp).await;
    assert!(
        matches!(&answer, Err(BackendError::Refused { reason, .. }) if reason.contains("VM 1000")),
        "{answer:?}"
    );
    assert!(matches!(
        backend.destroy_volume(&volume).await,
        Err(BackendError::Refused { .. })
    ));
    // A snapshot would take somebody's work along, and a rollback would undo it.
    let answer = backend
        .take_snapshot(vmid(1000), &stamp(), "clean", SnapshotHolds::Memory)
        .await;
    assert!(
        matches!(&answer, Err(BackendError::Refused { hint: Some(_), .. })),
        "{answer:?}"
    );
    backend.destroy(vmid(1000), &stamp()).await.unwrap();
    backend
        .attach_volume(&volume, vmid(1001), &other.stamp)
        .await
        .unwrap();
    for _ in 0..2 {
        backend
            .detach_volume(&volume, vmid(1001), &other.stamp)
            .await
            .unwrap();
    }
    let foreign = "local:9000/base-9000-disk-0.qcow2";
    for answer in [
        backend.attach_volume(foreign, vmid(1001), &other.stamp).await,
        backend.destroy_volume(foreign).await,
    ] {
        assert!(matches!(answer, Err(BackendError::Refused { .. })), "{answer:?}");
    }
    for _ in 0..2 {
        backend.destroy_volume(&volume).await.unwrap();
    }
    backend.destroy(vmid(1001), &other.stamp).await.unwrap();
    assert_eq!(node.left(), Vec::<String>::new());
    assert_eq!(node.audit().foreign_touched, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_are_taken_listed_gone_back_to_and_deleted() {
    for version in [Version::V8, Version::V9] {
        let node = PveSim::start(version, QUICK).await.unwrap();
        let backend = backend(&node);
        let (at, stamp) = (vmid(1000), stamp());
        backend.clone_template(&spec()).await.unwrap();
        backend.configure(at, &stamp, &shape()).await.unwrap();
        backend
            .take_snapshot(at, &stamp, "clean", SnapshotHolds::Memory)
            .await
            .unwrap();
        backend.power_on(at, &stamp, PowerOn { nic: None }).await.unwrap();
        for _ in 0..2 {
            backend
                .take_snapshot(at, &stamp, "live", SnapshotHolds::Memory)
                .await
                .unwrap();
        }
        assert_eq!(backend.snapshots(at).await.unwrap(), ["clean", "live"]);
        backend.roll_back(at, &stamp, "live").await.unwrap();
        let answer = backend.roll_back(at, &stamp, "nope").await;
        assert!(matches!(answer, Err(BackendError::Refused { .. })), "{answer:?}");
        for name in ["current", "x", "9a", "a b"] {
            assert!(
                backend
                    .take_snapshot(at, &stamp, name, SnapshotHolds::Memory)
                    .await
                    .is_err(),
                "{name}"
            );
        }
        for _ in 0..2 {
            backend.delete_snapshot(at, &stamp, "live").await.unwrap();
        }
        assert_eq!(backend.snapshots(at).await.unwrap(), ["clean"]);
        backend.destroy(at, &stamp).await.unwrap();
        assert_eq!(node.left(), Vec::<String>::new());
    }
}
