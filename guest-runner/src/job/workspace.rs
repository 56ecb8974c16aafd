//! What an earlier job left of its repository, believed in nothing: of its `.git` only objects and the tips of branches
//! are taken, through a repository of our own, into the fresh clone. Its configuration, hooks, attributes, alternates,
//! worktrees and includes stay behind, and go.
//!
//! ```text
//!   /work/previous/.git ── packs, loose objects, tips ──► /work/.import (bare, ours) ── git fetch, fsck ──►
//!                                                          /work/repo refs/remotes/previous/*
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::git::Git;
use super::process::ProcessError;
use super::{JobLog, Layout};
use crate::workspace::remove;

const FETCH: Duration = Duration::from_secs(30 * 60);
const SHORT: Duration = Duration::from_secs(60);
/// More of anything is somebody's joke.
const MAX_FILES: usize = 1_000_000;
const MAX_REFS: usize = 10_000;
const MAX_PACKED_REFS: u64 = 8 << 20;
const MAX_DEPTH: usize = 8;

/// Why nothing was imported. The job goes on without.
#[derive(Debug, thiserror::Error)]
pub(super) enum ImportError {
    #[error("{0}")]
    Git(#[from] ProcessError),
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    TooMuch(&'static str),
}

/// Takes the branches of the repository that was set aside, where there is one, and says in the log what came of it.
/// Its files stay in `/work/previous`, without a repository.
pub(super) async fn import_previous(layout: &Layout, log: &JobLog) {
    let git_dir = layout.previous().join(".git");
    if !fs::symlink_metadata(&git_dir).is_ok_and(|seen| seen.is_dir()) {
        // A link or a file would lead elsewhere.
        drop(remove(&git_dir));
        return;
    }
    let import = layout.work.join(".import");
    let taken = take(layout, &git_dir, &import).await;
    drop(remove(&import));
    let end = match taken {
        Ok(0) => remove(&git_dir),
        Ok(count) => {
            log.runner(&format!(
                "The workspace holds an earlier repository: {count} branches of it are here as previous/*, its files \
                 are in {}",
                layout.previous().display()
            ));
            remove(&git_dir)
        }
        Err(error) => {
            log.runner(&format!(
                "The earlier repository of the workspace was not imported: {error}"
            ));
            let kept = layout.previous().join("git-not-imported");
            remove(&kept).and_then(|()| fs::rename(&git_dir, &kept))
        }
    };
    if let Err(error) = end {
        log.runner(&format!("{}: {error}", git_dir.display()));
    }
}

/// How many branches were taken.
async fn take(layout: &Layout, git_dir: &Path, import: &Path) -> Result<usize, ImportError> {
    let tips = tips(git_dir)?;
    let Some(length) = tips.values().map(String::len).next() else {
        return Ok(0);
    };
    remove(import)?;
    let git = Git::without_configuration(&layout.user, &layout.work);
    let format = if length == 64 { "sha256" } else { "sha1" };
    let path = import.display().to_string();
    let format = format!("--object-format={format}");
    let init = [
        "init",
        "--quiet",
        "--bare",
        "--template=",
        format.as_str(),
        "--",
        path.as_str(),
    ];
    git.run(&layout.work, &init, SHORT).success().await?;
    move_objects(&git_dir.join("objects"), &import.join("objects"), layout)?;
    write_tips(&import.join("packed-refs"), &tips, layout)?;
    // Every object is hashed and looked at on its way; what is missing or wrong ends it.
    let fetch = [
        "-c",
        "fetch.fsckObjects=true",
        "fetch",
        "--quiet",
        "--no-tags",
        "--no-write-fetch-head",
        "--no-recurse-submodules",
        "--",
        path.as_str(),
        "+refs/heads/*:refs/remotes/previous/*",
    ];
    let fetching = git.env("GIT_ALLOW_PROTOCOL", "file");
    fetching.run(&layout.repo(), &fetch, FETCH).success().await?;
    Ok(tips.len())
}

/// Moves what is an object by its name and a regular file into a repository of ours.
fn move_objects(from: &Path, to: &Path, layout: &Layout) -> Result<(), ImportError> {
    let mut count = 0;
    for directory in entries(from)? {
        let Some(name) = directory.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        let is_pack = name == "pack";
        let is_loose = name.len() == 2 && is_hex(name);
        if !(is_pack || is_loose) || !fs::symlink_metadata(&directory)?.is_dir() {
            continue;
        }
        let target = to.join(name);
        fs::create_dir_all(&target)?;
        chown(&target, Some(layout.user.uid), Some(layout.user.gid))?;
        for path in entries(&directory)? {
            count += 1;
            if count > MAX_FILES {
                return Err(ImportError::TooMuch("it has too many objects"));
            }
            let Some(file) = path.file_name().and_then(|name| name.to_str()) else {
                continue;
            };
            let fits = if is_pack {
                is_pack_file(file)
            } else {
                (file.len() == 38 || file.len() == 62) && is_hex(file)
            };
            if fits && fs::symlink_metadata(&path)?.is_file() {
                fs::rename(&path, target.join(file))?;
            }
        }
    }
    Ok(())
}

fn is_hex(text: &str) -> bool {
    text.bytes()
        .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

fn is_pack_file(name: &str) -> bool {
    let hash = name
        .strip_prefix("pack-")
        .and_then(|rest| rest.strip_suffix(".pack").or_else(|| rest.strip_suffix(".idx")));
    hash.is_some_and(is_object)
}

fn is_object(text: &str) -> bool {
    (text.len() == 40 || text.len() == 64) && is_hex(text)
}

/// Paths in a directory; none where there is no such directory.
fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(directory) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Where its branches stand, by name. A name that git would not take, or that could be taken for something else, is left
/// out.
fn tips(git_dir: &Path) -> Result<BTreeMap<String, String>, ImportError> {
    let mut tips = BTreeMap::new();
    for line in read_small(&git_dir.join("packed-refs"), MAX_PACKED_REFS)?.lines() {
        if let Some((hash, name)) = line.split_once(' ')
            && let Some(branch) = name.strip_prefix("refs/heads/")
            && is_object(hash)
            && is_branch(branch)
        {
            tips.insert(branch.to_owned(), hash.to_owned());
        }
    }
    loose_tips(&git_dir.join("refs/heads"), "", 0, &mut tips)?;
    if tips.len() > MAX_REFS {
        return Err(ImportError::TooMuch("it has too many branches"));
    }
    // One repository has one kind of name.
    let length = tips.values().map(String::len).max();
    tips.retain(|_, hash| Some(hash.len()) == length);
    Ok(tips)
}

fn loose_tips(
    directory: &Path,
    prefix: &str,
    depth: usize,
    tips: &mut BTreeMap<String, String>,
) -> Result<(), ImportError> {
    if depth > MAX_DEPTH || tips.len() > MAX_REFS {
        return Err(ImportError::TooMuch("it has too many branches"));
    }
    if !fs::symlink_metadata(directory).is_ok_and(|seen| seen.is_dir()) {
        return Ok(());
    }
    for path in entries(directory)? {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        let branch = format!("{prefix}{name}");
        let seen = fs::symlink_metadata(&path)?;
        if seen.is_dir() {
            loose_tips(&path, &format!("{branch}/"), depth + 1, tips)?;
        } else if seen.is_file() && is_branch(&branch) {
            let text = read_small(&path, 256)?;
            if is_object(text.trim()) {
                tips.insert(branch, text.trim().to_owned());
            }
        }
    }
    Ok(())
}

/// Plainer than git demands.
fn is_branch(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte);
    !name.is_empty()
        && name.len() <= 200
        && name.bytes().all(plain)
        && !name.contains("..")
        && name.split('/').all(|part| {
            !part.is_empty()
                && !part.starts_with(['-', '.'])
                && !part.ends_with('.')
                && !part.ends_with(".lock")
        })
}

/// Text of a regular file; empty when there is none, or when it is something else or too large.
fn read_small(path: &Path, limit: u64) -> io::Result<String> {
    let is_small = |seen: fs::Metadata| seen.is_file() && seen.len() <= limit;
    if !fs::symlink_metadata(path).is_ok_and(is_small) {
        return Ok(String::new());
    }
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn write_tips(path: &Path, tips: &BTreeMap<String, String>, layout: &Layout) -> io::Result<()> {
    let mut text = "# pack-refs with: sorted \n".to_owned();
    for (branch, hash) in tips {
        text.push_str(&format!("{hash} refs/heads/{branch}\n"));
    }
    fs::write(path, text)?;
    chown(path, Some(layout.user.uid), Some(layout.user.gid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_are_branches() {
        for name in ["main", "feature/login-2", "a.b", "v1_2"] {
            assert!(is_branch(name), "{name}");
        }
        for name in [
            "",
            "-x",
            "a..b",
            "a//b",
            "/a",
            "a/",
            ".a",
            "a/.b",
            "a.lock",
            "a b",
            "a\nb",
            "a:b",
            "@{1}",
            &"x".repeat(201),
        ] {
            assert!(!is_branch(name), "{name:?}");
        }
    }

    #[test]
    fn tips_are_read_from_regular_files_alone() {
        let dir = tempfile::tempdir().unwrap();
        let git = dir.path().join(".git");
        let heads = git.join("refs/heads");
        fs::create_dir_all(heads.join("feature")).unwrap();
        let (one, two) = ("1".repeat(40), "2".repeat(40));
        fs::write(heads.join("main"), format!("{one}\n")).unwrap();
        fs::write(heads.join("feature/x"), format!("{two}\n")).unwrap();
        fs::write(heads.join("symbolic"), "ref: refs/heads/main\n").unwrap();
        fs::write(dir.path().join("outside"), format!("{two}\n")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("outside"), heads.join("link")).unwrap();
        let packed = format!(
            "# pack-refs\n{two} refs/heads/main\n{two} refs/heads/old\n{two} refs/tags/t\n^{one}\nx\n"
        );
        fs::write(git.join("packed-refs"), packed).unwrap();
        let found: Vec<(String, String)> = tips(&git).unwrap().into_iter().collect();
        let expected = [("feature/x", &two), ("main", &one), ("old", &two)];
        assert_eq!(
            found,
            expected.map(|(name, hash)| (name.to_owned(), hash.clone()))
        );
    }
}
