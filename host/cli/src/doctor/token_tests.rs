use serde_json::json;

use super::*;
use crate::doctor::row::State;
use crate::init::privilege::Release;

fn vmid(number: u32) -> agentlab_api::Vmid {
    agentlab_api::Vmid::try_from(number).unwrap()
}

/// As it was granted where the answers were recorded.
fn reach(release: Release) -> Reach {
    Reach {
        release,
        smbios_seed: false,
        pool: "agentlab".to_owned(),
        templates: [vmid(9000)].into(),
        storages: ["local".to_owned()].into(),
        volume_storage: None,
        bridges: ["vmbr0".to_owned()].into(),
        volume_owner: Some(vmid(777)),
    }
}

fn recorded(release: Release) -> Value {
    serde_json::from_str(match release {
        Release::Eight => include_str!("../../tests/node/permissions-8.json"),
        Release::Nine => include_str!("../../tests/node/permissions-9.json"),
    })
    .unwrap()
}

fn token() -> TokenName {
    TokenName::parse("agentlab@pve!lp").unwrap()
}

fn states(rows: &[Row]) -> Vec<State> {
    rows.iter().map(|row| row.state).collect()
}

#[test]
fn what_genuine_nodes_say_of_the_least_token_is_enough_and_no_more() {
    for release in [Release::Eight, Release::Nine] {
        let permissions = Permissions::of(&recorded(release));
        assert_eq!(
            states(&missing(&reach(release), &permissions, &token())),
            [State::Ok]
        );
        assert_eq!(
            states(&surplus(&reach(release), &permissions, &token())),
            [State::Ok]
        );
    }
}

#[test]
fn the_missing_privilege_is_named_with_its_path_and_the_command_that_grants_it() {
    let mut answer = recorded(Release::Nine);
    answer["/pool/agentlab"]
        .as_object_mut()
        .unwrap()
        .remove("VM.Snapshot");
    answer.as_object_mut().unwrap().remove("/storage/local");
    let rows = missing(&reach(Release::Nine), &Permissions::of(&answer), &token());
    assert_eq!(states(&rows), [State::Fail, State::Fail]);
    assert!(
        rows[0].seen.contains("lacks VM.Snapshot on /pool/agentlab"),
        "{}",
        rows[0].seen
    );
    let next = rows[0].next.as_deref().unwrap();
    assert!(
        next.starts_with("pveum role modify AgentLab --privs Pool.Audit,"),
        "{next}"
    );
    assert_eq!(
        rows[1].next.as_deref(),
        Some(
            "pveum acl modify /storage/local --roles AgentLabStore --users agentlab@pve --tokens 'agentlab@pve!lp'"
        )
    );
    // The privileges of 8 are not those of 9.
    let rows = missing(
        &reach(Release::Nine),
        &Permissions::of(&recorded(Release::Eight)),
        &token(),
    );
    assert!(
        rows[0]
            .seen
            .contains("lacks VM.GuestAgent.Audit, VM.GuestAgent.Unrestricted"),
        "{}",
        rows[0].seen
    );
}

#[test]
fn without_the_privilege_for_smbios_it_is_said_what_does_not_work() {
    let wanting = Reach {
        smbios_seed: true,
        ..reach(Release::Eight)
    };
    let rows = missing(&wanting, &Permissions::of(&recorded(Release::Eight)), &token());
    assert_eq!(states(&rows), [State::Fail]);
    assert!(
        rows[0].seen.contains("lacks VM.Config.HWType on /pool/agentlab"),
        "{}",
        rows[0].seen
    );
    assert!(
        rows[0]
            .seen
            .contains("only templates with a cloud-init drive can be given a seed"),
        "{}",
        rows[0].seen
    );
}

#[test]
fn what_holds_above_holds_below_unless_the_path_says_otherwise_itself() {
    let permissions = Permissions::of(&json!({
        "/": { "VM.Audit": 1, "Sys.Audit": 0 },
        "/vms/9000": { "VM.Clone": 1 },
    }));
    assert_eq!(permissions.at("/storage/local"), ["VM.Audit"].into());
    assert_eq!(permissions.at("/vms/9000"), ["VM.Clone"].into());
}

#[test]
fn privileges_beyond_the_need_are_pointed_out() {
    let mut answer = recorded(Release::Eight);
    answer["/"] = json!({ "Sys.Modify": 1 });
    answer["/nodes/pve8"] = json!({ "Sys.Audit": 1 });
    answer["/storage/local"]["Datastore.Allocate"] = json!(1);
    // What the pool gives on the machines in it is no surplus; what is granted on a machine of somebody else's is.
    answer["/vms/1003"] = json!({ "VM.Allocate": 0, "VM.PowerMgmt": 0 });
    answer["/vms/777"] = json!({ "VM.Config.Disk": 1, "VM.Audit": 1, "VM.Snapshot": 0 });
    answer["/vms/104"] = json!({ "VM.PowerMgmt": 1 });
    let rows = surplus(&reach(Release::Eight), &Permissions::of(&answer), &token());
    assert_eq!(states(&rows), [State::Warn, State::Warn, State::Warn]);
    assert!(
        rows[2].seen.contains("/vms/104: VM.PowerMgmt"),
        "{}",
        rows[2].seen
    );
    assert!(rows[0].seen.contains("/: Sys.Modify"), "{}", rows[0].seen);
    assert!(rows[1].seen.contains("deletes any volume"), "{}", rows[1].seen);
}

#[test]
fn only_a_refusal_for_want_of_permission_proves_anything() {
    let probes = probes("pve8", vmid(104), vmid(9000), &token());
    let said = |status| Answer::Said {
        status,
        reason: "x".to_owned(),
        data: Value::Null,
    };
    let all = |answer: &Answer| judge(&probes, &vec![answer.clone(); probes.len()], &token());
    assert_eq!(states(&all(&said(403))), [State::Ok]);
    for status in [200, 400, 500] {
        assert!(
            states(&all(&said(status)))
                .iter()
                .all(|state| *state == State::Fail),
            "{status}"
        );
    }
    let lost = Answer::Lost {
        error: "gone".to_owned(),
    };
    for answer in [said(401), said(501), said(596), lost] {
        assert!(
            states(&all(&answer)).iter().all(|state| *state == State::Unknown),
            "{answer:?}"
        );
    }
}
