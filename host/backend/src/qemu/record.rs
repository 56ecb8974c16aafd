//! What stands on disk about a machine, and the order in which it gets there.
//!
//! ```text
//!   <run_dir>/lock                held by the one process that may use this directory
//!            /accelerator.json    verdict of the probe
//!            /vm/.new-<vmid>      a directory being made, .gone-<vmid> one being removed: cleared at start
//!            /vm/<vmid>/          0700
//!                machine.json     stamp, template, uid, shape: there before anything else, gone after all else
//!                overlay.qcow2    owned by the machine's uid
//!                process.json     which process runs it
//!                seed             0400, owned by the machine's uid
//!                vsock.json       what stands behind its vsock device, where it has one
//!                qmp.sock, channel.sock, console.log, qemu.log
//! ```
//!
//! The directory appears by one rename with its record already in it, and disappears by one rename, so that there
//! is no instant in which a machine of ours cannot be told from a stranger's.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use agentlab_api::Vmid;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::process::Identity;
use super::vsock::Device;
use crate::{BackendError, MacAddress, Result, Shape, Stamp};

const FORMAT: u32 = 1;
const RECORD: &str = "machine.json";
const PROCESS: &str = "process.json";
const SEED: &str = "seed";
const VSOCK: &str = "vsock.json";
const OVERLAY: &str = "overlay.qcow2";
const BASE: &str = "base.ext4";
pub(super) const QMP_SOCKET: &str = "qmp.sock";
pub(super) const CHANNEL_SOCKET: &str = "channel.sock";
/// Records are small; a larger file is not ours.
const MAX_RECORD: u64 = 64 * 1024;

/// `machine.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    format: u32,
    pub(super) vmid: Vmid,
    pub(super) name: String,
    stamp: String,
    pub(super) template: TemplateOrigin,
    pub(super) uid: u32,
    /// Absent until configured.
    pub(super) shape: Option<ShapeRecord>,
    /// The volume attached to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) volume: Option<String>,
}

/// Which template a machine was cloned from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TemplateOrigin {
    pub(super) vmid: Vmid,
    pub(super) name: String,
    /// Content address: the directory it lies in.
    pub(super) id: String,
}

/// A shape as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ShapeRecord {
    pub(super) cores: u16,
    pub(super) memory_mb: u32,
    pub(super) root_bytes: u64,
    mac: [u8; 6],
}

impl ShapeRecord {
    pub(super) fn new(shape: &Shape, root_bytes: u64) -> Self {
        Self {
            cores: shape.cores,
            memory_mb: shape.memory_mb,
            root_bytes,
            mac: shape.mac.0,
        }
    }

    pub(super) fn mac(&self) -> MacAddress {
        MacAddress(self.mac)
    }
}

impl Record {
    pub(super) fn new(vmid: Vmid, name: &str, stamp: &Stamp, template: TemplateOrigin, uid: u32) -> Self {
        let stamp = stamp.to_string();
        Self {
            format: FORMAT,
            vmid,
            name: name.to_owned(),
            stamp,
            template,
            uid,
            shape: None,
            volume: None,
        }
    }

    pub(super) fn stamp(&self) -> Option<Stamp> {
        self.stamp.parse().ok()
    }
}

pub(super) fn storage(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BackendError {
    let path = path.display().to_string();
    move |source| BackendError::Storage { action, path, source }
}

fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Puts a whole file there in one step: readers see the old bytes or the new, also after a power loss.
pub(super) fn write_whole(path: &Path, bytes: &[u8], mode: u32, owner: Option<u32>) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    absent_is_fine(fs::remove_file(&new))?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&new)?;
    file.write_all(bytes)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    if let Some(uid) = owner {
        fchown(&file, Some(uid), Some(uid))?;
    }
    file.sync_all()?;
    fs::rename(&new, path)?;
    sync_dir(dir)
}

fn absent_is_fine(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn read_small(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::metadata(path) {
        Ok(found) if found.len() > MAX_RECORD => Err(io::Error::other("larger than any record of ours")),
        Ok(_) => fs::read(path).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let Some(bytes) = read_small(path)? else {
        return Ok(None);
    };
    serde_json::from_slice(&bytes).map(Some).map_err(io::Error::from)
}

pub(super) fn write_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    write_whole(
        path,
        &serde_json::to_vec_pretty(value).map_err(io::Error::from)?,
        0o600,
        None,
    )
}

fn make_private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)?;
    // The mode above is cut by the umask only; this says what it must be.
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
}

