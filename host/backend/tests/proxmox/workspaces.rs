//! States of volumes, by way of the machine that owns them: what each storage can do, whose that machine is, and what is
//! left when a process dies on the way.

use std::sync::Arc;
use std::time::Duration;

use agentlab_backend::proxmox::connect;
use agentlab_backend::{Backend, BackendError, CloneSpec, PowerOn};
use pve_sim::{Plugin, PveSim, Request, Scale, Setup, Version};

use crate::lab::{options, shape, spec, stamp, vmid};
use crate::ownership::settings;

const QUICK: Scale = Scale(0.01);
const OWNER: u32 = 777;

/// A node with two storages for volumes, both granted to the client.
async fn node_with(plugin: Plugin, version: Version) -> PveSim {
    let mut setup = Setup::lab(version, QUICK);
    setup.storages.push(("fast".into(), plugin, false));
    setup
        .grants
        .push(("/storage/fast".into(), "AgentLabStorage".into()));
    setup.in_process().listen("127.0.0.1:0").await.unwrap()
}

fn backend_on(node: &PveSim, storage: &str) -> Arc<dyn Backend> {
    let mut options = options();
    options.node = None;
    options.storage = Some(storage.into());
    options.volume_owner = Some(vmid(OWNER));
    options.lock_patience = Duration::from_secs(60);
    connect(settings(node, options)).unwrap()
}

/// A machine of a person, which the client may look at.
const OPERATORS: u32 = 300;

async fn node_with_an_operators_machine() -> PveSim {
    let mut setup = Setup::lab(Version::V9, QUICK);
    let seen = (format!("/vms/{OPERATORS}"), "PVEAuditor".to_owned());
    setup.grants.push(seen);
    let node = setup.in_process().listen("127.0.0.1:0").await.unwrap();
    assert!(node.operator().create_foreign(OPERATORS));
    node
}

/// Values of the owner's configuration that name a volume of its own.
fn held(node: &PveSim) -> Vec<String> {
    let config = node.operator().config(OWNER).unwrap_or_default();
    let held = config.into_iter().filter(|(key, _)| key != "description");
    held.filter(|(_, value)| value.contains("vm-777-"))
        .map(|(key, value)| format!("{key}: {value}"))
        .collect()
}

