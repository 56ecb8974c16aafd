//! The kernel: taken out of the tree, with the few modules that it needs before it sees its disk.

use std::collections::HashSet;

use crate::error::{Result, TemplateError};
use crate::tree::Tree;

/// Modules that the first seconds need, in the order to load them: disk, network, seed, entropy. Each is built into
/// some kernels and a module in others.
pub const EARLY_MODULES: [&str; 4] = ["virtio_blk", "virtio_net", "qemu_fw_cfg", "virtio_rng"];

/// What a local image is started with; a recipe may add to it. `quiet` keeps the emulated serial port, which is slow,
/// out of the boot; `panic=-1` ends a machine whose kernel is lost instead of letting it spin.
pub const COMMAND_LINE: [&str; 16] = [
    "root=/dev/vda",
    "rw",
    "console=ttyS0",
    "panic=-1",
    "quiet",
    "loglevel=4",
    "net.ifnames=0",
    "tsc=reliable",
    "no_timer_check",
    "cryptomgr.notests",
    "nokaslr",
    "audit=0",
    "i8042.noaux",
    "i8042.nokbd",
    "8250.nr_uarts=1",
    "systemd.show_status=no",
];

/// A kernel out of a tree.
#[derive(Debug)]
pub struct Kernel {
    /// `uname -r`.
    pub version: String,
    /// The bootable image.
    pub image: Vec<u8>,
    /// Early modules by file name, decompressed, in the order to load them.
    pub modules: Vec<(String, Vec<u8>)>,
}

impl Kernel {
    /// Takes the kernel of a tree, with its early modules.
    ///
    /// # Errors
    /// When it has none, or more than one, or modules that cannot be read.
    pub fn from_tree(tree: &Tree, early: &[&str]) -> Result<Self> {
        let mut versions = Vec::new();
        for name in tree.names("/boot")? {
            versions.extend(name.strip_prefix("vmlinuz-").map(str::to_owned));
        }
        let [version] = versions.as_slice() else {
            let problem = format!(
                "must have one kernel and has {}: [{}]",
                versions.len(),
                versions.join(", ")
            );
            return Err(TemplateError::Tree { problem });
        };
        let base = format!("/usr/lib/modules/{version}");
        let read = |path: String| {
            let missing = || TemplateError::Tree {
                problem: format!("lacks {path}"),
            };
            tree.read(&path)?.ok_or_else(missing)
        };
        let image = read(format!("/boot/vmlinuz-{version}"))?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let depends = text(read(format!("{base}/modules.dep"))?);
        let built_in = text(read(format!("{base}/modules.builtin"))?);
        let mut modules = Vec::new();
        for path in load_order(early, &depends, &built_in)? {
            let packed = read(format!("{base}/{path}"))?;
            modules.push((file_name(&path), unpack(&path, packed)?));
        }
        Ok(Self {
            version: version.clone(),
            image,
            modules,
        })
    }
}

fn unpack(path: &str, packed: Vec<u8>) -> Result<Vec<u8>> {
    let wrong = |problem: String| TemplateError::Tree {
        problem: format!("has a module {path} that {problem}"),
    };
    let module = if path.ends_with(".ko") {
        packed
    } else if path.ends_with(".ko.xz") {
        let mut plain = Vec::new();
        lzma_rs::xz_decompress(&mut packed.as_slice(), &mut plain)
            .map_err(|error| wrong(format!("does not decompress: {error:?}")))?;
        plain
    } else {
        return Err(wrong(
            "is compressed in a way we do not know (known: .ko, .ko.xz)".to_owned(),
        ));
    };
    if module.starts_with(b"\x7fELF") {
        Ok(module)
    } else {
        Err(wrong("is not an ELF object".to_owned()))
    }
}

fn file_name(path: &str) -> String {
    path.rsplit('/')
        .next()
        .unwrap_or(path)
        .trim_end_matches(".xz")
        .to_owned()
}

/// `drivers/block/virtio_blk.ko.xz` and `virtio-blk` are the same module.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

/// Paths of the wanted modules and of what they depend on, each after its dependencies and once. One that is built
/// in needs no file; one that this kernel lacks altogether is an error.
fn load_order(wanted: &[&str], depends: &str, built_in: &str) -> Result<Vec<String>> {
    let lines: Vec<(&str, Vec<&str>)> = depends
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(path, needs)| (path.trim(), needs.split_whitespace().collect()))
        .collect();
    let inside: HashSet<String> = built_in.lines().map(module_name).collect();
    let mut order: Vec<String> = Vec::new();
    for name in wanted {
        match lines.iter().find(|(path, _)| module_name(path) == *name) {
            // modules.dep lists a module's needs with the deepest last.
            Some((path, needs)) => {
                for one in needs.iter().rev().chain([path]) {
                    if !order.iter().any(|known| known == one) {
                        order.push((*one).to_owned());
                    }
                }
            }
            None if inside.contains(*name) => {}
            None => {
                return Err(TemplateError::Tree {
                    problem: format!("has a kernel without {name}"),
                });
            }
        }
    }
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEPENDS: &str = "kernel/drivers/net/virtio_net.ko.xz: kernel/drivers/net/net_failover.ko.xz kernel/net/core/failover.ko.xz\n\
        kernel/drivers/block/virtio_blk.ko.xz:\nkernel/drivers/char/hw_random/virtio-rng.ko.xz:\n";

    #[test]
    fn modules_come_after_what_they_need_and_built_in_ones_do_not_come() {
        let order = load_order(
            &EARLY_MODULES,
            DEPENDS,
            "kernel/drivers/firmware/qemu_fw_cfg.ko\n",
        )
        .unwrap();
        let names: Vec<String> = order.iter().map(|path| module_name(path)).collect();
        assert_eq!(
            names,
            [
                "virtio_blk",
                "failover",
                "net_failover",
                "virtio_net",
                "virtio_rng"
            ]
        );
    }

    #[test]
    fn a_kernel_without_an_early_module_is_refused_by_name() {
        let error = load_order(&EARLY_MODULES, DEPENDS, "").unwrap_err().to_string();
        assert_eq!(error, "The root tree has a kernel without qemu_fw_cfg");
    }

    #[test]
    fn a_module_is_decompressed_and_must_be_one() {
        let mut packed = Vec::new();
        lzma_rs::xz_compress(&mut b"\x7fELF and more".as_slice(), &mut packed).unwrap();
        assert_eq!(unpack("a/b.ko.xz", packed.clone()).unwrap(), b"\x7fELF and more");
        packed.truncate(packed.len() - 4);
        assert!(unpack("a/b.ko.xz", packed).is_err());
        assert!(
            unpack("a/b.ko.zst", Vec::new())
                .unwrap_err()
                .to_string()
                .contains("do not know")
        );
        assert!(unpack("a/b.ko", b"text".to_vec()).is_err());
    }

    #[test]
    fn two_kernels_or_none_are_refused() {
        let host = tempfile::tempdir().unwrap();
        let tree = Tree::open(host.path()).unwrap();
        assert!(
            Kernel::from_tree(&tree, &EARLY_MODULES)
                .unwrap_err()
                .to_string()
                .contains("has 0")
        );
        tree.write("/boot/vmlinuz-1", b"", 0o644).unwrap();
        tree.write("/boot/vmlinuz-2", b"", 0o644).unwrap();
        assert!(
            Kernel::from_tree(&tree, &EARLY_MODULES)
                .unwrap_err()
                .to_string()
                .contains("has 2: [1, 2]")
        );
    }
}
