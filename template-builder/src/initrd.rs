//! The initrd: a `newc` cpio archive of our own, with busybox, a handful of modules and thirty lines of shell.
//!
//! ```text
//!   kernel ─► /init: devices, modules, wait for root= ─► mount it, /run and /tmp ─► switch_root ─► systemd
//! ```
//!
//! A disk larger than the template's leaves the mark [`GROW_MARK`], without which no process is spent on growing.
//!
//! It is not compressed: the hypervisor places it in memory at once, while an emulated processor would spend longer
//! on unpacking it than on all of the script.

use crate::fingerprint;
use crate::kernel::Kernel;
use crate::shape::Shape;

/// The tree's static busybox.
pub const BUSYBOX: &str = "/usr/bin/busybox";

/// Present in the guest when its disk is larger than the template's.
pub const GROW_MARK: &str = "/run/agentlab-grow";

const REGULAR: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const CHARACTER: u32 = 0o020_000;
const LINK: u32 = 0o120_000;

/// Applets that the script calls, by the names it calls them.
const APPLETS: [&str; 7] = ["sh", "insmod", "mkdir", "mknod", "mount", "sleep", "switch_root"];

/// Hash of what every initrd of a shape does, whatever its kernel.
#[must_use]
pub fn digest(shape: Shape) -> String {
    let kernel = Kernel {
        version: String::new(),
        image: Vec::new(),
        modules: Vec::new(),
    };
    fingerprint::of_bytes(&build(&kernel, &[], (shape, 0)))
}

/// Makes the archive, for a shape of image whose whole disk has so many bytes.
#[must_use]
pub fn build(kernel: &Kernel, busybox: &[u8], disk: (Shape, u64)) -> Vec<u8> {
    let mut archive = Archive::default();
    for directory in ["bin", "dev", "modules", "proc", "root", "sys"] {
        archive.add(&Entry {
            path: directory,
            mode: DIRECTORY | 0o755,
            device: (0, 0),
            content: &[],
        });
    }
    // The kernel opens it before /init has mounted anything.
    archive.add(&Entry {
        path: "dev/console",
        mode: CHARACTER | 0o600,
        device: (5, 1),
        content: &[],
    });
    archive.file("bin/busybox", 0o755, busybox);
    for applet in APPLETS {
        let path = format!("bin/{applet}");
        archive.add(&Entry {
            path: &path,
            mode: LINK | 0o777,
            device: (0, 0),
            content: b"busybox",
        });
    }
    for (name, content) in &kernel.modules {
        archive.file(&format!("modules/{name}"), 0o644, content);
    }
    archive.file("init", 0o755, script(kernel, disk).as_bytes());
    archive.finish()
}

/// The disk that the command line names is the file system.
const NAMED_ROOT: &str = "disk=/dev/vda type=ext4\n\
    read -r line </proc/cmdline\n\
    for word in $line; do case $word in root=*) disk=${word#root=};; rootfstype=*) type=${word#rootfstype=};; esac; done\n\
    tries=0\n\
    while [ ! -b \"$disk\" ]; do\n\
    tries=$((tries + 1)); [ $tries -gt 400 ] && lost \"$disk did not appear in 20 s\"; sleep 0.05\n\
    done\n\
    root=$disk\n";

/// The second partition of scsi0, which alone has LUN 0, or of virtio0. Never by label or UUID: another disk of the
/// machine may be a workspace, and whoever wrote that wrote its label too.
const FOUND_ROOT: &str = "type=ext4 disk= tries=0\n\
    while [ -z \"$disk\" ]; do\n\
    for found in /sys/class/scsi_disk/*:0:0:0/device/block/* /sys/class/block/vda; do\n\
    [ -e \"$found/dev\" ] && [ -b \"/dev/${found##*/}2\" ] && disk=/dev/${found##*/} && break\n\
    done\n\
    tries=$((tries + 1)); [ $tries -gt 400 ] && lost 'neither scsi0 nor virtio0 appeared with two partitions in 20 s'\n\
    [ -n \"$disk\" ] || sleep 0.05\n\
    done\n\
    root=${disk}2\n";

