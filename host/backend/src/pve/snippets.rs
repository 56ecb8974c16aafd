//! Cloud-init snippets: the way of a seed into a template that takes what it is told from cloud-init, and of a token that
//! may not set SMBIOS.
//!
//! ```text
//!   <dir>/agentlab-<vmid>-<nonce>.yaml   0600, empty before the machine's configuration names it   ─► configured
//!                      └ of the stamp ┘  replaced by the seed at once or not at all              ─► each start
//!                                        gone when redeemed, undone or destroyed
//! ```
//! The journalled stamp finds it again, whoever died.
//!
//! PVE's API takes no snippets, so the directory is the node's own: this is for a daemon on its node.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use agentlab_api::Vmid;

use crate::{BackendError, Machine, Result, Stamp};

/// Where the guest's cloud-init writes the seed: memory, which no disk of the guest's keeps.
pub(crate) const GUEST_PATH: &str = "/run/agentlab/seed";
/// Without anything below it, cloud-init has nothing to do.
const HEADER: &str = "#cloud-config\n";
const PREFIX: &str = "agentlab-";
const SUFFIX: &str = ".yaml";
/// What is being written has this in front.
const HIDDEN: &str = ".";

/// Where snippets are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnippetStore {
    /// Directory of the storage's snippets, such as `/var/lib/vz/snippets`.
    pub dir: PathBuf,
    /// Name of the storage, such as `local`; it must take snippets.
    pub storage: String,
}

impl SnippetStore {
    fn name(vmid: Vmid, stamp: &Stamp) -> String {
        format!("{PREFIX}{vmid}-{}{SUFFIX}", stamp.nonce)
    }

    /// As `cicustom` names it.
    pub(crate) fn volume(&self, vmid: Vmid, stamp: &Stamp) -> String {
        format!("{}:snippets/{}", self.storage, Self::name(vmid, stamp))
    }

    /// Puts a seed there, whole or not at all, in the place of an older one.
    pub(crate) async fn write(&self, vmid: Vmid, stamp: &Stamp, seed: &str) -> Result<()> {
        let (dir, name, text) = (self.dir.clone(), Self::name(vmid, stamp), user_data(seed));
        in_background(&self.dir, "Writing a snippet", move || write(&dir, &name, &text)).await
    }

    /// Puts one there that tells a guest nothing, unless there is one.
    pub(crate) async fn reserve(&self, vmid: Vmid, stamp: &Stamp) -> Result<()> {
        let (dir, name) = (self.dir.clone(), Self::name(vmid, stamp));
        let reserve = move || match dir.join(&name).try_exists()? {
            true => Ok(()),
            false => write(&dir, &name, HEADER),
        };
        in_background(&self.dir, "Writing a snippet", reserve).await
    }

    /// Takes the seed out of one that is there.
    pub(crate) async fn empty(&self, vmid: Vmid, stamp: &Stamp) -> Result<()> {
        let (dir, name) = (self.dir.clone(), Self::name(vmid, stamp));
        let empty = move || match dir.join(&name).try_exists()? {
            true => write(&dir, &name, HEADER),
            false => Ok(()),
        };
        in_background(&self.dir, "Emptying a snippet", empty).await
    }

    /// Whether a seed is in it.
    pub(crate) async fn has_seed(&self, vmid: Vmid, stamp: &Stamp) -> Result<bool> {
        let path = self.dir.join(Self::name(vmid, stamp));
        let look = move || match fs::metadata(&path) {
            Ok(found) => Ok(usize::try_from(found.len()) != Ok(HEADER.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        };
        in_background(&self.dir, "Looking for a snippet", look).await
    }

    /// Absent is success.
    pub(crate) async fn remove(&self, vmid: Vmid, stamp: &Stamp) -> Result<()> {
        let (dir, name) = (self.dir.clone(), Self::name(vmid, stamp));
        let remove = move || {
            remove(&dir.join(format!("{HIDDEN}{name}")))?;
            remove(&dir.join(name))
        };
        in_background(&self.dir, "Removing a snippet", remove).await
    }

    /// Snippets of ours that belong to none of these machines, with the number each was written for. Of a machine that
    /// cannot be read nothing is concluded.
    pub(crate) async fn unclaimed(&self, machines: &[Machine]) -> Result<Vec<(String, Vmid)>> {
        let keep = machines.iter().map(|machine| match &machine.stamp {
            Some(stamp) => Self::name(machine.vmid, stamp),
            None => format!("{PREFIX}{}-", machine.vmid),
        });
        let keep: Vec<String> = keep.collect();
        let dir = self.dir.clone();
        in_background(&self.dir, "Looking for snippets", move || unclaimed(&dir, &keep)).await
    }

    /// Removes one of them.
    pub(crate) async fn remove_unclaimed(&self, name: &str) -> Result<()> {
        let path = self.dir.join(name);
        in_background(&self.dir, "Removing a snippet", move || remove(&path)).await
    }
}

/// Base64 text in single quotes needs no escape.
fn user_data(seed: &str) -> String {
    format!(
        "{HEADER}write_files:\n- path: {GUEST_PATH}\n  owner: root:root\n  permissions: '0400'\n  content: '{seed}'\n"
    )
}

async fn in_background<T: Send + 'static>(
    dir: &Path,
    action: &'static str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await.map_err(io::Error::other);
    done.flatten().map_err(|source| BackendError::Storage {
        action,
        path: dir.display().to_string(),
        source,
    })
}

fn write(dir: &Path, name: &str, text: &str) -> io::Result<()> {
    let hidden = dir.join(format!("{HIDDEN}{name}"));
    remove(&hidden)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&hidden)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&hidden, dir.join(name))
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn unclaimed(dir: &Path, keep: &[String]) -> io::Result<Vec<(String, Vmid)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let Some(name) = name.to_str() else { continue };
        let whole = name.strip_prefix(HIDDEN).unwrap_or(name);
        let is_kept = whole == name && keep.iter().any(|kept| name.starts_with(kept));
        if let Some(vmid) = number_of(whole)
            && !is_kept
        {
            found.push((name.to_owned(), vmid));
        }
    }
    Ok(found)
}

