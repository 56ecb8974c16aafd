//! A directory of the operator's on its way into a guest: what is there, looked at once and in the order of its names.

use std::fs::Metadata;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::unpack::Tally;
use super::{Entry, Kind};

/// One thing to send.
#[derive(Debug)]
pub(crate) struct Item {
    /// Where its bytes are; nothing else of it is looked at again.
    pub(crate) path: PathBuf,
    pub(crate) entry: Entry,
}

/// Everything below a directory, but for what is no file, directory or link. Links are sent as links.
pub(crate) fn walk(root: &Path) -> io::Result<(Vec<Item>, Tally)> {
    let mut items = Vec::new();
    let mut tally = Tally::default();
    let mut waiting = vec![PathBuf::new()];
    while let Some(relative) = waiting.pop() {
        let mut names = Vec::new();
        for found in std::fs::read_dir(root.join(&relative))? {
            names.push(found?.file_name());
        }
        names.sort();
        let mut below = Vec::new();
        for name in names {
            let relative = relative.join(&name);
            let path = root.join(&relative);
            let seen = std::fs::symlink_metadata(&path)?;
            let Some(kind) = kind(&path, &seen)? else {
                tally.leave_out(&relative.display().to_string(), "no file, directory or link");
                continue;
            };
            match kind {
                Kind::File => {
                    tally.files += 1;
                    tally.bytes += seen.len();
                }
                Kind::Directory => {
                    tally.directories += 1;
                    below.push(relative.clone());
                }
                Kind::Link(_) | Kind::Other(_) => tally.links += 1,
            }
            let size = if kind == Kind::File { seen.len() } else { 0 };
            items.push(Item {
                path,
                entry: Entry {
                    name: relative.as_os_str().as_bytes().to_vec(),
                    kind,
                    size,
                    mode: seen.mode() & 0o777,
                    modified: u64::try_from(seen.mtime()).unwrap_or_default(),
                },
            });
        }
        // The first name is taken next.
        waiting.extend(below.into_iter().rev());
    }
    Ok((items, tally))
}

fn kind(path: &Path, seen: &Metadata) -> io::Result<Option<Kind>> {
    Ok(if seen.is_dir() {
        Some(Kind::Directory)
    } else if seen.is_file() {
        Some(Kind::File)
    } else if seen.is_symlink() {
        Some(Kind::Link(
            std::fs::read_link(path)?.as_os_str().as_bytes().to_vec(),
        ))
    } else {
        None
    })
}
