//! A tree laid over an ext4 file system: what is in the tree is in the file system afterwards, all else stays.

use std::fmt::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::io::Errno;

use crate::debugfs::{self, FileSystem};
use crate::error::{During, Result};
use crate::tree::Tree;

const RIGHTS: &str = "security.capability";
const PERMISSIONS: u32 = 0o7777;
const REGULAR: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;

/// One entry of a tree.
#[derive(Debug)]
struct Entry {
    /// As the guest will see it.
    path: String,
    mode: u32,
    owner: (u32, u32),
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Directory,
    /// Where it lies on the build host.
    File(String),
    Link(String),
}

/// Lays a tree over. Directories that are there keep owner and mode; files and links are replaced.
pub(crate) fn lay(file_system: &FileSystem<'_>, tree: &Tree) -> Result<()> {
    let entries = entries(tree.path())?;
    let directories: Vec<&Entry> = entries
        .iter()
        .filter(|entry| matches!(entry.kind, Kind::Directory))
        .collect();
    let paths: Vec<&str> = directories.iter().map(|entry| entry.path.as_str()).collect();
    let made = file_system.make_missing_directories(&paths)?;
    let mut commands = String::new();
    for (number, entry) in entries.iter().enumerate() {
        let quoted = debugfs::quoted(&entry.path)?;
        match &entry.kind {
            Kind::Directory if made.contains(&entry.path) => {
                attributes(&mut commands, &quoted, DIRECTORY, entry)
            }
            Kind::Directory => {}
            Kind::File(source) => {
                let (parent, name) = entry.path.rsplit_once('/').unwrap_or(("", &entry.path));
                let parent = if parent.is_empty() { "/" } else { parent };
                let _infallible = writeln!(
                    commands,
                    "rm {quoted}\ncd {}\nwrite {} {}\ncd /",
                    debugfs::quoted(parent)?,
                    debugfs::quoted(source)?,
                    debugfs::quoted(name)?
                );
                attributes(&mut commands, &quoted, REGULAR, entry);
                if let Some(rights) = rights(source)? {
                    let value = file_system.keep(&format!("rights-{number}"), &rights)?;
                    let value = debugfs::quoted(&value.display().to_string())?;
                    let _infallible = writeln!(commands, "ea_set -f {value} {quoted} {RIGHTS}");
                }
            }
            Kind::Link(target) => {
                let _infallible = writeln!(
                    commands,
                    "rm {quoted}\nsymlink {quoted} {}",
                    debugfs::quoted(target)?
                );
            }
        }
    }
    file_system.execute(&commands)
}

fn attributes(commands: &mut String, quoted: &str, kind: u32, entry: &Entry) {
    let (uid, gid) = entry.owner;
    let mode = kind | entry.mode & PERMISSIONS;
    for (field, value) in [
        ("mode", format!("0{mode:o}")),
        ("uid", uid.to_string()),
        ("gid", gid.to_string()),
    ] {
        let _infallible = writeln!(commands, "set_inode_field {quoted} {field} {value}");
    }
}

/// What a program may do that its caller may not.
fn rights(source: &str) -> Result<Option<Vec<u8>>> {
    let mut value = [0; 64];
    match rustix::fs::lgetxattr(source, RIGHTS, &mut value) {
        Ok(length) => Ok(value.get(..length).map(<[u8]>::to_vec)),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(std::io::Error::from(error)).during("look at", source.as_ref()),
    }
}

fn entries(root: &Path) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for found in walkdir::WalkDir::new(root)
        .min_depth(1)
        .follow_links(false)
        .sort_by_file_name()
    {
        let found = found.map_err(std::io::Error::from).during("walk", root)?;
        let host = found.path().display().to_string();
        let inside = found.path().strip_prefix(root).unwrap_or(found.path());
        let metadata = found
            .metadata()
            .map_err(std::io::Error::from)
            .during("look at", found.path())?;
        let kind = if metadata.is_dir() {
            Kind::Directory
        } else if metadata.is_symlink() {
            let target = std::fs::read_link(found.path()).during("read", found.path())?;
            Kind::Link(target.display().to_string())
        } else {
            Kind::File(host)
        };
        entries.push(Entry {
            path: format!("/{}", inside.display()),
            mode: metadata.mode(),
            owner: (metadata.uid(), metadata.gid()),
            kind,
        });
    }
    Ok(entries)
}
