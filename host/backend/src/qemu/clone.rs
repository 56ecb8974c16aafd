//! A new machine: its record first, under a uid of its own, then an overlay of its template's disk.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use super::machines::refused;
use super::record::{Found, MachineDir, Record, storage};
use super::template::StoredTemplate;
use super::{Qemu, blocking, process};
use crate::{BackendError, CloneSpec, Result};

const IMAGE_DEADLINE: Duration = Duration::from_secs(60);
const MIB: u64 = 1024 * 1024;
/// What a new machine must find free above the floor. Less than its disk may grow to, more than most jobs write.
const CLONE_BYTES: u64 = 2 * 1024 * MIB;

impl Qemu {
    /// The machine with its disk, made as far as it is not there yet. The caller has the machine's turn.
    pub(super) async fn cloned(&self, spec: &CloneSpec) -> Result<MachineDir> {
        let vmid = spec.vmid;
        let machine = match self.find(vmid).await? {
            Found::Unreadable(reason) => return Err(BackendError::Conflict { vmid, reason }),
            Found::Ours(machine) => {
                let record = &machine.record;
                let same = record.stamp().as_ref() == Some(&spec.stamp)
                    && record.template.vmid == spec.template
                    && record.name == spec.name;
                if !same {
                    let stamp = record
                        .stamp()
                        .map_or_else(|| "none".to_owned(), |stamp| stamp.to_string());
                    let reason = format!("`{}` has it, its stamp is {stamp}", record.name);
                    return Err(BackendError::Conflict { vmid, reason });
                }
                *machine
            }
            Found::Nothing => {
                let (store, wanted) = (self.templates.clone(), spec.template);
                let template = blocking(move || store.by_vmid(wanted)).await?;
                self.record_clone(spec, &template).await?
            }
        };
        if !machine.has_overlay() {
            let (store, origin) = (self.templates.clone(), machine.record.template.clone());
            let template = blocking(move || store.of_machine(&origin)).await?;
            self.make_overlay(&machine, &template).await?;
        }
        Ok(machine)
    }

    /// Records a new machine under a uid that no other machine has.
    async fn record_clone(&self, spec: &CloneSpec, template: &StoredTemplate) -> Result<MachineDir> {
        let _alone = self.allocation.lock().await;
        let machines = self.machines.clone();
        let (first, last) = self.options.uid_range;
        let (spec, origin) = (spec.clone(), template.origin());
        let (run_dir, floor) = (
            self.options.run_dir.clone(),
            self.options.disk_floor_mb.saturating_mul(MIB),
        );
        blocking(move || {
            let free = super::free_bytes(&run_dir)?;
            let needed = floor.saturating_add(CLONE_BYTES);
            if free < needed {
                let reason = format!(
                    "{} MiB free, a machine is begun with {} or more",
                    free / MIB,
                    needed / MIB
                );
                let full = std::io::Error::new(std::io::ErrorKind::StorageFull, reason);
                return Err(storage("cloning into", &run_dir)(full));
            }
            let mut taken = Vec::new();
            for vmid in machines.vmids()? {
                if let Found::Ours(machine) = machines.find(vmid)? {
                    taken.push(machine.record.uid);
                }
            }
            // Also not one under which anything runs: another daemon's machines may share the range.
            let running = process::users();
            // The last uid is the probe's.
            let count = last - first;
            let start = u32::from(spec.vmid) % count;
            let uid = (0..count)
                .map(|step| first + (start + step) % count)
                .find(|uid| !taken.contains(uid) && !running.contains(uid))
                .ok_or_else(|| refused("clone", spec.vmid, "every uid of the range is in use"))?;
            machines.create(Record::new(spec.vmid, &spec.name, &spec.stamp, origin, uid))
        })
        .await
    }

    /// Makes the overlay, under another name until it is whole: a name of this try alone, because the `qemu-img` of
    /// a daemon that was killed may still be writing.
    async fn make_overlay(&self, machine: &MachineDir, template: &StoredTemplate) -> Result<()> {
        let path = machine.overlay_path();
        let (cleared, disk) = (machine.clone(), template.disk_path());
        let new = blocking(move || {
            cleared.hold_base(&disk)?;
            cleared.unfinished_overlay()
        })
        .await?;
        let made = Command::new(&self.programs.image)
            .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
            .arg(template.disk_path())
            .arg(&new)
            .env_clear()
            .stdin(std::process::Stdio::null())
            .kill_on_drop(true)
            .output();
        let vmid = machine.record.vmid;
        let output = timeout(IMAGE_DEADLINE, made)
            .await
            .map_err(|_| BackendError::TimedOut {
                action: "clone",
                vmid,
                seconds: IMAGE_DEADLINE.as_secs(),
            })?
            .map_err(storage("executing", &self.programs.image))?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(refused(
                "clone",
                vmid,
                format!("qemu-img could not make its disk: {words}"),
            ));
        }
        let uid = machine.record.uid;
        blocking(move || {
            let publish = || {
                fs::set_permissions(&new, fs::Permissions::from_mode(0o600))?;
                chown(&new, Some(uid), Some(uid))?;
                fs::rename(&new, &path)
            };
            publish().map_err(storage("making", &path))
        })
        .await
    }
}
