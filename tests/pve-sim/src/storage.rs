//! Storages: how each names its volumes, and what each can do with them.

use crate::audit::Origin;

/// The format of a new volume, on every kind of storage, where nobody names another.
pub(crate) const NEW_FORMAT: &str = "raw";

/// The storage plugins that are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plugin {
    /// Files in a directory.
    Dir,
    /// A ZFS pool.
    Zfs,
    /// An LVM thin pool.
    LvmThin,
    /// A plain LVM volume group.
    Lvm,
    /// A Ceph pool.
    Rbd,
}

impl Plugin {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Dir => "dir",
            Self::Zfs => "zfspool",
            Self::LvmThin => "lvmthin",
            Self::Lvm => "lvm",
            Self::Rbd => "rbd",
        }
    }

    /// The format of a copy of a volume: a directory keeps what it was, where nobody names another.
    pub(crate) fn format_of_copy(self, source: &str) -> &str {
        match self {
            Self::Dir => source,
            Self::Zfs | Self::LvmThin | Self::Lvm | Self::Rbd => NEW_FORMAT,
        }
    }

    /// Whether a clone can share a base volume.
    pub(crate) fn links(self) -> bool {
        self != Self::Lvm
    }

    /// Whether a volume of this format can be snapshotted.
    pub(crate) fn snapshots(self, format: &str) -> bool {
        match self {
            Self::Dir => format == "qcow2",
            Self::Zfs | Self::LvmThin | Self::Rbd => true,
            Self::Lvm => false,
        }
    }

    /// Whether a volume's identifier tells which base it stands on, so that the base is known to be in use.
    pub(crate) fn knows_base_users(self) -> bool {
        matches!(self, Self::Dir | Self::Zfs | Self::Rbd)
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Storage {
    pub(crate) plugin: Plugin,
    pub(crate) shared: bool,
    pub(crate) content: Vec<String>,
    /// Where a directory keeps its files.
    pub(crate) path: String,
    pub(crate) total: u64,
    pub(crate) used: u64,
}

#[derive(Debug, Clone)]
pub(crate) struct Volume {
    pub(crate) storage: String,
    /// The node that has it; irrelevant on a shared storage.
    pub(crate) node: String,
    pub(crate) owner: u32,
    pub(crate) format: String,
    pub(crate) size: u64,
    pub(crate) created: u64,
    /// The base it stands on.
    pub(crate) parent: Option<String>,
    /// Snapshots inside it.
    pub(crate) snapshots: Vec<String>,
    pub(crate) origin: Origin,
}

/// A file that came from outside.
#[derive(Debug, Clone)]
pub(crate) struct Import {
    /// `import`, `iso` or `vztmpl`.
    pub(crate) content: String,
    pub(crate) format: String,
    /// What a guest would see of an image, the file's own length otherwise.
    pub(crate) size: u64,
    pub(crate) created: u64,
    pub(crate) origin: Origin,
}

/// Identifier of a volume of its own, `disk` being a name such as `vm-100-disk-0`.
pub(crate) fn volid(storage: &str, plugin: Plugin, owner: u32, disk: &str, format: &str) -> String {
    match plugin {
        Plugin::Dir => format!("{storage}:{owner}/{disk}.{format}"),
        Plugin::Zfs | Plugin::LvmThin | Plugin::Lvm | Plugin::Rbd => format!("{storage}:{disk}"),
    }
}

/// Identifier of a volume that stands on a base.
pub(crate) fn linked_volid(storage: &str, plugin: Plugin, base: &str, owner: u32, disk: &str) -> String {
    let base = base.split_once(':').map_or(base, |(_, name)| name);
    match plugin {
        Plugin::Dir => format!("{storage}:{base}/{owner}/{disk}.qcow2"),
        Plugin::Zfs | Plugin::Rbd => format!("{storage}:{base}/{disk}"),
        Plugin::LvmThin | Plugin::Lvm => format!("{storage}:{disk}"),
    }
}

/// The last part of a volume's identifier: its file, or its name on a block storage.
pub(crate) fn file_of(volid: &str) -> &str {
    volid.rsplit(['/', ':']).next().unwrap_or_default()
}

/// Whether the identifier names a base volume itself.
pub(crate) fn is_base(volid: &str) -> bool {
    file_of(volid).starts_with("base-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linked_clone_is_named_as_its_storage_names_it() {
        let named = |plugin, base| linked_volid("s", plugin, base, 100, "vm-100-disk-0");
        let dir = named(Plugin::Dir, "s:9000/base-9000-disk-0.qcow2");
        assert_eq!(dir, "s:9000/base-9000-disk-0.qcow2/100/vm-100-disk-0.qcow2");
        for plugin in [Plugin::Zfs, Plugin::Rbd] {
            assert_eq!(
                named(plugin, "s:base-9000-disk-0"),
                "s:base-9000-disk-0/vm-100-disk-0"
            );
        }
        assert_eq!(named(Plugin::LvmThin, "s:base-9000-disk-0"), "s:vm-100-disk-0");
        assert_eq!(file_of(&dir), "vm-100-disk-0.qcow2");
        assert!(!is_base(&dir) && is_base("s:9000/base-9000-disk-0.qcow2"));
    }
}
