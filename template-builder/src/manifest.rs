//! `manifest.json`: what an image is. The format is written down in docs/template.md, because back ends read it
//! without this crate.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{During, Result, TemplateError};
use crate::npm::NpmPackage;
use crate::shape::Shape;

/// File name in an image's directory.
pub const MANIFEST: &str = "manifest.json";
/// Version of the format. Fields may be added within it; a reader refuses another number.
pub const FORMAT: u32 = 1;
/// The root disk of a local image: a file system.
pub const DISK: &str = "root.ext4";
/// The disk of an image that boots by itself: a table, a boot loader and a file system.
pub const WHOLE_DISK: &str = "disk.raw";
/// The kernel.
pub const KERNEL: &str = "vmlinuz";
/// The initrd.
pub const INITRD: &str = "initrd.img";

/// A manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// Content address: SHA-256 over `input_id` and the hash of every file. Name of the image's directory.
    pub id: String,
    /// What it was made from: recipe, runner, builder, architecture. A build with the same one makes nothing.
    pub input_id: String,
    /// Name of the recipe; with `-proxmox` behind it in that shape.
    pub name: String,
    /// For whom it is made; a manifest without it is of a local image.
    #[serde(default)]
    pub shape: Shape,
    /// The VMID that the image stands for.
    pub vmid: u32,
    /// Debian's word for it: `amd64`.
    pub architecture: String,
    /// Debian suite.
    pub suite: String,
    /// Hash of the recipe's meaning.
    pub recipe_sha256: String,
    /// When it was built, RFC 3339, UTC.
    pub created: String,
    /// Version of this crate.
    pub builder_version: String,
    /// The runner inside.
    pub runner: RunnerRecord,
    /// What it boots.
    pub kernel: KernelRecord,
    /// The root disk.
    pub disk: DiskRecord,
    /// Every other file of the directory, by name.
    pub files: BTreeMap<String, FileRecord>,
    /// The kept root tree it was made from, or the checksum of the kept image.
    pub tree_key: String,
    /// Installed packages.
    pub packages: Vec<Package>,
    /// Packages of npm, with version and hash.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub npm: Vec<NpmPackage>,
    /// The image of somebody else that it was made from, where it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceRecord>,
}

/// An image that somebody else published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRecord {
    /// Where it was fetched.
    pub url: String,
    /// What it was compared with before anything looked into it.
    pub sha256: String,
    /// Whether the runner and the recipe were put into it.
    pub customised: bool,
}

/// The runner inside an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunnerRecord {
    /// What it answered to `--version`; absent when it did not.
    pub version: Option<String>,
    /// Its hash.
    pub sha256: String,
    /// Where it is in the guest.
    pub path: String,
}

/// What an image boots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelRecord {
    /// `uname -r` of the guest.
    pub version: String,
    /// Whole kernel command line.
    pub command_line: String,
}

/// The root disk of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRecord {
    /// File name in the directory.
    pub file: String,
    /// Always `raw`.
    pub format: String,
    /// Size of the disk in bytes; the file is sparse.
    pub size_bytes: u64,
    /// Where it must be plugged in: `/dev/vda`, or `scsi0` for an image that boots by itself.
    pub device: String,
}

/// One file of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// As `sha256sum` prints it.
    pub sha256: String,
    /// Length in bytes.
    pub size_bytes: u64,
}

/// One Debian package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Package {
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
    /// Architecture.
    pub architecture: String,
}

impl Manifest {
    /// Reads the manifest of an image's directory.
    ///
    /// # Errors
    /// When it is missing, not JSON, of another format, or names files outside its directory.
    pub fn read(directory: &Path) -> Result<Self> {
        let path = directory.join(MANIFEST);
        let wrong = |problem: String| TemplateError::Manifest {
            path: path.clone(),
            problem,
        };
        let bytes = fs::read(&path).during("read", &path)?;
        let probe: Probe = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
        if probe.format != FORMAT {
            return Err(wrong(format!(
                "it has format {} and this program knows {FORMAT}",
                probe.format
            )));
        }
        let manifest: Self = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
        match manifest
            .files
            .keys()
            .find(|name| name.contains('/') || name.starts_with('.'))
        {
            Some(name) => Err(wrong(format!("it names a file `{}`", name.escape_debug()))),
            None => Ok(manifest),
        }
    }
}

/// Only what every format has.
#[derive(Deserialize)]
struct Probe {
    format: u32,
}

/// Indented JSON with a newline at its end.
pub(crate) fn to_json<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(value)
        .map_err(std::io::Error::from)
        .during("write", Path::new(MANIFEST))?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// A manifest for tests of this crate.
#[cfg(test)]
pub(crate) fn example(name: &str, vmid: u32) -> Manifest {
    Manifest {
        format: FORMAT,
        id: crate::fingerprint::of_bytes(name.as_bytes()),
        input_id: "1".repeat(64),
        name: name.to_owned(),
        shape: Shape::Local,
        vmid,
        architecture: "amd64".to_owned(),
        suite: "trixie".to_owned(),
        recipe_sha256: "2".repeat(64),
        created: "2026-01-02T03:04:05Z".to_owned(),
        builder_version: "0.1.0".to_owned(),
        runner: RunnerRecord {
            version: None,
            sha256: "3".repeat(64),
            path: "/r".to_owned(),
        },
        kernel: KernelRecord {
            version: "6.12".to_owned(),
            command_line: "root=/dev/vda".to_owned(),
        },
        disk: DiskRecord {
            file: DISK.to_owned(),
            format: "raw".to_owned(),
            size_bytes: 1 << 30,
            device: "/dev/vda".to_owned(),
        },
        files: BTreeMap::new(),
        tree_key: "4".repeat(64),
        packages: Vec::new(),
        npm: Vec::new(),
        source: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_reads_back_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut manifest = example("demo", 9000);
        manifest.files.insert(
            DISK.to_owned(),
            FileRecord {
                sha256: "5".repeat(64),
                size_bytes: 7,
            },
        );
        manifest.packages.push(Package {
            name: "git".to_owned(),
            version: "1:2".to_owned(),
            architecture: "amd64".to_owned(),
        });
        fs::write(dir.path().join(MANIFEST), to_json(&manifest).unwrap()).unwrap();
        assert_eq!(Manifest::read(dir.path()).unwrap(), manifest);
    }

    #[test]
    fn another_format_or_a_file_outside_is_refused_with_a_reason() {
        let dir = tempfile::tempdir().unwrap();
        let refused = |manifest: &Manifest| {
            fs::write(dir.path().join(MANIFEST), to_json(manifest).unwrap()).unwrap();
            Manifest::read(dir.path()).unwrap_err().to_string()
        };
        assert!(
            refused(&Manifest {
                format: 2,
                ..example("demo", 9000)
            })
            .contains("format 2")
        );
        let mut manifest = example("demo", 9000);
        manifest.files.insert(
            "../../etc/shadow".to_owned(),
            FileRecord {
                sha256: String::new(),
                size_bytes: 0,
            },
        );
        assert!(refused(&manifest).contains("../../etc/shadow"));
    }
}
