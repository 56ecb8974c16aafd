//! What users of clients of Proxmox VE run into, and the back end must survive. docs/proxmox.md names these tests, row by
//! row. Each shows first that the stand-in really made the trouble.

use std::sync::Arc;
use std::time::Duration;

use agentlab_backend::proxmox::{Asked, InProcess, Said};
use agentlab_backend::{Backend, BackendError, Power, PowerOn, SnapshotHolds};
use async_trait::async_trait;
use pve_sim::{Plugin, PveSim, Rates, Scale, Setup, Version};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::asker::Asker;
use crate::client::{Node, connect, connect_by, options, shape, spec, vmid};

const NO_NIC: PowerOn = PowerOn { nic: None };

fn lab(version: Version) -> (PveSim, Arc<dyn Backend>) {
    of(Setup::lab(version, Scale(1.0)))
}

fn of(setup: Setup) -> (PveSim, Arc<dyn Backend>) {
    let sim = setup.in_process();
    let backend = connect(&sim, options(&sim));
    (sim, backend)
}

/// A machine on its way, as far as a start.
async fn started(backend: &Arc<dyn Backend>, raw: u32) {
    let one = spec(raw);
    backend.clone_template(&one).await.unwrap();
    backend.configure(one.vmid, &one.stamp, &shape()).await.unwrap();
    backend
        .place_seed(one.vmid, &one.stamp, &[0xa5; 200])
        .await
        .unwrap();
    backend.power_on(one.vmid, &one.stamp, NO_NIC).await.unwrap();
}

fn was_refused(sim: &PveSim, words: &str) -> bool {
    sim.audit().refusals.keys().any(|refusal| refusal.contains(words))
}

#[tokio::test(start_paused = true)]
async fn a_hundred_machines_at_once_are_so_many_clones_to_a_storage_and_calls_to_a_node_as_the_options_say() {
    let defaults = options(&Setup::lab(Version::V9, Scale(1.0)).in_process());
    assert_eq!((defaults.clones_per_storage, defaults.calls_per_node), (2, 3));
    for ((clones, calls), is_late) in [((2, 3), false), ((4, 6), false), ((2, 3), true), ((4, 6), true)] {
        let sim = Setup::lab(Version::V9, Scale(1.0)).in_process();
        let mut options = options(&sim);
        (options.clones_per_storage, options.calls_per_node) = (clones, calls);
        // Clones pile up at a node that answers at once, calls at one that takes its time.
        let late = Rates {
            delay: if is_late { 1000 } else { 0 },
            ..Rates::default()
        };
        sim.plan_faults(1, late);
        let backend = connect(&sim, options);
        let mut making = JoinSet::new();
        for raw in 1000..1100 {
            let backend = Arc::clone(&backend);
            making.spawn(async move { started(&backend, raw).await });
        }
        while let Some(made) = making.join_next().await {
            made.unwrap();
        }
        let most = sim.audit().most;
        let (most_clones, most_calls) = (most["qmclone"], most["call"]);
        assert!(most_clones <= clones && most_calls <= calls, "{most:?}");
        let piled_up = if is_late {
            most_calls == calls
        } else {
            most_clones == clones
        };
        assert!(piled_up, "the bound was never reached: {most:?}");
        assert!(!was_refused(&sim, "got timeout"), "{:?}", sim.audit().refusals);
    }
}

#[tokio::test(start_paused = true)]
async fn a_storage_that_somebody_works_on_is_waited_for() {
    for (shared, words) in [
        (
            false,
            "can't lock file '/var/lock/pve-manager/pve-storage-tank' - got timeout",
        ),
        (true, "cfs-lock 'storage-tank' error: got lock request timeout"),
    ] {
        let mut setup = Setup::lab(Version::V9, Scale(1.0));
        setup.storages.push(("tank".into(), Plugin::Rbd, shared));
        setup.template_storage = "tank".into();
        let (sim, backend) = of(setup);
        sim.operator().hold_storage("tank", Duration::from_secs(25));
        backend.clone_template(&spec(1000)).await.unwrap();
        assert!(was_refused(&sim, words), "{:?}", sim.audit().refusals);
    }
}

