//! KVM or TCG, and which QEMU.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::process::Command;
use tokio::time::timeout;

use super::record::{read_json, write_json};
use crate::{BackendError, Result};

const PROGRAM: &str = "qemu-system-x86_64";
const IMAGE_PROGRAM: &str = "qemu-img";
const SEARCHED: [&str; 4] = ["/usr/bin", "/usr/local/bin", "/usr/sbin", "/opt/qemu/bin"];
const ASK_DEADLINE: Duration = Duration::from_secs(15);

/// What runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Accelerator {
    /// The processor itself.
    Kvm,
    /// QEMU's translator.
    Tcg,
}

impl Accelerator {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// QEMU's version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Version {
    pub(super) major: u32,
    /// `7.2.22`, with the distribution's suffix where it has one.
    pub(super) text: String,
}

impl Version {
    /// From the first line of `--version`.
    pub(super) fn parse(output: &str) -> Option<Self> {
        let text = output
            .lines()
            .next()?
            .strip_prefix("QEMU emulator version ")?
            .trim();
        let major = text.split(['.', ' ']).next()?.parse().ok()?;
        Some(Self {
            major,
            text: text.to_owned(),
        })
    }
}

/// The programs of one QEMU installation.
#[derive(Debug, Clone)]
pub(super) struct Programs {
    pub(super) system: PathBuf,
    pub(super) image: PathBuf,
    pub(super) version: Version,
}

fn absent(reason: String) -> BackendError {
    BackendError::Unreachable {
        backend: super::KIND,
        action: "finding its program",
        reason,
    }
}

impl Programs {
    /// Finds QEMU and its version. Without a path given, the usual places are searched. QEMU needs some 10 ms to say
    /// its version, so the answer is kept at `kept_path` for as long as the program is the same file.
    pub(super) async fn find(given: Option<&Path>, kept_path: &Path) -> Result<Self> {
        let system = match given {
            Some(path) => path.to_owned(),
            None => search(PROGRAM).ok_or_else(|| {
                absent(format!(
                    "no {PROGRAM} in {}; install it (Debian: `apt-get install qemu-system-x86 qemu-utils`)",
                    SEARCHED.join(", ")
                ))
            })?,
        };
        let beside = system.with_file_name(IMAGE_PROGRAM);
        let image = if beside.exists() {
            Some(beside)
        } else {
            search(IMAGE_PROGRAM)
        };
        let image = image.ok_or_else(|| {
            absent(format!(
                "no {IMAGE_PROGRAM}; install it (Debian: `apt-get install qemu-utils`)"
            ))
        })?;
        let file = identity(&system);
        let kept = read_json::<KeptVersion>(kept_path).ok().flatten();
        let version = match kept {
            Some(kept) if file.as_ref() == Some(&kept.file) => kept.version,
            Some(_) | None => {
                let version = ask_version(&system).await?;
                if let Some(file) = file {
                    let kept = KeptVersion { file, version };
                    if let Err(error) = write_json(kept_path, &kept) {
                        tracing::debug!(%error, "QEMU's version is asked for again at the next start");
                    }
                    kept.version
                } else {
                    version
                }
            }
        };
        Ok(Self {
            system,
            image,
            version,
        })
    }
}

/// `qemu-version.json`.
#[derive(Debug, Serialize, Deserialize)]
struct KeptVersion {
    file: String,
    version: Version,
}

/// Changes whenever the program is another one: an upgrade replaces the file, and so its inode.
fn identity(program: &Path) -> Option<String> {
    let file = std::fs::metadata(program).ok()?;
    Some(format!(
        "{} {}:{} {} bytes, changed {}.{:09}",
        program.display(),
        file.dev(),
        file.ino(),
        file.size(),
        file.ctime(),
        file.ctime_nsec()
    ))
}

async fn ask_version(system: &Path) -> Result<Version> {
    let asked = Command::new(system)
        .arg("--version")
        .env_clear()
        .kill_on_drop(true)
        .output();
    let output = timeout(ASK_DEADLINE, asked)
        .await
        .map_err(|_| absent(format!("{} --version did not end", system.display())))?
        .map_err(|error| {
            absent(format!(
                "{} could not be executed: {error}; name another one as `qemu: {{binary: PATH}}`, or none",
                system.display()
            ))
        })?;
    let output = String::from_utf8_lossy(&output.stdout).into_owned();
    Version::parse(&output).ok_or_else(|| absent(format!("{} --version says no version", system.display())))
}

fn search(name: &str) -> Option<PathBuf> {
    SEARCHED
        .iter()
        .map(|dir| Path::new(dir).join(name))
        .find(|path| path.exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_with_and_without_a_suffix_and_nonsense_is_not() {
        let debian = Version::parse("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright").unwrap();
        assert_eq!(
            (debian.major, debian.text.as_str()),
            (7, "7.2.22 (Debian 1:7.2+dfsg-7)")
        );
        assert_eq!(
            Version::parse("QEMU emulator version 10.0.2\n").unwrap().major,
            10
        );
        for nonsense in ["", "qemu", "QEMU emulator version x.y"] {
            assert_eq!(Version::parse(nonsense), None);
        }
    }

    #[tokio::test]
    async fn a_version_is_asked_for_once_and_again_after_an_upgrade() {
        let dir = tempfile::tempdir().unwrap();
        let (program, kept) = (dir.path().join(PROGRAM), dir.path().join("kept.json"));
        std::fs::write(dir.path().join(IMAGE_PROGRAM), "").unwrap();
        let install = |version: &str| {
            let text = format!("#!/bin/sh\necho asked >>$0.asked\necho QEMU emulator version {version}\n");
            let (draft, fresh) = (dir.path().join("draft"), dir.path().join("fresh"));
            std::fs::write(&draft, text).unwrap();
            // By a child: while another test begins a process, that may hold open what this process writes, and what
            // is open for writing cannot be run.
            let installed = std::process::Command::new("install")
                .args([&draft, &fresh])
                .status();
            assert!(installed.unwrap().success());
            std::fs::rename(fresh, &program).unwrap();
        };
        for (version, asked) in [("7.2.22", 1), ("7.2.23", 2)] {
            install(version);
            for _ in 0..2 {
                let found = Programs::find(Some(&program), &kept).await.unwrap();
                assert_eq!(found.version.text, version);
            }
            let log = std::fs::read_to_string(format!("{}.asked", program.display())).unwrap();
            assert_eq!(log.lines().count(), asked);
        }
    }
}
