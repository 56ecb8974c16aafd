//! What a Proxmox VE template's configuration says, where the daemon before each clone and `agentlab doctor` before the first
//! must come to the same answer.

/// What of its host's own a key hands to every sandbox. `None` for all other keys.
#[must_use]
pub fn device_of_host(key: &str, value: &str) -> Option<&'static str> {
    if key == "args" {
        return value.split_whitespace().find_map(device_of_argument);
    }
    let kind = key.trim_end_matches(|letter: char| letter.is_ascii_digit());
    let first = value.split(',').next().unwrap_or_default();
    Some(match kind {
        "ivshmem" => "shared memory",
        "hostpci" => "a PCI device",
        "usb" if first != "spice" && first != "host=spice" => "a USB device",
        "virtiofs" => "a directory",
        "parallel" => "a parallel port",
        "serial" if first != "socket" => "a serial port",
        "ide" | "sata" | "scsi" if matches!(first, "cdrom" | "file=cdrom") => "the CD-ROM drive",
        _ => return None,
    })
}

/// What a word of QEMU's own command line adds past PVE, and past the packet policy. Settings and devices without a part
/// outside of the guest may stand there, and vsock, which is a way to this daemon; a drive may not, for firmware neither.
fn device_of_argument(word: &str) -> Option<&'static str> {
    let word = word.trim_matches(['\'', '"']);
    if let Some(option) = word.strip_prefix('-') {
        return Some(match option.trim_start_matches('-') {
            "net" | "netdev" | "nic" => "a network device",
            "virtfs" | "fsdev" => "a directory",
            "blockdev" | "cdrom" | "drive" | "hda" | "hdb" | "hdc" | "hdd" => "a drive",
            _ => return None,
        });
    }
    let drivers = [
        ("ivshmem", "shared memory"),
        ("usb-host", "a USB device"),
        ("vfio-", "a PCI device"),
        ("vhost-user", "a device"),
    ];
    drivers
        .into_iter()
        .find_map(|(driver, what)| word.contains(driver).then_some(what))
}

/// Whether the value of `agent` switches the guest agent on, in whichever of the ways that PVE takes.
#[must_use]
pub fn is_agent_enabled(agent: &str) -> bool {
    agent.split(',').any(|part| {
        let word = part.strip_prefix("enabled=").unwrap_or(part);
        matches!(word, "1" | "on" | "yes" | "true")
    })
}

#[cfg(test)]
mod tests {
    use super::device_of_host;

    #[test]
    fn words_for_qemu_that_reach_out_of_the_guest_are_told_from_those_that_do_not() {
        for (args, what) in [
            (
                "-cpu max --netdev user,id=n -device 'e1000,netdev=n'",
                Some("a network device"),
            ),
            ("\"-nic\" bridge,br=vmbr0", Some("a network device")),
            ("-device 'vfio-pci,host=01:00.0'", Some("a PCI device")),
            (
                r#"-device {"driver":"usb-host","hostbus":1}"#,
                Some("a USB device"),
            ),
            ("-device ivshmem-plain,memdev=all", Some("shared memory")),
            ("-device vhost-user-fs-pci,chardev=c", Some("a device")),
            ("-virtfs local,path=/,mount_tag=all", Some("a directory")),
            ("-drive file=/dev/sda", Some("a drive")),
            (
                "-fw_cfg name=opt/a,string=-netdev -device virtio-rng-pci -device vhost-vsock-pci,guest-cid=7",
                None,
            ),
        ] {
            assert_eq!(device_of_host("args", args), what, "{args}");
        }
    }
}
