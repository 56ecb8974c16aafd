//! What no single exchange shows: locks, races, tasks that fail inside, storages, the agent, faults.

use std::time::Duration;

use pve_sim::{Plugin, Rates, Scale, Setup, Version};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::asker::{Asker, reason};

#[tokio::test(start_paused = true)]
async fn four_who_take_the_next_number_all_hear_yes_and_one_has_it() {
    let node = Asker::lab(Version::V8);
    let one = || async {
        let newid = node.data("GET", "/cluster/nextid", Value::Null).await;
        assert_eq!(newid, "100");
        let spec = json!({ "newid": newid, "pool": "agentlab" });
        node.data("POST", "{node}/qemu/9000/clone", spec).await
    };
    let (a, b, c, d) = tokio::join!(one(), one(), one(), one());
    let mut ends = Vec::new();
    for upid in [a, b, c, d] {
        ends.push(node.end(&upid).await);
    }
    ends.sort();
    let lost = "unable to create VM 100: config file already exists";
    assert_eq!(ends, ["OK", lost, lost, lost]);
}

#[tokio::test(start_paused = true)]
async fn clones_share_their_template_and_a_change_of_it_waits_ten_seconds_and_fails() {
    let node = Asker::lab(Version::V9).as_root();
    let full = json!({ "newid": 100, "full": 1 });
    let full = node.data("POST", "{node}/qemu/9000/clone", full).await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(node.clone(101).await, "OK");
    let config = node.data("GET", "{node}/qemu/100/config", Value::Null).await;
    assert_eq!(config["lock"], "clone");
    assert_eq!(config.as_object().unwrap().len(), 2, "lock and digest: {config}");
    let began = Instant::now();
    let changed = node
        .ask("PUT", "{node}/qemu/9000/config", json!({ "memory": 512 }))
        .await;
    let refused = "can't lock file '/var/lock/qemu-server/lock-9000.conf' - got timeout";
    assert_eq!(reason(&changed), (500, refused));
    assert!(began.elapsed() >= Duration::from_secs(10));
    assert_eq!(node.end(&full).await, "OK");
}

