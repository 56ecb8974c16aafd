//! Directories as one stream, both ways: the tar format as GNU tar writes it, and as much of it as we need.
//!
//! A guest writes what it likes, so nothing here believes a header: lengths are bounded, numbers are checked, and what
//! is no file, directory or link is said to be [`Kind::Other`]. What may land where is for [`unpack`] to judge.
//!
//! ```text
//!   a directory here ─ pack ──► header, bytes, padding, … ──► `tar -x` in the guest
//!   `tar -c` in the guest ──► Reader ──► unpack ──► .agentlab-<random> ──whole? rename──► its name
//! ```

pub(crate) mod pack;
mod read;
pub(crate) mod unpack;

pub(crate) use read::{Reader, Receive, TarError};

/// Everything comes in pieces of this size.
pub(crate) const BLOCK: usize = 512;
/// Two empty blocks end an archive.
pub(crate) const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];
/// Longest name, and longest target of a link, that is read: as long as the kernel takes one.
const LONGEST_NAME: u64 = 4096;

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Bytes follow.
    File,
    /// Nothing follows.
    Directory,
    /// A symbolic link to this.
    Link(Vec<u8>),
    /// A device, a pipe, a hard link or something of another program's; in the word of the format.
    Other(u8),
}

/// What stands before the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// With `/` between its parts; whatever its author chose.
    pub(crate) name: Vec<u8>,
    pub(crate) kind: Kind,
    /// How many bytes follow.
    pub(crate) size: u64,
    /// Permissions.
    pub(crate) mode: u32,
    /// Seconds since the epoch.
    pub(crate) modified: u64,
}

impl Entry {
    /// A file that everybody may read, changed at the beginning of time: the same wherever and whenever it is written.
    pub(crate) fn plain(name: &str, size: u64) -> Self {
        Self {
            name: name.as_bytes().to_vec(),
            kind: Kind::File,
            size,
            mode: 0o644,
            modified: 0,
        }
    }

    /// The blocks before the bytes; a name that is too long for its field stands in blocks of its own.
    pub(crate) fn header(&self) -> Vec<u8> {
        let mut blocks = Vec::with_capacity(BLOCK);
        let target: &[u8] = match &self.kind {
            Kind::Link(target) => target,
            Kind::File | Kind::Directory | Kind::Other(_) => &[],
        };
        if target.len() > 100 {
            long(&mut blocks, b'K', target);
        }
        if self.name.len() > 100 {
            long(&mut blocks, b'L', &self.name);
        }
        let flag = match self.kind {
            Kind::File => b'0',
            Kind::Directory => b'5',
            Kind::Link(_) => b'2',
            Kind::Other(flag) => flag,
        };
        blocks.extend_from_slice(&block(self, flag, target));
        blocks
    }

    /// How many zeros follow the bytes.
    pub(crate) fn padding(&self) -> usize {
        padding(self.size)
    }
}

fn padding(size: u64) -> usize {
    let block = u64::try_from(BLOCK).unwrap_or(u64::MAX);
    usize::try_from((block - size % block) % block).unwrap_or(0)
}

/// GNU's way to write what does not fit.
fn long(blocks: &mut Vec<u8>, flag: u8, text: &[u8]) {
    let size = u64::try_from(text.len() + 1).unwrap_or(u64::MAX);
    let entry = Entry {
        name: b"././@LongLink".to_vec(),
        kind: Kind::Other(flag),
        size,
        mode: 0o644,
        modified: 0,
    };
    blocks.extend_from_slice(&block(&entry, flag, &[]));
    blocks.extend_from_slice(text);
    blocks.push(0);
    blocks.resize(blocks.len() + padding(size), 0);
}

fn block(entry: &Entry, flag: u8, target: &[u8]) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8], room: usize| {
        let bytes = bytes.get(..bytes.len().min(room)).unwrap_or_default();
        if let Some(field) = block.get_mut(at..at + bytes.len()) {
            field.copy_from_slice(bytes);
        }
    };
    put(0, &entry.name, 100);
    put(100, format!("{:07o}", entry.mode & 0o777).as_bytes(), 8);
    put(108, b"0000000", 8);
    put(116, b"0000000", 8);
    put(124, &number(entry.size), 12);
    put(136, &number(entry.modified), 12);
    put(148, b"        ", 8);
    put(156, &[flag], 1);
    put(157, target, 100);
    put(257, b"ustar  \0", 8);
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    let sum = format!("{sum:06o}\0 ");
    if let Some(field) = block.get_mut(148..156) {
        field.copy_from_slice(sum.as_bytes());
    }
    block
}

/// Octal as long as that fits, then GNU's binary form.
fn number(value: u64) -> [u8; 12] {
    let mut field = [0; 12];
    if value < 1 << 33 {
        let text = format!("{value:011o}");
        let (digits, _) = field.split_at_mut(11);
        digits.copy_from_slice(text.as_bytes());
    } else {
        field[0] = 0x80;
        let (_, low) = field.split_at_mut(4);
        low.copy_from_slice(&value.to_be_bytes());
    }
    field
}

#[cfg(test)]
mod tests;
