//! A machine's configuration changed: privileges per key, drives, what takes effect at once and what waits.

use crate::audit::origin_of;
use crate::core::{Call, Core, NOTHING, Worker};
use crate::formats::is_drive;
use crate::schema::{Key, Kind, flag, key_of};
use crate::wire::{Answer, Refusal};
use crate::world::{Config, Vm, World, volume_of};

use super::clone::bridge_of;
use super::drive::{Made, allocation, free_disk_name, insert_volume, refuse_stale, with_size};
use super::power;
use crate::storage;

/// Parameters that stand beside the keys of a configuration.
const BESIDE: &[&str] = &[
    "node",
    "vmid",
    "delete",
    "digest",
    "force",
    "revert",
    "skiplock",
    "background_delay",
    "import-working-storage",
    "pool",
    "start",
    "storage",
    "unique",
    "archive",
    "bwlimit",
    "live-restore",
    "ha-managed",
];

/// What is to change.
#[derive(Debug, Clone, Default)]
struct Change {
    set: Config,
    delete: Vec<String>,
    revert: Vec<String>,
    digest: Option<String>,
    force: bool,
}

impl Change {
    fn of(call: &Call) -> Result<Self, Refusal> {
        let mut set = Config::new();
        for (name, value) in call
            .given
            .iter()
            .filter(|(name, _)| !BESIDE.contains(&name.as_str()))
        {
            set.insert(name.clone(), normal(name, &value.text()));
        }
        let delete = list(call, "delete")?;
        if let Some(both) = delete.iter().find(|name| set.contains_key(*name)) {
            return Err(Refusal::parameter(
                "delete",
                format!("you can't use '-{both}' and -delete {both}' at the same time"),
            ));
        }
        Ok(Self {
            set,
            delete,
            revert: list(call, "revert")?,
            digest: call.text("digest"),
            force: call.flag("force"),
        })
    }
}

fn list(call: &Call, name: &str) -> Result<Vec<String>, Refusal> {
    let text = call.text(name).unwrap_or_default();
    let keys: Vec<String> = text
        .split([',', ';', ' '])
        .filter(|key| !key.is_empty())
        .map(str::to_owned)
        .collect();
    match keys.iter().find(|key| key_of(key).is_none()) {
        Some(unknown) => Err(Refusal::parameter(name, format!("unknown option '{unknown}'"))),
        None => Ok(keys),
    }
}

/// A value as it is stored.
fn normal(name: &str, value: &str) -> String {
    let kind = key_of(name).map(|key| &key.parameter.kind);
    match kind {
        Some(Kind::Boolean) => u8::from(flag(value) == Some(true)).to_string(),
        Some(Kind::Format(format)) if format == "tags" => {
            let mut tags: Vec<String> = value
                .split([',', ';', ' '])
                .filter(|tag| !tag.is_empty())
                .map(str::to_ascii_lowercase)
                .collect();
            tags.sort();
            tags.dedup();
            tags.join(";")
        }
        _ => value.to_owned(),
    }
}

pub(crate) async fn put(call: &Call) -> Answer {
    let change = permitted(call)?;
    let worker = inline(call);
    apply(&worker, call.vmid(), change).await?;
    Ok(NOTHING)
}

pub(crate) fn post(call: &Call) -> Answer {
    let change = permitted(call)?;
    let vmid = call.vmid();
    call.fork("qmconfig", &vmid.to_string(), move |worker| async move {
        apply(&worker, vmid, change)
            .await
            .map_err(|refusal| refusal.text())
    })
}

pub(crate) async fn unlink(call: &Call) -> Answer {
    let change = Change {
        delete: list(call, "idlist")?,
        force: call.flag("force"),
        ..Change::default()
    };
    may_set(call, &change)?;
    apply(&inline(call), call.vmid(), change).await?;
    Ok(NOTHING)
}

/// A synchronous call does a worker's work itself.
fn inline(call: &Call) -> Worker {
    Worker {
        core: std::sync::Arc::clone(&call.core),
        upid: String::new(),
        who: call.who.clone(),
        node: call.node(),
    }
}

fn permitted(call: &Call) -> Result<Change, Refusal> {
    call.refuse_skiplock()?;
    let change = Change::of(call)?;
    may_set(call, &change)?;
    Ok(change)
}

