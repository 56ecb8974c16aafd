use agentlab_api::Vmid;
use serde_json::Value;

use super::*;
use crate::pve::{FirewallEdit, Kind, PowerWord, pair};

/// What genuine nodes were asked, and answered.
const RECORDED: [&str; 2] = [
    include_str!("../../tests/recorded/cli-8.4.21.jsonl"),
    include_str!("../../tests/recorded/cli-9.2.11.jsonl"),
];

fn vmid(raw: u32) -> Vmid {
    raw.try_into().unwrap()
}

fn recorded(text: &str, note: &str) -> Value {
    let mut lines = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines
        .find(|line| line["note"] == note)
        .unwrap_or_else(|| panic!("nothing recorded as `{note}`"))
}

fn words(argv: Argv) -> Vec<String> {
    let mut words = vec![argv.program.to_owned()];
    words.extend(argv.arguments);
    words
}

fn set(values: &[(&str, &str)]) -> Change {
    Change::Set {
        vmid: vmid(420),
        values: values.iter().map(|(key, value)| pair(key, value)).collect(),
    }
}

/// Notes of the recording, each with the change that should be asked for in the same words.
fn changes() -> Vec<(&'static str, Change)> {
    let power = |to| Change::Power { vmid: vmid(420), to };
    let allocate = Change::Allocate {
        storage: "local".into(),
        owner: vmid(777),
        filename: "vm-777-cli.qcow2".into(),
        size_gb: 1,
        format: "qcow2".into(),
    };
    let free = Change::Free {
        storage: "local".into(),
        owner: vmid(777),
        volume: "local:777/vm-777-cli.qcow2".into(),
    };
    let grow = Change::Resize {
        vmid: vmid(420),
        disk: "scsi0".into(),
        size: "+100M".into(),
    };
    let clone = Change::Clone {
        template: vmid(9000),
        to: vmid(420),
        values: vec![
            pair("full", 0),
            pair("name", "cli420"),
            pair("description", "agentlab uuid=0190c0de nonce=5f2a"),
        ],
    };
    let named = |name: &str| name.to_owned();
    vec![
        ("linked clone", clone),
        (
            "set",
            set(&[
                ("cores", "1"),
                ("memory", "320"),
                ("protection", "0"),
                ("onboot", "0"),
            ]),
        ),
        ("attach", set(&[("scsi1", "local:777/vm-777-cli.qcow2")])),
        ("detach", set(&[("delete", "scsi1")])),
        ("grow", grow),
        ("start", power(PowerWord::Start)),
        ("stop of a stopped VM", power(PowerWord::Stop)),
        (
            "shutdown with force",
            Change::ShutDown {
                vmid: vmid(420),
                seconds: 3,
            },
        ),
        ("suspend", power(PowerWord::Suspend)),
        ("resume", power(PowerWord::Resume)),
        ("destroy", Change::Destroy { vmid: vmid(420) }),
        (
            "rollback",
            Change::RollBack {
                vmid: vmid(420),
                name: named("clean"),
            },
        ),
        (
            "delete snapshot",
            Change::DeleteSnapshot {
                vmid: vmid(420),
                name: named("clean"),
            },
        ),
        ("allocate", allocate),
        ("free", free),
    ]
}

#[test]
fn changes_are_asked_for_in_the_words_that_genuine_nodes_took() {
    for text in RECORDED {
        for (note, change) in &changes() {
            let line = recorded(text, note);
            let mut asked: Vec<String> = serde_json::from_value(line["argv"].clone()).unwrap();
            // The one size that is not in whole GiB.
            asked
                .iter_mut()
                .filter(|word| *word == "64M")
                .for_each(|word| "1G".clone_into(word));
            assert_eq!(words(Argv::change("pve8", change)), asked, "{note}");
            assert_eq!(line["exit"], 0, "{note}");
        }
        let ping = recorded(text, "agent up");
        assert_eq!(
            serde_json::to_value(words(Argv::ping(vmid(420)))).unwrap(),
            ping["argv"]
        );
        let missing = Read::new("/nodes/pve9/qemu/9999/config");
        let mut asked = words(Argv::read(&missing));
        let line = recorded(text, "pvesh on a missing VM");
        asked[2] = line["argv"][2].as_str().unwrap().to_owned();
        assert_eq!(serde_json::to_value(asked).unwrap(), line["argv"]);
    }
}

#[test]
fn refusals_of_genuine_nodes_are_sorted() {
    let table = [
        ("config of a missing VM", Kind::NoMachine),
        ("pvesh on a missing VM", Kind::NoMachine),
        ("clone onto a taken VMID", Kind::Taken),
        ("clone of a missing VM", Kind::NoMachine),
        ("snapshot name taken", Kind::SnapshotTaken),
        ("start of a running VM", Kind::AlreadyRunning),
        ("agent not up yet", Kind::AgentDown),
        ("destroy of a running VM", Kind::Running),
        ("destroy of a missing VM", Kind::NoMachine),
    ];
    for text in RECORDED {
        for (note, kind) in &table {
            let line = recorded(text, note);
            let stderr = line["stderr"].as_str().unwrap();
            assert_ne!(line["exit"], 0, "{note}");
            assert_eq!(Refusal::command(stderr).kind, *kind, "{note}");
        }
        let refused = Refusal::command(recorded(text, "bad value")["stderr"].as_str().unwrap());
        assert!(
            matches!(&refused.kind, Kind::Invalid(errors) if errors[0].0 == "cores"),
            "{refused:?}"
        );
    }
}

#[test]
fn the_volume_is_taken_out_of_the_sentence_that_names_it() {
    for text in RECORDED {
        let line = recorded(text, "allocate");
        let volume = allocated(line["stdout"].as_str().unwrap());
        assert_eq!(volume.unwrap(), "local:777/vm-777-cli.qcow2");
    }
    assert_eq!(allocated("Formatting").unwrap_err().kind, Kind::Unknown);
}

#[test]
fn a_disk_is_moved_and_given_away_by_one_command() {
    let moved = Change::MoveDisk {
        vmid: vmid(777),
        disk: "scsi1".into(),
        storage: "fast".into(),
    };
    let given = Change::GiveDisk {
        vmid: vmid(1999),
        disk: "scsi1".into(),
        to: vmid(777),
        slot: "scsi2".into(),
    };
    let line = |change| words(Argv::change("pve8", &change)).join(" ");
    assert_eq!(line(moved), "qm disk move 777 scsi1 fast --delete 1");
    assert_eq!(
        line(given),
        "qm disk move 1999 scsi1 --target-vmid 777 --target-disk scsi2"
    );
}

#[test]
fn a_firewall_is_set_by_pvesh_because_qm_knows_none() {
    let line = |edit| {
        words(Argv::change(
            "pve8",
            &Change::Firewall {
                vmid: vmid(1000),
                edit,
            },
        ))
        .join(" ")
    };
    let at = "/nodes/pve8/qemu/1000/firewall";
    assert_eq!(
        line(FirewallEdit::Options(vec![
            pair("enable", 1),
            pair("policy_in", "DROP")
        ])),
        format!("pvesh set {at}/options --enable 1 --policy_in DROP")
    );
    assert_eq!(
        line(FirewallEdit::AddRule(vec![
            pair("type", "group"),
            pair("action", "web")
        ])),
        format!("pvesh create {at}/rules --type group --action web")
    );
    assert_eq!(
        line(FirewallEdit::RemoveRule(2)),
        format!("pvesh delete {at}/rules/2")
    );
}
