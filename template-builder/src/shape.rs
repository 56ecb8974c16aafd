//! For whom an image is made, and what differs by it.
//!
//! ```text
//!   local     root.ext4, vmlinuz, initrd.img    the hypervisor loads the kernel; the disk is a file system
//!   proxmox   disk.raw                          SeaBIOS ─► GRUB ─► kernel and initrd out of the disk's own /boot
//! ```

use serde::{Deserialize, Serialize};

use crate::kernel;

/// A shape of image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// For the embedded QEMU back end.
    #[default]
    Local,
    /// A disk that boots by itself, for Proxmox VE.
    Proxmox,
}

/// Besides what every image has: the boot loader, which makes its core image while the tree is made; an agent for the
/// node to ask; and what makes a partition as large as its disk.
const PROXMOX_PACKAGES: [&str; 3] = ["grub-pc-bin", "qemu-guest-agent", "systemd-repart"];

/// Modules that find the disk on either of Proxmox VE's controllers, and the guest agent's port.
const PROXMOX_MODULES: [&str; 7] = [
    "virtio_scsi",
    "sd_mod",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "qemu_fw_cfg",
    "virtio_rng",
];

/// The initrd finds the disk. Nothing here is for an emulated processor, because a node has a real one; the graphical
/// console stays usable, the serial one is what `qm terminal` shows.
const PROXMOX_COMMAND_LINE: [&str; 9] = [
    "rw",
    "console=tty0",
    "console=ttyS0",
    "panic=-1",
    "quiet",
    "loglevel=4",
    "net.ifnames=0",
    "audit=0",
    "systemd.show_status=no",
];

/// Files of the shape, as `(path, text)`.
const PROXMOX_FILES: [(&str, &str); 4] = [
    (
        "/etc/repart.d/50-root.conf",
        "# The root partition takes what a larger disk adds.\n[Partition]\nType=root\n",
    ),
    (
        "/etc/systemd/system/systemd-repart.service.d/agentlab.conf",
        "# The initrd leaves this mark when the disk is larger than the template's.\n\
         [Unit]\nConditionPathExists=/run/agentlab-grow\n",
    ),
    (
        "/etc/systemd/system/systemd-growfs-root.service.d/partition.conf",
        "[Unit]\nAfter=systemd-repart.service\n",
    ),
    ("/etc/systemd/system/qemu-guest-agent.service", GUEST_AGENT),
];

/// The distribution's unit waits for a link that udev makes, and there may be no udev.
const GUEST_AGENT: &str = "\
[Unit]
Description=QEMU guest agent
DefaultDependencies=no
Conflicts=shutdown.target
Before=shutdown.target
After=agent-runner.service
ConditionPathExistsGlob=/sys/class/virtio-ports/*

[Service]
ExecStart=/bin/sh -c 'for port in /sys/class/virtio-ports/*; do read -r name <$$port/name; \\
    [ \"$$name\" = org.qemu.guest_agent.0 ] && exec /usr/sbin/qemu-ga -m virtio-serial -p /dev/$${port##*/}; done; \\
    echo \"this machine has no port for a guest agent\"'
Restart=on-failure
RestartSec=5
";

impl Shape {
    /// Its word, as the command line and the manifest write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Proxmox => "proxmox",
        }
    }

    /// Packages that it needs besides those of every image.
    #[must_use]
    pub fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Local => &[],
            Self::Proxmox => &PROXMOX_PACKAGES,
        }
    }

    /// Modules that the initrd loads, in this order.
    #[must_use]
    pub fn early_modules(self) -> &'static [&'static str] {
        match self {
            Self::Local => &kernel::EARLY_MODULES,
            Self::Proxmox => &PROXMOX_MODULES,
        }
    }

    /// What the kernel is started with, before what the recipe adds.
    #[must_use]
    pub fn command_line(self) -> &'static [&'static str] {
        match self {
            Self::Local => &kernel::COMMAND_LINE,
            Self::Proxmox => &PROXMOX_COMMAND_LINE,
        }
    }

    /// Small files that it adds to the tree.
    #[must_use]
    pub fn files(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Local => &[],
            Self::Proxmox => &PROXMOX_FILES,
        }
    }

    /// Units that it starts with the machine, besides the runner.
    #[must_use]
    pub fn units(self) -> &'static [&'static str] {
        match self {
            Self::Local => &[],
            Self::Proxmox => &["qemu-guest-agent.service"],
        }
    }

    /// Where the disk must be plugged in.
    #[must_use]
    pub fn disk_device(self) -> &'static str {
        match self {
            Self::Local => "/dev/vda",
            Self::Proxmox => "scsi0",
        }
    }

    /// The disk's file in an image's directory.
    #[must_use]
    pub fn disk_file(self) -> &'static str {
        match self {
            Self::Local => crate::manifest::DISK,
            Self::Proxmox => crate::manifest::WHOLE_DISK,
        }
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
