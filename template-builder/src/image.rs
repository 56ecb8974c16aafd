//! The files of an image, out of its tree.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::debugfs::FileSystem;
use crate::disk::{self, BootLoader};
use crate::error::{During, Result, TemplateError};
use crate::initrd;
use crate::kernel::Kernel;
use crate::manifest::{DISK, INITRD, KERNEL, WHOLE_DISK};
use crate::recipe::Recipe;
use crate::rootfs::{self, EPOCH};
use crate::shape::Shape;
use crate::tool::{Call, Workshop};
use crate::tree::Tree;

/// Where GRUB looks for what to do.
const GRUB_CONFIGURATION: &str = "/boot/grub/grub.cfg";

/// What starts a machine.
#[derive(Debug)]
pub(crate) struct Boot {
    pub(crate) kernel: Kernel,
    initrd: Vec<u8>,
    /// Only for a disk that boots by itself.
    loader: Option<BootLoader>,
}

/// Size of the whole disk of a recipe's image.
pub(crate) fn disk_bytes(recipe: &Recipe) -> u64 {
    match recipe.shape {
        Shape::Local => u64::from(recipe.size_mb) << 20,
        Shape::Proxmox => disk::bytes(recipe.size_mb),
    }
}

impl Boot {
    /// Takes it out of a tree that has not been stripped yet.
    pub(crate) fn of(tree: &Tree, recipe: &Recipe) -> Result<Self> {
        let read = |path: &str| {
            let lacking = || TemplateError::Tree {
                problem: format!("lacks {path}"),
            };
            tree.read(path)?.ok_or_else(lacking)
        };
        let kernel = Kernel::from_tree(tree, recipe.shape.early_modules())?;
        let busybox = read(initrd::BUSYBOX)?;
        let initrd = initrd::build(&kernel, &busybox, (recipe.shape, disk_bytes(recipe)));
        let loader = match recipe.shape {
            Shape::Local => None,
            Shape::Proxmox => Some(BootLoader {
                boot: read(rootfs::BOOT_SECTOR)?,
                core: read(rootfs::BOOT_CORE)?,
            }),
        };
        Ok(Self {
            kernel,
            initrd,
            loader,
        })
    }

    /// Puts what a disk that boots by itself has in its own file system into the tree.
    pub(crate) fn settle(&self, tree: &Tree, recipe: &Recipe) -> Result<()> {
        if self.loader.is_none() {
            return Ok(());
        }
        tree.remove(rootfs::BOOT_SECTOR)?;
        tree.remove(rootfs::BOOT_CORE)?;
        tree.write("/boot/vmlinuz", &self.kernel.image, 0o644)?;
        tree.write("/boot/initrd.img", &self.initrd, 0o644)?;
        let configuration = format!(
            "linux /boot/vmlinuz {}\ninitrd /boot/initrd.img\nboot\n",
            recipe.command_line()
        );
        tree.write(GRUB_CONFIGURATION, configuration.as_bytes(), 0o644)
    }

    /// Writes the image's files. `input` decides every identifier in them.
    pub(crate) fn write(
        &self,
        workshop: &Workshop<'_>,
        tree: &Tree,
        into: &Path,
        (recipe, input): (&Recipe, &str),
    ) -> Result<()> {
        let Some(loader) = &self.loader else {
            for (name, bytes) in [(KERNEL, &self.kernel.image), (INITRD, &self.initrd)] {
                let path = into.join(name);
                fs::write(&path, bytes).during("write", &path)?;
            }
            return file_system(workshop, tree, (&into.join(DISK), 0, recipe.size_mb), input);
        };
        let path = into.join(WHOLE_DISK);
        let mut seed = [0; 32];
        hex::decode_to_slice(input, &mut seed).map_err(|_| TemplateError::Tree {
            problem: "has no hash to take identifiers from".to_owned(),
        })?;
        disk::create(&path, recipe.size_mb, &seed, loader)?;
        file_system(workshop, tree, (&path, disk::ROOT_OFFSET, recipe.size_mb), input)
    }
}

/// The same tree gives the same bytes: UUID and hash seed come from what the image is made of, the clock stands.
fn file_system(
    workshop: &Workshop<'_>,
    tree: &Tree,
    (disk, offset, size_mb): (&Path, u64, u32),
    input: &str,
) -> Result<()> {
    let uuid = uuid_of(input);
    let place = if offset == 0 {
        String::new()
    } else {
        format!(",offset={offset}")
    };
    let arguments = [
        "-q",
        "-F",
        "-t",
        "ext4",
        "-L",
        "root",
        "-U",
        &uuid,
        "-m",
        "0",
        "-E",
        &format!("hash_seed={uuid},root_owner=0:0,lazy_itable_init=1,lazy_journal_init=1,nodiscard{place}"),
        "-d",
        &tree.path().display().to_string(),
        &disk.display().to_string(),
        &format!("{size_mb}M"),
    ];
    Call {
        program: &workshop.tools.mke2fs,
        package: "e2fsprogs",
        arguments: arguments.map(str::to_owned).to_vec(),
        environment: vec![
            ("E2FSPROGS_FAKE_TIME", EPOCH.to_string()),
            ("SOURCE_DATE_EPOCH", EPOCH.to_string()),
        ],
    }
    .run(workshop)?;
    settle_change_times(workshop, disk, offset)
}

/// mke2fs copies the time at which an inode of the tree was last changed, which no call can set back: it is the time of
/// the build. Set in the image instead, so that the same tree gives the same bytes.
fn settle_change_times(workshop: &Workshop<'_>, disk: &Path, offset: u64) -> Result<()> {
    const ROOT: u32 = 2;
    /// The first one that is not reserved.
    const FIRST: u32 = 11;
    let file = File::open(disk).during("open", disk)?;
    let mut superblock = [0; 1024];
    file.read_exact_at(&mut superblock, offset + 1024)
        .during("read", disk)?;
    let number = |at: usize| {
        let bytes = superblock.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u32::from_le_bytes)
    };
    // Nothing was ever removed from it, so that those in use are the first.
    let used = number(0).saturating_sub(number(0x10));
    let commands: String = [ROOT]
        .into_iter()
        .chain(FIRST..=used)
        .map(|inode| format!("set_inode_field <{inode}> ctime @{EPOCH}\n"))
        .collect();
    FileSystem::at(workshop, disk, offset).execute(&commands)
}

/// The first 128 bits of a hash, marked as a version 8 UUID.
fn uuid_of(hash: &str) -> String {
    let part = |from: usize, to: usize| hash.get(from..to).unwrap_or_default().to_owned();
    format!(
        "{}-{}-8{}-8{}-{}",
        part(0, 8),
        part(8, 12),
        part(13, 16),
        part(17, 20),
        part(20, 32)
    )
}
