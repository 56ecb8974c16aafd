//! Clones: checked before the worker starts, checked again inside it, and owned by whoever wrote the file first.

use std::time::Duration;

use super::drive::{Made, free_disk_name, insert_volume};
use crate::Version;
use crate::audit::origin_of;
use crate::call::{Call, Worker};
use crate::formats::is_drive;
use crate::locks::Mode;
use crate::storage::{self, Plugin};
use crate::wire::{Answer, Refusal};
use crate::world::{Config, Vm, World, volume_of};

/// A clone waits no longer than this for either machine's lock.
const LOCK_WAIT: Duration = Duration::from_secs(1);

struct Spec {
    vmid: u32,
    newid: u32,
    /// The state to copy; the machine as it is when absent.
    snapshot: Option<String>,
    full: bool,
    name: Option<String>,
    description: Option<String>,
    pool: Option<String>,
    storage: Option<String>,
    target: String,
    version: Version,
}

pub(crate) fn clone(call: &Call) -> Answer {
    let newid = call
        .number("newid")
        .and_then(|id| u32::try_from(id).ok())
        .unwrap_or_default();
    let (vmid, node) = (call.vmid(), call.node());
    let (spec, bridges, storages) = {
        let world = call.world();
        world.writable()?;
        let vm = world.vm(&node, vmid).map_err(|_| {
            Refusal::died(format!(
                "unable to find configuration file for VM {vmid} on node '{node}'"
            ))
        })?;
        if let Some(lock) = vm.lock() {
            return Err(Refusal::died(format!("VM is locked ({lock})")));
        }
        let full = call.text("full").map_or(!vm.is_template(), |_| call.flag("full"));
        let spec = Spec {
            vmid,
            newid,
            snapshot: call.text("snapname"),
            full,
            name: call.text("name"),
            description: call.text("description"),
            pool: call.text("pool"),
            storage: call.text("storage"),
            target: call.text("target").unwrap_or_else(|| node.clone()),
            version: call.version,
        };
        configuration(vm, &spec)?;
        may_be_cloned(&world, vm, &spec)?;
        (
            spec,
            bridges(&vm.config),
            storages(&world, vm, call.text("storage")),
        )
    };
    for bridge in bridges {
        call.require(&format!("/sdn/zones/localnetwork/{bridge}"), &["SDN.Use"])?;
    }
    for storage in storages {
        call.require(&format!("/storage/{storage}"), &["Datastore.AllocateSpace"])?;
    }
    call.fork("qmclone", &vmid.to_string(), move |worker| cloning(worker, spec))
}

/// What is copied.
fn configuration<'a>(vm: &'a Vm, spec: &Spec) -> Result<&'a Config, String> {
    let Some(name) = &spec.snapshot else {
        return Ok(&vm.config);
    };
    let snapshot = vm.snapshots.get(name);
    let snapshot = snapshot.ok_or_else(|| format!("snapshot '{name}' does not exist"))?;
    Ok(&snapshot.config)
}

/// A ZFS volume is copied as it is, or not at all.
fn may_be_copied(world: &World, config: &Config, spec: &Spec) -> Result<(), Refusal> {
    let is_zfs = |volid: &str| {
        let storage = world
            .volumes
            .get(volid)
            .and_then(|volume| world.storages.get(&volume.storage));
        storage.is_some_and(|storage| storage.plugin == Plugin::Zfs)
    };
    let stuck = Vm::drives(config).find(|(key, volid)| is_drive(key) && is_zfs(volid));
    match stuck.filter(|_| spec.full && spec.snapshot.is_some()) {
        Some((_, volid)) => Err(Refusal::died(format!(
            "Full clone feature is not supported for a snapshot of '{volid}'"
        ))),
        None => Ok(()),
    }
}

fn may_be_cloned(world: &World, vm: &Vm, spec: &Spec) -> Result<(), Refusal> {
    if let Some(storage) = &spec.storage {
        if !spec.full {
            return Err(Refusal::died("parameter 'storage' not allowed for linked clones"));
        }
        if !world.storages.contains_key(storage) {
            return Err(Refusal::died(format!("storage '{storage}' does not exist")));
        }
    }
    if spec.target != vm.node {
        let local = Vm::drives(&vm.config)
            .filter_map(|(_, volid)| world.volumes.get(volid))
            .any(|volume| {
                world
                    .storages
                    .get(&volume.storage)
                    .is_some_and(|storage| !storage.shared)
            });
        if local {
            return Err(Refusal::died(format!(
                "can't clone VM to node '{}' (VM uses local storage)",
                spec.target
            )));
        }
    }
    if world.vms.contains_key(&spec.newid) {
        return Err(Refusal::died(exists(spec.newid)));
    }
    may_be_copied(world, configuration(vm, spec)?, spec)?;
    for (key, volid) in Vm::drives(&vm.config).filter(|(key, _)| !spec.full && is_drive(key)) {
        let plugin = world
            .volumes
            .get(volid)
            .and_then(|volume| world.storages.get(&volume.storage))
            .map(|storage| storage.plugin);
        if !storage::is_base(volid) || !plugin.is_some_and(Plugin::links) {
            return Err(Refusal::died(format!(
                "Linked clone feature is not supported for '{volid}' ({key})"
            )));
        }
    }
    Ok(())
}

