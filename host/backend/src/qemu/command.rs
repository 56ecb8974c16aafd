//! QEMU's command line as a function of what it is to run. Pure: descriptors are numbers here.
//!
//! Nothing secret and no path of ours stands in it: every user of the host can read `/proc/<pid>/cmdline`. Files
//! arrive as descriptors, the seed too.

use std::ffi::OsString;
use std::os::fd::RawFd;

use agentlab_api::{SandboxId, Vmid};
use agentlab_protocol::workspace::SERIAL;
use serde_json::json;

use super::accelerator::{Accelerator, Version};
use super::vsock::Device;
use crate::MacAddress;

/// The name under which the guest finds its seed in fw_cfg.
const SEED_ITEM: &str = "opt/agentlab/seed";
/// The name under which the guest finds its serial channel.
const CHANNEL_NAME: &str = "agentlab.channel";
/// The block node that is the guest's disk.
pub(super) const DISK_NODE: &str = "root";
/// The character device behind the guest's serial channel.
pub(super) const CHANNEL_CHARDEV: &str = "channel";

/// Numbers of the descriptors QEMU inherits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Descriptors {
    pub(super) base: RawFd,
    pub(super) overlay: RawFd,
    pub(super) kernel: RawFd,
    pub(super) initrd: Option<RawFd>,
    pub(super) seed: Option<RawFd>,
    pub(super) console: RawFd,
    pub(super) qmp: RawFd,
    pub(super) channel: RawFd,
    pub(super) tap: Option<RawFd>,
    pub(super) volume: Option<RawFd>,
    pub(super) vsock: Option<(Device, RawFd)>,
}

/// What to run.
#[derive(Debug)]
pub(super) struct Guest<'a> {
    pub(super) vmid: Vmid,
    pub(super) sandbox: SandboxId,
    pub(super) cores: u16,
    pub(super) memory_mb: u32,
    pub(super) mac: MacAddress,
    pub(super) kernel_command_line: &'a str,
    pub(super) accelerator: Accelerator,
    pub(super) version: &'a Version,
    pub(super) tb_size_mb: u32,
}

struct Line(Vec<OsString>);

impl Line {
    fn flag(&mut self, flag: &str) {
        self.0.push(flag.into());
    }

    fn option(&mut self, flag: &str, value: impl Into<OsString>) {
        self.0.push(flag.into());
        self.0.push(value.into());
    }
}

/// What every guest of ours has in common, the probe's included: no device, file or privilege we did not name.
pub(super) fn bare(accelerator: Accelerator, version: &Version, tb_size_mb: u32) -> Vec<OsString> {
    let mut line = Line(Vec::new());
    for flag in ["-nodefaults", "-no-user-config", "-no-reboot"] {
        line.flag(flag);
    }
    line.option("-display", "none");
    line.option("-vga", "none");
    line.option(
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    );
    line.option(
        "-machine",
        "q35,usb=off,sata=off,smbus=off,vmport=off,dump-guest-core=off",
    );
    match accelerator {
        Accelerator::Kvm => {
            line.option("-accel", "kvm");
            line.option("-cpu", "host");
        }
        Accelerator::Tcg => {
            line.option("-accel", format!("tcg,tb-size={tb_size_mb}"));
            // CMPXCHG16B leaves wrong flags behind under TCG before QEMU 10, and guests die of it at random.
            line.option("-cpu", if version.major < 10 { "max,-cx16" } else { "max" });
        }
    }
    line.0
}

/// The whole command line of a machine. It starts paused: `cont` over QMP lets it go.
pub(super) fn arguments(guest: &Guest<'_>, fds: &Descriptors) -> Vec<OsString> {
    let mut line = Line(bare(guest.accelerator, guest.version, guest.tb_size_mb));
    line.flag("-S");
    line.option("-name", format!("agentlab-{}", guest.vmid));
    line.option("-uuid", guest.sandbox.to_string());
    line.option("-smp", guest.cores.to_string());
    line.option("-m", guest.memory_mb.to_string());

    disk(&mut line, fds);
    if let Some(descriptor) = fds.volume {
        volume(&mut line, descriptor);
    }

    line.option(
        "-chardev",
        format!("socket,id=qmp,fd={},server=on,wait=off", fds.qmp),
    );
    line.option("-mon", "chardev=qmp,mode=control");
    line.option(
        "-chardev",
        format!(
            "socket,id={CHANNEL_CHARDEV},fd={},server=on,wait=off",
            fds.channel
        ),
    );
    line.option("-device", "virtio-serial-pci");
    line.option(
        "-device",
        format!("virtserialport,chardev={CHANNEL_CHARDEV},name={CHANNEL_NAME}"),
    );
    add_descriptor(&mut line, fds.console, 3);
    line.option("-chardev", "file,id=console,path=/dev/fdset/3,append=on");
    line.option("-serial", "chardev:console");

    if let Some(tap) = fds.tap {
        line.option("-netdev", format!("tap,id=net0,fd={tap},vhost=off"));
        line.option(
            "-device",
            format!("virtio-net-pci,netdev=net0,mac={},romfile=", guest.mac),
        );
    }
    if let Some((device, descriptor)) = fds.vsock {
        vsock(&mut line, device, descriptor, guest.memory_mb);
    }
    line.option("-object", "rng-builtin,id=rng0");
    line.option("-device", "virtio-rng-pci,rng=rng0");
    line.option("-device", "vmgenid,guid=auto");
    if let Some(seed) = fds.seed {
        line.option("-fw_cfg", format!("name={SEED_ITEM},file={}", reopened(seed)));
    }
    line.option("-kernel", reopened(fds.kernel));
    if let Some(initrd) = fds.initrd {
        line.option("-initrd", reopened(initrd));
    }
    line.option("-append", guest.kernel_command_line);
    line.0
}