/// A script that fails ends: the kernel then panics, and `panic=-1` ends the machine with the reason on its console.
fn script(kernel: &Kernel, (shape, disk_bytes): (Shape, u64)) -> String {
    let mut text = String::from(
        "#!/bin/sh\n\
         export PATH=/bin\n\
         lost() { echo \"agentlab: initrd: $1\" >/dev/console; exit 1; }\n\
         mount -t devtmpfs -o mode=0755,nosuid dev /dev || lost 'no devtmpfs'\n\
         mount -t proc -o nosuid,nodev,noexec proc /proc\n\
         mount -t sysfs -o nosuid,nodev,noexec sys /sys\n",
    );
    for (name, _) in &kernel.modules {
        // The disk is waited for below; a machine without, say, virtio-rng still works.
        text.push_str(&format!(
            "insmod /modules/{name} || echo 'agentlab: initrd: {name} not loaded' >/dev/console\n"
        ));
    }
    // Nodes that load their module when opened; what kmod-static-nodes.service would make with two processes.
    text.push_str(
        "mkdir -p /dev/net\n\
         mknod -m 0666 /dev/net/tun c 10 200\n\
         [ -e /dev/fuse ] || mknod -m 0666 /dev/fuse c 10 229\n\
         [ -e /dev/loop-control ] || mknod -m 0600 /dev/loop-control c 10 237\n",
    );
    text.push_str(match shape {
        Shape::Local => NAMED_ROOT,
        Shape::Proxmox => FOUND_ROOT,
    });
    text.push_str(
        "mount -t \"$type\" -o rw,noatime \"$root\" /root || lost \"$root cannot be mounted\"\n\
         mount -t tmpfs -o mode=0755,nosuid,nodev,size=20%,nr_inodes=800k run /root/run || lost 'no /run'\n\
         mount -t tmpfs -o mode=1777,nosuid,nodev,size=50% tmp /root/tmp || lost 'no /tmp'\n\
         read -r size <\"/sys/class/block/${disk#/dev/}/size\" || size=0\n",
    );
    // In sectors of 512 bytes.
    text.push_str(&format!(
        "[ \"$size\" -gt {} ] && : >/root{GROW_MARK}\n",
        disk_bytes / 512
    ));
    text.push_str(
        "mount -o move /dev /root/dev\n\
         mount -o move /sys /root/sys\n\
         mount -o move /proc /root/proc\n\
         exec switch_root /root /sbin/init\n\
         lost 'no init on the disk'\n",
    );
    text
}

struct Entry<'a> {
    path: &'a str,
    mode: u32,
    device: (u32, u32),
    content: &'a [u8],
}

