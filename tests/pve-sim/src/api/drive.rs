//! Disks: their names, growing one, giving one to another machine.

use crate::access::Identity;
use crate::audit::origin_of;
use crate::call::{Call, Worker};
use crate::formats::{bytes_of, size_text};
use crate::storage::{self, Plugin, Volume};
use crate::wire::{Answer, Refusal};
use crate::world::{Vm, World, volume_of};

/// The first `vm-<vmid>-disk-<n>` that is free on a storage.
pub(crate) fn free_disk_name(world: &World, storage: &str, vmid: u32) -> String {
    let taken = |disk: &str| {
        world
            .volumes
            .iter()
            .filter(|(_, volume)| volume.storage == storage)
            .any(|(volid, _)| storage::file_of(volid).split('.').next() == Some(disk))
    };
    (0..)
        .map(|n: u32| format!("vm-{vmid}-disk-{n}"))
        .find(|disk| !taken(disk) && !taken(&disk.replacen("vm-", "base-", 1)))
        .unwrap_or_default()
}

/// A disk of a machine's own that is in none of its slots waits as unused, once.
pub(crate) fn keep_unused(vm: &mut Vm, volid: String) {
    if vm.config.values().any(|value| volume_of(value) == volid) {
        return;
    }
    let free = (0..256).map(|n: u32| format!("unused{n}"));
    if let Some(key) = free.into_iter().find(|key| !vm.config.contains_key(key)) {
        vm.config.insert(key, volid);
    }
}

/// Whether one of a machine's snapshots holds a disk.
fn is_in_snapshot(vm: &Vm, volid: &str) -> bool {
    let mut values = vm
        .snapshots
        .values()
        .flat_map(|snapshot| snapshot.config.values());
    values.any(|value| volume_of(value) == volid)
}

/// What a new volume is like.
pub(crate) struct Made<'a> {
    pub(crate) node: &'a str,
    pub(crate) owner: u32,
    pub(crate) format: &'a str,
    pub(crate) size: u64,
}

pub(crate) fn insert_volume(world: &mut World, who: &Identity, volid: &str, made: &Made<'_>) {
    let volume = Volume {
        storage: volid.split(':').next().unwrap_or_default().to_owned(),
        node: made.node.to_owned(),
        owner: made.owner,
        format: made.format.to_owned(),
        size: made.size,
        created: world.seconds(),
        parent: None,
        snapshots: Vec::new(),
        origin: origin_of(who),
    };
    world.volumes.insert(volid.to_owned(), volume);
    world.changes_volume(who, volid, "create");
}

/// Makes the volume that a machine's memory goes to: on the storage that is asked for, the one its configuration names,
/// or `local`.
pub(crate) fn insert_state(
    world: &mut World,
    worker: &Worker,
    vmid: u32,
    name: &str,
    asked: Option<String>,
) -> Result<String, String> {
    let vm = world.vm(&worker.node, vmid)?;
    let size = vm.number("memory", 512) << 20;
    let storage = asked
        .or_else(|| vm.config.get("vmstatestorage").cloned())
        .unwrap_or_else(|| "local".into());
    let plugin = world
        .storages
        .get(&storage)
        .map(|storage| storage.plugin)
        .ok_or_else(|| format!("storage '{storage}' does not exist"))?;
    let volid = storage::volid(&storage, plugin, vmid, &format!("vm-{vmid}-state-{name}"), "raw");
    let state = Made {
        node: &worker.node,
        owner: vmid,
        format: "raw",
        size,
    };
    insert_volume(world, &worker.who, &volid, &state);
    Ok(volid)
}

/// A drive's value with its size as it now is.
pub(crate) fn with_size(value: &str, size: u64) -> String {
    let kept: Vec<&str> = value
        .split(',')
        .filter(|part| !part.starts_with("size="))
        .collect();
    format!("{},size={}", kept.join(","), size_text(size))
}

pub(crate) fn resize(call: &Call) -> Answer {
    call.refuse_skiplock()?;
    let vmid = call.vmid();
    let (disk, size, digest) = (call.need("disk"), call.need("size"), call.text("digest"));
    call.fork("resize", &vmid.to_string(), move |worker| {
        growing(worker, vmid, disk, size, digest)
    })
}

