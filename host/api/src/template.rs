//! What a Proxmox VE template's configuration says, where the daemon before each clone and `agentlab doctor` before the first
//! must come to the same answer.

/// What of its host's own a key hands to every sandbox. `None` for all other keys.
#[must_use]
pub fn device_of_host(key: &str, value: &str) -> Option<&'static str> {
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

/// Whether the value of `agent` switches the guest agent on, in whichever of the ways that PVE takes.
#[must_use]
pub fn is_agent_enabled(agent: &str) -> bool {
    agent.split(',').any(|part| {
        let word = part.strip_prefix("enabled=").unwrap_or(part);
        matches!(word, "1" | "on" | "yes" | "true")
    })
}
