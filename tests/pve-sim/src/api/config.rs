//! A machine's configuration changed: what takes effect at once and what waits.

use crate::call::{Call, NOTHING, Worker};
use crate::core::Core;
use crate::formats::is_drive;
use crate::schema::{Key, Kind, flag, key_of};
use crate::wire::{Answer, Refusal};
use crate::world::{Config, Vm, World, volume_of};

use super::drive::{keep_unused, refuse_stale};
use super::may::may_set;
use super::plug::{plug, with_mac};

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
pub(crate) struct Change {
    pub(crate) set: Config,
    pub(crate) delete: Vec<String>,
    pub(crate) revert: Vec<String>,
    digest: Option<String>,
    force: bool,
}

impl Change {
    pub(crate) fn of(call: &Call) -> Result<Self, Refusal> {
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
    may_set(call, &change, None)?;
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
    may_set(call, &change, None)?;
    Ok(change)
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
    fill(worker, vmid, &change.set).await
}

/// Sets keys of a machine whose lock is held.
pub(crate) async fn fill(worker: &Worker, vmid: u32, keys: &Config) -> Result<(), Refusal> {
    for (key, value) in keys {
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
        keep_unused(vm, volid);
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
