//! Templates as `agentlab-template` stores them, read only.
//!
//! ```text
//!   <template_dir>/<id>/{root.ext4,vmlinuz,initrd.img,manifest.json}    by content
//!                 /by-name/<name> -> ../<id>                            what may be cloned
//! ```
//!
//! A template counts only when a name points at it. A machine remembers the content it was cloned from, so a name
//! that moves on changes nothing for the machines that exist.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use agentlab_api::Vmid;
use serde::Deserialize;

use super::record::{TemplateOrigin, storage};
use crate::{BackendError, Result, Template};

const FORMAT: u64 = 1;
const DISK: &str = "root.ext4";
const KERNEL: &str = "vmlinuz";
const INITRD: &str = "initrd.img";
const MAX_MANIFEST: u64 = 8 * 1024 * 1024;
/// What the kernel copies of its command line (COMMAND_LINE_SIZE on x86).
const MAX_COMMAND_LINE: usize = 2047;

/// What we need of `manifest.json`; a builder may write more.
#[derive(Debug, Clone, Deserialize)]
struct Manifest {
    name: String,
    vmid: Vmid,
    id: String,
    runner: Option<ManifestRunner>,
    kernel: ManifestKernel,
    files: BTreeMap<String, ManifestFile>,
}

#[derive(Debug, Clone, Deserialize)]
struct ManifestRunner {
    #[serde(default)]
    version: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
struct ManifestKernel {
    command_line: String,
}

#[derive(Debug, Clone, Deserialize)]
struct ManifestFile {
    size_bytes: u64,
}

/// Read before all else, so that a later format is named as such.
#[derive(Debug, Deserialize)]
struct ManifestFormat {
    format: u64,
    /// For whom it is made; absent or `local` when for us.
    shape: Option<String>,
}

/// A template whose files are there and have the sizes its manifest says.
#[derive(Debug, Clone)]
pub(super) struct StoredTemplate {
    dir: PathBuf,
    pub(super) name: String,
    pub(super) vmid: Vmid,
    pub(super) id: String,
    runner_version: Option<String>,
    pub(super) kernel_command_line: String,
    pub(super) disk_bytes: u64,
    has_initrd: bool,
}

/// A template's files, opened.
#[derive(Debug)]
pub(super) struct TemplateFiles {
    pub(super) disk: File,
    pub(super) kernel: File,
    pub(super) initrd: Option<File>,
}

/// The store.
#[derive(Debug, Clone)]
pub(super) struct TemplateStore {
    dir: PathBuf,
}

fn unusable(template: impl ToString, reason: String, name: &str) -> BackendError {
    let hint = Some(format!("build it: `agentlab-template build {name}`"));
    BackendError::Template {
        template: template.to_string(),
        reason,
        hint,
    }
}

impl TemplateStore {
    pub(super) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// Every name with what it points at, or why that cannot be used.
    fn named(&self) -> Result<Vec<(String, Result<StoredTemplate>)>> {
        let by_name = self.dir.join("by-name");
        let entries = match fs::read_dir(&by_name) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(storage("listing", &by_name)(error)),
        };
        let mut named = Vec::new();
        for entry in entries {
            let entry = entry.map_err(storage("listing", &by_name))?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if name.starts_with('.') {
                continue;
            }
            let id = fs::read_link(entry.path())
                .ok()
                .and_then(|target| Some(target.file_name()?.to_str()?.to_owned()));
            let loaded = match id {
                // A disk for Proxmox VE is no template of ours, and no broken one either.
                Some(id) if self.is_of_another_shape(&id) => continue,
                Some(id) => self.load(&id, &name),
                None => Err(unusable(
                    &name,
                    "its entry in by-name is not a symbolic link".to_owned(),
                    &name,
                )),
            };
            named.push((name, loaded));
        }
        named.sort_by(|(left, _), (right, _)| left.cmp(right));
        Ok(named)
    }

    /// Templates that can be cloned. One that is broken is left out and logged.
    pub(super) fn list(&self) -> Result<Vec<Template>> {
        let usable = self
            .named()?
            .into_iter()
            .filter_map(|(name, loaded)| match loaded {
                Ok(found) => Some(Template {
                    name: found.name,
                    vmid: found.vmid,
                    id: found.id,
                    runner_version: found.runner_version,
                }),
                Err(error) => {
                    tracing::warn!(template = name, %error, "template left out");
                    None
                }
            });
        Ok(usable.collect())
    }

    /// Any template at all, for the probe.
    pub(super) fn any(&self) -> Option<StoredTemplate> {
        self.named().ok()?.into_iter().find_map(|(_, loaded)| loaded.ok())
    }

