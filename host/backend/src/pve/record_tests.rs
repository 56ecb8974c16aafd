use serde_json::json;

use super::*;

const UUID: &str = "7d2ab580-26da-44b3-8f0d-0395a2723def";

fn vmid(raw: u32) -> Vmid {
    raw.try_into().unwrap()
}

fn label() -> Label {
    Label {
        stamp: "agentlab:0190c0de-0000-7000-8000-000000000001:0123456789abcdef0123456789abcdef"
            .parse()
            .unwrap(),
        vmid: vmid(410),
        template: vmid(9000),
        uuid: Some(UUID.to_owned()),
        mac: None,
        firewall: None,
    }
}

fn record(description: &str, smbios1: &str) -> Record {
    let fields = Fields::of(json!({ "description": description, "smbios1": smbios1, "name": "x" })).unwrap();
    Record::new("pve8", vmid(410), fields)
}

#[test]
fn a_label_is_read_as_it_is_written_and_an_operators_notes_stay() {
    let label = label();
    let description = format!("do not touch\n{}\nasked for by Ann", label.to_line());
    assert_eq!(Label::find(&description), Some(label.clone()));
    let changed = Label {
        mac: Some("02:A1:00:00:00:01".into()),
        ..label
    };
    let replaced = changed.replace_in(&description);
    assert_eq!(Label::find(&replaced), Some(changed));
    assert!(replaced.starts_with("do not touch\n") && replaced.ends_with("\nasked for by Ann"));
}

#[test]
fn a_copy_of_our_machine_is_not_ours() {
    let line = label().to_line();
    assert!(record(&line, &format!("uuid={UUID}")).label().is_some());
    assert!(
        record(&line, &format!("uuid={}", UUID.to_uppercase()))
            .label()
            .is_some()
    );
    // Cloned by an operator: another uuid, or another VMID.
    assert_eq!(
        record(&line, "uuid=00000000-26da-44b3-8f0d-0395a2723def").label(),
        None
    );
    assert_eq!(record(&line, "").label(), None);
    let fields = Fields::of(json!({ "description": line, "smbios1": format!("uuid={UUID}") })).unwrap();
    assert_eq!(Record::new("pve8", vmid(411), fields).label(), None);
}

#[test]
fn a_damaged_or_doubled_label_is_none() {
    let line = label().to_line();
    for description in [
        "",
        "zz",
        "agentlab uuid=0190c0de nonce=5f2a",
        &line.replace("0123456789abcdef", "xyz"),
        &line.replace(" vmid=410", ""),
        &line.replace("vmid=410", "vmid=410 vmid=411"),
        &format!("{line}\n{line}"),
    ] {
        assert_eq!(Label::find(description), None, "{description:?}");
    }
}

#[test]
fn the_disk_it_boots_from_is_the_one_that_pve_would_take() {
    let disks = json!({ "sata0": "local:410/vm-410-disk-0.raw,size=8G", "scsi1": "local:410/vm-410-disk-1.raw,size=1G",
        "scsi10": "local:410/vm-410-disk-2.raw,size=1G", "ide2": "none,media=cdrom", "efidisk0": "local:410/vm-410-disk-3.raw" });
    for (key, value, root) in [
        ("boot", json!("order=sata0"), "sata0"),
        ("boot", json!("order=ide2;net0;scsi10"), "scsi10"),
        ("bootdisk", json!("sata0"), "sata0"),
        ("boot", json!("cdn"), "scsi1"),
        ("ide0", json!("local:410/vm-410-disk-4.raw,size=1G"), "ide0"),
        ("virtio0", json!("local:410/vm-410-disk-4.raw,size=1G"), "scsi1"),
        ("unused0", json!("local:410/vm-410-disk-5.raw"), "scsi1"),
    ] {
        let mut config = disks.clone();
        config[key] = value;
        let record = Record::new("pve8", vmid(410), Fields::of(config).unwrap());
        assert_eq!(record.root_disk().unwrap().slot, root, "{key}");
    }
}

#[test]
fn disks_nics_and_sizes_are_read_as_pve_writes_them() {
    let fields = Fields::of(json!({
        "boot": "order=ide2;scsi0;net0",
        "ide2": "local:cloudinit,media=cdrom",
        "scsi0": "local:9000/base-9000-disk-0.qcow2/410/vm-410-disk-0.qcow2,size=300M",
        "scsi1": "local:777/vm-777-rec.qcow2,size=64M",
        "scsihw": "virtio-scsi-pci",
        "net0": "virtio=BC:24:11:BE:60:C6,bridge=vmbr0,firewall=1",
        "net1": "e1000=BC:24:11:BE:60:C7,bridge=vmbr1",
    }))
    .unwrap();
    let record = Record::new("pve8", vmid(410), fields);
    let root = record.root_disk().unwrap();
    assert_eq!((root.slot.as_str(), root.bytes), ("scsi0", Some(300 << 20)));
    assert_eq!((root.storage(), root.owner()), ("local", Some(vmid(410))));
    let owners: Vec<_> = record.disks().iter().map(Disk::owner).collect();
    assert_eq!(owners, [Some(vmid(410)), Some(vmid(777))]);
    let nics = record.nics();
    assert_eq!(nics.len(), 2);
    assert_eq!(nics[0].1.mac.as_deref(), Some("BC:24:11:BE:60:C6"));
    assert!(nics[0].1.firewall && !nics[1].1.firewall);
    assert_eq!(
        volume_owner("zfs:base-9000-disk-0/vm-100-disk-0"),
        Some(vmid(100))
    );
    assert_eq!(volume_owner("thin:vm-100-disk-0"), Some(vmid(100)));
    for (drive, is_its) in [
        ("local:cloudinit,media=cdrom", true),
        ("local:410/vm-410-cloudinit.qcow2,media=cdrom", true),
        ("tank:vm-410-cloudinit,media=cdrom,size=4M", true),
        ("file=tank:vm-410-cloudinit", true),
        ("cloudinit:410/vm-410-disk-0.qcow2,size=2G", false),
        ("tank:vm-410-my-cloudinit", false),
    ] {
        let fields = Fields::of(json!({ "scsi1": drive })).unwrap();
        let record = Record::new("pve8", vmid(410), fields);
        assert_eq!(record.has_cloud_init(), is_its, "{drive}");
        assert_eq!(record.disks().is_empty(), is_its, "{drive}");
    }
    for (text, size) in [
        ("200M", Some(200 << 20)),
        ("1.5G", Some(3 << 29)),
        ("528K", Some(528 << 10)),
        ("10", Some(10)),
        ("1X", None),
        ("", None),
    ] {
        assert_eq!(bytes(text), size, "{text}");
    }
}