/// `newc`: a header of thirteen 8-digit hexadecimal numbers, the name with its NUL, the content; each padded to 4.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.add(&Entry {
            path,
            mode: REGULAR | mode,
            device: (0, 0),
            content,
        });
    }

    fn add(&mut self, entry: &Entry<'_>) {
        self.entries += 1;
        let links = if entry.mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        self.write(self.entries, links, entry);
    }

    fn write(&mut self, inode: u32, links: u32, entry: &Entry<'_>) {
        let length = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let (major, minor) = entry.device;
        let numbers = [
            inode,
            entry.mode,
            0,
            0,
            links,
            0,
            length(entry.content.len()),
            0,
            0,
            major,
            minor,
            length(entry.path.len() + 1),
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for number in numbers {
            self.bytes.extend_from_slice(format!("{number:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(entry.path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(entry.content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.write(
            0,
            1,
            &Entry {
                path: "TRAILER!!!",
                mode: 0,
                device: (0, 0),
                content: &[],
            },
        );
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel() -> Kernel {
        let modules = vec![
            ("failover.ko".to_owned(), vec![1; 5]),
            ("virtio_net.ko".to_owned(), vec![2; 8]),
        ];
        Kernel {
            version: "6".to_owned(),
            image: Vec::new(),
            modules,
        }
    }

    /// Name, mode, device, content.
    type Found = (String, u32, (u32, u32), Vec<u8>);

    /// Reads an archive as the kernel does, from the format's description and not from the writer.
    fn read(archive: &[u8]) -> Vec<Found> {
        let mut found = Vec::new();
        let mut at = 0;
        loop {
            let header = std::str::from_utf8(&archive[at..at + 110]).unwrap();
            assert_eq!(&header[..6], "070701");
            let number = |n: usize| u32::from_str_radix(&header[6 + n * 8..14 + n * 8], 16).unwrap();
            let long = |n: usize| usize::try_from(number(n)).unwrap();
            let (mode, size, name_size) = (number(1), long(6), long(11));
            let name = &archive[at + 110..at + 110 + name_size];
            assert_eq!(name.last(), Some(&0));
            let name = String::from_utf8(name[..name_size - 1].to_vec()).unwrap();
            let begin = (at + 110 + name_size).next_multiple_of(4);
            at = (begin + size).next_multiple_of(4);
            if name == "TRAILER!!!" {
                assert_eq!(archive.len() % 512, 0);
                assert!(archive[at..].iter().all(|byte| *byte == 0));
                return found;
            }
            found.push((
                name,
                mode,
                (number(9), number(10)),
                archive[begin..begin + size].to_vec(),
            ));
        }
    }

    #[test]
    fn the_archive_reads_back_entry_by_entry() {
        let entries = read(&build(&kernel(), b"busy", (Shape::Local, 2 << 30)));
        let find = |path: &str| entries.iter().find(|(name, ..)| name == path).unwrap();
        assert_eq!(
            find("bin/busybox"),
            &("bin/busybox".to_owned(), 0o100_755, (0, 0), b"busy".to_vec())
        );
        assert_eq!(
            find("bin/sh"),
            &("bin/sh".to_owned(), 0o120_777, (0, 0), b"busybox".to_vec())
        );
        assert_eq!(
            find("dev/console"),
            &("dev/console".to_owned(), 0o020_600, (5, 1), Vec::new())
        );
        assert_eq!(find("modules/failover.ko").3, vec![1; 5]);
        assert_eq!(find("root").1, 0o040_755);
        let place = |path: &str| entries.iter().position(|(name, ..)| name == path).unwrap();
        assert!(place("modules") < place("modules/failover.ko") && place("dev") < place("dev/console"));
    }

    #[test]
    fn the_script_loads_modules_in_order_before_it_waits_for_the_disk() {
        let text = script(&kernel(), (Shape::Local, 2 << 30));
        let place = |part: &str| text.find(part).unwrap();
        assert!(place("insmod /modules/failover.ko") < place("insmod /modules/virtio_net.ko"));
        assert!(place("insmod /modules/virtio_net.ko") < place("while [ ! -b"));
        assert!(text.contains("-gt 4194304 ]"));
        let called = |word: &str| {
            text.lines().any(|line| {
                line.trim_start().starts_with(word)
                    || line.contains(&format!("; {word} "))
                    || line.contains(&format!("exec {word} "))
            })
        };
        for applet in APPLETS.iter().filter(|applet| **applet != "sh") {
            assert!(called(applet), "{applet}");
        }
    }

    #[test]
    fn the_script_is_shell_that_parses() {
        for shape in [Shape::Local, Shape::Proxmox] {
            let mut shell = std::process::Command::new("/bin/sh");
            let text = script(&kernel(), (shape, 2 << 30));
            assert!(
                shell.args(["-n", "-c", &text]).status().unwrap().success(),
                "{text}"
            );
        }
    }
}