fn exists(newid: u32) -> String {
    format!("unable to create VM {newid}: config file already exists")
}

/// Bridges, with their tags, that a configuration plugs into.
pub(crate) fn bridges(config: &Config) -> Vec<String> {
    config
        .iter()
        .filter(|(key, _)| key.strip_prefix("net").is_some_and(|n| n.parse::<u8>().is_ok()))
        .filter_map(|(_, value)| bridge_of(value))
        .collect()
}

pub(crate) fn bridge_of(net: &str) -> Option<String> {
    let part = |name| net.split(',').find_map(|part: &str| part.strip_prefix(name));
    let bridge = part("bridge=")?;
    Some(match part("tag=") {
        Some(tag) => format!("{bridge}/{tag}"),
        None => bridge.to_owned(),
    })
}

/// Storages that a clone puts something on, the one that its memory may go to among them.
fn storages(world: &World, vm: &Vm, wanted: Option<String>) -> Vec<String> {
    let of_disks = || {
        Vm::drives(&vm.config)
            .filter_map(|(_, volid)| world.volumes.get(volid))
            .map(|volume| volume.storage.clone())
            .collect()
    };
    let mut storages: Vec<String> = wanted.map_or_else(of_disks, |storage| vec![storage]);
    storages.extend(vm.config.get("vmstatestorage").cloned());
    storages
}

async fn cloning(worker: Worker, spec: Spec) -> Result<(), String> {
    let mode = match worker.world().vm(&worker.node, spec.vmid)?.run {
        Some(_) => Mode::Exclusive,
        None => Mode::Shared,
    };
    let _source = worker.core.lock_vm_for(spec.vmid, mode, LOCK_WAIT).await?;
    let _target = worker
        .core
        .lock_vm_for(spec.newid, Mode::Exclusive, LOCK_WAIT)
        .await?;
    let source = {
        let mut world = worker.world();
        world.writable()?;
        let source = configuration(world.unlocked(&worker.node, spec.vmid)?, &spec)?.clone();
        if world.vms.contains_key(&spec.newid) {
            return Err(exists(spec.newid));
        }
        let placeholder = Config::from([("lock".to_owned(), "clone".to_owned())]);
        let origin = origin_of(&worker.who);
        world
            .vms
            .insert(spec.newid, Vm::new(&spec.target, placeholder, origin));
        world.changes_vm(&worker.who, spec.newid, "clone");
        if let Some(task) = world.tasks.iter_mut().rev().find(|task| task.upid == worker.upid) {
            task.target = Some(spec.newid);
        }
        source
    };
    if spec.version == Version::V9 {
        worker.log(format!(
            "creating a clone of VM {} with ID {}",
            spec.vmid, spec.newid
        ));
    }
    match copy_disks(&worker, &spec, &source).await {
        Ok(drives) => {
            finish(&worker, &spec, &source, drives);
            Ok(())
        }
        Err(text) => {
            undo(&mut worker.world(), spec.newid);
            Err(format!("clone failed: {text}"))
        }
    }
}

async fn copy_disks(worker: &Worker, spec: &Spec, source: &Config) -> Result<Config, String> {
    let mut drives = Config::new();
    for (key, value) in source
        .iter()
        .filter(|(key, _)| is_drive(key) || matches!(key.as_str(), "efidisk0" | "tpmstate0"))
    {
        let volid = volume_of(value);
        if !volid.contains(':') {
            drives.insert(key.clone(), value.clone());
            continue;
        }
        let full = spec.full || volid.contains("cloudinit");
        let kind = if full { "full" } else { "linked" };
        worker.log(format!("create {kind} clone of drive {key} ({volid})"));
        let made = copy_disk(worker, spec, volid, full).await?;
        let rest = value.split_once(',').map_or("", |(_, rest)| rest);
        let value = if rest.is_empty() {
            made
        } else {
            format!("{made},{rest}")
        };
        drives.insert(key.clone(), value);
    }
    Ok(drives)
}

