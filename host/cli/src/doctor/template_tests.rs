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

fn machine(pool: Option<&str>, template: bool) -> Machine {
    Machine {
        node: "pve8".to_owned(),
        pool: pool.map(str::to_owned),
        template,
    }
}

fn judged(config: &Value, machine: Option<&Machine>) -> Row {
    row(&Seen {
        vmid: 9000.try_into().unwrap(),
        machine,
        config: Ok(config),
        pool: "agentlab",
    })
}

#[test]
fn a_template_of_a_genuine_node_is_one() {
    for config in recorded() {
        let row = judged(&config, Some(&machine(None, true)));
        assert_eq!(
            row,
            Row::ok("template", "9000 tmpl is a template on local, protected")
        );
    }
}

#[test]
fn what_is_wrong_with_a_template_is_named() {
    let [good, _] = recorded();
    let with = |key: &str, value: Value| {
        let mut config = good.clone();
        config[key] = value;
        judged(&config, Some(&machine(None, true)))
    };
    let mut plain = good.clone();
    plain.as_object_mut().unwrap().remove("template");
    for (row, state, words) in [
        (judged(&good, None), State::Fail, "no VM has the number 9000"),
        (
            judged(&plain, Some(&machine(None, false))),
            State::Fail,
            "no template",
        ),
        (
            judged(&good, Some(&machine(Some("agentlab"), true))),
            State::Fail,
            "can change and end it",
        ),
        (
            judged(&good, Some(&machine(Some("other"), true))),
            State::Ok,
            "is a template",
        ),
        (
            with("scsi0", json!("local:iso/x.iso,media=cdrom")),
            State::Fail,
            "no disk",
        ),
        (
            with("scsi0", json!("local:9000/base-9000-disk-0.qcow2")),
            State::Fail,
            "unknown size, scsi0",
        ),
        (with("agent", json!("0")), State::Fail, "guest agent"),
        (
            with("agent", json!("enabled=yes,fstrim_cloned_disks=1")),
            State::Ok,
            "is a template",
        ),
        (
            with("hostpci0", json!("0000:01:00.0,pcie=1")),
            State::Fail,
            "a PCI device",
        ),
        (with("usb0", json!("spice,usb3=1")), State::Ok, "is a template"),
        (
            with("args", json!("-nic bridge,br=vmbr0")),
            State::Fail,
            "a network device",
        ),
        (with("serial1", json!("/dev/ttyS0")), State::Fail, "a serial port"),
        (with("net0", json!(null)), State::Fail, "no NIC net0"),
        (
            with("net0", json!("virtio=BC:24:11:3E:F8:1A")),
            State::Fail,
            "on a bridge",
        ),
        (
            with("description", json!("agentlab-runner: 0.0.9")),
            State::Fail,
            "has runner 0.0.9",
        ),
        (
            with("efidisk0", json!("local:9000/base-9000-disk-1.qcow2")),
            State::Warn,
            "efidisk0",
        ),
        (
            with("args", json!("-device vhost-vsock-pci,guest-cid=3")),
            State::Warn,
            "args",
        ),
    ] {
        assert_eq!(row.state, state, "{row:?}");
        assert!(row.seen.contains(words), "{row:?}");
    }
}