    /// The template that has or stands for a VMID.
    pub(super) fn by_vmid(&self, vmid: Vmid) -> Result<StoredTemplate> {
        let mut fitting = Vec::new();
        let mut broken = None;
        for (_, loaded) in self.named()? {
            match loaded {
                Ok(found) if found.vmid == vmid => fitting.push(found),
                Ok(_) => {}
                Err(error) => broken = Some(error),
            }
        }
        match (fitting.pop(), fitting.pop()) {
            (Some(found), None) => Ok(found),
            (Some(one), Some(other)) => Err(BackendError::Template {
                template: vmid.to_string(),
                reason: format!("`{}` and `{}` both stand for this VMID", other.name, one.name),
                hint: Some("give one of the recipes another `vmid` and rebuild it".to_owned()),
            }),
            // A broken template may be the one that was meant: its reason says more than "none".
            (None, _) => Err(broken.unwrap_or_else(|| {
                let reason = format!("no template in {} stands for this VMID", self.dir.display());
                unusable(vmid, reason, "<name>")
            })),
        }
    }

    /// The content a machine was cloned from, whatever its name points at today.
    pub(super) fn of_machine(&self, origin: &TemplateOrigin) -> Result<StoredTemplate> {
        self.load(&origin.id, &origin.name)
    }

    fn is_of_another_shape(&self, id: &str) -> bool {
        let text = fs::read(self.dir.join(id).join("manifest.json")).unwrap_or_default();
        let format = serde_json::from_slice::<ManifestFormat>(&text).ok();
        format
            .and_then(|format| format.shape)
            .is_some_and(|shape| shape != "local")
    }

    fn load(&self, id: &str, name: &str) -> Result<StoredTemplate> {
        let dir = self.dir.join(id);
        let path = dir.join("manifest.json");
        let wrong = |reason: String| unusable(name, reason, name);
        let text = match fs::metadata(&path).and_then(|found| {
            if found.len() > MAX_MANIFEST {
                Err(io::Error::other("too large"))
            } else {
                fs::read(&path)
            }
        }) {
            Ok(text) => text,
            Err(error) => return Err(wrong(format!("{} could not be read: {error}", path.display()))),
        };
        let format: ManifestFormat = serde_json::from_slice(&text)
            .map_err(|error| wrong(format!("{} is not a manifest: {error}", path.display())))?;
        if format.format != FORMAT {
            return Err(wrong(format!(
                "{} has format {}, this version reads format {FORMAT}",
                path.display(),
                format.format
            )));
        }
        let manifest: Manifest = serde_json::from_slice(&text)
            .map_err(|error| wrong(format!("{} is not a manifest: {error}", path.display())))?;
        if manifest.id != id {
            return Err(wrong(format!(
                "{} is the manifest of {}",
                path.display(),
                manifest.id
            )));
        }
        let line = &manifest.kernel.command_line;
        if line.len() > MAX_COMMAND_LINE || line.contains('\0') {
            return Err(wrong("its kernel command line is too long".to_owned()));
        }
        check_files(&dir, &manifest).map_err(wrong)?;
        let disk_bytes = manifest.files.get(DISK).map_or(0, |file| file.size_bytes);
        Ok(StoredTemplate {
            has_initrd: manifest.files.contains_key(INITRD),
            dir,
            name: manifest.name,
            vmid: manifest.vmid,
            id: manifest.id,
            runner_version: manifest.runner.and_then(|runner| runner.version),
            kernel_command_line: manifest.kernel.command_line,
            disk_bytes,
        })
    }
}

