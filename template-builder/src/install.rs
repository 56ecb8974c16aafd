//! Debian packages for a system that somebody else made: its own apt installs them into a copy of it, and what is another
//! than before goes into the image.
//!
//! ```text
//!   image ─► copy, by debugfs ─► apt-get install in there ─► what is new, changed or gone ─► image, by debugfs
//! ```
//!
//! apt and the packages' scripts run as root, as they do when mmdebstrap makes a tree: in a chroot, with processes and
//! mounts of their own, which end with them. They start no service. Logs and caches do not come along.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, lchown, symlink};
use std::path::{Path, PathBuf};

use crate::debugfs::FileSystem;
use crate::error::{During, Result, TemplateError};
use crate::overlay;
use crate::rootfs::EPOCH;
use crate::tool::{Call, Workshop};
use crate::tree::Tree;

/// `SYSTEM SOURCES PACKAGE...`; without sources those of the system count.
const SCRIPT: &str = r#"set -eu
system=$1 sources=$2
shift 2
mount --rbind /dev "$system/dev"
mount -t proc proc "$system/proc"
mount -t tmpfs tmpfs "$system/run"
mount -t tmpfs tmpfs "$system/tmp"
names=$(chroot "$system" readlink -m /etc/resolv.conf)
mkdir -p "$system${names%/*}"
[ -e "$system$names" ] || : >"$system$names"
mount --bind /etc/resolv.conf "$system$names"
policy=$system/usr/sbin/policy-rc.d
if ! [ -e "$policy" ]; then
    trap 'rm "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 0755 "$policy"
fi
own=
if [ -n "$sources" ]; then
    printf '%s\n' "$sources" >"$system/tmp/sources.list"
    own='-o Dir::Etc::sourcelist=/tmp/sources.list -o Dir::Etc::sourceparts=-'
fi
apt() {
    chroot "$system" /usr/bin/env DEBIAN_FRONTEND=noninteractive PATH=/usr/sbin:/usr/bin:/sbin:/bin TMPDIR=/tmp apt-get --quiet --yes \
        -o Acquire::Retries=2 -o Acquire::http::Timeout=30 -o Acquire::https::Timeout=30 -o Dpkg::Use-Pty=0 $own "$@"
}
apt update
apt install --no-install-recommends "$@"
"#;

/// What apt leaves that no guest needs, and what is a mount while it runs.
const LEFT_OUT: [&str; 9] = [
    "dev",
    "proc",
    "run",
    "sys",
    "tmp",
    "var/cache/apt",
    "var/cache/ldconfig",
    "var/lib/apt/lists",
    "var/log",
];

/// Installs packages into the system of an image.
///
/// # Errors
/// apt refuses, in its own words; the image is as it was then. Or what it did does not fit into the image, which is worth
/// nothing then.
pub(crate) fn install(
    workshop: &Workshop<'_>,
    root: &FileSystem<'_>,
    packages: &[&str],
    sources: Option<&str>,
) -> Result<()> {
    let system = workshop.scratch.join("system");
    fs::create_dir(&system).during("create", &system)?;
    root.copy_all(&system)?;
    let before = look(&system)?;
    let namespaces = [
        "--mount",
        "--uts",
        "--ipc",
        "--pid",
        "--fork",
        "--kill-child",
        "--",
    ];
    let program = ["sh", "-c", SCRIPT, "install"].map(str::to_owned);
    let operands = [
        system.display().to_string(),
        sources.unwrap_or_default().to_owned(),
    ];
    Call {
        program: &workshop.tools.unshare,
        package: "util-linux",
        arguments: namespaces
            .map(str::to_owned)
            .into_iter()
            .chain(program)
            .chain(operands)
            .chain(packages.iter().map(|name| (*name).to_owned()))
            .collect(),
        environment: Vec::new(),
    }
    .run(workshop)?;
    let after = look(&system)?;
    root.remove_all(&gone(&before, &after))?;
    let changes = workshop.scratch.join("changes");
    fs::create_dir(&changes).during("create", &changes)?;
    for path in after
        .iter()
        .filter(|(path, seen)| before.get(*path) != Some(seen))
        .map(|(path, _)| path)
    {
        take(&system, &changes, path)?;
    }
    let tree = Tree::open(&changes)?;
    tree.clamp_times(EPOCH)?;
    overlay::lay(root, &tree)?;
    fs::remove_dir_all(&system).during("remove", &system)
}

