use serde_json::json;

use super::*;
use crate::doctor::row::State;

fn vmid() -> Vmid {
    1003.try_into().unwrap()
}

fn known(state: SandboxState) -> Sandboxes {
    [(vmid(), state)].into()
}

#[test]
fn a_seed_that_was_used_or_that_nobody_knows_of_is_left_over() {
    let config = json!({
        "smbios1": "uuid=7d2ab580-26da-44b3-8f0d-0395a2723def,base64=1,serial=YWwxOnNlZWQ=",
        "net0": "virtio=BC:24:11:00:00:01,bridge=vmbr1",
    });
    for (sandboxes, rows) in [
        (Some(known(SandboxState::Booting)), 0),
        (Some(known(SandboxState::Running)), 1),
        (Some(Sandboxes::new()), 1),
        (None, 0),
    ] {
        assert_eq!(
            of_machine(vmid(), &config, sandboxes.as_ref()).len(),
            rows,
            "{sandboxes:?}"
        );
    }
    let without = json!({ "smbios1": "uuid=7d2ab580" });
    assert_eq!(of_machine(vmid(), &without, Some(&Sandboxes::new())), []);
}

#[test]
fn half_a_clone_that_nobody_waits_for_is_told_with_the_commands_that_clear_it_away() {
    let config = json!({ "lock": "clone", "digest": "d" });
    let rows = of_machine(vmid(), &config, Some(&Sandboxes::new()));
    let next = rows[0].next.as_deref().unwrap();
    assert!(
        next.contains("qm unlock 1003 && qm destroy 1003 --purge 1"),
        "{next}"
    );
    for waited_for in [Some(known(SandboxState::Provisioning)), None] {
        assert_eq!(of_machine(vmid(), &config, waited_for.as_ref()), []);
    }
    assert_eq!(
        of_machine(vmid(), &json!({ "lock": "backup" }), Some(&Sandboxes::new())),
        []
    );
}

#[test]
fn a_sandbox_on_another_node_is_named_with_the_way_back() {
    let machine = |node: &str| Machine {
        node: node.to_owned(),
        pool: Some("agentlab".to_owned()),
        template: false,
    };
    let (here, away) = (machine("pve8"), machine("pve8b"));
    let other = vmid();
    assert_eq!(strays([(&other, &here)].into_iter(), "pve8"), None);
    let row = strays([(&other, &away)].into_iter(), "pve8").unwrap();
    assert!(
        row.state == State::Fail && row.seen.contains("1003 on pve8b"),
        "{row:?}"
    );
    assert!(row.next.unwrap().contains("qm migrate 1003 pve8"));
}

#[test]
fn a_nic_behind_the_firewall_is_told_where_no_profile_put_it_there() {
    let mut config = json!({ "net0": "virtio=BC:24:11:00:00:01,bridge=vmbr1,firewall=1" });
    let rows = of_machine(vmid(), &config, Some(&known(SandboxState::Running)));
    assert!(rows.len() == 1 && rows[0].state == State::Fail, "{rows:?}");
    config["description"] = json!("agentlab:0190c0de:0123 vmid=1000 template=9000 firewall=group:web");
    assert_eq!(
        of_machine(vmid(), &config, Some(&known(SandboxState::Running))),
        []
    );
}

#[test]
fn a_snapshot_with_memory_is_refused_by_name() {
    let snapshots = json!([
        { "name": "clean", "snaptime": 1 },
        { "name": "live", "vmstate": 1 },
        { "name": "current", "running": 0 },
    ]);
    let row = with_memory(vmid(), &snapshots).unwrap();
    assert_eq!(row.state, State::Fail);
    assert_eq!(row.next.as_deref(), Some("qm delsnapshot 1003 live"));
    assert_eq!(with_memory(vmid(), &json!([{ "name": "current" }])), None);
}

#[test]
fn snippets_of_sandboxes_that_are_no_more_are_named_and_others_left_alone() {
    let names = [
        "agentlab-1003.yaml",
        "agentlab-1004-user.yaml",
        "agentlab-notes",
        "other-1004.yaml",
    ];
    let known = known(SandboxState::Running);
    let row = snippets(
        Path::new(SNIPPETS),
        names.iter().map(|name| (*name).to_owned()),
        Some(&known),
    )
    .unwrap();
    assert_eq!(
        row.next.as_deref(),
        Some("rm /var/lib/vz/snippets/agentlab-1004-user.yaml")
    );
    assert_eq!(
        snippets(
            Path::new(SNIPPETS),
            names.iter().map(|name| (*name).to_owned()),
            None
        ),
        None
    );
}

#[test]
fn a_firewall_that_is_on_says_that_our_accept_is_not_final() {
    assert_eq!(
        firewall(&json!({ "enable": "1" }), "vmbr1", "pve8").state,
        State::Warn
    );
    assert_eq!(
        firewall(&json!({ "enable": 0 }), "vmbr1", "pve8").state,
        State::Ok
    );
    assert_eq!(firewall(&json!({}), "vmbr1", "pve8").state, State::Ok);
}
