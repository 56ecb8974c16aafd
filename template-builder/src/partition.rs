//! Where the file systems of a disk begin, for disks that others made.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::disk::SECTOR;
use crate::error::{During, Result, TemplateError};

/// Entries that are looked at; a table may say that it has more.
const MOST_ENTRIES: u32 = 128;

/// What a part of a disk holds, as far as we care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// An ext4 that was unmounted.
    Ext4,
    /// An ext4 whose journal is not replayed.
    Ext4InUse,
    Xfs,
    Btrfs,
    Other,
}

/// One partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Partition {
    pub(crate) offset: u64,
    pub(crate) content: Content,
}

/// The partitions of a disk, in the order of its table.
pub(crate) fn list(path: &Path) -> Result<Vec<Partition>> {
    let file = File::open(path).during("open", path)?;
    let size = file.metadata().during("look at", path)?.len();
    let read = |at: u64, length: usize| {
        let mut bytes = vec![0; length];
        match file.read_exact_at(&mut bytes, at) {
            Ok(()) => bytes,
            // Nothing is there.
            Err(_) => Vec::new(),
        }
    };
    let first = read(0, 512);
    let header = read(SECTOR, 512);
    let offsets = if header.starts_with(b"EFI PART") {
        guid_table(&header, read)
    } else if first.get(510..512) == Some(&[0x55, 0xaa]) {
        old_table(&first)
    } else {
        return Err(TemplateError::Tree {
            problem:
                "cannot be found in the image: it has no partition table, so that it does not boot by itself"
                    .to_owned(),
        });
    };
    let inside = offsets.into_iter().filter(|offset| *offset < size);
    Ok(inside
        .map(|offset| Partition {
            offset,
            content: content(|at, length| read(offset.saturating_add(at), length)),
        })
        .collect())
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let found = bytes.get(at..at + N).and_then(|bytes| bytes.try_into().ok());
    found.unwrap_or([0; N])
}

fn guid_table(header: &[u8], read: impl Fn(u64, usize) -> Vec<u8>) -> Vec<u64> {
    let entries = u64::from_le_bytes(number(header, 72)).saturating_mul(SECTOR);
    let count = u32::from_le_bytes(number(header, 80)).min(MOST_ENTRIES);
    let length = u64::from(u32::from_le_bytes(number(header, 84)));
    let all =
        (0..u64::from(count)).map(|index| read(entries.saturating_add(index.saturating_mul(length)), 128));
    all.filter(|entry| number::<16>(entry, 0) != [0; 16])
        .map(|entry| u64::from_le_bytes(number(&entry, 32)).saturating_mul(SECTOR))
        .collect()
}

/// Four entries; what is inside an extended one is not looked for: no image of a cloud has one.
fn old_table(sector: &[u8]) -> Vec<u64> {
    [0x1be, 0x1ce, 0x1de, 0x1ee]
        .into_iter()
        .filter(|entry| sector.get(entry + 4).is_some_and(|kind| *kind != 0))
        .map(|entry| u64::from(u32::from_le_bytes(number(sector, entry + 8))).saturating_mul(SECTOR))
        .collect()
}

fn content(read: impl Fn(u64, usize) -> Vec<u8>) -> Content {
    const EXT4_MAGIC: [u8; 2] = 0xef53_u16.to_le_bytes();
    const NEEDS_RECOVERY: u32 = 0x4;
    let superblock = read(1024, 1024);
    if number(&superblock, 0x38) == EXT4_MAGIC {
        let incompatible = u32::from_le_bytes(number(&superblock, 0x60));
        return if incompatible & NEEDS_RECOVERY == 0 {
            Content::Ext4
        } else {
            Content::Ext4InUse
        };
    }
    if read(0, 4) == b"XFSB" {
        return Content::Xfs;
    }
    if read(0x1_0040, 8) == b"_BHRfS_M" {
        return Content::Btrfs;
    }
    Content::Other
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{BootLoader, ROOT_OFFSET, create};

    fn disk() -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let mut boot = vec![0; 512];
        boot[510..].copy_from_slice(&[0x55, 0xaa]);
        let loader = BootLoader {
            boot,
            core: vec![0; 2048],
        };
        create(&path, 16, &[1; 32], &loader).unwrap();
        (dir, path)
    }

    #[test]
    fn the_partitions_of_either_table_are_found_with_what_they_hold() {
        let (_dir, path) = disk();
        let file = File::options().write(true).open(&path).unwrap();
        let contents = || {
            list(&path)
                .unwrap()
                .iter()
                .map(|one| one.content)
                .collect::<Vec<_>>()
        };
        assert_eq!(contents(), [Content::Other, Content::Other]);
        file.write_all_at(&0xef53_u16.to_le_bytes(), ROOT_OFFSET + 1024 + 0x38)
            .unwrap();
        assert_eq!(contents(), [Content::Other, Content::Ext4]);
        file.write_all_at(&[4], ROOT_OFFSET + 1024 + 0x60).unwrap();
        assert_eq!(contents()[1], Content::Ext4InUse);

        let mut sector = [0; 512];
        sector[0x1be + 4] = 0x83;
        sector[0x1be + 8..0x1be + 12].copy_from_slice(&4096_u32.to_le_bytes());
        sector[510..].copy_from_slice(&[0x55, 0xaa]);
        file.write_all_at(&sector, 0).unwrap();
        file.write_all_at(&[0; 512], SECTOR).unwrap();
        let expected = Partition {
            offset: ROOT_OFFSET,
            content: Content::Ext4InUse,
        };
        assert_eq!(list(&path).unwrap(), [expected]);
    }

    #[test]
    fn a_table_that_lies_leads_nowhere_and_no_table_is_refused() {
        let (_dir, path) = disk();
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(&[0xff; 16], SECTOR + 72).unwrap();
        assert_eq!(list(&path).unwrap(), []);
        file.write_all_at(&[0; 1024], 0).unwrap();
        assert!(
            list(&path)
                .unwrap_err()
                .to_string()
                .contains("no partition table")
        );
    }
}
