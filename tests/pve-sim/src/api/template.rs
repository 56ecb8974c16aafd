//! A machine becomes a template: its disks become bases that nobody writes to.

use crate::call::{Call, Worker};
use crate::storage;
use crate::wire::{Answer, Refusal};
use crate::world::{Vm, volume_of};

pub(crate) fn convert(call: &Call) -> Answer {
    let vmid = call.vmid();
    {
        let world = call.world();
        world.writable()?;
        let vm = world.vm(&call.node(), vmid)?;
        if vm.run.is_some() {
            return Err(Refusal::died(
                "you can't convert a VM to template if VM is running",
            ));
        }
        if vm.is_template() {
            return Err(Refusal::died("you can't convert a template to a template"));
        }
    }
    call.fork("qmtemplate", &vmid.to_string(), move |worker| {
        converting(worker, vmid)
    })
}

async fn converting(worker: Worker, vmid: u32) -> Result<(), String> {
    let _guard = worker.core.lock_vm(vmid).await?;
    worker.world().unlocked(&worker.node, vmid)?;
    worker.pass(300).await;
    let mut world = worker.world();
    world.changes_vm(&worker.who, vmid, "template");
    let drives: Vec<(String, String)> = {
        let vm = world.vm(&worker.node, vmid)?;
        Vm::drives(&vm.config)
            .map(|(key, volid)| (key.clone(), volid.to_owned()))
            .collect()
    };
    for (key, volid) in drives {
        let file = storage::file_of(&volid);
        if !file.starts_with("vm-") {
            continue;
        }
        let base = volid.replace(file, &file.replacen("vm-", "base-", 1));
        if let Some(volume) = world.volumes.remove(&volid) {
            world.volumes.insert(base.clone(), volume);
        }
        let vm = world.vm_mut(&worker.node, vmid)?;
        if let Some(value) = vm.config.get_mut(&key) {
            let rest = value
                .strip_prefix(volume_of(value))
                .unwrap_or_default()
                .to_owned();
            *value = format!("{base}{rest}");
        }
    }
    let vm = world.vm_mut(&worker.node, vmid)?;
    vm.config.insert("template".into(), "1".into());
    Ok(())
}