#[tokio::test(start_paused = true)]
async fn a_clone_whose_worker_died_is_left_to_the_administrator() {
    let (sim, backend) = lab(Version::V8);
    let rates = Rates {
        half_done_clone: 1000,
        ..Rates::default()
    };
    sim.plan_faults(1, rates);
    let one = spec(1000);
    let made = backend.clone_template(&one).await;
    assert!(made.is_err(), "{made:?}");
    sim.plan_faults(0, Rates::default());
    assert_eq!(sim.left(), ["VM 1000 (clone)"]);
    let gone = backend.destroy(one.vmid, &one.stamp).await.unwrap_err();
    assert!(gone.to_string().contains("VM 1000 exists"), "{gone}");
    assert_eq!(sim.left(), ["VM 1000 (clone)"], "nothing is unlocked blindly");
    let calls = sim.audit().calls;
    assert!(
        !calls.contains_key("DELETE /nodes/{node}/qemu/{vmid}"),
        "{calls:?}"
    );
    sim.operator().clear_half_done();
    backend.clone_template(&one).await.unwrap();
    backend.destroy(one.vmid, &one.stamp).await.unwrap();
    assert_eq!(sim.left(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn tags_that_an_administrator_reserved_cost_nothing_but_the_tag() {
    let (sim, backend) = lab(Version::V9);
    sim.operator().set_option("registered-tags", "production;tmpl");
    let one = spec(1000);
    backend.clone_template(&one).await.unwrap();
    backend.configure(one.vmid, &one.stamp, &shape()).await.unwrap();
    assert!(was_refused(&sim, "for modifying tag 'tmpl'"));
    let config = sim.operator().config(1000).unwrap();
    assert_eq!(config["protection"], "0", "the rest is put right");
}

async fn until_it_is(backend: &Arc<dyn Backend>, power: Power) {
    while backend.inspect(vmid(1000)).await.unwrap().unwrap().power != power {
        sleep(Duration::from_secs(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_somebody_gave_to_the_ha_stack_still_goes() {
    let (sim, backend) = lab(Version::V9);
    let one = spec(1000);
    backend.clone_template(&one).await.unwrap();
    backend.configure(one.vmid, &one.stamp, &shape()).await.unwrap();
    sim.operator().manage_by_ha(1000);
    // A task of PVE's that ended well only told the stack.
    for gently in [true, false] {
        backend.power_on(one.vmid, &one.stamp, NO_NIC).await.unwrap();
        until_it_is(&backend, Power::Running).await;
        if gently {
            let patience = Duration::from_secs(30);
            backend.shut_down(one.vmid, &one.stamp, patience).await.unwrap();
        } else {
            backend.power_off(one.vmid, &one.stamp).await.unwrap();
        }
        let machine = backend.inspect(one.vmid).await.unwrap().unwrap();
        assert_eq!(machine.power, Power::Stopped);
    }
    backend.power_on(one.vmid, &one.stamp, NO_NIC).await.unwrap();
    until_it_is(&backend, Power::Running).await;
    backend.destroy(one.vmid, &one.stamp).await.unwrap();
    assert_eq!(sim.left(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_configuration_that_somebody_edits_meanwhile_is_read_again_and_keeps_both_changes() {
    let (sim, backend) = lab(Version::V8);
    let one = spec(1000);
    backend.clone_template(&one).await.unwrap();
    let operator = sim.operator();
    let editor = async {
        for name in ["ann-1", "ann-2", "ann-3"] {
            sleep(Duration::from_millis(17)).await;
            operator.configure(1000, "name", Some(name));
        }
    };
    let wanted = shape();
    let (configured, ()) = tokio::join!(backend.configure(one.vmid, &one.stamp, &wanted), editor);
    configured.unwrap();
    assert!(
        was_refused(&sim, "checksum mismatch (file change by other user?)"),
        "{:?}",
        sim.audit().refusals
    );
    let config = sim.operator().config(1000).unwrap();
    assert_eq!(
        (config["name"].as_str(), config["memory"].as_str()),
        ("ann-3", "512")
    );
}

#[tokio::test(start_paused = true)]
async fn a_whole_life_asks_neither_the_agent_nor_any_other_storage() {
    for version in [Version::V8, Version::V9] {
        let (sim, backend) = lab(version);
        let one = spec(1000);
        started(&backend, 1000).await;
        backend.remove_seed(one.vmid, &one.stamp).await.unwrap();
        backend.suspend(one.vmid, &one.stamp).await.unwrap();
        backend.resume(one.vmid, &one.stamp).await.unwrap();
        backend
            .take_snapshot(one.vmid, &one.stamp, "clean", SnapshotHolds::Memory)
            .await
            .unwrap();
        backend.roll_back(one.vmid, &one.stamp, "clean").await.unwrap();
        backend.list().await.unwrap();
        backend.power_off(one.vmid, &one.stamp).await.unwrap();
        backend.destroy(one.vmid, &one.stamp).await.unwrap();
        let known = [
            "DELETE /nodes/{node}/qemu/{vmid}",
            "GET /access/permissions",
            "GET /cluster/nextid",
            "GET /cluster/resources",
            "GET /cluster/status",
            "GET /nodes",
            "GET /nodes/{node}/qemu",
            "GET /nodes/{node}/qemu/{vmid}/config",
            "GET /nodes/{node}/qemu/{vmid}/feature",
            "GET /nodes/{node}/qemu/{vmid}/snapshot",
            "GET /nodes/{node}/qemu/{vmid}/status/current",
            "GET /nodes/{node}/tasks/{upid}/log",
            "GET /nodes/{node}/tasks/{upid}/status",
            "GET /version",
            "POST /nodes/{node}/qemu/{vmid}/clone",
            "POST /nodes/{node}/qemu/{vmid}/snapshot",
            "POST /nodes/{node}/qemu/{vmid}/snapshot/{snapname}/rollback",
            "POST /nodes/{node}/qemu/{vmid}/status/resume",
            "POST /nodes/{node}/qemu/{vmid}/status/start",
            "POST /nodes/{node}/qemu/{vmid}/status/stop",
            "POST /nodes/{node}/qemu/{vmid}/status/suspend",
            "PUT /nodes/{node}/qemu/{vmid}/config",
        ];
        let calls = sim.audit().calls;
        let more: Vec<&String> = calls
            .keys()
            .filter(|call| !known.contains(&call.as_str()))
            .collect();
        assert!(more.is_empty(), "{more:?}");
        assert_eq!(sim.left(), Vec::<String>::new());
        assert_eq!(sim.audit().foreign_touched, Vec::<String>::new());
    }
}

#[tokio::test(start_paused = true)]
async fn a_machine_is_paused_in_memory_and_snapshots_of_a_running_one_hold_it_so_that_no_guest_is_frozen() {
    let (sim, backend) = lab(Version::V9);
    let one = spec(1000);
    started(&backend, 1000).await;
    backend.suspend(one.vmid, &one.stamp).await.unwrap();
    assert!(
        !sim.left().iter().any(|what| what.contains("state")),
        "{:?}",
        sim.left()
    );
    backend.resume(one.vmid, &one.stamp).await.unwrap();
    backend
        .take_snapshot(one.vmid, &one.stamp, "live", SnapshotHolds::Memory)
        .await
        .unwrap();
    let asker = Asker {
        token: sim.token(),
        sim: sim.clone(),
    };
    let listed = asker.data("GET", "{node}/qemu/1000/snapshot", Value::Null).await;
    // PVE freezes a guest's file systems for a snapshot without its memory only.
    assert_eq!(
        (&listed[0]["name"], &listed[0]["vmstate"]),
        (&json!("live"), &json!(1))
    );
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_somebody_moved_to_another_node_is_found_there_and_not_started() {
    let mut setup = Setup::lab(Version::V8, Scale(1.0));
    setup.nodes.push("pve8b".into());
    let (sim, backend) = of(setup);
    let one = spec(1000);
    backend.clone_template(&one).await.unwrap();
    backend.configure(one.vmid, &one.stamp, &shape()).await.unwrap();
    sim.operator().migrate(1000, "pve8b");
    let found = backend.inspect(one.vmid).await.unwrap().unwrap();
    assert_eq!(
        (found.power, found.stamp),
        (Power::Stopped, Some(one.stamp.clone()))
    );
    let started = backend.power_on(one.vmid, &one.stamp, NO_NIC).await;
    assert!(
        matches!(&started, Err(BackendError::Refused { reason, .. }) if reason.contains("pve8b")),
        "{started:?}"
    );
    // A node that is away is no proof that its machines are gone.
    sim.operator().set_online("pve8b", false);
    let answers = [
        backend.inspect(one.vmid).await.map(drop),
        backend.destroy(one.vmid, &one.stamp).await,
    ];
    for answer in answers {
        assert!(
            matches!(&answer, Err(error) if error.is_transient()),
            "{answer:?}"
        );
    }
    sim.operator().set_online("pve8b", true);
    backend.destroy(one.vmid, &one.stamp).await.unwrap();
    assert_eq!(sim.left(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn what_the_cluster_has_not_been_told_yet_is_seen_all_the_same() {
    let (sim, backend) = lab(Version::V9);
    let one = spec(1000);
    started(&backend, 1000).await;
    let asker = Asker {
        token: sim.token(),
        sim: sim.clone(),
    };
    let resources = asker
        .data("GET", "/cluster/resources", json!({ "type": "vm" }))
        .await;
    let told = resources.as_array().unwrap().iter();
    let told = told.clone().find(|entry| entry["vmid"] == 1000).unwrap();
    assert_ne!(told["status"], "running", "the stand-in is late with it");
    let listed = backend.list().await.unwrap();
    assert_eq!(
        (listed[0].power, &listed[0].stamp),
        (Power::Running, &Some(one.stamp))
    );
}

#[tokio::test(start_paused = true)]
async fn one_image_with_an_efi_disk_and_a_cloud_init_drive_makes_clones_that_keep_no_trace() {
    let mut setup = Setup::lab(Version::V9, Scale(1.0));
    setup.volumes = vec![
        ("local:9000/base-9000-disk-1.qcow2".into(), 9000, 528 << 10),
        ("local:9000/vm-9000-cloudinit.qcow2".into(), 9000, 4 << 20),
    ];
    let more = [
        (
            "efidisk0",
            "local:9000/base-9000-disk-1.qcow2,efitype=4m,size=528K",
        ),
        ("ide2", "local:9000/vm-9000-cloudinit.qcow2,media=cdrom"),
    ];
    let more = more.map(|(key, value)| (key.to_owned(), value.to_owned()));
    setup.template.extend(more);
    let (sim, backend) = of(setup);
    started(&backend, 1000).await;
    let config = sim.operator().config(1000).unwrap();
    assert_eq!(
        config["ciupgrade"], "0",
        "no first boot upgrades every package: {config:?}"
    );
    let one = spec(1000);
    backend.power_off(one.vmid, &one.stamp).await.unwrap();
    backend.destroy(one.vmid, &one.stamp).await.unwrap();
    assert_eq!(sim.left(), Vec::<String>::new());
}

/// A node that is slow to say whether a machine runs, and an operator who makes it his own meanwhile.
#[derive(Debug)]
struct TakenOver {
    node: Node,
    sim: PveSim,
}

#[async_trait]
impl InProcess for TakenOver {
    async fn exchange(&self, asked: Asked<'_>) -> Option<Said> {
        if asked.target.ends_with("/status/current") {
            sleep(Duration::from_secs(5)).await;
            self.sim.operator().configure(1000, "description", Some("mine"));
        }
        self.node.exchange(asked).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_changes_hands_while_an_answer_is_late_is_not_touched() {
    for action in ["destroy", "power off", "shut down", "suspend"] {
        let (sim, backend) = lab(Version::V9);
        started(&backend, 1000).await;
        let way = TakenOver {
            node: Node(sim.clone()),
            sim: sim.clone(),
        };
        let late = connect_by(&sim, options(&sim), Arc::new(way));
        let (one, patience) = (spec(1000), Duration::from_secs(9));
        let answer = match action {
            "destroy" => late.destroy(one.vmid, &one.stamp).await,
            "power off" => late.power_off(one.vmid, &one.stamp).await,
            "shut down" => late.shut_down(one.vmid, &one.stamp, patience).await,
            _ => late.suspend(one.vmid, &one.stamp).await,
        };
        assert!(
            matches!(answer, Err(BackendError::NotOurs { .. })),
            "{action}: {answer:?}"
        );
        let last = sim.audit().changes.pop().unwrap();
        assert!(last.contains("root@pam config of VM 1000"), "{action}: {last}");
        assert!(sim.operator().runs(1000), "{action}");
    }
}
