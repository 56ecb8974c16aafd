//! The trait's calls. Whatever changes a machine compares its stamp first and takes the machine's turn.

use std::collections::BTreeMap;
use std::time::Duration;

use agentlab_api::Vmid;
use async_trait::async_trait;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::monitor::Status;
use super::process::Process;
use super::record::{Found, MachineDir, ShapeRecord, storage};
use super::start::DYING;
use super::{Qemu, blocking, unreachable};
use crate::{
    BackendError, CloneSpec, Limits, Load, Machine, Machines, Power, PowerOn, Result, Shape, Stamp, Template,
    Usage,
};

const ASK_DEADLINE: Duration = Duration::from_secs(2);
const SUSPEND_DEADLINE: Duration = Duration::from_secs(5);
const GIB: u64 = 1024 * 1024 * 1024;
const MIB: u64 = 1024 * 1024;
/// Less than this no Linux guest boots with.
const MIN_MEMORY_MB: u32 = 64;
/// What q35 takes.
const MAX_CORES: u16 = 255;

pub(super) fn refused(action: &'static str, vmid: Vmid, reason: impl Into<String>) -> BackendError {
    BackendError::Refused {
        action,
        vmid,
        reason: reason.into(),
        hint: None,
    }
}

impl Qemu {
    pub(super) async fn find(&self, vmid: Vmid) -> Result<Found> {
        let machines = self.machines.clone();
        blocking(move || machines.find(vmid)).await
    }

    /// The machine, if its stamp is this one.
    pub(super) async fn ours_or_absent(&self, vmid: Vmid, stamp: &Stamp) -> Result<Option<MachineDir>> {
        match self.find(vmid).await? {
            Found::Nothing => Ok(None),
            Found::Unreadable(reason) => Err(BackendError::NotOurs { vmid, reason }),
            Found::Ours(machine) => match machine.record.stamp() {
                Some(found) if found == *stamp => Ok(Some(*machine)),
                Some(found) => Err(BackendError::NotOurs {
                    vmid,
                    reason: format!("its stamp is {found}"),
                }),
                None => Err(BackendError::NotOurs {
                    vmid,
                    reason: "its stamp cannot be read".to_owned(),
                }),
            },
        }
    }

    pub(super) async fn ours(&self, vmid: Vmid, stamp: &Stamp) -> Result<MachineDir> {
        self.ours_or_absent(vmid, stamp)
            .await?
            .ok_or(BackendError::NoSuchMachine { vmid })
    }

    /// A machine to look at, whosever it is.
    pub(super) async fn readable(&self, vmid: Vmid) -> Result<MachineDir> {
        match self.find(vmid).await? {
            Found::Nothing => Err(BackendError::NoSuchMachine { vmid }),
            Found::Unreadable(reason) => Err(BackendError::NotOurs { vmid, reason }),
            Found::Ours(machine) => Ok(*machine),
        }
    }

    /// The machine's living QEMU by its record alone: enough once [`crate::Backend::adopt`] has put the records right.
    pub(super) async fn recorded_process(&self, machine: &MachineDir) -> Result<Option<Process>> {
        let machine = machine.clone();
        blocking(move || match machine.process() {
            None => Ok(None),
            Some(identity) => identity
                .hold()
                .map_err(storage("finding the process of", machine.path())),
        })
        .await
    }

    async fn is_running(&self, machine: &MachineDir) -> Result<bool> {
        Ok(self.recorded_process(machine).await?.is_some())
    }

    async fn power(&self, machine: &MachineDir, action: &'static str) -> Result<Power> {
        let Some(process) = self.recorded_process(machine).await? else {
            return Ok(Power::Stopped);
        };
        Ok(match self.status(machine, &process, action).await? {
            Some(Status::Running) => Power::Running,
            Some(Status::Paused) => Power::Suspended,
            // Its guest has not executed an instruction.
            Some(Status::Prelaunch) | None => Power::Stopped,
        })
    }

