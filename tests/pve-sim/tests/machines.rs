//! What can be done with a machine besides its way from clone to end.

use pve_sim::{Plugin, Scale, Setup, Version};
use serde_json::{Value, json};

use crate::asker::{Asker, reason};

async fn with_machine(version: Version) -> Asker {
    let mut setup = Setup::lab(version, Scale(1.0));
    setup.template.remove("protection");
    setup.storages.push(("tank".into(), Plugin::Zfs, false));
    let node = Asker::of(setup);
    assert_eq!(node.clone(100).await, "OK");
    node
}

async fn config(node: &Asker) -> Value {
    node.data("GET", "{node}/qemu/100/config", Value::Null).await
}

#[tokio::test(start_paused = true)]
async fn a_disk_moves_to_another_storage_and_the_old_one_stays_unless_told_otherwise() {
    let node = with_machine(Version::V9).await.as_root();
    let path = "{node}/qemu/100/move_disk";
    let same = node
        .ask("POST", path, json!({ "disk": "scsi0", "storage": "local" }))
        .await;
    assert_eq!(
        reason(&same),
        (500, "you can't move to the same storage with same format")
    );
    let both = json!({ "disk": "scsi0", "storage": "tank", "target-vmid": 101 });
    assert_eq!(node.ask("POST", path, both).await.status, 400);
    let there = json!({ "disk": "scsi0", "storage": "tank" });
    assert_eq!(node.task("POST", path, there).await, "OK");
    let moved = config(&node).await;
    assert_eq!(moved["scsi0"], "tank:vm-100-disk-0,size=200M");
    let linked = "local:9000/base-9000-disk-0.qcow2/100/vm-100-disk-0.qcow2";
    assert_eq!(moved["unused0"], linked);
    let back = json!({ "disk": "scsi0", "storage": "labdir", "format": "qcow2", "delete": 1 });
    assert_eq!(node.task("POST", path, back).await, "OK");
    let moved = config(&node).await;
    assert_eq!(moved["scsi0"], "labdir:100/vm-100-disk-0.qcow2,size=200M");
    assert_eq!(moved.get("unused1"), None);
}

#[tokio::test(start_paused = true)]
async fn a_firewall_rule_comes_first_and_does_nothing_unless_it_is_enabled() {
    let node = with_machine(Version::V8).await;
    let rules = "{node}/qemu/100/firewall/rules";
    for (action, more) in [
        ("DROP", json!({ "type": "in", "action": "DROP", "enable": 1 })),
        (
            "no-such-group",
            json!({ "type": "group", "action": "no-such-group" }),
        ),
    ] {
        node.data("POST", rules, more).await;
        let first = node.data("GET", rules, Value::Null).await[0].clone();
        assert_eq!(first["action"], action);
    }
    let listed = node.data("GET", rules, Value::Null).await;
    assert_eq!(
        (&listed[0]["enable"], &listed[1]["enable"]),
        (&json!(0), &json!(1))
    );
    let stale = json!({ "type": "in", "action": "ACCEPT", "digest": "0".repeat(40) });
    let stale = node.ask("POST", rules, stale).await;
    assert_eq!(
        reason(&stale),
        (500, "checksum mismatch (file change by other user?)")
    );
    node.data("DELETE", "{node}/qemu/100/firewall/rules/0", Value::Null)
        .await;
    let left = node.data("GET", rules, Value::Null).await;
    assert_eq!(left.as_array().unwrap().len(), 1);
    // A clone has its source's.
    assert_eq!(
        node.task("POST", "{node}/qemu/100/template", json!({})).await,
        "OK"
    );
    let copy = json!({ "newid": 101, "pool": "agentlab" });
    assert_eq!(node.task("POST", "{node}/qemu/100/clone", copy).await, "OK");
    let copied = node
        .data("GET", "{node}/qemu/101/firewall/rules", Value::Null)
        .await;
    assert_eq!(copied, left);
}

#[tokio::test(start_paused = true)]
async fn a_machine_of_the_ha_stack_goes_only_with_purge_and_is_not_put_to_sleep() {
    let node = with_machine(Version::V9).await;
    node.sim.operator().manage_by_ha(100);
    let status = node
        .data("GET", "{node}/qemu/100/status/current", Value::Null)
        .await;
    assert_eq!(status["ha"]["managed"], 1);
    let refused = node.ask("DELETE", "{node}/qemu/100", Value::Null).await;
    let words = "unable to remove VM 100 - used in HA resources and purge parameter not set.";
    assert_eq!(reason(&refused), (500, words));
    let asleep = json!({ "todisk": 1 });
    let asleep = node.ask("POST", "{node}/qemu/100/status/suspend", asleep).await;
    assert_eq!(
        reason(&asleep),
        (500, "Cannot suspend VM to disk if it is managed by HA.")
    );
    let end = node
        .task("DELETE", "{node}/qemu/100", json!({ "purge": 1 }))
        .await;
    assert_eq!(end, "OK");
}

#[tokio::test(start_paused = true)]
async fn a_machine_put_to_sleep_is_locked_and_wakes_by_being_started() {
    let node = with_machine(Version::V8).await;
    let power = |to: &str| format!("{{node}}/qemu/100/status/{to}");
    assert_eq!(node.task("POST", &power("start"), json!({})).await, "OK");
    let sleep = json!({ "todisk": 1 });
    assert_eq!(node.task("POST", &power("suspend"), sleep).await, "OK");
    let asleep = config(&node).await;
    assert_eq!(asleep["lock"], "suspended");
    let state = asleep["vmstate"].as_str().unwrap().to_owned();
    let change = node
        .ask("PUT", "{node}/qemu/100/config", json!({ "cores": 2 }))
        .await;
    assert_eq!(reason(&change), (500, "VM is locked (suspended)"));
    assert_eq!(node.task("POST", &power("start"), json!({})).await, "OK");
    let awake = config(&node).await;
    assert!(
        awake.get("lock").is_none() && awake.get("vmstate").is_none(),
        "{awake}"
    );
    assert!(!node.sim.left().iter().any(|what| what.contains(&state)));
}

