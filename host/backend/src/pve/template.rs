//! Whether a machine is a template that sandboxes can be made of. Asked before each clone: what is wrong with a template
//! would else be found minutes later, in a guest that says nothing.

use agentlab_api::{Vmid, device_of_host, is_agent_enabled};

use super::record::Record;

/// What is wrong with it, and what would help.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) reason: String,
    pub(super) hint: String,
}

fn fault<T>(reason: impl Into<String>, hint: impl Into<String>) -> Result<T, Fault> {
    Err(Fault {
        reason: reason.into(),
        hint: hint.into(),
    })
}

/// The first thing that is wrong with it. Which runner is in it is compared where it is known what ours is.
pub(super) fn check(record: &Record, bridge: &str) -> Result<(), Fault> {
    let vmid = record.vmid;
    if !record.is_template() {
        let hint = format!("stop it and convert it with `qm template {vmid}`");
        return fault("it is a machine and no template", hint);
    }
    check_disk(record, vmid)?;
    if let Some((slot, what)) = of_host(record) {
        return fault(
            format!("it hands {what} of this host to every sandbox, by its key {slot}"),
            format!("`qm set {vmid} --delete {slot}`"),
        );
    }
    let agent = record.text("agent").unwrap_or_default();
    if !is_agent_enabled(&agent) {
        return fault(
            "its guest agent is switched off, by which guests are looked into and shut down",
            format!("`qm set {vmid} --agent 1`"),
        );
    }
    match record.nics().into_iter().find(|(slot, _)| slot == "net0") {
        None => fault(
            "it has no NIC `net0`",
            format!("`qm set {vmid} --net0 virtio,bridge={bridge}`"),
        ),
        Some((_, nic)) if nic.bridge.is_none() => fault(
            "its NIC `net0` is on no bridge",
            format!("`qm set {vmid} --net0 virtio,bridge={bridge}`"),
        ),
        Some(_) => Ok(()),
    }
}

/// A key that gives guests something of the host's own, and what that is.
fn of_host(record: &Record) -> Option<(String, &'static str)> {
    let mut entries = record.entries();
    entries.find_map(|(key, value)| {
        let what = device_of_host(&key, &value)?;
        Some((key, what))
    })
}

fn check_disk(record: &Record, vmid: Vmid) -> Result<(), Fault> {
    let Some(disk) = record.root_disk() else {
        return fault(
            "it has no disk that it boots from",
            format!("set its boot order: `qm set {vmid} --boot order=scsi0`"),
        );
    };
    if disk.bytes.is_none_or(|bytes| bytes == 0) {
        return fault(
            format!("PVE knows no size of its disk {}", disk.slot),
            format!("`qm rescan --vmid {vmid}`"),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::pve::Fields;

    fn judged(key: &str, value: Value) -> Result<(), Fault> {
        let mut config = json!({
            "template": 1, "agent": "1", "boot": "order=scsi0", "net0": "virtio=BC:24:11:00:00:01,bridge=vmbr0",
            "scsi0": "local:9000/base-9000-disk-0.qcow2,size=2G",
        });
        config[key] = value;
        let record = Record::new("pve8", 9000.try_into().unwrap(), Fields::of(config).unwrap());
        check(&record, "vmbr1")
    }

    #[test]
    fn what_a_template_may_have_is_no_fault_however_it_is_written() {
        for (key, value) in [
            ("name", json!("tmpl")),
            ("agent", json!("enabled=1,freeze-fs=0")),
            ("agent", json!("1,fstrim_cloned_disks=1")),
            ("agent", json!("enabled=yes")),
            ("usb0", json!("spice,usb3=1")),
            ("serial0", json!("socket")),
            ("ide2", json!("none,media=cdrom")),
            ("rng0", json!("source=/dev/urandom")),
            (
                "efidisk0",
                json!("local:9000/base-9000-disk-1.qcow2,efitype=4m,pre-enrolled-keys=1,size=528K"),
            ),
            (
                "tpmstate0",
                json!("local:9000/base-9000-disk-2.raw,size=4M,version=v2.0"),
            ),
            ("net0", json!("e1000=BC:24:11:00:00:01,bridge=lan")),
            ("args", json!("-device virtio-rng-pci")),
        ] {
            assert_eq!(judged(key, value.clone()), Ok(()), "{key}: {value}");
        }
    }

    #[test]
    fn each_thing_that_a_template_lacks_is_named_with_the_command_that_helps() {
        for (key, value, reason, hint) in [
            ("template", json!(0), "no template", "qm template 9000"),
            ("scsi0", json!(null), "boots from", "--boot order=scsi0"),
            (
                "scsi0",
                json!("local:iso/x.iso,media=cdrom"),
                "boots from",
                "--boot",
            ),
            (
                "scsi0",
                json!("local:9000/base-9000-disk-0.qcow2"),
                "no size",
                "qm rescan",
            ),
            ("agent", json!(null), "agent", "qm set 9000 --agent 1"),
            ("agent", json!("0"), "agent", "qm set 9000 --agent 1"),
            (
                "agent",
                json!("enabled=0,fstrim_cloned_disks=1"),
                "agent",
                "qm set 9000 --agent 1",
            ),
            (
                "hostpci0",
                json!("0000:01:00.0,pcie=1"),
                "a PCI device",
                "--delete hostpci0",
            ),
            ("usb1", json!("mapping=stick"), "a USB device", "--delete usb1"),
            ("args", json!("-nic user"), "a network device", "--delete args"),
            (
                "virtiofs0",
                json!("dirid=homes"),
                "a directory",
                "--delete virtiofs0",
            ),
            (
                "serial1",
                json!("/dev/ttyS0"),
                "a serial port",
                "--delete serial1",
            ),
            (
                "parallel0",
                json!("/dev/parport0"),
                "a parallel port",
                "--delete parallel0",
            ),
            (
                "ivshmem",
                json!("size=32,name=all"),
                "shared memory",
                "--delete ivshmem",
            ),
            (
                "ide2",
                json!("cdrom,media=cdrom"),
                "the CD-ROM drive",
                "--delete ide2",
            ),
            ("net0", json!(null), "no NIC", "--net0 virtio,bridge=vmbr1"),
            (
                "net0",
                json!("virtio=BC:24:11:00:00:01"),
                "no bridge",
                "--net0 virtio,bridge=vmbr1",
            ),
        ] {
            let fault = judged(key, value).unwrap_err();
            assert!(fault.reason.contains(reason), "{key}: {fault:?}");
            assert!(fault.hint.contains(hint), "{key}: {fault:?}");
        }
    }
}
