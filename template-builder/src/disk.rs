//! A disk that boots by itself under a BIOS, written byte by byte.
//!
//! ```text
//!   LBA 0     protective MBR, GRUB's boot.img in it: loads LBA 2048
//!       1     GPT header, 2..33 its entries
//!       2048  BIOS boot partition: GRUB's core.img, which reads /boot/grub/grub.cfg of partition 2
//!       4096  root file system
//!       end   GPT entries and header again
//! ```
//!
//! GRUB's two images come from the tree's own suite; where they lie on the disk is patched into them here, which is all
//! that `grub-install` would do, and it would want a mounted disk for that.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::error::{During, Result, TemplateError};

/// Bytes of a sector.
pub const SECTOR: u64 = 512;
const MIB: u64 = 1 << 20;
/// Where the file system begins, and what of the disk it does not have: one MiB at the end holds the second table.
pub const ROOT_OFFSET: u64 = 2 * MIB;
const TAIL: u64 = MIB;
const CORE_LBA: u64 = 2048;
const CORE_SECTORS: u64 = ROOT_OFFSET / SECTOR - CORE_LBA;
const ENTRIES: usize = 128;
const ENTRY_BYTES: usize = 128;
const TABLE_SECTORS: u64 = 32;
/// `21686148-6449-6e6f-744e-656564454649`: BIOS boot.
const BIOS_BOOT: u128 = 0x2168_6148_6449_6e6f_744e_6565_6445_4649;
/// `4f68bce3-e8cd-4db1-96e7-fbcaf984b709`: a root file system of x86-64; systemd-repart knows it by this.
const ROOT_X86_64: u128 = 0x4f68_bce3_e8cd_4db1_96e7_fbca_f984_b709;

/// GRUB's first sector and the rest of it.
#[derive(Debug)]
pub struct BootLoader {
    /// `boot.img`, one sector.
    pub boot: Vec<u8>,
    /// `core.img`, as grub-mkimage made it.
    pub core: Vec<u8>,
}

/// Size of a disk with a root file system of so many MiB.
#[must_use]
pub fn bytes(root_mb: u32) -> u64 {
    ROOT_OFFSET + (u64::from(root_mb) << 20) + TAIL
}

/// Makes the disk's file, sparse, with everything but the file system. `seed` decides its identifiers, so that the same
/// content has the same bytes.
///
/// # Errors
/// GRUB's images are not what is known of them, or the file system refuses.
pub fn create(path: &Path, root_mb: u32, seed: &[u8; 32], loader: &BootLoader) -> Result<()> {
    let size = bytes(root_mb);
    let file = File::create_new(path).during("create", path)?;
    file.set_len(size).during("size", path)?;
    let table = Table::new(size, seed);
    let write = |at: u64, bytes: &[u8]| file.write_all_at(bytes, at).during("write", path);
    write(0, &first_sector(loader, size)?)?;
    write(SECTOR, &table.header(Place::First))?;
    write(2 * SECTOR, &table.entries)?;
    write(CORE_LBA * SECTOR, &placed_core(loader)?)?;
    write(size - (TABLE_SECTORS + 1) * SECTOR, &table.entries)?;
    write(size - SECTOR, &table.header(Place::Last))
}

fn wrong(problem: &str) -> TemplateError {
    TemplateError::Tree {
        problem: format!("has a boot loader that {problem}"),
    }
}

/// `boot.img` with the place of `core.img`, and one entry over the whole disk for whoever knows no GPT.
fn first_sector(loader: &BootLoader, size: u64) -> Result<Vec<u8>> {
    const KERNEL_SECTOR: usize = 0x5c;
    const BOOT_DRIVE: usize = 0x64;
    const DRIVE_CHECK: usize = 0x66;
    const TABLE: usize = 0x1b8;
    if loader.boot.len() != 512 || loader.boot.get(510..) != Some(&[0x55, 0xaa]) {
        return Err(wrong("is no boot sector (boot.img)"));
    }
    let mut sector = loader.boot.clone();
    put(&mut sector, KERNEL_SECTOR, &CORE_LBA.to_le_bytes());
    // The drive that the BIOS says, as it says it.
    put(&mut sector, BOOT_DRIVE, &[0xff]);
    put(&mut sector, DRIVE_CHECK, &[0x90, 0x90]);
    put(&mut sector, TABLE, &[0; 70]);
    let sectors = u32::try_from(size / SECTOR - 1).unwrap_or(u32::MAX);
    // Not marked active: a BIOS that asks for it is none that starts a GPT disk.
    put(
        &mut sector,
        0x1be,
        &[0x00, 0x00, 0x02, 0x00, 0xee, 0xff, 0xff, 0xff],
    );
    put(&mut sector, 0x1c6, &1_u32.to_le_bytes());
    put(&mut sector, 0x1ca, &sectors.to_le_bytes());
    Ok(sector)
}