async fn growing(
    worker: Worker,
    vmid: u32,
    disk: String,
    size: String,
    digest: Option<String>,
) -> Result<(), String> {
    let _guard = worker.core.lock_vm(vmid).await?;
    worker.pass(100).await;
    let mut world = worker.world();
    let (volid, value) = {
        let vm = world.unlocked(&worker.node, vmid)?;
        refuse_stale(digest.as_deref(), &vm.digest())?;
        let value = vm
            .config
            .get(&disk)
            .ok_or_else(|| format!("disk '{disk}' does not exist"))?;
        (volume_of(value).to_owned(), value.clone())
    };
    let before = world
        .volumes
        .get(&volid)
        .ok_or_else(|| format!("volume '{volid}' does not exist"))?
        .size;
    let after = match size.strip_prefix('+') {
        Some(more) => before + bytes_of(more, 1),
        None => bytes_of(&size, 1),
    };
    if after < before {
        return Err("shrinking disks is not supported".into());
    }
    world.changes_vm(&worker.who, vmid, "resize");
    world.changes_volume(&worker.who, &volid, "resize");
    if let Some(volume) = world.volumes.get_mut(&volid) {
        volume.size = after;
    }
    let vm = world.vm_mut(&worker.node, vmid)?;
    vm.config.insert(disk, with_size(&value, after));
    drop(world);
    worker.log("Image resized.");
    Ok(())
}

/// `move_disk`: to another storage, or to another machine.
pub(crate) fn relocate(call: &Call) -> Answer {
    if call.text("storage").is_some() && call.text("target-vmid").is_some() {
        return Err(Refusal::parameter(
            "target-vmid",
            "must set either 'storage' or 'target-vmid', but not both",
        ));
    }
    match call.text("storage") {
        Some(storage) => to_storage(call, storage),
        None => reassign(call),
    }
}

fn to_storage(call: &Call, storage: String) -> Answer {
    let (vmid, disk) = (call.vmid(), call.need("disk"));
    call.require(&format!("/storage/{storage}"), &["Datastore.AllocateSpace"])?;
    {
        let world = call.world();
        let vm = world.vm(&call.node(), vmid)?;
        refuse_stale(call.text("digest").as_deref(), &vm.digest())?;
        let value = vm
            .config
            .get(&disk)
            .ok_or_else(|| Refusal::died(format!("disk '{disk}' does not exist")))?;
        let volid = volume_of(value);
        if volid.ends_with("cloudinit") || value.contains("media=cdrom") {
            return Err(Refusal::died("you can't move a cdrom"));
        }
        if volid.split(':').next() == Some(storage.as_str()) && call.text("format").is_none() {
            return Err(Refusal::died(
                "you can't move to the same storage with same format",
            ));
        }
        if call.flag("delete") && is_in_snapshot(vm, volid) {
            return Err(Refusal::died(
                "you can't move a disk with snapshots and delete the source",
            ));
        }
    }
    let format = call.text("format");
    let keeps = !call.flag("delete");
    call.fork("qmmove", &vmid.to_string(), move |worker| async move {
        let asked = Copy {
            disk,
            storage,
            format,
            keeps,
        };
        copying(worker, vmid, asked).await
    })
}

/// A disk copied to another storage.
struct Copy {
    disk: String,
    storage: String,
    format: Option<String>,
    /// The old one stays, unused.
    keeps: bool,
}

async fn copying(worker: Worker, vmid: u32, asked: Copy) -> Result<(), String> {
    let _guard = worker.core.lock_vm(vmid).await?;
    let (value, from, source) = {
        let world = worker.world();
        let vm = world.unlocked(&worker.node, vmid)?;
        let value = vm.config.get(&asked.disk).cloned().unwrap_or_default();
        let from = volume_of(&value).to_owned();
        let source = world
            .volumes
            .get(&from)
            .cloned()
            .ok_or_else(|| format!("volume '{from}' does not exist"))?;
        (value, from, source)
    };
    let storage_guard = worker.core.lock_storage(&asked.storage).await?;
    let made = {
        let mut world = worker.world();
        let plugin = world
            .storages
            .get(&asked.storage)
            .map(|storage| storage.plugin)
            .ok_or_else(|| format!("storage '{}' does not exist", asked.storage))?;
        let name = free_disk_name(&world, &asked.storage, vmid);
        let format = plugin.format_of_copy(asked.format.as_deref().unwrap_or(&source.format));
        let made = storage::volid(&asked.storage, plugin, vmid, &name, format);
        let of = Made {
            node: &worker.node,
            owner: vmid,
            format,
            size: source.size,
        };
        insert_volume(&mut world, &worker.who, &made, &of);
        made
    };
    drop(storage_guard);
    // The bytes are copied without the storage's lock.
    worker.pass(5_000).await;
    let mut world = worker.world();
    world.changes_vm(&worker.who, vmid, "move disk of");
    let rest = value.strip_prefix(from.as_str()).unwrap_or_default();
    let vm = world.vm_mut(&worker.node, vmid)?;
    vm.config.insert(asked.disk, format!("{made}{rest}"));
    if asked.keeps {
        keep_unused(vm, from);
    } else {
        world.changes_volume(&worker.who, &from, "delete");
        world.volumes.remove(&from);
    }
    Ok(())
}