/// Volumes the client made and that are left.
fn volumes(node: &PveSim) -> Vec<String> {
    let mut left = node.left();
    left.retain(|one| one.starts_with("volume "));
    left
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_goes_to_another_storage_and_back_and_keeps_its_owner() {
    for version in [Version::V8, Version::V9] {
        let node = node_with(Plugin::LvmThin, version).await;
        let backend = backend_on(&node, "local");
        let volume = backend.create_volume("ws-1", 1).await.unwrap();
        assert_eq!(
            backend.move_volume(&volume, "ws-1", "local").await.unwrap(),
            volume
        );
        let moved = backend.move_volume(&volume, "ws-1", "fast").await.unwrap();
        assert!(moved.starts_with("fast:vm-777-"), "{moved}");
        // Whoever asked and did not hear the answer asks for the same again.
        assert_eq!(backend.move_volume(&volume, "ws-1", "fast").await.unwrap(), moved);
        assert_eq!(volumes(&node), [format!("volume {moved}")]);
        backend.clone_template(&spec()).await.unwrap();
        backend.attach_volume(&moved, vmid(1000), &stamp()).await.unwrap();
        let answer = backend.move_volume(&moved, "ws-1", "local").await;
        assert!(
            matches!(&answer, Err(BackendError::Refused { reason, .. }) if reason.contains("attached")),
            "{answer:?}"
        );
        backend.destroy(vmid(1000), &stamp()).await.unwrap();
        backend.take_volume_snapshot(&moved, "one").await.unwrap();
        let answer = backend.move_volume(&moved, "ws-1", "local").await;
        assert!(
            matches!(&answer, Err(BackendError::Refused { hint: Some(hint), .. }) if hint.contains("snapshots first")),
            "{answer:?}"
        );
        backend.delete_volume_snapshot(&moved, "one").await.unwrap();
        let back = backend.move_volume(&moved, "ws-1", "local").await.unwrap();
        assert!(back.starts_with("local:777/vm-777-"), "{back}");
        for _ in 0..2 {
            backend.destroy_volume(&back).await.unwrap();
        }
        assert_eq!(volumes(&node), Vec::<String>::new());
        assert_eq!(held(&node), Vec::<String>::new());
        assert_eq!(node.audit().foreign_touched, Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_storage_cannot_do_with_a_volume_is_refused_with_another_way() {
    let refused = |answer: Result<(), BackendError>, way: &str| {
        assert!(
            matches!(&answer, Err(BackendError::Refused { hint: Some(hint), .. }) if hint.contains(way)),
            "{answer:?}"
        );
    };
    let node = node_with(Plugin::Lvm, Version::V9).await;
    let backend = backend_on(&node, "fast");
    let volume = backend.create_volume("ws-1", 1).await.unwrap();
    refused(
        backend.take_volume_snapshot(&volume, "one").await,
        "workspace fork",
    );
    backend.copy_volume(&volume, None, "ws-2").await.unwrap();
    assert_eq!(held(&node).len(), 2);

    let node = node_with(Plugin::Zfs, Version::V9).await;
    let backend = backend_on(&node, "fast");
    let volume = backend.create_volume("ws-1", 1).await.unwrap();
    for name in ["one", "two"] {
        backend.take_volume_snapshot(&volume, name).await.unwrap();
    }
    refused(backend.roll_back_volume(&volume, "one").await, "newer ones first");
    let answer = backend.copy_volume(&volume, Some("one"), "ws-2").await;
    refused(answer.map(drop), "go back to the snapshot first");
    backend.roll_back_volume(&volume, "two").await.unwrap();
    backend.copy_volume(&volume, None, "ws-2").await.unwrap();
    backend.destroy_volume(&volume).await.unwrap();
    assert_eq!(node.audit().foreign_touched, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn somebody_elses_machine_under_the_number_of_volumes_is_never_changed() {
    let node = node_with(Plugin::Dir, Version::V9).await;
    let backend = backend_on(&node, "local");
    let volume = backend.create_volume("ws-1", 1).await.unwrap();
    assert!(node.operator().create_foreign(OWNER));
    let before = node.operator().config(OWNER);
    let answers = [
        backend.take_volume_snapshot(&volume, "one").await,
        backend.roll_back_volume(&volume, "one").await,
        backend.delete_volume_snapshot(&volume, "one").await,
        backend.copy_volume(&volume, None, "ws-2").await.map(drop),
        backend.move_volume(&volume, "ws-1", "fast").await.map(drop),
        backend.destroy_volume(&volume).await,
    ];
    for answer in answers {
        assert!(
            matches!(&answer, Err(BackendError::NotOurs { reason, .. }) if reason.contains("proxmox_volume_vmid")),
            "{answer:?}"
        );
    }
    assert_eq!(node.operator().config(OWNER), before);
    // Ours until somebody writes over its description.
    node.operator().destroy(OWNER);
    let volume = backend.create_volume("ws-3", 1).await.unwrap();
    backend.take_volume_snapshot(&volume, "one").await.unwrap();
    node.operator().configure(OWNER, "description", Some("mine now"));
    let answer = backend.destroy_volume(&volume).await;
    assert!(matches!(answer, Err(BackendError::NotOurs { .. })), "{answer:?}");
    assert_eq!(node.audit().foreign_touched, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_dies_on_the_way_leaves_one_copy_and_one_volume_to_the_next() {
    for cut in (0..600).step_by(40).map(Duration::from_millis) {
        let node = node_with(Plugin::Dir, Version::V8).await;
        let volume = backend_on(&node, "local").create_volume("ws-1", 1).await.unwrap();
        let died = backend_on(&node, "local");
        let died = tokio::time::timeout(cut, died.copy_volume(&volume, None, "ws-2")).await;
        let backend = backend_on(&node, "local");
        let copy = backend.copy_volume(&volume, None, "ws-2").await.unwrap();
        if let Ok(answer) = died {
            assert_eq!(answer.unwrap(), copy);
        }
        let died = backend_on(&node, "local");
        let _ = tokio::time::timeout(cut, died.move_volume(&volume, "ws-1", "fast")).await;
        let backend = backend_on(&node, "local");
        let moved = backend.move_volume(&volume, "ws-1", "fast").await.unwrap();
        let mut there = [format!("volume {copy}"), format!("volume {moved}")];
        there.sort();
        assert_eq!(volumes(&node), there, "{cut:?}");
        for gone in [copy, moved] {
            backend.destroy_volume(&gone).await.unwrap();
        }
        assert_eq!(node.left(), ["VM 777 (no lock)"], "{cut:?}");
        assert_eq!(node.audit().foreign_touched, Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_that_an_operators_machine_has_is_neither_attached_nor_destroyed_nor_changed() {
    let node = node_with_an_operators_machine().await;
    let backend = backend_on(&node, "local");
    let volume = backend.create_volume("ws-1", 1).await.unwrap();
    backend.take_volume_snapshot(&volume, "one").await.unwrap();
    backend.clone_template(&spec()).await.unwrap();
    let drive = format!("{volume},size=1G");
    node.operator().configure(OPERATORS, "scsi3", Some(&drive));
    // Whoever looked before believes it for a while; this one has not.
    let backend = backend_on(&node, "local");
    let answers = [
        backend.attach_volume(&volume, vmid(1000), &stamp()).await,
        backend.destroy_volume(&volume).await,
        backend.move_volume(&volume, "ws-1", "fast").await.map(drop),
    ];
    for answer in answers {
        let said = answer.unwrap_err().to_string();
        assert!(said.contains("300"), "{said}");
    }
    assert_eq!(
        backend.volume_holders().await.unwrap(),
        [(volume.clone(), vmid(OPERATORS))]
    );
    node.operator().configure(OPERATORS, "scsi3", None);
    let backend = backend_on(&node, "local");
    backend
        .attach_volume(&volume, vmid(1000), &stamp())
        .await
        .unwrap();
    assert_eq!(
        backend.volume_holders().await.unwrap(),
        [(volume.clone(), vmid(1000))]
    );
    assert_eq!(node.audit().foreign_touched, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_volume_is_listed_by_the_name_it_was_made_under_whatever_pve_calls_it() {
    let node = node_with(Plugin::LvmThin, Version::V8).await;
    let backend = backend_on(&node, "local");
    let made = backend.create_volume("ws-1", 2).await.unwrap();
    for name in ["one", "two"] {
        backend.take_volume_snapshot(&made, name).await.unwrap();
    }
    let copy = backend.copy_volume(&made, None, "ws-2").await.unwrap();
    let moved = backend.move_volume(&copy, "ws-2", "fast").await.unwrap();
    let list = backend_on(&node, "local").volumes().await.unwrap();
    let seen: Vec<_> = list
        .volumes
        .iter()
        .map(|one| (&*one.id, one.name.as_deref()))
        .collect();
    assert_eq!(seen, [(&*moved, Some("ws-2")), (&*made, Some("ws-1"))]);
    assert_eq!(list.volumes[1].snapshots, ["one", "two"]);
    assert!(list.volumes.iter().all(|one| one.bytes == 2 << 30), "{list:?}");
    assert!(list.unread.is_empty(), "{list:?}");
    for (volume, ours) in [(&*made, true), ("local:9000/base-9000-disk-0.qcow2", false)] {
        assert_eq!(backend.owns_volume(volume), ours, "{volume}");
    }
}

/// Asks for a change as root, in the words of its call, and returns the status of the answer.
async fn as_root(node: &PveSim, path: &str, body: &'static str) -> u16 {
    let request = Request {
        method: "PUT".into(),
        path: path.into(),
        authorization: Some(format!("PVEAPIToken={}", node.root_token())),
        content_type: Some("application/json".into()),
        body: body.into(),
        ..Request::default()
    };
    node.answer(request).await.status
}

fn second() -> CloneSpec {
    let mut second = spec();
    second.vmid = vmid(1001);
    second.name = "sandbox-1001".into();
    second.stamp.nonce = "fedcba9876543210".repeat(2);
    second
}

/// A machine that runs and has a volume, and a second one that is off.
async fn a_volume_in_a_machine_that_runs(node: &PveSim, backend: &dyn Backend) -> String {
    let volume = backend.create_volume("ws-1", 1).await.unwrap();
    for spec in [spec(), second()] {
        backend.clone_template(&spec).await.unwrap();
        backend.configure(spec.vmid, &spec.stamp, &shape()).await.unwrap();
    }
    backend
        .attach_volume(&volume, vmid(1000), &stamp())
        .await
        .unwrap();
    backend
        .power_on(vmid(1000), &stamp(), PowerOn { nic: None })
        .await
        .unwrap();
    // PVE unplugs nothing of a running machine that it boots from, and notes that it is to go later.
    node.operator().configure(1000, "boot", Some("order=scsi0;scsi1"));
    volume
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_that_could_not_be_unplugged_is_still_there_after_the_next_start() {
    for version in [Version::V8, Version::V9] {
        let node = node_with(Plugin::Dir, version).await;
        let backend = backend_on(&node, "local");
        let volume = a_volume_in_a_machine_that_runs(&node, &*backend).await;
        let answer = backend.detach_volume(&volume, vmid(1000), &stamp()).await;
        assert!(
            matches!(&answer, Err(BackendError::Refused { reason, .. }) if reason.contains("does not let go")),
            "{answer:?}"
        );
        backend.power_off(vmid(1000), &stamp()).await.unwrap();
        backend
            .power_on(vmid(1000), &stamp(), PowerOn { nic: None })
            .await
            .unwrap();
        let config = node.operator().config(1000).unwrap();
        assert!(
            config
                .get("scsi1")
                .is_some_and(|drive| drive.starts_with(&volume)),
            "{config:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_is_its_machines_for_as_long_as_that_runs_with_it() {
    let node = node_with(Plugin::Dir, Version::V9).await;
    let knows = backend_on(&node, "local");
    let volume = a_volume_in_a_machine_that_runs(&node, &*knows).await;
    // Somebody takes it out by hand: from then on the configuration is without it, and the machine is not.
    let config = format!("/nodes/{}/qemu/1000/config", node.node());
    assert_eq!(as_root(&node, &config, r#"{"delete":"scsi1"}"#).await, 400);
    let second = second();
    for backend in [&knows, &backend_on(&node, "local")] {
        let answer = backend.attach_volume(&volume, second.vmid, &second.stamp).await;
        assert!(
            matches!(&answer, Err(BackendError::Refused { reason, .. }) if reason.contains("VM 1000")),
            "{answer:?}"
        );
    }
    // A guest that powers itself off leaves it to the next start to take it out.
    node.operator().stop(1000);
    knows
        .attach_volume(&volume, second.vmid, &second.stamp)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_goes_away_while_volumes_are_looked_for_is_in_nobodys_way() {
    let node = node_with(Plugin::Dir, Version::V9).await;
    let volume = a_volume_in_a_machine_that_runs(&node, &*backend_on(&node, "local")).await;
    let second = second();
    node.operator().destroy_before(1000, "current=1");
    backend_on(&node, "local")
        .attach_volume(&volume, second.vmid, &second.stamp)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_left_the_pool_keeps_its_volume_and_one_that_is_gone_has_none() {
    let node = node_with(Plugin::Dir, Version::V9).await;
    let backend = backend_on(&node, "local");
    let volume = a_volume_in_a_machine_that_runs(&node, &*backend).await;
    assert_eq!(
        as_root(&node, "/pools/agentlab", r#"{"vms":"1000","delete":1}"#).await,
        200
    );
    let second = second();
    for answer in [
        backend.attach_volume(&volume, second.vmid, &second.stamp).await,
        backend.destroy_volume(&volume).await,
        backend.destroy(vmid(1000), &stamp()).await,
    ] {
        // No hint: what we may not see may be a stranger's, and nobody should grant us that.
        assert!(
            matches!(&answer, Err(BackendError::Refused { reason, hint: None, .. }) if reason.contains("VM 1000")),
            "{answer:?}"
        );
    }
    assert_eq!(as_root(&node, "/pools/agentlab", r#"{"vms":"1000"}"#).await, 200);
    backend.destroy(vmid(1000), &stamp()).await.unwrap();
    // Somebody else's machine under its number is none of ours.
    assert!(node.operator().create_foreign(1000));
    assert_eq!(
        as_root(&node, "/pools/agentlab", r#"{"vms":"1000","delete":1}"#).await,
        200
    );
    backend
        .attach_volume(&volume, second.vmid, &second.stamp)
        .await
        .unwrap();
}