/// `core.img`, whose first sector is told where the others are: behind it.
fn placed_core(loader: &BootLoader) -> Result<Vec<u8>> {
    const BLOCK_LIST: usize = 0x1f4;
    const LOAD_SEGMENT: u16 = 0x820;
    let sectors = u64::try_from(loader.core.len())
        .unwrap_or(u64::MAX)
        .div_ceil(SECTOR);
    if !(2..=CORE_SECTORS).contains(&sectors) {
        return Err(wrong("does not fit its partition (core.img)"));
    }
    let mut core = loader.core.clone();
    let rest = u16::try_from(sectors - 1).map_err(|_| wrong("does not fit its partition (core.img)"))?;
    put(&mut core, BLOCK_LIST, &(CORE_LBA + 1).to_le_bytes());
    put(&mut core, BLOCK_LIST + 8, &rest.to_le_bytes());
    put(&mut core, BLOCK_LIST + 10, &LOAD_SEGMENT.to_le_bytes());
    Ok(core)
}

/// Every place here is a constant within a buffer whose length was looked at.
fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    First,
    Last,
}

/// A GPT.
struct Table {
    sectors: u64,
    disk: u128,
    entries: Vec<u8>,
}

impl Table {
    fn new(size: u64, seed: &[u8; 32]) -> Self {
        let sectors = size / SECTOR;
        let root_end = (size - TAIL) / SECTOR - 1;
        let mut entries = vec![0; ENTRIES * ENTRY_BYTES];
        let both = [
            (
                BIOS_BOOT,
                identifier(seed, 1),
                CORE_LBA,
                CORE_LBA + CORE_SECTORS - 1,
                "boot",
            ),
            (
                ROOT_X86_64,
                identifier(seed, 2),
                ROOT_OFFSET / SECTOR,
                root_end,
                "root",
            ),
        ];
        for (entry, (kind, identifier, first, last, name)) in entries.chunks_mut(ENTRY_BYTES).zip(both) {
            put(entry, 0, &mixed_endian(kind));
            put(entry, 16, &mixed_endian(identifier));
            put(entry, 32, &first.to_le_bytes());
            put(entry, 40, &last.to_le_bytes());
            let name: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
            put(entry, 56, &name);
        }
        Self {
            sectors,
            disk: identifier(seed, 0),
            entries,
        }
    }

    fn header(&self, place: Place) -> Vec<u8> {
        const HEADER_BYTES: u32 = 92;
        const CHECKSUM: usize = 16;
        let last = self.sectors - 1;
        let (here, other, entries) = match place {
            Place::First => (1, last, 2),
            Place::Last => (last, 1, last - TABLE_SECTORS),
        };
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes();
        let mut header = vec![0; 512];
        put(&mut header, 0, b"EFI PART");
        put(&mut header, 8, &0x0001_0000_u32.to_le_bytes());
        put(&mut header, 12, &HEADER_BYTES.to_le_bytes());
        put(&mut header, 24, &u64::to_le_bytes(here));
        put(&mut header, 32, &u64::to_le_bytes(other));
        put(&mut header, 40, &(2 + TABLE_SECTORS).to_le_bytes());
        put(&mut header, 48, &(last - TABLE_SECTORS - 1).to_le_bytes());
        put(&mut header, 56, &mixed_endian(self.disk));
        put(&mut header, 72, &u64::to_le_bytes(entries));
        put(&mut header, 80, &count(ENTRIES));
        put(&mut header, 84, &count(ENTRY_BYTES));
        put(&mut header, 88, &crc32fast::hash(&self.entries).to_le_bytes());
        let sum = crc32fast::hash(header.get(..92).unwrap_or_default());
        put(&mut header, CHECKSUM, &sum.to_le_bytes());
        header
    }
}