/// With a target machine the disk gets another owner and a name to match.
fn reassign(call: &Call) -> Answer {
    let vmid = call.vmid();
    let disk = call.need("disk");
    let Some(target) = call.number("target-vmid").and_then(|id| u32::try_from(id).ok()) else {
        return Err(Refusal::died("either set 'storage' or 'target-vmid'"));
    };
    call.require(&format!("/vms/{target}"), &["VM.Config.Disk"])?;
    let to = call.text("target-disk").unwrap_or_else(|| disk.clone());
    {
        let world = call.world();
        let vm = world.vm(&call.node(), vmid)?;
        let other = world.vm(&call.node(), target)?;
        let held = vm.config.get(&disk).map(|value| volume_of(value));
        if held.is_some_and(|volid| is_in_snapshot(vm, volid)) {
            return Err(Refusal::died("Can't move disk used by a snapshot to another VM"));
        }
        if !vm.config.contains_key(&disk) {
            return Err(Refusal::died(format!(
                "Source disk '{disk}' of VM {vmid} does not exist"
            )));
        }
        if other.config.contains_key(&to) {
            return Err(Refusal::died(format!(
                "Target disk key '{to}' is already in use for VM '{target}'"
            )));
        }
    }
    let id = format!("{vmid}-{disk}>{target}-{to}");
    call.fork("qmmove", &id, move |worker| {
        moving(worker, vmid, disk, target, to)
    })
}

async fn moving(worker: Worker, vmid: u32, disk: String, target: u32, to: String) -> Result<(), String> {
    let _source = worker.core.lock_vm(vmid).await?;
    let _target = worker.core.lock_vm(target).await?;
    worker.pass(100).await;
    let mut world = worker.world();
    let node = worker.node.clone();
    world.unlocked(&node, target)?;
    world.unlocked(&node, vmid)?;
    world.changes_vm(&worker.who, vmid, "move disk of");
    world.changes_vm(&worker.who, target, "move disk to");
    let value = world
        .vm_mut(&node, vmid)?
        .config
        .remove(&disk)
        .ok_or_else(|| format!("disk '{disk}' does not exist"))?;
    let from = volume_of(&value).to_owned();
    let Some(mut volume) = world.volumes.remove(&from) else {
        return Err(format!("volume '{from}' does not exist"));
    };
    let plugin = world
        .storages
        .get(&volume.storage)
        .map_or(Plugin::Dir, |storage| storage.plugin);
    let name = free_disk_name(&world, &volume.storage, target);
    let made = storage::volid(&volume.storage, plugin, target, &name, &volume.format);
    volume.owner = target;
    world.volumes.insert(made.clone(), volume);
    let rest = value.strip_prefix(from.as_str()).unwrap_or_default();
    world
        .vm_mut(&node, target)?
        .config
        .insert(to, format!("{made}{rest}"));
    Ok(())
}

/// What an allocation asks for: `storage:GiB`.
pub(crate) fn allocation(volid: &str) -> Option<(&str, u64)> {
    let (storage, size) = volid.split_once(':')?;
    size.parse::<f64>().ok().filter(|size| *size > 0.0)?;
    Some((storage, bytes_of(&format!("{size}G"), 1)))
}

/// Refuses a change based on a configuration that is no longer the one that stands.
pub(crate) fn refuse_stale(wanted: Option<&str>, is: &str) -> Result<(), String> {
    match wanted {
        Some(wanted) if wanted != is => Err("checksum mismatch (file change by other user?)".into()),
        Some(_) | None => Ok(()),
    }
}
