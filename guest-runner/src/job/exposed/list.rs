//! Lists of objects, a line `<id> <path>` each, as `git cat-file --batch` takes them.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

use super::Object;
use crate::job::process::Sink;

/// Longest list that git writes: it is never in memory.
const LONGEST: u64 = 256 << 20;

/// A list that is being written.
pub(super) struct List {
    file: File,
    size: u64,
}

impl List {
    /// A new one, and the same to be read. It has no name any more: however the search ends, nothing stays of it.
    pub(super) fn create(spool: &Path) -> io::Result<(Self, File)> {
        let path = spool.join("objects");
        let file = File::create(&path)?;
        let list = File::open(&path)?;
        std::fs::remove_file(&path)?;
        Ok((Self { file, size: 0 }, list))
    }

    /// These lines, to be read.
    pub(super) fn of(lines: &[u8], spool: &Path) -> io::Result<File> {
        let (mut into, list) = Self::create(spool)?;
        into.file.write_all(lines)?;
        Ok(list)
    }
}

impl Sink for List {
    fn take(&mut self, chunk: &[u8]) -> io::Result<Option<u64>> {
        self.size += u64::try_from(chunk.len()).unwrap_or(u64::MAX);
        if self.size > LONGEST {
            return Ok(Some(LONGEST));
        }
        self.file.write_all(chunk)?;
        Ok(None)
    }
}

/// Mode of a commit of another repository, whose objects are not in this one.
const SUBMODULE: &[u8] = b"160000";

/// `git diff --raw -z` as `<id> <path>` lines, of what is there afterwards.
pub(super) fn changed_objects(raw: &[u8]) -> Vec<u8> {
    let mut fields = raw.split(|byte| *byte == 0);
    let mut lines = Vec::new();
    while let (Some(about), Some(path)) = (fields.next(), fields.next()) {
        let mut words = about.split(|byte| *byte == b' ').skip(1);
        let (mode, id) = (words.next().unwrap_or_default(), words.nth(1).unwrap_or_default());
        if mode != SUBMODULE && id.iter().any(|digit| *digit != b'0') {
            line(&mut lines, id, path);
        }
    }
    lines
}

/// `git ls-tree -z` as the same.
pub(super) fn tree_objects(list: &[u8]) -> Vec<u8> {
    let mut lines = Vec::new();
    for entry in list.split(|byte| *byte == 0) {
        let mut halves = entry.splitn(2, |byte| *byte == b'\t');
        let (about, path) = (
            halves.next().unwrap_or_default(),
            halves.next().unwrap_or_default(),
        );
        let id = about.split(|byte| *byte == b' ').nth(2).unwrap_or_default();
        if !about.starts_with(SUBMODULE) && !id.is_empty() {
            line(&mut lines, id, path);
        }
    }
    lines
}

pub(super) fn lines(objects: &[Object]) -> Vec<u8> {
    let mut lines = Vec::new();
    for object in objects {
        line(&mut lines, object.id.as_bytes(), object.path.as_bytes());
    }
    lines
}

/// A line end in a path would begin another object.
fn line(lines: &mut Vec<u8>, id: &[u8], path: &[u8]) {
    lines.extend_from_slice(id);
    lines.push(b' ');
    lines.extend(path.iter().map(|byte| if *byte == b'\n' { b'?' } else { *byte }));
    lines.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_is_too_long_is_given_up_before_it_is_written() {
        let mut list = List {
            file: tempfile::tempfile().unwrap(),
            size: LONGEST - 1,
        };
        assert_eq!(list.take(b"1").unwrap(), None);
        assert_eq!(list.take(b"2").unwrap(), Some(LONGEST));
        assert_eq!(list.file.metadata().unwrap().len(), 1);
    }

    #[test]
    fn commits_of_other_repositories_are_nobodys_objects() {
        let changed =
            b":100644 100644 aa bb M\0a b\0:000000 160000 00 cc A\0sub\0:100644 000000 dd 00 D\0gone\0";
        assert_eq!(changed_objects(changed), b"bb a b\n");
        assert_eq!(
            tree_objects(b"160000 commit cc\tsub\x00100644 blob bb\ta b\0"),
            b"bb a b\n"
        );
    }
}