/// A version 8 UUID for each number out of the seed.
fn identifier(seed: &[u8; 32], number: u8) -> u128 {
    let hash = crate::fingerprint::of_bytes(&[seed.as_slice(), &[number]].concat());
    let bits = hash
        .get(..32)
        .and_then(|digits| u128::from_str_radix(digits, 16).ok());
    let bits = bits.unwrap_or_default();
    bits & !(0xf << 76) & !(0x3 << 62) | (8 << 76) | (2 << 62)
}

/// As a GPT writes a UUID: its first three groups are little-endian.
fn mixed_endian(uuid: u128) -> [u8; 16] {
    let mut bytes = uuid.to_be_bytes();
    bytes[..4].reverse();
    bytes[4..6].reverse();
    bytes[6..8].reverse();
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loader() -> BootLoader {
        let mut boot = vec![0xeb; 512];
        boot[510..].copy_from_slice(&[0x55, 0xaa]);
        BootLoader {
            boot,
            core: vec![0x11; 100_000],
        }
    }

    fn number<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
        bytes[at..at + N].try_into().unwrap()
    }

    #[test]
    fn both_tables_are_whole_point_at_each_other_and_at_the_partitions() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        create(&path, 16, &[7; 32], &loader()).unwrap();
        let disk = std::fs::read(&path).unwrap();
        assert_eq!(disk.len(), 19 << 20);
        let last = disk.len() - 512;
        for (at, other) in [(512, last / 512), (last, 1)] {
            let mut header = disk[at..at + 92].to_vec();
            let sum = u32::from_le_bytes(number(&header, 16));
            header[16..20].fill(0);
            assert_eq!(
                (&header[..8], crc32fast::hash(&header)),
                (b"EFI PART".as_slice(), sum)
            );
            assert_eq!(
                u64::from_le_bytes(number(&header, 32)),
                u64::try_from(other).unwrap()
            );
            let entries = usize::try_from(u64::from_le_bytes(number(&header, 72))).unwrap() * 512;
            let entries = &disk[entries..entries + 128 * 128];
            assert_eq!(crc32fast::hash(entries), u32::from_le_bytes(number(&header, 88)));
            let root: [u64; 2] = [32, 40].map(|field| u64::from_le_bytes(number(entries, 128 + field)));
            assert_eq!(root, [4096, 18 * 2048 - 1]);
        }
        // As `sgdisk -p` and the kernel read it.
        assert_eq!(&disk[1024..1028], &[0x48, 0x61, 0x68, 0x21]);
    }

    #[test]
    fn the_boot_sector_leads_to_the_core_and_the_core_to_its_rest() {
        let sector = first_sector(&loader(), 19 << 20).unwrap();
        assert_eq!(u64::from_le_bytes(number(&sector, 0x5c)), 2048);
        assert_eq!(
            (sector[0x64], sector[0x1c2], &sector[510..]),
            (0xff, 0xee, [0x55, 0xaa].as_slice())
        );
        let core = placed_core(&loader()).unwrap();
        assert_eq!(u64::from_le_bytes(number(&core, 0x1f4)), 2049);
        assert_eq!(u16::from_le_bytes(number(&core, 0x1fc)), 195);
        let mut large = loader();
        large.core = vec![0; 2 << 20];
        assert!(placed_core(&large).is_err());
        large.boot.pop();
        assert!(first_sector(&large, 19 << 20).is_err());
    }

    #[test]
    fn identifiers_follow_from_the_seed_and_differ_from_each_other() {
        let one = [0, 1, 2].map(|number| identifier(&[1; 32], number));
        assert_eq!(one, [0, 1, 2].map(|number| identifier(&[1; 32], number)));
        assert!(one[0] != one[1] && one[1] != one[2] && one[0] != identifier(&[2; 32], 0));
        assert_eq!((one[0] >> 76) & 0xf, 8);
        assert_eq!((one[0] >> 62) & 3, 2);
    }
}