/// The number in `agentlab-1000-<32 digits>.yaml`; nothing that an administrator might call his own has one.
fn number_of(name: &str) -> Option<Vmid> {
    let (vmid, nonce) = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.split_once('-')?;
    let is_nonce = nonce.len() == 32 && nonce.bytes().all(|byte| byte.is_ascii_hexdigit());
    vmid.parse().ok().filter(|_| is_nonce)
}

/// The value of `cicustom` with our snippet as its user part, or, with `None`, without one of ours. `Err` names the
/// user part that somebody else put there.
pub(crate) fn cicustom(found: &str, ours: &str, wanted: bool) -> std::result::Result<String, String> {
    let mut parts: Vec<&str> = found.split(',').filter(|part| !part.is_empty()).collect();
    let mine = format!("user={ours}");
    if let Some(other) = parts
        .iter()
        .find(|part| part.starts_with("user=") && ***part != mine)
        && wanted
    {
        return Err((*other).to_owned());
    }
    parts.retain(|part| *part != mine);
    if wanted {
        parts.push(&mine);
    }
    Ok(parts.join(","))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use agentlab_api::SandboxId;

    use super::*;
    use crate::Power;

    fn stamp(letter: char) -> Stamp {
        Stamp {
            sandbox: SandboxId::from_bytes([7; 16]),
            nonce: letter.to_string().repeat(32),
        }
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn a_snippet_is_the_daemons_alone_is_replaced_and_goes_and_goes_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = SnippetStore {
            dir: dir.path().to_owned(),
            storage: "local".into(),
        };
        let (vmid, stamp) = (1000.try_into().unwrap(), stamp('a'));
        for seed in ["Zmlyc3Q", "c2Vjb25k"] {
            store.write(vmid, &stamp, seed).await.unwrap();
            let path = dir.path().join(format!("agentlab-1000-{}.yaml", "a".repeat(32)));
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
            let text = fs::read_to_string(&path).unwrap();
            assert!(
                text.starts_with("#cloud-config\n") && text.contains(&format!("content: '{seed}'\n")),
                "{text}"
            );
        }
        for _ in 0..2 {
            store.remove(vmid, &stamp).await.unwrap();
            assert_eq!(names(dir.path()), Vec::<String>::new());
        }
        let gone = SnippetStore {
            dir: dir.path().join("gone"),
            ..store
        };
        let refused = gone.write(vmid, &stamp, "x").await;
        assert!(
            matches!(refused, Err(BackendError::Storage { .. })),
            "{refused:?}"
        );
    }

    #[tokio::test]
    async fn what_an_earlier_process_left_is_found_and_nothing_of_anybody_elses() {
        let dir = tempfile::tempdir().unwrap();
        let store = SnippetStore {
            dir: dir.path().to_owned(),
            storage: "local".into(),
        };
        let machine = Machine {
            vmid: 1000.try_into().unwrap(),
            name: "sandbox-1000".into(),
            power: Power::Running,
            stamp: Some(stamp('a')),
        };
        let unreadable = Machine {
            vmid: 1003.try_into().unwrap(),
            stamp: None,
            ..machine.clone()
        };
        for kept in [&machine, &unreadable] {
            store.write(kept.vmid, &stamp('a'), "x").await.unwrap();
        }
        for left in [
            format!("agentlab-1001-{}.yaml", "a".repeat(32)),
            format!("agentlab-1000-{}.yaml", "b".repeat(32)),
            format!(".agentlab-1000-{}.yaml", "a".repeat(32)),
            "agentlab-base.yaml".to_owned(),
            "agentlab-1002-notes.yaml".to_owned(),
            "vendor.yaml".to_owned(),
        ] {
            fs::write(dir.path().join(left), "x").unwrap();
        }
        let left = store.unclaimed(&[machine, unreadable]).await.unwrap();
        let mut numbers: Vec<u32> = left.iter().map(|(_, vmid)| u32::from(*vmid)).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, [1000, 1000, 1001], "{left:?}");
        for (name, _) in left {
            store.remove_unclaimed(&name).await.unwrap();
        }
        let kept = |vmid: u32| format!("agentlab-{vmid}-{}.yaml", "a".repeat(32));
        let others = ["agentlab-1002-notes.yaml", "agentlab-base.yaml", "vendor.yaml"];
        let mut stay: Vec<String> = others.map(str::to_owned).to_vec();
        stay.extend([kept(1000), kept(1003)]);
        stay.sort();
        assert_eq!(names(dir.path()), stay);
    }

    #[test]
    fn other_parts_of_cicustom_stay_and_another_user_part_is_named() {
        let ours = "local:snippets/agentlab-1000-a.yaml";
        let with = cicustom("network=local:snippets/net.yaml", ours, true).unwrap();
        assert_eq!(with, format!("network=local:snippets/net.yaml,user={ours}"));
        assert_eq!(cicustom(&with, ours, true), Ok(with.clone()));
        assert_eq!(
            cicustom(&with, ours, false),
            Ok("network=local:snippets/net.yaml".to_owned())
        );
        assert_eq!(cicustom("", ours, false), Ok(String::new()));
        let theirs = "user=local:snippets/base.yaml";
        assert_eq!(cicustom(theirs, ours, true), Err(theirs.to_owned()));
        assert_eq!(cicustom(theirs, ours, false), Ok(theirs.to_owned()));
    }
}
