use serde_json::json;

use super::*;
use crate::doctor::row::State;

/// As genuine nodes of 8 and 9 have one.
fn recorded() -> [Value; 2] {
    [
        include_str!("../../tests/node/config-8.json"),
        include_str!("../../tests/node/config-9.json"),
    ]
    .map(|text| serde_json::from_str(text).unwrap())
}

fn judged(config: &Value, pool: Option<&str>) -> Row {
    let machine = Machine {
        node: "pve8".to_owned(),
        pool: pool.map(str::to_owned),
        template: true,
    };
    row(&Seen {
        vmid: 9000.try_into().unwrap(),
        machine: Some(&machine),
        config: Ok(config),
        pool: "agentlab",
    })
}

#[test]
fn a_template_of_a_genuine_node_is_told_about_the_firewall_of_its_nic() {
    for config in recorded() {
        let row = judged(&config, None);
        assert_eq!(row.state, State::Warn, "{row:?}");
        let next = row.next.unwrap();
        assert!(next.starts_with("qm set 9000 --net0 virtio=BC:24:11:"), "{next}");
        assert!(next.ends_with(",bridge=vmbr0"), "{next}");
    }
}

#[test]
fn what_is_wrong_with_a_template_is_named() {
    let [mut good, _] = recorded();
    good["net0"] = json!("virtio=BC:24:11:00:00:01,bridge=vmbr1");
    good["onboot"] = json!(0);
    assert_eq!(judged(&good, None).state, State::Ok);
    assert!(
        judged(&good, Some("agentlab"))
            .seen
            .contains("can change and end it")
    );
    assert_eq!(judged(&good, Some("other")).state, State::Ok);
    let with = |key: &str, value: Value| {
        let mut config = good.clone();
        config[key] = value;
        judged(&config, None)
    };
    for (key, value, state, words) in [
        (
            "net1",
            json!("virtio=BC:24:11:00:00:02,bridge=vmbr0"),
            State::Fail,
            "no other NIC",
        ),
        ("net0", Value::Null, State::Fail, "no NIC"),
        (
            "scsi0",
            json!("local:iso/x.iso,media=cdrom"),
            State::Fail,
            "no disk",
        ),
        ("agent", json!("0"), State::Warn, "guest agent"),
        (
            "efidisk0",
            json!("local:9000/base-9000-disk-1.qcow2"),
            State::Warn,
            "efidisk0",
        ),
        (
            "args",
            json!("-device vhost-vsock-pci,guest-cid=3"),
            State::Warn,
            "args",
        ),
        (
            "ide2",
            json!("local:9000/vm-9000-cloudinit.qcow2,media=cdrom"),
            State::Warn,
            "upgraded",
        ),
        ("onboot", json!("1"), State::Warn, "boot"),
    ] {
        let row = with(key, value);
        assert_eq!(row.state, state, "{key}: {row:?}");
        assert!(row.seen.contains(words), "{row:?}");
    }
}