/// The directory of all machines.
#[derive(Debug, Clone)]
pub(super) struct Machines {
    dir: PathBuf,
}

/// What lies under a VMID.
#[derive(Debug)]
pub(super) enum Found {
    Nothing,
    /// Something without a readable record: not ours.
    Unreadable(String),
    Ours(Box<MachineDir>),
}

/// One machine's directory, with the record read from it.
#[derive(Debug, Clone)]
pub(super) struct MachineDir {
    path: PathBuf,
    pub(super) record: Record,
}

impl Machines {
    /// Opens the directory and clears what an earlier process was making or removing when it was killed. The
    /// caller holds the lock, so nobody else is at it.
    pub(super) fn open(run_dir: &Path) -> Result<Self> {
        let dir = run_dir.join("vm");
        match make_private_dir(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(storage("making a directory", &dir)(error));
            }
            Ok(()) | Err(_) => {}
        }
        let machines = Self { dir };
        for entry in machines.entries()? {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(".new-") || name.starts_with(".gone-") {
                fs::remove_dir_all(entry.path()).map_err(storage("clearing", &entry.path()))?;
            }
        }
        Ok(machines)
    }

    fn entries(&self) -> Result<Vec<fs::DirEntry>> {
        fs::read_dir(&self.dir)
            .and_then(Iterator::collect::<io::Result<Vec<_>>>)
            .map_err(storage("listing", &self.dir))
    }

    /// Every VMID something lies under.
    pub(super) fn vmids(&self) -> Result<Vec<Vmid>> {
        let names = self.entries()?.into_iter().map(|entry| entry.file_name());
        let mut vmids: Vec<Vmid> = names.filter_map(|name| name.to_str()?.parse().ok()).collect();
        vmids.sort_unstable();
        Ok(vmids)
    }

    pub(super) fn find(&self, vmid: Vmid) -> Result<Found> {
        let path = self.dir.join(vmid.to_string());
        if !path.try_exists().map_err(storage("looking at", &path))? {
            return Ok(Found::Nothing);
        }
        let record_path = path.join(RECORD);
        let record = match read_json::<Record>(&record_path) {
            Ok(Some(record)) => record,
            Ok(None) => return Ok(Found::Unreadable(format!("{} is missing", record_path.display()))),
            // What the disk will not say now it may say later; nothing may be concluded from it.
            Err(error) if error.raw_os_error().is_some() => {
                return Err(storage("reading", &record_path)(error));
            }
            Err(error) => {
                return Ok(Found::Unreadable(format!("{}: {error}", record_path.display())));
            }
        };
        if record.format != FORMAT || record.vmid != vmid || record.stamp().is_none() {
            let reason = format!("{} is not a record of this machine", record_path.display());
            return Ok(Found::Unreadable(reason));
        }
        Ok(Found::Ours(Box::new(MachineDir { path, record })))
    }

    /// Makes the directory of a new machine with its record in it. Refused when something lies there.
    pub(super) fn create(&self, record: Record) -> Result<MachineDir> {
        let new = self.dir.join(format!(".new-{}", record.vmid));
        let path = self.dir.join(record.vmid.to_string());
        let make = || -> io::Result<()> {
            absent_is_fine(fs::remove_dir_all(&new))?;
            make_private_dir(&new)?;
            write_json(&new.join(RECORD), &record)?;
            // Fails when the target is a directory with anything in it.
            fs::rename(&new, &path)?;
            sync_dir(&self.dir)
        };
        make().map_err(storage("making a machine's directory", &path))?;
        Ok(MachineDir { path, record })
    }

    /// Removes a machine's directory with everything in it. Its process must be gone.
    pub(super) fn remove(&self, machine: &MachineDir) -> Result<()> {
        let gone = self.dir.join(format!(".gone-{}", machine.record.vmid));
        let remove = || -> io::Result<()> {
            absent_is_fine(fs::remove_dir_all(&gone))?;
            absent_is_fine(fs::rename(&machine.path, &gone))?;
            sync_dir(&self.dir)?;
            absent_is_fine(fs::remove_dir_all(&gone))
        };
        remove().map_err(storage("removing", &machine.path))
    }
}

impl MachineDir {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn overlay_path(&self) -> PathBuf {
        self.path.join(OVERLAY)
    }

