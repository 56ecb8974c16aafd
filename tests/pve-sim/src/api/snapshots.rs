//! Snapshots: of every attached disk, foreign ones too.

use serde_json::{Value, json};

use super::drive::{insert_state, keep_unused};
use super::status::can_snapshot;
use super::{power, unanswered};
use crate::Version;
use crate::call::{Call, Worker};
use crate::storage::{Plugin, Volume};
use crate::wire::{Answer, Refusal};
use crate::world::{Snapshot, Vm, World, shown, volume_of};

pub(crate) fn perform(call: &Call) -> Answer {
    match call.method.name.as_str() {
        "GET /nodes/{node}/qemu/{vmid}/snapshot" => list(call),
        "GET /nodes/{node}/qemu/{vmid}/snapshot/{snapname}/config" => config(call),
        "POST /nodes/{node}/qemu/{vmid}/snapshot" => take(call),
        "POST /nodes/{node}/qemu/{vmid}/snapshot/{snapname}/rollback" => roll_back(call),
        "DELETE /nodes/{node}/qemu/{vmid}/snapshot/{snapname}" => delete(call),
        _ => unanswered(call),
    }
}

fn list(call: &Call) -> Answer {
    let world = call.world();
    let vm = world.vm(&call.node(), call.vmid())?;
    let mut entries: Vec<Value> = vm
        .snapshots
        .iter()
        .map(|(name, snapshot)| {
            let mut entry = json!({
                "name": name,
                "description": snapshot.description,
                "snaptime": snapshot.time,
                "vmstate": u8::from(snapshot.vmstate.is_some()),
            });
            if let Some(parent) = snapshot.config.get("parent") {
                entry["parent"] = json!(parent);
            }
            entry
        })
        .collect();
    let mut current = json!({
        "name": "current", "description": "You are here!", "digest": vm.digest(), "running": u8::from(vm.run.is_some()),
    });
    if let Some(parent) = vm.config.get("parent") {
        current["parent"] = json!(parent);
    }
    entries.push(current);
    Ok(json!(entries))
}

fn config(call: &Call) -> Answer {
    let world = call.world();
    let vm = world.vm(&call.node(), call.vmid())?;
    let name = call.need("snapname");
    match vm.snapshots.get(&name) {
        Some(snapshot) => Ok(shown(&snapshot.config)),
        None => Err(Refusal::died(format!("snapshot '{name}' does not exist"))),
    }
}

fn take(call: &Call) -> Answer {
    let vmid = call.vmid();
    let name = call.need("snapname");
    if name == "current" {
        return Err(Refusal::died(
            "unable to use snapshot name 'current' (reserved name)",
        ));
    }
    call.world().vm(&call.node(), vmid)?;
    let with_memory = call.flag("vmstate");
    let description = call.text("description").unwrap_or_default();
    call.fork("qmsnapshot", &vmid.to_string(), move |worker| {
        taking(worker, vmid, name, description, with_memory)
    })
}

async fn taking(
    worker: Worker,
    vmid: u32,
    name: String,
    description: String,
    with_memory: bool,
) -> Result<(), String> {
    let _guard = worker.core.lock_vm(vmid).await?;
    let (disks, running) = {
        let world = worker.world();
        world.writable()?;
        let vm = world.unlocked(&worker.node, vmid)?;
        if vm.snapshots.contains_key(&name) {
            return Err(format!("snapshot name '{name}' already used"));
        }
        can_snapshot(&world, vm)?;
        let disks: Vec<(String, String)> = Vm::drives(&vm.config)
            .filter(|(key, _)| !key.starts_with("unused"))
            .map(|(key, volid)| (key.clone(), volid.to_owned()))
            .collect();
        (disks, vm.run.is_some())
    };
    for (key, volid) in &disks {
        worker.log(format!("snapshotting 'drive-{key}' ({volid})"));
        worker.pass(100).await;
        let mut world = worker.world();
        world.changes_volume(&worker.who, volid, "snapshot");
        if let Some(volume) = world.volumes.get_mut(volid) {
            if volume.snapshots.contains(&name) {
                return Err(format!(
                    "Snapshot with name '{name}' already exists on device 'drive-{key}'"
                ));
            }
            volume.snapshots.push(name.clone());
        }
    }
    let mut world = worker.world();
    world.changes_vm(&worker.who, vmid, "snapshot");
    let time = world.seconds();
    let mut vmstate = None;
    if with_memory && running {
        let volid = insert_state(&mut world, &worker, vmid, &name, None)?;
        vmstate = Some(volid);
    }
    let vm = world.vm_mut(&worker.node, vmid)?;
    let mut config = vm.config.clone();
    if let Some(volid) = &vmstate {
        config.insert("vmstate".into(), volid.clone());
    }
    let snapshot = Snapshot {
        config,
        time,
        description,
        vmstate,
    };
    vm.snapshots.insert(name.clone(), snapshot);
    vm.config.insert("parent".into(), name);
    Ok(())
}

fn roll_back(call: &Call) -> Answer {
    let vmid = call.vmid();
    let (name, start) = (call.need("snapname"), call.flag("start"));
    let version = call.version;
    call.fork("qmrollback", &vmid.to_string(), move |worker| {
        rolling_back(worker, vmid, name, start, version)
    })
}