fn vsock(line: &mut Line, device: Device, descriptor: RawFd, memory_mb: u32) {
    match device {
        Device::Kernel { cid } => line.option(
            "-device",
            format!("vhost-vsock-pci,guest-cid={cid},vhostfd={descriptor}"),
        ),
        Device::User { .. } => {
            // The device's process reads and writes the guest's memory itself.
            let memory = format!("memory-backend-memfd,id=memory,size={memory_mb}M,share=on");
            line.option("-object", memory);
            line.option("-machine", "memory-backend=memory");
            line.option("-chardev", format!("socket,id=vsock,fd={descriptor}"));
            line.option("-device", "vhost-user-vsock-pci,chardev=vsock");
        }
    }
}

/// For the few options that take a path only. The file is opened again under QEMU's own user.
pub(super) fn reopened(fd: RawFd) -> String {
    format!("/proc/self/fd/{fd}")
}

fn add_descriptor(line: &mut Line, fd: RawFd, set: u8) {
    line.option("-add-fd", format!("fd={fd},set={set}"));
}

fn disk(line: &mut Line, fds: &Descriptors) {
    add_descriptor(line, fds.base, 1);
    add_descriptor(line, fds.overlay, 2);
    let nodes = [
        json!({ "driver": "file", "node-name": "base-file", "filename": "/dev/fdset/1", "read-only": true }),
        json!({ "driver": "raw", "node-name": "base", "file": "base-file", "read-only": true }),
        json!({ "driver": "file", "node-name": "root-file", "filename": "/dev/fdset/2", "discard": "unmap" }),
        json!({ "driver": "qcow2", "node-name": DISK_NODE, "file": "root-file", "backing": "base", "discard": "unmap" }),
    ];
    for node in nodes {
        line.option("-blockdev", node.to_string());
    }
    // A full host disk is the guest's I/O error, not a machine paused behind our back.
    line.option(
        "-device",
        format!("virtio-blk-pci,drive={DISK_NODE},serial=root,werror=report,rerror=report"),
    );
}

/// The disk that outlives the machine. The guest knows it by its serial number.
fn volume(line: &mut Line, descriptor: RawFd) {
    add_descriptor(line, descriptor, 4);
    let nodes = [
        json!({ "driver": "file", "node-name": "work-file", "filename": "/dev/fdset/4", "discard": "unmap" }),
        json!({ "driver": "raw", "node-name": "work", "file": "work-file", "discard": "unmap" }),
    ];
    for node in nodes {
        line.option("-blockdev", node.to_string());
    }
    line.option(
        "-device",
        format!("virtio-blk-pci,drive=work,serial={SERIAL},werror=report,rerror=report"),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line_of(accelerator: Accelerator, version: &str, fds: &Descriptors) -> String {
        let version = Version::parse(version).unwrap();
        let guest = Guest {
            vmid: 1000.try_into().unwrap(),
            sandbox: SandboxId::from_bytes([7; 16]),
            cores: 2,
            memory_mb: 512,
            mac: MacAddress([2, 0, 0, 0, 3, 232]),
            kernel_command_line: "root=/dev/vda rw, panic=-1",
            accelerator,
            version: &version,
            tb_size_mb: 64,
        };
        let words: Vec<String> = arguments(&guest, fds)
            .into_iter()
            .map(|word| word.into_string().unwrap())
            .collect();
        words.join(" ")
    }

    const FDS: Descriptors = Descriptors {
        base: 10,
        overlay: 11,
        kernel: 12,
        initrd: None,
        seed: None,
        console: 13,
        qmp: 14,
        channel: 15,
        tap: None,
        volume: None,
        vsock: None,
    };

    #[test]
    fn the_processor_loses_cx16_only_where_it_is_broken() {
        assert!(line_of(Accelerator::Tcg, "QEMU emulator version 7.2.22", &FDS).contains("-cpu max,-cx16 "));
        assert!(line_of(Accelerator::Tcg, "QEMU emulator version 10.0.2", &FDS).contains("-cpu max "));
        assert!(
            line_of(Accelerator::Kvm, "QEMU emulator version 7.2.22", &FDS).contains("-accel kvm -cpu host ")
        );
    }

    #[test]
    fn a_machine_without_cable_or_seed_has_no_device_for_either() {
        let bare = line_of(Accelerator::Tcg, "QEMU emulator version 7.2.22", &FDS);
        for absent in [
            "netdev",
            "virtio-net",
            "fw_cfg",
            "-initrd",
            "-monitor",
            "slirp",
            "agentlab-work",
            "vsock",
            "memfd",
            "user,",
        ] {
            assert!(!bare.contains(absent), "{absent} in {bare}");
        }
        let whole = Descriptors {
            tap: Some(20),
            volume: Some(24),
            seed: Some(21),
            initrd: Some(22),
            vsock: Some((Device::Kernel { cid: 0x4000_03e8 }, 23)),
            ..FDS
        };
        let whole = line_of(Accelerator::Tcg, "QEMU emulator version 7.2.22", &whole);
        for present in [
            "-netdev tap,id=net0,fd=20,vhost=off -device virtio-net-pci,netdev=net0,mac=02:00:00:00:03:e8,romfile=",
            "-fw_cfg name=opt/agentlab/seed,file=/proc/self/fd/21",
            "-initrd /proc/self/fd/22",
            "-append root=/dev/vda rw, panic=-1",
            "-add-fd fd=24,set=4",
            "-device virtio-blk-pci,drive=work,serial=agentlab-work,werror=report",
            "-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
            "-no-reboot",
            "-device vhost-vsock-pci,guest-cid=1073742824,vhostfd=23",
        ] {
            assert!(whole.contains(present), "no {present} in {whole}");
        }
    }
}