async fn copy_disk(worker: &Worker, spec: &Spec, from: &str, full: bool) -> Result<String, String> {
    let (storage, size, format) = {
        let world = worker.world();
        let volume = world
            .volumes
            .get(from)
            .ok_or_else(|| format!("volume '{from}' does not exist"))?;
        let storage = spec
            .storage
            .clone()
            .filter(|_| full)
            .unwrap_or_else(|| volume.storage.clone());
        (storage, volume.size, volume.format.clone())
    };
    let guard = worker.core.lock_storage(&storage).await?;
    worker.pass(if full { 400 } else { 250 }).await;
    let made = {
        let mut world = worker.world();
        let plugin = world
            .storages
            .get(&storage)
            .map_or(Plugin::Dir, |storage| storage.plugin);
        // Known by its name, so it keeps that.
        let disk = if from.contains("cloudinit") {
            format!("vm-{}-cloudinit", spec.newid)
        } else {
            free_disk_name(&world, &storage, spec.newid)
        };
        let format = plugin.format_of_copy(&format);
        let volid = if full {
            storage::volid(&storage, plugin, spec.newid, &disk, format)
        } else {
            storage::linked_volid(&storage, plugin, from, spec.newid, &disk)
        };
        let disk = Made {
            node: &spec.target,
            owner: spec.newid,
            format,
            size,
        };
        insert_volume(&mut world, &worker.who, &volid, &disk);
        if let Some(volume) = world.volumes.get_mut(&volid).filter(|_| !full) {
            volume.parent = Some(from.to_owned());
        }
        volid
    };
    drop(guard);
    if full {
        // The bytes are copied without the storage's lock.
        worker.pass(15_000).await;
        worker.log(format!("transferred {size} bytes (100.00%)"));
    } else if let Some((_, base)) = from.split_once(':').filter(|(_, base)| base.contains('/')) {
        log_linked(worker, spec, &made, base, size);
    }
    Ok(made)
}

fn log_linked(worker: &Worker, spec: &Spec, made: &str, base: &str, size: u64) {
    let (newid, file) = (spec.newid, storage::file_of(made));
    worker.log(format!(
        "clone {base}: images, {file}, {newid} to {file} (base=../{base})"
    ));
    let layout = match spec.version {
        Version::V8 => "cluster_size=65536 extended_l2=off",
        Version::V9 => "cluster_size=131072 extended_l2=on preallocation=metadata",
    };
    let path = {
        let world = worker.world();
        let storage = made.split(':').next().and_then(|name| world.storages.get(name));
        storage.map(|storage| storage.path.clone()).unwrap_or_default()
    };
    worker.log(format!(
        "Formatting '{path}/images/{newid}/{file}', fmt=qcow2 {layout} compression_type=zlib size={size} \
         backing_file=../{base} backing_fmt=qcow2 lazy_refcounts=off refcount_bits=16"
    ));
}

/// The placeholder becomes the machine, and only then a member of its pool.
fn finish(worker: &Worker, spec: &Spec, source: &Config, drives: Config) {
    let mut world = worker.world();
    let mut config: Config = source
        .iter()
        .filter(|(key, _)| !is_drive(key) && !key.starts_with("unused"))
        .filter(|(key, _)| !matches!(key.as_str(), "template" | "parent" | "lock" | "snaptime"))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    config.extend(drives);
    let uuid = world.random.uuid();
    let smbios = config.get("smbios1").cloned().unwrap_or_default();
    let rest = smbios
        .split(',')
        .filter(|part| !part.is_empty() && !part.starts_with("uuid="));
    let smbios: Vec<String> = std::iter::once(format!("uuid={uuid}"))
        .chain(rest.map(str::to_owned))
        .collect();
    config.insert("smbios1".into(), smbios.join(","));
    if config.contains_key("vmgenid") {
        let id = world.random.uuid();
        config.insert("vmgenid".into(), id);
    }
    for (_, value) in config
        .iter_mut()
        .filter(|(key, _)| key.strip_prefix("net").is_some_and(|n| n.parse::<u8>().is_ok()))
    {
        let (model, rest) = value
            .split_once(',')
            .map_or((value.as_str(), ""), |(model, rest)| (model, rest));
        let model = model.split('=').next().unwrap_or_default();
        *value = format!("{model}={},{rest}", world.random.mac());
    }
    let name = spec.name.clone().unwrap_or_else(|| {
        let of = source
            .get("name")
            .cloned()
            .unwrap_or_else(|| format!("VM{}", spec.vmid));
        format!("Copy-of-VM-{of}")
    });
    config.insert("name".into(), name);
    if let Some(description) = &spec.description {
        config.insert("description".into(), description.clone());
    }
    let firewall = world
        .vms
        .get(&spec.vmid)
        .map(|vm| (vm.firewall.clone(), vm.rules.clone()))
        .unwrap_or_default();
    if let Some(vm) = world.vms.get_mut(&spec.newid) {
        vm.config = config;
        (vm.firewall, vm.rules) = firewall;
        if let Some(pool) = spec.pool.as_ref().and_then(|pool| world.pools.get_mut(pool)) {
            pool.vms.insert(spec.newid);
        }
    }
}

/// A clone that failed or was ended takes away what it made.
pub(crate) fn undo(world: &mut World, newid: u32) {
    world.volumes.retain(|_, volume| volume.owner != newid);
    world.forget_vm(newid);
}