/// Every key asks for its own privilege, whatever let the caller in.
fn may_set(call: &Call, change: &Change) -> Result<(), Refusal> {
    if call.who.is_root() {
        return Ok(());
    }
    let on_vm = format!("/vms/{}", call.need("vmid"));
    let revert = change.revert.iter().map(|name| (name, ""));
    let delete = change.delete.iter().map(|name| (name, ""));
    let set = change.set.iter().map(|(name, value)| (name, value.as_str()));
    for (name, value) in set.chain(delete).chain(revert) {
        let Some(key) = key_of(name) else {
            continue;
        };
        match key.privilege.as_str() {
            "Root" => return Err(Refusal::died(format!("only root can set '{name}' config"))),
            "Drive" => may_use_drive(call, &on_vm, value)?,
            "Unused" => call.require(&on_vm, &["VM.Config.Disk"])?,
            "Serial" if value.is_empty() || value == "socket" || value.starts_with("spice") => {
                call.require(&on_vm, &["VM.Config.HWType"])?;
            }
            "Serial" => {
                return Err(Refusal::died(format!(
                    "only root can set '{name}' config for real devices"
                )));
            }
            "Startup" => {
                call.require(&on_vm, &["VM.Config.Options"])?;
                call.require("/", &["Sys.Modify"])?;
            }
            "PowerMgmt" => call.require(&on_vm, &["VM.PowerMgmt"])?,
            "Cloudinit" => call.require(&on_vm, &["VM.Config.Cloudinit", "VM.Config.Network"])?,
            "Network" => {
                call.require(&on_vm, &["VM.Config.Network"])?;
                if let Some(bridge) = bridge_of(value).filter(|_| name.starts_with("net")) {
                    call.require(&format!("/sdn/zones/localnetwork/{bridge}"), &["SDN.Use"])?;
                }
            }
            privilege => call.require(&on_vm, &[&format!("VM.Config.{privilege}")])?,
        }
    }
    Ok(())
}

fn may_use_drive(call: &Call, on_vm: &str, value: &str) -> Result<(), Refusal> {
    let volid = volume_of(value);
    let cdrom =
        value.contains("media=cdrom") || volid.ends_with(":cloudinit") || volid == "none" || volid == "cdrom";
    call.require(
        on_vm,
        &[if cdrom {
            "VM.Config.CDROM"
        } else {
            "VM.Config.Disk"
        }],
    )?;
    if volid.starts_with('/') {
        return Err(Refusal::died("Only root can pass arbitrary filesystem paths."));
    }
    let Some((storage, _)) = volid.split_once(':') else {
        return Ok(());
    };
    if !call.world().storages.contains_key(storage) {
        return Err(Refusal::died(format!("storage '{storage}' does not exist")));
    }
    let path = format!("/storage/{storage}");
    if allocation(volid).is_some() || volid.ends_with(":cloudinit") {
        return call.require(&path, &["Datastore.AllocateSpace"]);
    }
    let owner = call.world().volumes.get(volid).map(|volume| volume.owner);
    if let Some(owner) = owner.filter(|owner| *owner != call.vmid()) {
        call.require(&path, &["Datastore.Audit"])?;
        call.require(&format!("/vms/{owner}"), &["VM.Config.Disk"])?;
    }
    Ok(())
}

async fn apply(worker: &Worker, vmid: u32, change: Change) -> Result<(), Refusal> {
    let core: &Core = &worker.core;
    let _guard = core.lock_vm(vmid).await?;
    worker.pass(20).await;
    {
        let mut world = worker.world();
        let vm = world.vm(&worker.node, vmid)?;
        refuse_stale(change.digest.as_deref(), &vm.digest())?;
        world.unlocked(&worker.node, vmid)?;
        world.writable().map_err(|_| read_only(&worker.node, vmid))?;
        world.changes_vm(&worker.who, vmid, "config of");
        let vm = world.vm_mut(&worker.node, vmid)?;
        for key in &change.revert {
            vm.pending.remove(key);
        }
    }
    for key in &change.delete {
        remove(worker, vmid, key, change.force)?;
    }
    for (key, value) in &change.set {
        set(worker, vmid, key, value).await?;
    }
    Ok(())
}

