//! A machine made from nothing, or from images.

use super::config::{Change, fill};
use super::{may, power};
use crate::audit::origin_of;
use crate::call::{Call, Worker};
use crate::wire::{Answer, Refusal};
use crate::world::{Config, Vm, volume_of};

pub(crate) fn create(call: &Call) -> Answer {
    let change = Change::of(call)?;
    let vmid = call.vmid();
    let pool = call.text("pool");
    call.world().writable()?;
    if let Some(storage) = call.text("storage") {
        call.require(&format!("/storage/{storage}"), &["Datastore.AllocateSpace"])?;
    }
    let start = call.flag("start");
    may::may_set(call, &change, Some(pool.as_deref()))?;
    if let Some(vm) = call.world().vms.get(&vmid) {
        let at = &vm.node;
        return Err(Refusal::died(format!(
            "unable to create VM {vmid} - VM {vmid} already exists on node '{at}'"
        )));
    }
    call.fork("qmcreate", &vmid.to_string(), move |worker| async move {
        let made = creating(&worker, vmid, change.set, pool.as_deref()).await;
        made.map_err(|text| format!("unable to create VM {vmid} - {text}"))?;
        if start {
            power::start(worker, vmid).await
        } else {
            Ok(())
        }
    })
}

async fn creating(worker: &Worker, vmid: u32, keys: Config, pool: Option<&str>) -> Result<(), String> {
    let _guard = worker.core.lock_vm(vmid).await?;
    {
        let mut world = worker.world();
        if let Some(vm) = world.vms.get(&vmid) {
            let at = &vm.node;
            return Err(format!("VM {vmid} already exists on node '{at}'"));
        }
        let placeholder = Config::from([("lock".to_owned(), "create".to_owned())]);
        let vm = Vm::new(&worker.node, placeholder, origin_of(&worker.who));
        world.vms.insert(vmid, vm);
        world.changes_vm(&worker.who, vmid, "create");
    }
    let filled = fill(worker, vmid, &keys).await;
    let mut world = worker.world();
    if let Err(refusal) = filled {
        // What was made for it so far goes with it; a disk of somebody else's that it only names does not.
        let held = world
            .vms
            .get(&vmid)
            .map(|vm| vm.config.clone())
            .unwrap_or_default();
        for value in held.values() {
            let volid = volume_of(value);
            if world
                .volumes
                .get(volid)
                .is_some_and(|volume| volume.owner == vmid)
            {
                world.volumes.remove(volid);
            }
        }
        world.forget_vm(vmid);
        return Err(refusal.text());
    }
    let beginning = Config::from([
        ("smbios1".to_owned(), format!("uuid={}", world.random.uuid())),
        ("vmgenid".to_owned(), world.random.uuid()),
        (
            "meta".to_owned(),
            format!("creation-qemu=9.2.0,ctime={}", world.seconds()),
        ),
    ]);
    let vm = world.vm_mut(&worker.node, vmid)?;
    vm.config.remove("lock");
    for (key, value) in beginning {
        vm.config.entry(key).or_insert(value);
    }
    if let Some(pool) = pool.and_then(|pool| world.pools.get_mut(pool)) {
        pool.vms.insert(vmid);
    }
    Ok(())
}