#[tokio::test(start_paused = true)]
async fn an_aborted_clone_takes_away_what_it_made() {
    let node = Asker::lab(Version::V9);
    let spec = json!({ "newid": 100, "pool": "agentlab", "full": 1 });
    let upid = node.data("POST", "{node}/qemu/9000/clone", spec).await;
    sleep(Duration::from_secs(2)).await;
    assert!(!node.sim.left().is_empty());
    let path = format!("{{node}}/tasks/{}", upid.as_str().unwrap());
    node.data("DELETE", &path, Value::Null).await;
    assert_eq!(node.end(&upid).await, "clone failed: interrupted by signal");
    assert_eq!(node.sim.left(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn each_storage_names_and_refuses_as_its_kind_does() {
    for (plugin, volid, base_is_kept) in [
        (
            Plugin::Dir,
            "tank:9000/base-9000-disk-0.qcow2/100/vm-100-disk-0.qcow2",
            true,
        ),
        (Plugin::Zfs, "tank:base-9000-disk-0/vm-100-disk-0", true),
        (Plugin::Rbd, "tank:base-9000-disk-0/vm-100-disk-0", true),
        (Plugin::LvmThin, "tank:vm-100-disk-0", false),
    ] {
        let mut setup = Setup::lab(Version::V9, Scale(1.0));
        setup.storages.push(("tank".into(), plugin, false));
        setup.template_storage = "tank".into();
        setup.template.remove("protection");
        let node = Asker::of(setup);
        assert_eq!(node.clone(100).await, "OK", "{plugin:?}");
        let config = node.data("GET", "{node}/qemu/100/config", Value::Null).await;
        assert_eq!(config["scsi0"], format!("{volid},size=200M"), "{plugin:?}");
        let end = node
            .as_root()
            .task("DELETE", "{node}/qemu/9000", Value::Null)
            .await;
        let refused = end.contains("is still in use by linked cloned");
        assert_eq!(refused, base_is_kept, "{plugin:?}: {end}");
    }
    let mut setup = Setup::lab(Version::V9, Scale(1.0));
    setup.storages.push(("tank".into(), Plugin::Lvm, false));
    setup.template_storage = "tank".into();
    let node = Asker::of(setup);
    let spec = json!({ "newid": 100, "pool": "agentlab", "full": 0 });
    let refused = node.ask("POST", "{node}/qemu/9000/clone", spec).await;
    let words = "Linked clone feature is not supported for 'tank:base-9000-disk-0' (scsi0)";
    assert_eq!(reason(&refused), (500, words));
}

#[tokio::test(start_paused = true)]
async fn a_clone_inherits_protection_and_a_destroy_leaves_foreign_disks() {
    let node = Asker::lab(Version::V9);
    assert_eq!(node.clone(100).await, "OK");
    let volume = json!({ "vmid": 777, "filename": "vm-777-ws.qcow2", "size": "1G" });
    let volid = node.data("POST", "{node}/storage/local/content", volume).await;
    let protected = node.ask("DELETE", "{node}/qemu/100", Value::Null).await;
    assert_eq!(
        reason(&protected),
        (500, "can't remove VM 100 - protection mode enabled")
    );
    node.data(
        "PUT",
        "{node}/qemu/100/config",
        json!({ "protection": 0, "scsi1": volid }),
    )
    .await;
    assert_eq!(node.task("DELETE", "{node}/qemu/100", Value::Null).await, "OK");
    assert_eq!(node.sim.left(), ["volume local:777/vm-777-ws.qcow2"]);
    let gone = node.ask("GET", "{node}/qemu/100/config", Value::Null).await;
    assert_eq!(
        reason(&gone),
        (403, "Permission check failed (/vms/100, VM.Audit)")
    );
}

#[tokio::test(start_paused = true)]
async fn the_agent_is_late_forgets_what_it_told_and_loses_what_it_cannot_find() {
    let mut setup = Setup::lab(Version::V9, Scale(1.0));
    setup.guests.docker = true;
    let node = Asker::of(setup);
    assert_eq!(node.clone(100).await, "OK");
    assert_eq!(
        node.task("POST", "{node}/qemu/100/status/start", json!({})).await,
        "OK"
    );
    let ping = node.ask("POST", "{node}/qemu/100/agent/ping", json!({})).await;
    assert_eq!(reason(&ping), (500, "QEMU guest agent is not running"));
    sleep(Duration::from_secs(10)).await;
    node.data("POST", "{node}/qemu/100/agent/ping", json!({})).await;
    let seen = node
        .data("GET", "{node}/qemu/100/agent/network-get-interfaces", Value::Null)
        .await;
    let names: Vec<&Value> = seen["result"]
        .as_array()
        .unwrap()
        .iter()
        .map(|nic| &nic["name"])
        .collect();
    assert_eq!(names, ["lo", "eth0", "docker0"]);
    let began = Instant::now();
    let command = json!({ "command": ["no-such-program"] });
    let lost = node.ask("POST", "{node}/qemu/100/agent/exec", command).await;
    assert_eq!((lost.status, &lost.body), (596, &None));
    assert!(began.elapsed() >= Duration::from_secs(5));
    node.data("POST", "{node}/qemu/100/status/suspend", json!({}))
        .await;
    sleep(Duration::from_secs(1)).await;
    let frozen = node.ask("POST", "{node}/qemu/100/agent/ping", json!({})).await;
    assert_eq!(reason(&frozen), (500, "QEMU guest agent is not running"));
}

#[tokio::test(start_paused = true)]
async fn a_wrong_token_costs_three_seconds_and_none_costs_nothing() {
    let mut node = Asker::lab(Version::V8);
    for (token, reason, least) in [
        ("a@pve!b=c", "Authentication failed!", 3),
        ("nonsense", "No ticket", 0),
    ] {
        node.token = token.into();
        let began = Instant::now();
        let refused = node.ask("GET", "/version", Value::Null).await;
        assert_eq!(
            (refused.status, refused.reason.as_str(), refused.body),
            (401, reason, None)
        );
        assert_eq!(began.elapsed().as_secs(), least);
    }
}

#[tokio::test(start_paused = true)]
async fn everything_wrong_with_a_call_is_said_at_once() {
    let node = Asker::lab(Version::V9);
    assert_eq!(node.clone(100).await, "OK");
    let change =
        json!({ "cores": 0, "memory": "x", "ostype": "dos", "nosuch": 1, "tags": "a:b", "onboot": "maybe" });
    let refused = node.ask("PUT", "{node}/qemu/100/config", change).await;
    assert_eq!(reason(&refused), (400, "Parameter verification failed."));
    let errors = &refused.body.unwrap()["errors"];
    assert_eq!(errors.as_object().unwrap().len(), 6, "{errors}");
    assert_eq!(errors["cores"], "value must have a minimum value of 1");
    assert_eq!(errors["onboot"], "type check ('boolean') failed - got 'maybe'");
}

#[tokio::test(start_paused = true)]
async fn without_quorum_nothing_is_made_and_a_lost_node_is_not_reached() {
    let mut setup = Setup::lab(Version::V9, Scale(1.0));
    setup.nodes = vec!["pve9".into(), "pve9b".into()];
    let node = Asker::of(setup);
    let operator = node.sim.operator();
    operator.set_quorate(false);
    let spec = json!({ "newid": 100, "pool": "agentlab" });
    let refused = node.ask("POST", "{node}/qemu/9000/clone", spec).await;
    assert_eq!(reason(&refused), (500, "cluster not ready - no quorum?"));
    operator.set_quorate(true);
    operator.set_online("pve9b", false);
    let lost = node.ask("GET", "/nodes/pve9b/qemu", Value::Null).await;
    assert_eq!(lost.status, 595);
    let nodes = node.data("GET", "/nodes", Value::Null).await;
    assert_eq!(nodes[1]["status"], "offline");
}

#[tokio::test(start_paused = true)]
async fn the_same_seed_brings_the_same_faults_and_root_is_spared() {
    let mut told = Vec::new();
    for _ in 0..2 {
        let node = Asker::lab(Version::V9);
        node.sim.plan_faults(7, Rates::worst_day());
        let mut answers = Vec::new();
        for _ in 0..60 {
            let response = node.ask("GET", "/version", Value::Null).await;
            answers.push((response.status, response.dropped));
        }
        assert_eq!(
            node.as_root().ask("GET", "/version", Value::Null).await.status,
            200
        );
        told.push(answers);
    }
    assert_eq!(told[0], told[1]);
    let statuses: std::collections::BTreeSet<u16> = told[0].iter().map(|(status, _)| *status).collect();
    assert!(statuses.contains(&200) && statuses.len() > 2, "{statuses:?}");
}

#[tokio::test(start_paused = true)]
async fn a_foreign_machine_that_is_changed_unread_is_noticed() {
    let node = Asker::lab(Version::V9);
    assert!(node.sim.operator().create_foreign(100));
    node.data("POST", "{node}/qemu/100/status/start", json!({})).await;
    sleep(Duration::from_secs(2)).await;
    node.data("GET", "/version", Value::Null).await;
    let touched = node.sim.audit().foreign_touched;
    assert_eq!(touched.len(), 1, "{touched:?}");
    assert!(
        touched[0].ends_with("agentlab@pve!lp start VM 100"),
        "{touched:?}"
    );
}

/// A machine of the cluster's list.
async fn resource(node: &Asker, vmid: u32) -> Option<Value> {
    let list = node
        .data("GET", "/cluster/resources", json!({ "type": "vm" }))
        .await;
    let mut list = list.as_array().unwrap().clone().into_iter();
    list.find(|entry| entry["vmid"] == vmid)
}

#[tokio::test(start_paused = true)]
async fn what_the_cluster_says_of_a_machine_is_up_to_ten_seconds_old() {
    let node = Asker::lab(Version::V9);
    assert_eq!(resource(&node, 9000).await.unwrap()["template"], 1);
    assert_eq!(node.clone(100).await, "OK");
    let young = resource(&node, 100).await.unwrap();
    assert_eq!(
        (&young["status"], &young["node"]),
        (&json!("unknown"), &json!("pve9"))
    );
    assert_eq!((young.get("name"), &young["pool"]), (None, &json!("agentlab")));
    sleep(Duration::from_secs(10)).await;
    assert_eq!(resource(&node, 100).await.unwrap()["status"], "stopped");
    let change = json!({ "protection": 0, "name": "first" });
    node.data("PUT", "{node}/qemu/100/config", change).await;
    let start = node.task("POST", "{node}/qemu/100/status/start", json!({})).await;
    assert_eq!(start, "OK");
    assert_eq!(
        resource(&node, 100).await.unwrap()["status"],
        "stopped",
        "it runs, and is not told of"
    );
    sleep(Duration::from_secs(10)).await;
    assert_eq!(resource(&node, 100).await.unwrap()["status"], "running");
    node.task("POST", "{node}/qemu/100/status/stop", json!({})).await;
    assert_eq!(node.task("DELETE", "{node}/qemu/100", Value::Null).await, "OK");
    assert_eq!(
        resource(&node, 100).await,
        None,
        "that it is gone is known at once"
    );
    node.sim.operator().create_foreign(100);
    let again = resource(&node, 100).await.unwrap();
    assert_eq!(
        again["name"], "first",
        "a number that is given again has the old one's figures"
    );
}