#[tokio::test(start_paused = true)]
async fn a_registered_tag_is_the_administrators_to_give() {
    let node = with_machine(Version::V9).await;
    node.sim
        .operator()
        .set_option("registered-tags", "production;staging");
    let path = "{node}/qemu/100/config";
    let reserved = node.ask("PUT", path, json!({ "tags": "mine;production" })).await;
    let words = "Permission check failed (/, Sys.Modify for modifying tag 'production')";
    assert_eq!(reason(&reserved), (403, words));
    node.data("PUT", path, json!({ "tags": "Mine mine" })).await;
    assert_eq!(config(&node).await["tags"], "mine");
    // A token is not root; who has Sys.Modify may, and then nobody else may take it away.
    let by_root = json!({ "tags": "mine;production" });
    node.as_root().data("PUT", path, by_root).await;
    let taken = node.ask("PUT", path, json!({ "tags": "mine" })).await;
    assert_eq!(reason(&taken), (403, words));
}

#[tokio::test(start_paused = true)]
async fn what_reaches_the_host_is_for_root_and_no_token_of_roots() {
    for version in [Version::V8, Version::V9] {
        let node = with_machine(version).await;
        for (key, value) in [
            ("args", "-device x"),
            ("affinity", "0-1"),
            ("hookscript", "local:snippets/a.sh"),
            ("hugepages", "2"),
            ("vmgenid", "c3a66830-2fe2-4f0a-9f24-badcade7a957"),
            ("ivshmem", "size=1"),
            ("lock", "backup"),
        ] {
            for who in [&node, &node.as_root()] {
                let refused = who
                    .ask("PUT", "{node}/qemu/100/config", json!({ (key): value }))
                    .await;
                assert_eq!(
                    reason(&refused),
                    (500, format!("only root can set '{key}' config").as_str())
                );
            }
        }
        let skip = json!({ "skiplock": 1, "cores": 1 });
        let skip = node.as_root().ask("PUT", "{node}/qemu/100/config", skip).await;
        assert_eq!(
            skip.body.unwrap()["errors"]["skiplock"],
            "Only root may use this option."
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_machine_is_on_one_node_and_a_clone_goes_elsewhere_on_shared_storage_only() {
    for shared in [false, true] {
        let mut setup = Setup::lab(Version::V9, Scale(1.0));
        setup.nodes.push("pve9b".into());
        setup.storages.push(("ceph".into(), Plugin::Rbd, shared));
        setup.template_storage = "ceph".into();
        let node = Asker::of(setup);
        let spec = json!({ "newid": 100, "pool": "agentlab", "target": "pve9b" });
        let there = node.ask("POST", "{node}/qemu/9000/clone", spec).await;
        if !shared {
            let words = "can't clone VM to node 'pve9b' (VM uses local storage)";
            assert_eq!(reason(&there), (500, words));
            assert_eq!(node.clone(100).await, "OK");
            node.sim.operator().migrate(100, "pve9b");
        } else {
            assert_eq!(node.end(&there.body.unwrap()["data"]).await, "OK");
        }
        let here = node.ask("GET", "{node}/qemu/100/config", Value::Null).await;
        let words = "Configuration file 'nodes/pve9/qemu-server/100.conf' does not exist";
        assert_eq!(reason(&here), (500, words));
        let there = node
            .data("GET", "/nodes/pve9b/qemu/100/config", Value::Null)
            .await;
        assert_eq!(there["name"], "Copy-of-VM-tmpl");
    }
}

#[tokio::test(start_paused = true)]
async fn zfs_goes_back_to_its_youngest_snapshot_only_and_memory_goes_where_the_machine_says() {
    let mut setup = Setup::lab(Version::V9, Scale(1.0));
    setup.template.remove("protection");
    setup.template.insert("vmstatestorage".into(), "labdir".into());
    setup.storages.push(("tank".into(), Plugin::Zfs, false));
    setup.template_storage = "tank".into();
    let node = Asker::of(setup);
    let spec = json!({ "newid": 100, "pool": "agentlab" });
    let denied = node.ask("POST", "{node}/qemu/9000/clone", spec).await;
    assert_eq!(
        reason(&denied),
        (
            403,
            "Permission check failed (/storage/labdir, Datastore.AllocateSpace)"
        )
    );
    let node = node.as_root();
    assert_eq!(node.clone(100).await, "OK");
    let start = "{node}/qemu/100/status/start";
    assert_eq!(node.task("POST", start, json!({})).await, "OK");
    for name in ["first", "second"] {
        let snapshot = json!({ "snapname": name, "vmstate": 1 });
        assert_eq!(
            node.task("POST", "{node}/qemu/100/snapshot", snapshot).await,
            "OK"
        );
    }
    let of = |name: &str| format!("{{node}}/qemu/100/snapshot/{name}");
    let config = node
        .data("GET", &format!("{}/config", of("first")), Value::Null)
        .await;
    assert_eq!(config["vmstate"], "labdir:100/vm-100-state-first.raw");
    let back = |name: &str| format!("{}/rollback", of(name));
    let end = node.task("POST", &back("first"), json!({})).await;
    let disk = "base-9000-disk-0/vm-100-disk-0";
    assert_eq!(
        end,
        format!("can't rollback, 'first' is not most recent snapshot on '{disk}'")
    );
    assert_eq!(node.task("POST", &back("second"), json!({})).await, "OK");
}
