//! Machines destroyed, with the disks that are theirs and no others.

use std::collections::BTreeSet;

use crate::call::{Call, Worker};
use crate::storage;
use crate::wire::{Answer, Refusal};
use crate::world::{Vm, World};

pub(crate) fn destroy(call: &Call) -> Answer {
    call.refuse_skiplock()?;
    let vmid = call.vmid();
    let (purge, unreferenced) = (call.flag("purge"), call.flag("destroy-unreferenced-disks"));
    {
        let world = call.world();
        world.writable()?;
        let vm = world.vm(&call.node(), vmid)?;
        may_go(vm, vmid, purge)?;
    }
    call.fork("qmdestroy", &vmid.to_string(), move |worker| {
        destroying(worker, vmid, purge, unreferenced)
    })
}

fn may_go(vm: &Vm, vmid: u32, purge: bool) -> Result<(), Refusal> {
    if vm.is("protection") {
        return Err(Refusal::died(format!(
            "can't remove VM {vmid} - protection mode enabled"
        )));
    }
    if vm.ha && !purge {
        return Err(Refusal::died(format!(
            "unable to remove VM {vmid} - used in HA resources and purge parameter not set."
        )));
    }
    if vm.run.is_some() {
        return Err(Refusal::died(format!("VM {vmid} is running - destroy failed")));
    }
    Ok(())
}

async fn destroying(worker: Worker, vmid: u32, purge: bool, unreferenced: bool) -> Result<(), String> {
    let _guard = worker.core.lock_vm(vmid).await?;
    {
        let world = worker.world();
        let vm = world.vm(&worker.node, vmid)?;
        may_go(vm, vmid, purge).map_err(|refusal| refusal.text())?;
        if let Some(lock) = vm.lock().filter(|lock| *lock != "suspended") {
            return Err(format!("VM is locked ({lock})"));
        }
        if let Some(base) = base_in_use(&world, vm) {
            return Err(format!("base volume '{base}' is still in use by linked cloned"));
        }
    }
    worker.pass(300).await;
    let mut world = worker.world();
    world.changes_vm(&worker.who, vmid, "destroy");
    for volid in owned(&world, vmid, unreferenced) {
        world.changes_volume(&worker.who, &volid, "destroy");
        world.volumes.remove(&volid);
    }
    world.forget_vm(vmid);
    drop(world);
    worker.core.boot.destroyed(vmid);
    if purge {
        worker.log(format!("purging VM {vmid} from related configurations.."));
    }
    Ok(())
}

fn base_in_use(world: &World, vm: &Vm) -> Option<String> {
    let volids: Vec<&str> = Vm::drives(&vm.config).map(|(_, volid)| volid).collect();
    let used = world.volumes.values().find_map(|volume| {
        let parent = volume.parent.as_deref()?;
        let knows = world
            .storages
            .get(&volume.storage)
            .is_some_and(|storage| storage.plugin.knows_base_users());
        (knows && volids.contains(&parent)).then(|| parent.to_owned())
    });
    used.filter(|volid| storage::is_base(volid))
}

/// The disks in the configuration and the snapshots that carry this VMID; all that carry it, when asked to.
fn owned(world: &World, vmid: u32, unreferenced: bool) -> BTreeSet<String> {
    let Some(vm) = world.vms.get(&vmid) else {
        return BTreeSet::new();
    };
    let snapshots = vm.snapshots.values();
    let states = snapshots.clone().filter_map(|snapshot| snapshot.vmstate.clone());
    let named: BTreeSet<String> = std::iter::once(&vm.config)
        .chain(snapshots.map(|snapshot| &snapshot.config))
        .flat_map(|config| Vm::drives(config).map(|(_, volid)| volid.to_owned()))
        .chain(states)
        .collect();
    world
        .volumes
        .iter()
        .filter(|(volid, volume)| volume.owner == vmid && (unreferenced || named.contains(*volid)))
        .map(|(volid, _)| volid.clone())
        .collect()
}