    /// What a machine's QEMU says of its guest; nothing when it ended before it could say it.
    async fn status(
        &self,
        machine: &MachineDir,
        process: &Process,
        action: &'static str,
    ) -> Result<Option<Status>> {
        let vm = self.vm(machine.record.vmid);
        match vm.monitor.status(machine, action, ASK_DEADLINE).await {
            Ok(status) => Ok(Some(status)),
            // A QEMU that was told to quit, by a daemon that has died since perhaps, closes its monitor first.
            Err(BackendError::Unreachable { .. }) if timeout(DYING, process.ended()).await.is_ok() => {
                Ok(None)
            }
            Err(_) if !process.is_alive() => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn describe(&self, vmid: Vmid, action: &'static str) -> Result<Option<Machine>> {
        match self.find(vmid).await? {
            Found::Nothing => Ok(None),
            Found::Unreadable(_) => Ok(Some(Machine {
                vmid,
                name: "unknown".to_owned(),
                power: Power::Stopped,
                stamp: None,
            })),
            Found::Ours(machine) => {
                let power = self.power(&machine, action).await?;
                Ok(Some(as_machine(&machine, power)))
            }
        }
    }
}

fn as_machine(machine: &MachineDir, power: Power) -> Machine {
    let record = &machine.record;
    Machine {
        vmid: record.vmid,
        name: record.name.clone(),
        power,
        stamp: record.stamp(),
    }
}

/// What a disk is to measure; refuses whatever would cut bytes off.
fn root_bytes(vmid: Vmid, wanted_gb: Option<u32>, template_bytes: u64, recorded: Option<u64>) -> Result<u64> {
    let has = recorded.unwrap_or(template_bytes).max(template_bytes);
    let Some(wanted) = wanted_gb.map(|gb| u64::from(gb).saturating_mul(GIB)) else {
        return Ok(has);
    };
    if wanted < has {
        return Err(BackendError::Refused {
            action: "configure",
            vmid,
            reason: format!(
                "its disk has {} MiB and cannot shrink to {} MiB",
                has.div_ceil(MIB),
                wanted / MIB
            ),
            hint: Some(format!("ask for {} GiB or more", has.div_ceil(GIB))),
        });
    }
    Ok(wanted)
}

#[async_trait]
impl Machines for Qemu {
    async fn templates(&self) -> Result<Vec<Template>> {
        let store = self.templates.clone();
        blocking(move || store.list()).await
    }

    async fn clone_template(&self, spec: &CloneSpec) -> Result<Machine> {
        let vm = self.vm(spec.vmid);
        let _turn = vm.operation.lock().await;
        let machine = self.cloned(spec).await?;
        let power = self.power(&machine, "clone").await?;
        Ok(as_machine(&machine, power))
    }

    async fn configure(&self, vmid: Vmid, stamp: &Stamp, shape: &Shape) -> Result<()> {
        let vm = self.vm(vmid);
        let _turn = vm.operation.lock().await;
        let mut machine = self.ours(vmid, stamp).await?;
        if shape.cores == 0 || shape.cores > MAX_CORES || shape.memory_mb < MIN_MEMORY_MB {
            let reason = format!("{} cores and {} MiB cannot be had", shape.cores, shape.memory_mb);
            return Err(refused("configure", vmid, reason));
        }
        if shape.limits != Limits::default() {
            let reason = "bounds on processor time, processors and ballooned memory, and a firewall of the hypervisor's, are not \
                          had here";
            return Err(refused("configure", vmid, reason));
        }
        let is_running = self.find_process(&machine).await?.is_some();
        let (store, shape) = (self.templates.clone(), shape.clone());
        blocking(move || {
            let template = store.of_machine(&machine.record.template)?;
            let recorded = machine.record.shape.as_ref();
            let recorded_bytes = recorded.map(|shape| shape.root_bytes);
            let bytes = root_bytes(vmid, shape.root_size_gb, template.disk_bytes, recorded_bytes)?;
            let wanted = ShapeRecord::new(&shape, bytes);
            if is_running && recorded != Some(&wanted) {
                return Err(refused("configure", vmid, "it is running"));
            }
            machine.set_shape(wanted)
        })
        .await
    }

    fn waits_behind(&self, vmid: Vmid) -> Option<usize> {
        self.starts.before(vmid)
    }

    /// Waits its turn behind other starting machines, first come first served, for as long as that takes.
    async fn power_on(&self, vmid: Vmid, stamp: &Stamp, with: PowerOn) -> Result<()> {
        let machine = self.ours(vmid, stamp).await?;
        if self.power(&machine, "power_on").await? == Power::Running {
            return Ok(());
        }
        let start = self.starts.take(vmid).await;
        let vm = self.vm(vmid);
        let _turn = vm.operation.lock().await;
        // Read again: while waiting it may have been destroyed, or powered on by another.
        let machine = self.ours(vmid, stamp).await?;
        let status = match self.find_process(&machine).await? {
            Some(process) => self.status(&machine, &process, "power_on").await?,
            None => None,
        };
        match status {
            None => self.start(&vm, &machine, with, start).await,
            Some(Status::Running) => Ok(()),
            Some(Status::Paused) => Err(BackendError::Refused {
                action: "power_on",
                vmid,
                reason: "it is suspended".to_owned(),
                hint: Some("resume it".to_owned()),
            }),
            // Left by a start that was cut off: with that start's cable, and a seed that may be outdated.
            Some(Status::Prelaunch) => {
                self.stop(&vm, &machine, "power_on").await?;
                self.start(&vm, &machine, with, start).await
            }
        }
    }

    async fn power_off(&self, vmid: Vmid, stamp: &Stamp) -> Result<()> {
        let vm = self.vm(vmid);
        let _turn = vm.operation.lock().await;
        match self.ours_or_absent(vmid, stamp).await? {
            Some(machine) => self.stop(&vm, &machine, "power_off").await,
            None => Ok(()),
        }
    }

    async fn suspend(&self, vmid: Vmid, stamp: &Stamp) -> Result<()> {
        self.pause_or_continue(vmid, stamp, "suspend", "stop").await
    }

    async fn resume(&self, vmid: Vmid, stamp: &Stamp) -> Result<()> {
        self.pause_or_continue(vmid, stamp, "resume", "cont").await
    }

    async fn inspect(&self, vmid: Vmid) -> Result<Option<Machine>> {
        self.describe(vmid, "inspect").await
    }

    /// A machine whose QEMU does not answer counts as running here: its process does.
    async fn list(&self) -> Result<Vec<Machine>> {
        let machines = self.machines.clone();
        let vmids = blocking(move || machines.vmids()).await?;
        let mut found = Vec::new();
        // One silent QEMU costs its deadline once, not once for each machine behind it.
        let mut silent = JoinSet::new();
        for vmid in vmids {
            let (vm, machine) = match self.find(vmid).await? {
                Found::Nothing => continue,
                Found::Unreadable(_) => {
                    found.push(Machine {
                        vmid,
                        name: "unknown".to_owned(),
                        power: Power::Stopped,
                        stamp: None,
                    });
                    continue;
                }
                Found::Ours(machine) => (self.vm(vmid), machine),
            };
            if !self.is_running(&machine).await? {
                found.push(as_machine(&machine, Power::Stopped));
                continue;
            }
            silent.spawn(async move {
                let power = match vm.monitor.status(&machine, "list", ASK_DEADLINE).await {
                    Ok(Status::Paused) => Power::Suspended,
                    Ok(Status::Prelaunch) => Power::Stopped,
                    Ok(Status::Running) | Err(_) => Power::Running,
                };
                as_machine(&machine, power)
            });
        }
        found.extend(silent.join_all().await);
        found.sort_by_key(|machine| machine.vmid);
        Ok(found)
    }

    async fn destroy(&self, vmid: Vmid, stamp: &Stamp) -> Result<()> {
        let vm = self.vm(vmid);
        let _turn = vm.operation.lock().await;
        let Some(machine) = self.ours_or_absent(vmid, stamp).await? else {
            return Ok(());
        };
        self.stop(&vm, &machine, "destroy").await?;
        let machines = self.machines.clone();
        blocking(move || machines.remove(&machine)).await?;
        Ok(())
    }

    async fn stopped(&self, vmid: Vmid) -> Result<()> {
        let Found::Ours(machine) = self.find(vmid).await? else {
            return Ok(());
        };
        match self.find_process(&machine).await? {
            Some(process) => process
                .ended()
                .await
                .map_err(|error| unreachable("watching", error.to_string())),
            None => Ok(()),
        }
    }

    async fn loads(&self) -> Result<BTreeMap<Vmid, Load>> {
        let machines = self.machines.clone();
        let vmids = blocking(move || machines.vmids()).await?;
        let mut loads = BTreeMap::new();
        for vmid in vmids {
            if let Found::Ours(machine) = self.find(vmid).await?
                && let Some(usage) = self
                    .find_process(&machine)
                    .await?
                    .and_then(|process| process.usage())
            {
                loads.insert(vmid, Load::Worked(usage.cpu_seconds));
            }
        }
        Ok(loads)
    }

    async fn usage(&self, vmid: Vmid) -> Result<Usage> {
        let machine = self.readable(vmid).await?;
        let process = self.find_process(&machine).await?;
        let stopped = Usage {
            cpu_seconds: 0.0,
            memory_bytes: 0,
        };
        Ok(process.and_then(|process| process.usage()).unwrap_or(stopped))
    }
}

impl Qemu {
    async fn pause_or_continue(
        &self,
        vmid: Vmid,
        stamp: &Stamp,
        action: &'static str,
        command: &'static str,
    ) -> Result<()> {
        let vm = self.vm(vmid);
        let _turn = vm.operation.lock().await;
        let machine = self.ours(vmid, stamp).await?;
        if !self.is_running(&machine).await? {
            return Err(refused(action, vmid, "it is not running"));
        }
        if vm.monitor.status(&machine, action, SUSPEND_DEADLINE).await? == Status::Prelaunch {
            return Err(refused(action, vmid, "it is not running"));
        }
        vm.monitor
            .ask(&machine, action, (command, Value::Null), SUSPEND_DEADLINE)
            .await
            .map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_grows_or_stays_and_is_never_cut() {
        let vmid: Vmid = 1000.try_into().unwrap();
        assert_eq!(root_bytes(vmid, None, 3 * GIB, None).unwrap(), 3 * GIB);
        assert_eq!(root_bytes(vmid, Some(4), 3 * GIB, None).unwrap(), 4 * GIB);
        assert_eq!(root_bytes(vmid, None, 3 * GIB, Some(4 * GIB)).unwrap(), 4 * GIB);
        root_bytes(vmid, Some(2), 3 * GIB, None).unwrap_err();
        root_bytes(vmid, Some(3), 3 * GIB, Some(4 * GIB)).unwrap_err();
    }
}