fn read_only(node: &str, vmid: u32) -> String {
    format!(
        "unable to open file '/etc/pve/nodes/{node}/qemu-server/{vmid}.conf.tmp.4711' - Permission denied"
    )
}

fn remove(worker: &Worker, vmid: u32, name: &str, force: bool) -> Result<(), Refusal> {
    let mut world = worker.world();
    let vm = world.vm_mut(&worker.node, vmid)?;
    let Some(value) = vm.config.get(name).cloned() else {
        vm.pending.remove(name);
        return Ok(());
    };
    let running = vm.run.is_some();
    let drive = is_drive(name) || name.starts_with("unused");
    if drive && vm.is("protection") {
        return Err(Refusal::died(format!(
            "can't remove drive '{name}' - protection mode enabled"
        )));
    }
    if drive && running && boots_from(vm, name) {
        vm.pending.insert(name.to_owned(), None);
        return Err(Refusal::parameter(
            name,
            format!("hotplug problem - can't unplug bootdisk '{name}'"),
        ));
    }
    if running && !key_of(name).is_some_and(|key| key.at_once) {
        vm.pending.insert(name.to_owned(), None);
        return Ok(());
    }
    vm.pending.remove(name);
    vm.config.remove(name);
    if drive {
        leave(&mut world, worker, vmid, name, &value, force);
    }
    Ok(())
}

fn boots_from(vm: &Vm, name: &str) -> bool {
    vm.config.get("boot").is_some_and(|boot| {
        boot.strip_prefix("order=")
            .is_some_and(|order| order.split(';').any(|drive| drive == name))
    })
}

/// A disk that left its place: an own one waits as unused or is deleted, a foreign one is simply gone from here.
fn leave(world: &mut World, worker: &Worker, vmid: u32, name: &str, value: &str, force: bool) {
    let volid = volume_of(value).to_owned();
    let owned = world
        .volumes
        .get(&volid)
        .is_some_and(|volume| volume.owner == vmid);
    if !owned {
        return;
    }
    if name.starts_with("unused") || force || volid.contains("cloudinit") {
        world.changes_volume(&worker.who, &volid, "delete");
        world.volumes.remove(&volid);
        return;
    }
    if let Some(vm) = world.vms.get_mut(&vmid) {
        let free = (0..256)
            .map(|n: u32| format!("unused{n}"))
            .find(|key| !vm.config.contains_key(key));
        if let Some(key) = free {
            vm.config.insert(key, volid);
        }
    }
}

async fn set(worker: &Worker, vmid: u32, name: &str, value: &str) -> Result<(), Refusal> {
    let value = if is_drive(name) {
        plug(worker, vmid, value).await?
    } else {
        value.to_owned()
    };
    let mut world = worker.world();
    let value = match name.strip_prefix("net").filter(|n| n.parse::<u8>().is_ok()) {
        Some(_) => with_mac(&mut world, &value),
        None => value,
    };
    let vm = world.vm_mut(&worker.node, vmid)?;
    let before = vm.config.get(name).cloned();
    let waits = vm.run.is_some() && !key_of(name).is_some_and(|key: &Key| key.at_once);
    if waits {
        if before.as_ref() == Some(&value) {
            vm.pending.remove(name);
        } else {
            vm.pending.insert(name.to_owned(), Some(value));
        }
        return Ok(());
    }
    vm.pending.remove(name);
    let volid = volume_of(&value).to_owned();
    vm.config.insert(name.to_owned(), value);
    if is_drive(name) {
        vm.config
            .retain(|key, held| !key.starts_with("unused") || *held != volid);
        if let Some(before) = before.filter(|before| volume_of(before) != volid) {
            leave(&mut world, worker, vmid, name, &before, false);
        }
    }
    Ok(())
}

/// A NIC without an address is given one.
fn with_mac(world: &mut World, value: &str) -> String {
    let (model, rest) = value
        .split_once(',')
        .map_or((value, String::new()), |(model, rest)| {
            (model, format!(",{rest}"))
        });
    if model.contains('=') && !model.starts_with("model=") {
        return value.to_owned();
    }
    let model = model.strip_prefix("model=").unwrap_or(model);
    let given = rest
        .split(',')
        .find_map(|part| part.strip_prefix("macaddr=").map(str::to_owned));
    let rest: String = rest
        .split(',')
        .filter(|part| !part.is_empty() && !part.starts_with("macaddr="))
        .map(|part| format!(",{part}"))
        .collect();
    format!("{model}={}{rest}", given.unwrap_or_else(|| world.random.mac()))
}