/// What tells an entry from what was there before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    is_dir: bool,
    inode: u64,
    /// No call sets it, and whatever is done to an entry moves it.
    changed: (i64, i64),
}

/// All that may go into the image, by its path in the system.
fn look(system: &Path) -> Result<BTreeMap<PathBuf, Seen>> {
    let inside = |path: &Path| path.strip_prefix(system).unwrap_or(path).to_owned();
    let stays = |entry: &walkdir::DirEntry| {
        !LEFT_OUT
            .iter()
            .any(|left| inside(entry.path()) == Path::new(left))
    };
    let mut all = BTreeMap::new();
    let entries = walkdir::WalkDir::new(system).min_depth(1).follow_links(false);
    for entry in entries.into_iter().filter_entry(stays) {
        let entry = entry.map_err(std::io::Error::from).during("walk", system)?;
        let metadata = fs::symlink_metadata(entry.path()).during("look at", entry.path())?;
        let seen = Seen {
            is_dir: metadata.is_dir(),
            inode: metadata.ino(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        };
        all.insert(inside(entry.path()), seen);
    }
    Ok(all)
}

/// Files and directories that are not there any more, what lies in a directory before the directory.
fn gone(before: &BTreeMap<PathBuf, Seen>, after: &BTreeMap<PathBuf, Seen>) -> Vec<(String, bool)> {
    let missing = before
        .iter()
        .rev()
        .filter(|(path, seen)| after.get(*path).is_none_or(|now| now.is_dir != seen.is_dir));
    missing
        .map(|(path, seen)| (format!("/{}", path.display()), seen.is_dir))
        .collect()
}

/// Puts one entry of the system into the tree of changes. Directories on the way are made by us, so that no link of the
/// system leads anywhere.
fn take(system: &Path, changes: &Path, path: &Path) -> Result<()> {
    let (from, to) = (system.join(path), changes.join(path));
    let metadata = fs::symlink_metadata(&from).during("look at", &from)?;
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).during("create", parent)?;
    }
    if metadata.is_dir() {
        fs::create_dir_all(&to).during("create", &to)?;
        lchown(&to, Some(metadata.uid()), Some(metadata.gid())).during("give away", &to)?;
        fs::set_permissions(&to, Permissions::from_mode(metadata.mode())).during("protect", &to)
    } else if metadata.is_symlink() {
        let target = fs::read_link(&from).during("read", &from)?;
        symlink(target, &to).during("create", &to)
    } else if metadata.is_file() {
        fs::hard_link(&from, &to).during("create", &to)
    } else {
        Err(TemplateError::Tree {
            problem: format!("cannot hold /{}, which is a device or a socket", path.display()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_new_or_touched_is_taken_what_is_gone_is_named_and_caches_are_neither() {
        let dir = tempfile::tempdir().unwrap();
        let [system, changes] = ["system", "changes"].map(|name| dir.path().join(name));
        fs::create_dir(&changes).unwrap();
        for path in ["etc/old/deep", "usr/bin", "var/log", "var/lib/apt/lists"] {
            fs::create_dir_all(system.join(path)).unwrap();
        }
        let write = |path: &str, text: &str| fs::write(system.join(path), text).unwrap();
        for path in ["etc/old/deep/file", "etc/same", "etc/touched", "usr/bin/tool"] {
            write(path, "1");
        }
        let before = look(&system).unwrap();
        fs::remove_dir_all(system.join("etc/old")).unwrap();
        write("etc/touched", "2");
        fs::set_permissions(system.join("usr/bin/tool"), Permissions::from_mode(0o4755)).unwrap();
        symlink("tool", system.join("usr/bin/link")).unwrap();
        write("var/log/apt.log", "noise");
        write("var/lib/apt/lists/all", "noise");
        let after = look(&system).unwrap();
        assert_eq!(
            gone(&before, &after),
            [
                ("/etc/old/deep/file", false),
                ("/etc/old/deep", true),
                ("/etc/old", true)
            ]
            .map(|(path, is_dir)| (path.to_owned(), is_dir))
        );
        for (path, seen) in &after {
            if before.get(path) != Some(seen) {
                take(&system, &changes, path).unwrap();
            }
        }
        let taken: Vec<String> = look(&changes)
            .unwrap()
            .into_iter()
            .filter(|(_, seen)| !seen.is_dir)
            .map(|(path, _)| path.display().to_string())
            .collect();
        assert_eq!(taken, ["etc/touched", "usr/bin/link", "usr/bin/tool"]);
        let mode = fs::metadata(changes.join("usr/bin/tool")).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o4755);
    }
}