/// Sizes, not hashes: hashing 400 MB per clone is the job of `agentlab-template verify`.
fn check_files(dir: &Path, manifest: &Manifest) -> std::result::Result<(), String> {
    for required in [DISK, KERNEL] {
        if !manifest.files.contains_key(required) {
            return Err(format!("its manifest names no {required}"));
        }
    }
    for (name, file) in manifest
        .files
        .iter()
        .filter(|(name, _)| [DISK, KERNEL, INITRD].contains(&name.as_str()))
    {
        let path = dir.join(name);
        let found = fs::metadata(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        if found.len() != file.size_bytes {
            return Err(format!(
                "{} has {} bytes, its manifest says {}",
                path.display(),
                found.len(),
                file.size_bytes
            ));
        }
        if name != DISK && found.permissions().mode() & 0o004 == 0 {
            // QEMU opens these two again, as a user of its own.
            return Err(format!(
                "{} must be readable by everyone (mode 0444)",
                path.display()
            ));
        }
    }
    Ok(())
}

impl StoredTemplate {
    pub(super) fn origin(&self) -> TemplateOrigin {
        TemplateOrigin {
            vmid: self.vmid,
            name: self.name.clone(),
            id: self.id.clone(),
        }
    }

    pub(super) fn disk_path(&self) -> PathBuf {
        self.dir.join(DISK)
    }

    pub(super) fn open(&self) -> Result<TemplateFiles> {
        let open = |name: &str| {
            let path = self.dir.join(name);
            File::open(&path).map_err(|error| {
                unusable(
                    &self.name,
                    format!("{} could not be opened: {error}", path.display()),
                    &self.name,
                )
            })
        };
        let initrd = if self.has_initrd {
            Some(open(INITRD)?)
        } else {
            None
        };
        Ok(TemplateFiles {
            disk: open(DISK)?,
            kernel: open(KERNEL)?,
            initrd,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn store_with(manifest: &str) -> (tempfile::TempDir, TemplateStore) {
        let dir = tempfile::tempdir().unwrap();
        let template = dir.path().join("abc");
        fs::create_dir_all(&template).unwrap();
        fs::create_dir_all(dir.path().join("by-name")).unwrap();
        fs::write(template.join(DISK), [0; 512]).unwrap();
        fs::write(template.join(KERNEL), "kernel").unwrap();
        fs::write(template.join("manifest.json"), manifest).unwrap();
        symlink("../abc", dir.path().join("by-name/debian")).unwrap();
        let store = TemplateStore::new(dir.path());
        (dir, store)
    }

    const GOOD: &str = r#"{"format":1,"name":"debian","vmid":9000,"id":"abc","runner":{"version":"0.1.0"},"new":{},
        "kernel":{"version":"6.12","command_line":"panic=-1"},"files":{"root.ext4":{"size_bytes":512,"sha256":"x"},"vmlinuz":{"size_bytes":6}}}"#;

    fn vmid() -> Vmid {
        9000.try_into().unwrap()
    }

    #[test]
    fn a_template_with_fields_of_a_later_builder_is_found_by_the_vmid_it_stands_for() {
        let (dir, store) = store_with(GOOD);
        let found = store.by_vmid(vmid()).unwrap();
        assert_eq!((found.disk_bytes, found.has_initrd), (512, false));
        assert_eq!(store.list().unwrap().len(), 1);
        fs::remove_file(dir.path().join("abc").join(KERNEL)).unwrap();
        assert!(matches!(
            found.open(),
            Err(BackendError::Template { hint: Some(_), .. })
        ));
    }

    #[test]
    fn what_is_wrong_with_a_template_is_said_with_the_command_that_rebuilds_it() {
        let cases = [
            (GOOD.replace("\"format\":1", "\"format\":2"), "format 2"),
            (
                GOOD.replace("\"size_bytes\":6", "\"size_bytes\":7"),
                "has 6 bytes, its manifest says 7",
            ),
            (GOOD.replace("\"vmlinuz\"", "\"other\""), "names no vmlinuz"),
            (GOOD.replace("\"abc\"", "\"abd\""), "is the manifest of abd"),
            ("{".to_owned(), "is not a manifest"),
        ];
        for (manifest, reason) in cases {
            let (_dir, store) = store_with(&manifest);
            match store.by_vmid(vmid()) {
                Err(BackendError::Template {
                    reason: found,
                    hint: Some(hint),
                    ..
                }) => {
                    assert!(found.contains(reason), "{found}");
                    assert!(hint.contains("agentlab-template build debian"), "{hint}");
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_disk_made_for_proxmox_is_neither_a_template_nor_a_broken_one() {
        let made = GOOD.replace("\"new\":{}", "\"shape\":\"proxmox\"");
        let (_dir, store) = store_with(&made.replace("root.ext4", "disk.raw"));
        assert!(store.list().unwrap().is_empty());
        let Err(BackendError::Template { reason, .. }) = store.by_vmid(vmid()) else {
            panic!("it was taken for a template");
        };
        assert!(reason.starts_with("no template in "), "{reason}");
    }

    #[test]
    fn a_template_that_no_name_points_at_does_not_count() {
        let (dir, store) = store_with(GOOD);
        fs::remove_file(dir.path().join("by-name/debian")).unwrap();
        assert!(store.list().unwrap().is_empty());
        assert!(matches!(
            store.by_vmid(vmid()),
            Err(BackendError::Template { .. })
        ));
        assert!(
            TemplateStore::new(Path::new("/nonexistent"))
                .list()
                .unwrap()
                .is_empty()
        );
    }
}