    /// Links the template's disk into this directory: a second link is how `agentlab-template gc` knows that a machine,
    /// running or not, still needs an image whose name has moved on. A store on another file system cannot be
    /// linked from; there only running machines are seen.
    pub(super) fn hold_base(&self, disk: &Path) -> Result<()> {
        let path = self.path.join(BASE);
        match fs::hard_link(disk, &path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                tracing::debug!(disk = %disk.display(), "template store and machines are on different file systems");
                Ok(())
            }
            Err(error) => Err(storage("linking", &path)(error)),
        }
    }

    /// Where to make an overlay that nobody else is making; what earlier tries left is removed.
    pub(super) fn unfinished_overlay(&self) -> Result<PathBuf> {
        let is_unfinished = |name: &str| name.starts_with(OVERLAY) && name != OVERLAY;
        let clear = || -> io::Result<()> {
            for entry in fs::read_dir(&self.path)? {
                let entry = entry?;
                if entry.file_name().to_str().is_some_and(is_unfinished) {
                    absent_is_fine(fs::remove_file(entry.path()))?;
                }
            }
            Ok(())
        };
        clear().map_err(storage("clearing", &self.path))?;
        let own = Identity::of_self().map_err(storage("naming a file in", &self.path))?;
        Ok(self
            .path
            .join(format!("{OVERLAY}.{}-{}.new", own.pid, own.start_time)))
    }

    pub(super) fn console_path(&self) -> PathBuf {
        self.path.join("console.log")
    }

    pub(super) fn stderr_path(&self) -> PathBuf {
        self.path.join("qemu.log")
    }

    pub(super) fn seed_path(&self) -> PathBuf {
        self.path.join(SEED)
    }

    /// Stores a shape.
    pub(super) fn set_shape(&mut self, shape: ShapeRecord) -> Result<()> {
        if self.record.shape.as_ref() == Some(&shape) {
            return Ok(());
        }
        self.record.shape = Some(shape);
        self.write_record()
    }

    /// Stores which volume is attached.
    pub(super) fn set_volume(&mut self, volume: Option<String>) -> Result<()> {
        self.record.volume = volume;
        self.write_record()
    }

    fn write_record(&self) -> Result<()> {
        let path = self.path.join(RECORD);
        write_json(&path, &self.record).map_err(storage("writing", &path))
    }

    pub(super) fn set_process(&self, identity: &Identity) -> io::Result<()> {
        write_json(&self.path.join(PROCESS), identity)
    }

    /// The process last recorded, living or not. An unreadable record is as good as none: the machine's uid still
    /// finds its process.
    pub(super) fn process(&self) -> Option<Identity> {
        read_json(&self.path.join(PROCESS)).ok().flatten()
    }

    pub(super) fn place_seed(&self, seed: &[u8]) -> Result<()> {
        let path = self.seed_path();
        write_whole(&path, seed, 0o400, Some(self.record.uid)).map_err(storage("writing", &path))
    }

    /// What is stored of its seed.
    pub(super) fn seed(&self) -> Result<Option<Vec<u8>>> {
        let path = self.seed_path();
        read_small(&path).map_err(storage("reading", &path))
    }

    /// Stores what stands behind its vsock device, before it is started.
    pub(super) fn set_vsock(&self, device: Option<Device>) -> Result<()> {
        let path = self.path.join(VSOCK);
        match device {
            Some(device) => write_json(&path, &device),
            None => absent_is_fine(fs::remove_file(&path)),
        }
        .map_err(storage("recording the vsock device at", &path))
    }

    /// What stands behind the vsock device it was last started with.
    pub(super) fn vsock(&self) -> Option<Device> {
        read_json(&self.path.join(VSOCK)).ok().flatten()
    }

    pub(super) fn remove_seed(&self) -> Result<()> {
        let path = self.seed_path();
        absent_is_fine(fs::remove_file(&path)).map_err(storage("removing", &path))?;
        // A seed whose writing was cut short is one too.
        let unfinished = self.path.join(format!("{SEED}.new"));
        absent_is_fine(fs::remove_file(&unfinished)).map_err(storage("removing", &unfinished))
    }

    /// Removes what only a running machine needs.
    pub(super) fn clear_runtime(&self) -> Result<()> {
        for name in [PROCESS, QMP_SOCKET, CHANNEL_SOCKET, VSOCK] {
            let path = self.path.join(name);
            absent_is_fine(fs::remove_file(&path)).map_err(storage("removing", &path))?;
        }
        Ok(())
    }

    pub(super) fn has_overlay(&self) -> bool {
        fs::metadata(self.overlay_path()).is_ok_and(|found| found.uid() == self.record.uid)
    }
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
