use agentlab_api::Vmid;
use serde_json::json;

use super::*;
use crate::pve::PowerWord;

fn vmid(raw: u32) -> Vmid {
    raw.try_into().unwrap()
}

fn body(request: &Request) -> Value {
    serde_json::from_str(request.body.as_deref().unwrap()).unwrap()
}

#[test]
fn what_is_deleted_has_no_body_and_says_it_in_its_query() {
    let request = Request::change("pve8", &Change::Destroy { vmid: vmid(410) });
    assert_eq!(request.method, Method::DELETE);
    assert_eq!(request.target, "/api2/json/nodes/pve8/qemu/410?purge=1");
    assert_eq!(request.body, None);
    let free = Change::Free {
        owner: vmid(777),
        storage: "local".into(),
        volume: "local:777/vm-777-rec.qcow2".into(),
    };
    let request = Request::change("pve8", &free);
    assert_eq!(
        request.target,
        "/api2/json/nodes/pve8/storage/local/content/local:777%2Fvm-777-rec.qcow2"
    );
    assert_eq!(request.body, None);
}

#[test]
fn what_a_form_would_cut_arrives_whole() {
    let values = vec![
        pair("net0", "virtio=02:A1:00:00:00:01,bridge=vmbr1,firewall=0"),
        pair("description", "a;b=c&d"),
    ];
    let request = Request::change(
        "pve8",
        &Change::Set {
            vmid: vmid(410),
            values,
        },
    );
    assert_eq!(
        (request.method.as_str(), request.target.as_str()),
        ("PUT", "/api2/json/nodes/pve8/qemu/410/config")
    );
    assert_eq!(
        body(&request),
        json!({"net0": "virtio=02:A1:00:00:00:01,bridge=vmbr1,firewall=0", "description": "a;b=c&d"})
    );
    let read = Read::new("/cluster/resources").with("type", "v m&x=1");
    assert_eq!(
        Request::read(&read).target,
        "/api2/json/cluster/resources?type=v%20m%26x%3D1"
    );
}

#[test]
fn a_call_without_parameters_still_has_a_body_that_is_json() {
    let change = Change::Power {
        vmid: vmid(410),
        to: PowerWord::Start,
    };
    let request = Request::change("pve8", &change);
    assert_eq!(request.target, "/api2/json/nodes/pve8/qemu/410/status/start");
    assert_eq!(body(&request), json!({}));
    assert_eq!(request.node(), "pve8");
    assert_eq!(Request::read(&Read::resources()).node(), "");
}

#[test]
fn a_clone_carries_its_number_with_everything_else() {
    let change = Change::Clone {
        template: vmid(9000),
        to: vmid(410),
        values: vec![pair("name", "rec410"), pair("pool", "agentlab"), pair("full", 0)],
    };
    let request = Request::change("pve8", &change);
    assert_eq!(request.target, "/api2/json/nodes/pve8/qemu/9000/clone");
    assert_eq!(
        body(&request),
        json!({"newid": "410", "name": "rec410", "pool": "agentlab", "full": "0"})
    );
}

#[test]
fn a_disk_goes_to_a_storage_or_to_another_machine_and_never_to_both() {
    let to_storage = Change::MoveDisk {
        vmid: vmid(777),
        disk: "scsi1".into(),
        storage: "fast".into(),
    };
    let to_machine = Change::GiveDisk {
        vmid: vmid(1999),
        disk: "scsi1".into(),
        to: vmid(777),
        slot: "scsi2".into(),
    };
    let (storage, machine) = (
        Request::change("pve8", &to_storage),
        Request::change("pve8", &to_machine),
    );
    assert_eq!(storage.target, "/api2/json/nodes/pve8/qemu/777/move_disk");
    assert_eq!(
        body(&storage),
        json!({"disk": "scsi1", "storage": "fast", "delete": "1"})
    );
    assert_eq!(
        body(&machine),
        json!({"disk": "scsi1", "target-vmid": "777", "target-disk": "scsi2"})
    );
}
