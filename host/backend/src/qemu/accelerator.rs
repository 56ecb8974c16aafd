//! KVM or TCG, and which QEMU.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

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
#[derive(Debug, Clone, PartialEq, Eq)]
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
        action: "looking for QEMU",
        reason,
    }
}

impl Programs {
    /// Finds QEMU and asks for its version. Without a path given, the usual places are searched.
    pub(super) async fn find(given: Option<&Path>) -> Result<Self> {
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
        let asked = Command::new(&system)
            .arg("--version")
            .env_clear()
            .kill_on_drop(true)
            .output();
        let output = timeout(ASK_DEADLINE, asked)
            .await
            .map_err(|_| absent(format!("{} --version did not end", system.display())))?
            .map_err(|error| absent(format!("{} could not be executed: {error}", system.display())))?;
        let output = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = Version::parse(&output)
            .ok_or_else(|| absent(format!("{} --version says no version", system.display())))?;
        Ok(Self {
            system,
            image,
            version,
        })
    }
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
}