async fn rolling_back(
    worker: Worker,
    vmid: u32,
    name: String,
    start: bool,
    version: Version,
) -> Result<(), String> {
    let guard = worker.core.lock_vm(vmid).await?;
    {
        let world = worker.world();
        world.writable()?;
        let vm = world.unlocked(&worker.node, vmid)?;
        if !vm.snapshots.contains_key(&name) {
            return Err(format!("snapshot '{name}' does not exist"));
        }
        may_go_back(&world, vm, &name)?;
    }
    worker.pass(300).await;
    let cleans_up = {
        let mut world = worker.world();
        world.changes_vm(&worker.who, vmid, "rollback");
        let was_running = world.vm(&worker.node, vmid)?.run.is_some();
        power::halt(&worker.core, &mut world, vmid);
        let vm = world.vm_mut(&worker.node, vmid)?;
        let Some(snapshot) = vm.snapshots.get(&name).cloned() else {
            return Err(format!("snapshot '{name}' does not exist"));
        };
        // Its notes, and the disks that it keeps unused, are of no snapshot.
        let stays = |key: &str| key == "description" || key.starts_with("unused");
        vm.config.retain(|key, _| stays(key));
        let then = snapshot.config.into_iter().filter(|(key, _)| !stays(key));
        vm.config.extend(then);
        let used: Vec<String> = Vm::drives(&vm.config)
            .filter(|(key, _)| !key.starts_with("unused"))
            .map(|(_, volid)| volid.to_owned())
            .collect();
        vm.config
            .retain(|key, held| !key.starts_with("unused") || !used.contains(held));
        vm.config.remove("vmstate");
        vm.config.insert("parent".into(), name);
        vm.pending.clear();
        let resumes = snapshot.vmstate.is_some();
        if resumes {
            power::run(&worker.core, &mut world, vmid);
        }
        resumes && was_running && version == Version::V9
    };
    drop(guard);
    if cleans_up {
        linger(&worker, vmid);
    } else if start && worker.world().vm(&worker.node, vmid)?.run.is_none() {
        let core = std::sync::Arc::clone(&worker.core);
        core.fork(
            &worker.node,
            "qmstart",
            &vmid.to_string(),
            &worker.who,
            |worker| power::start(worker, vmid),
        );
    }
    Ok(())
}

/// ZFS forgets whatever is younger than what it goes back to, so that PVE lets it go back to the youngest only.
fn may_go_back(world: &World, vm: &Vm, name: &str) -> Result<(), String> {
    let is_zfs = |volume: &&Volume| {
        world
            .storages
            .get(&volume.storage)
            .is_some_and(|storage| storage.plugin == Plugin::Zfs)
    };
    let stuck = Vm::drives(&vm.config).find(|(_, volid)| {
        let volume = world.volumes.get(*volid).filter(is_zfs);
        volume.is_some_and(|volume| volume.snapshots.last().is_some_and(|last| last != name))
    });
    match stuck {
        Some((_, volid)) => {
            let volume = volid.split_once(':').map_or(volid, |(_, volume)| volume);
            Err(format!(
                "can't rollback, '{name}' is not most recent snapshot on '{volume}'"
            ))
        }
        None => Ok(()),
    }
}

/// After such a rollback the event daemon of release 9 holds the machine's lock for up to 30 s.
fn linger(worker: &Worker, vmid: u32) {
    let core = std::sync::Arc::clone(&worker.core);
    worker.core.timeline.spawn(async move {
        let guard = core.lock_vm(vmid).await;
        core.pass(std::time::Duration::from_secs(30)).await;
        drop(guard);
    });
}

fn delete(call: &Call) -> Answer {
    let vmid = call.vmid();
    let name = call.need("snapname");
    call.fork("qmdelsnapshot", &vmid.to_string(), move |worker| {
        deleting(worker, vmid, name)
    })
}

async fn deleting(worker: Worker, vmid: u32, name: String) -> Result<(), String> {
    let _guard = worker.core.lock_vm(vmid).await?;
    {
        let world = worker.world();
        world.writable()?;
        let vm = world.unlocked(&worker.node, vmid)?;
        if !vm.snapshots.contains_key(&name) {
            return Err(format!("snapshot '{name}' does not exist"));
        }
    }
    worker.pass(200).await;
    let mut world = worker.world();
    world.changes_vm(&worker.who, vmid, "delsnapshot");
    let vm = world.vm_mut(&worker.node, vmid)?;
    let Some(snapshot) = vm.snapshots.remove(&name) else {
        return Err(format!("snapshot '{name}' does not exist"));
    };
    match snapshot.config.get("parent") {
        Some(parent) if vm.config.get("parent") == Some(&name) => {
            let parent = parent.clone();
            vm.config.insert("parent".into(), parent);
        }
        _ if vm.config.get("parent") == Some(&name) => {
            vm.config.remove("parent");
        }
        _ => {}
    }
    let mut freed = Vec::new();
    for value in snapshot.config.values() {
        let volid = volume_of(value);
        if let Some(volume) = world.volumes.get_mut(volid) {
            volume.snapshots.retain(|snapshot| *snapshot != name);
            freed.extend((volume.owner == vmid).then(|| volid.to_owned()));
        }
    }
    let vm = world.vm_mut(&worker.node, vmid)?;
    for volid in freed {
        keep_unused(vm, volid);
    }
    if let Some(volid) = snapshot.vmstate {
        world.volumes.remove(&volid);
    }
    Ok(())
}