/// A drive's value once its volume is there.
async fn plug(worker: &Worker, vmid: u32, value: &str) -> Result<String, Refusal> {
    let volid = volume_of(value).to_owned();
    let rest = value
        .split_once(',')
        .map_or(String::new(), |(_, rest)| format!(",{rest}"));
    let cloudinit = volid
        .strip_suffix(":cloudinit")
        .map(|storage| (storage.to_owned(), 4 << 20));
    let wanted = cloudinit
        .clone()
        .or_else(|| allocation(&volid).map(|(storage, size)| (storage.to_owned(), size)));
    if let Some((storage, size)) = wanted {
        let _guard = worker.core.lock_storage(&storage).await?;
        worker.pass(200).await;
        let mut world = worker.world();
        let plugin = world
            .storages
            .get(&storage)
            .ok_or_else(|| format!("storage '{storage}' does not exist"))?
            .plugin;
        let disk = match cloudinit {
            Some(_) => format!("vm-{vmid}-cloudinit"),
            None => free_disk_name(&world, &storage, vmid),
        };
        let format = plugin.default_format();
        let made = storage::volid(&storage, plugin, vmid, &disk, format);
        let of = Made {
            node: &worker.node,
            owner: vmid,
            format,
            size,
        };
        insert_volume(&mut world, &worker.who, &made, &of);
        return Ok(if cloudinit.is_some() {
            format!("{made},media=cdrom")
        } else {
            with_size(&format!("{made}{rest}"), size)
        });
    }
    if !volid.contains(':') || value.contains("media=cdrom") {
        return Ok(value.to_owned());
    }
    let mut world = worker.world();
    let size = world
        .volumes
        .get(&volid)
        .ok_or_else(|| format!("volume '{volid}' does not exist"))?
        .size;
    let own = world
        .vms
        .get(&vmid)
        .is_some_and(|vm| vm.config.values().any(|held| volume_of(held) == volid));
    if !own {
        world.changes_volume(&worker.who, &volid, "attach");
    }
    Ok(with_size(value, size))
}

pub(crate) fn create(call: &Call) -> Answer {
    let change = Change::of(call)?;
    let vmid = call.vmid();
    let node = call.node();
    {
        let world = call.world();
        world.writable()?;
        if let Some(vm) = world.vms.get(&vmid) {
            let at = &vm.node;
            return Err(Refusal::died(format!(
                "unable to create VM {vmid} - VM {vmid} already exists on node '{at}'"
            )));
        }
        if let Some(pool) = call.text("pool").filter(|pool| !world.pools.contains_key(pool)) {
            return Err(Refusal::Forbidden(format!("pool '{pool}' does not exist")));
        }
    }
    let in_pool = call.text("pool");
    if in_pool.is_none() {
        may_set(call, &change)?;
    }
    let start = call.flag("start");
    call.fork("qmcreate", &vmid.to_string(), move |worker| async move {
        {
            let mut world = worker.world();
            if world.vms.contains_key(&vmid) {
                return Err(format!("unable to create VM {vmid}: config file already exists"));
            }
            let uuid = world.random.uuid();
            let genid = world.random.uuid();
            let config = Config::from([
                ("smbios1".to_owned(), format!("uuid={uuid}")),
                ("vmgenid".to_owned(), genid),
                (
                    "meta".to_owned(),
                    format!("creation-qemu=9.2.0,ctime={}", world.seconds()),
                ),
            ]);
            let vm = Vm::new(&node, config, origin_of(&worker.who));
            world.vms.insert(vmid, vm);
            if let Some(pool) = in_pool.as_ref().and_then(|pool| world.pools.get_mut(pool)) {
                pool.vms.insert(vmid);
            }
        }
        apply(&worker, vmid, change)
            .await
            .map_err(|refusal| refusal.text())?;
        if start {
            power::start(worker, vmid).await
        } else {
            Ok(())
        }
    })
}
