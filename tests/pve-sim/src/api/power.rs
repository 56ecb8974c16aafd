//! Machines started, stopped, frozen. Everything is a worker, and most is checked only inside it.

use std::sync::Arc;
use std::time::Duration;

use super::drive::insert_state;
use super::{status, unanswered};
use crate::access::Identity;
use crate::boot::Powered;
use crate::call::{Call, Worker};
use crate::core::Core;
use crate::wire::{Answer, Refusal};
use crate::world::{Run, World, volume_of};

/// How often the HA stack of a node looks at what it keeps.
const HA_ROUND: Duration = Duration::from_secs(10);

pub(crate) fn perform(call: &Call) -> Answer {
    let name = call.method.name.as_str();
    if name == "GET /nodes/{node}/qemu/{vmid}/status/current" {
        return status::current(call);
    }
    call.refuse_skiplock()?;
    let vmid = call.vmid();
    let id = vmid.to_string();
    let verb = name.rsplit('/').next().unwrap_or_default();
    let by_ha = call.world().vm(&call.node(), vmid).is_ok_and(|vm| vm.ha);
    match verb {
        "start" if by_ha => call.fork("hastart", &id, move |worker| async move {
            ask_ha(&worker, vmid, true);
            Ok(())
        }),
        "stop" | "shutdown" if by_ha => call.fork("hastop", &id, move |worker| async move {
            ask_ha(&worker, vmid, false);
            Ok(())
        }),
        "start" => call.fork("qmstart", &id, |worker| start(worker, vmid)),
        "stop" => call.fork("qmstop", &id, |worker| stop(worker, vmid)),
        "shutdown" => {
            let timeout = call.number("timeout").unwrap_or(60);
            let force = call.flag("forceStop");
            call.fork("qmshutdown", &id, move |worker| {
                shutdown(worker, vmid, timeout, force)
            })
        }
        "reboot" => {
            let running = call.world().vm(&call.node(), vmid)?.run.is_some();
            if !running {
                return Err(Refusal::died(format!("VM {vmid} not running")));
            }
            call.fork("qmreboot", &id, |worker| reboot(worker, vmid))
        }
        "reset" => call.fork("qmreset", &id, |worker| reset(worker, vmid)),
        "suspend" => suspend(call, vmid),
        "resume" => {
            call.world().vm(&call.node(), vmid)?;
            call.fork("qmresume", &id, |worker| pause(worker, vmid, false))
        }
        _ => unanswered(call),
    }
}

/// The HA stack is told what is wanted, and does it when it looks the next time.
fn ask_ha(worker: &Worker, vmid: u32, to_run: bool) {
    let (verb, kind) = if to_run {
        ("start", "qmstart")
    } else {
        ("stop", "qmstop")
    };
    worker.log(format!("Requesting HA {verb} for VM {vmid}"));
    let (core, node, id) = (Arc::clone(&worker.core), worker.node.clone(), vmid.to_string());
    let stack = Identity {
        user: "root@pam".into(),
        token: None,
    };
    worker.core.timeline.spawn(async move {
        core.pass(HA_ROUND).await;
        if to_run {
            core.fork(&node, kind, &id, &stack, |worker| start(worker, vmid));
        } else {
            core.fork(&node, kind, &id, &stack, |worker| stop(worker, vmid));
        }
    });
}

fn suspend(call: &Call, vmid: u32) -> Answer {
    if !call.flag("todisk") {
        return call.fork("qmpause", &vmid.to_string(), |worker| pause(worker, vmid, true));
    }
    call.require(&format!("/vms/{vmid}"), &["VM.Config.Disk"])?;
    let storage = call.text("statestorage");
    if let Some(storage) = &storage {
        call.require(&format!("/storage/{storage}"), &["Datastore.AllocateSpace"])?;
    }
    if call.world().vm(&call.node(), vmid)?.ha {
        return Err(Refusal::died("Cannot suspend VM to disk if it is managed by HA."));
    }
    call.fork("qmsuspend", &vmid.to_string(), |worker| {
        hibernate(worker, vmid, storage)
    })
}

pub(crate) async fn start(worker: Worker, vmid: u32) -> Result<(), String> {
    worker.world().vm(&worker.node, vmid)?;
    let _guard = worker.core.lock_vm(vmid).await?;
    let hibernated = {
        let world = worker.world();
        let vm = world.vm(&worker.node, vmid)?;
        let hibernated = vm.lock() == Some("suspended");
        if let Some(lock) = vm.lock().filter(|_| !hibernated) {
            return Err(format!("VM is locked ({lock})"));
        }
        if vm.is_template() {
            return Err("you can't start a vm if it's a template".into());
        }
        if vm.run.is_some() {
            return Err(format!("VM {vmid} already running"));
        }
        volumes_are_there(&world, vmid)?;
        hibernated
    };
    worker.pass(600).await;
    let mut world = worker.world();
    world.changes_vm(&worker.who, vmid, "start");
    let vm = world.vm_mut(&worker.node, vmid)?;
    vm.config = vm.wanted();
    vm.pending.clear();
    if hibernated {
        vm.config.remove("lock");
        if let Some(volid) = vm.config.remove("vmstate") {
            world.volumes.remove(&volid);
        }
    }
    run(&worker.core, &mut world, vmid);
    Ok(())
}

fn volumes_are_there(world: &World, vmid: u32) -> Result<(), String> {
    let Some(vm) = world.vms.get(&vmid) else {
        return Ok(());
    };
    let config = vm.wanted();
    for part in config
        .get("cicustom")
        .into_iter()
        .flat_map(|value| value.split(','))
    {
        let snippet = part.split_once('=').map_or(part, |(_, volid)| volid);
        if !world.has_snippet(snippet) {
            return Err(format!("volume '{snippet}' does not exist"));
        }
    }
    for (key, value) in config.iter().filter(|(key, _)| crate::formats::is_drive(key)) {
        let volid = volume_of(value);
        if volid.contains(':') && !world.volumes.contains_key(volid) {
            return Err(format!("volume '{volid}' does not exist ({key})"));
        }
    }
    Ok(())
}

/// The machine runs from now on.
pub(crate) fn run(core: &Arc<Core>, world: &mut World, vmid: u32) {
    let (pid, since) = (world.pid(), world.now);
    let Some(vm) = world.vms.get_mut(&vmid) else {
        return;
    };
    vm.run = Some(Run {
        since,
        pid,
        paused: false,
        executed: std::collections::BTreeMap::new(),
    });
    let config: Vec<(String, String)> = vm
        .config
        .iter()
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let root = vm
        .config
        .get("scsi0")
        .or_else(|| vm.config.get("virtio0"))
        .map(|value| volume_of(value));
    let template = root
        .and_then(|volid| world.volumes.get(volid)?.parent.as_ref())
        .and_then(|base| Some(world.volumes.get(base)?.owner));
    core.boot.power_on(Powered {
        vmid,
        template,
        config,
    });
}

/// The machine no longer runs, and what waited takes effect.
pub(crate) fn halt(core: &Core, world: &mut World, vmid: u32) {
    if end(core, world, vmid)
        && let Some(vm) = world.vms.get_mut(&vmid)
    {
        vm.config = vm.wanted();
        vm.pending.clear();
    }
}

/// The machine no longer runs, and nobody asked PVE for that: what waits goes on waiting for the next start, as after
/// `qm cleanup`. Returns whether it ran.
pub(crate) fn end(core: &Core, world: &mut World, vmid: u32) -> bool {
    let ran = world.vms.get_mut(&vmid).is_some_and(|vm| vm.run.take().is_some());
    if ran {
        core.boot.power_off(vmid);
    }
    ran
}

pub(crate) async fn stop(worker: Worker, vmid: u32) -> Result<(), String> {
    worker.world().vm(&worker.node, vmid)?;
    let _guard = worker.core.lock_vm(vmid).await?;
    let running = worker.world().unlocked(&worker.node, vmid)?.run.is_some();
    if !running {
        return Ok(());
    }
    worker.pass(300).await;
    let mut world = worker.world();
    world.changes_vm(&worker.who, vmid, "stop");
    halt(&worker.core, &mut world, vmid);
    Ok(())
}

async fn shutdown(worker: Worker, vmid: u32, timeout: u64, force: bool) -> Result<(), String> {
    let _guard = worker.core.lock_vm(vmid).await?;
    let ready = {
        let world = worker.world();
        let vm = world.unlocked(&worker.node, vmid)?;
        match &vm.run {
            None => return Err(format!("VM {vmid} not running")),
            Some(run) => !run.paused && is_up(&world, run),
        }
    };
    if ready && timeout >= 2 {
        worker.pass(2000).await;
    } else {
        worker.core.pass(Duration::from_secs(timeout)).await;
        if !force {
            return Err("VM quit/powerdown failed - got timeout".into());
        }
    }
    let mut world = worker.world();
    world.changes_vm(&worker.who, vmid, "shutdown");
    halt(&worker.core, &mut world, vmid);
    Ok(())
}

/// Whether the guest has come up.
pub(crate) fn is_up(world: &World, run: &Run) -> bool {
    world.now >= run.since + world.guests.boot
}

async fn reboot(worker: Worker, vmid: u32) -> Result<(), String> {
    let _guard = worker.core.lock_vm(vmid).await?;
    worker.pass(2000).await;
    let mut world = worker.world();
    world.changes_vm(&worker.who, vmid, "reboot");
    halt(&worker.core, &mut world, vmid);
    run(&worker.core, &mut world, vmid);
    Ok(())
}

async fn reset(worker: Worker, vmid: u32) -> Result<(), String> {
    let _guard = worker.core.lock_vm(vmid).await?;
    let mut world = worker.world();
    world.changes_vm(&worker.who, vmid, "reset");
    let now = world.now;
    match &mut world.vm_mut(&worker.node, vmid)?.run {
        Some(run) => run.since = now,
        None => return Err(format!("VM {vmid} not running")),
    }
    Ok(())
}

async fn pause(worker: Worker, vmid: u32, paused: bool) -> Result<(), String> {
    let _guard = worker.core.lock_vm(vmid).await?;
    worker.world().unlocked(&worker.node, vmid)?;
    worker.pass(40).await;
    let mut world = worker.world();
    world.changes_vm(&worker.who, vmid, if paused { "suspend" } else { "resume" });
    match &mut world.vm_mut(&worker.node, vmid)?.run {
        Some(run) => run.paused = paused,
        None => return Err(format!("VM {vmid} not running")),
    }
    worker.core.boot.paused(vmid, paused);
    Ok(())
}

async fn hibernate(worker: Worker, vmid: u32, storage: Option<String>) -> Result<(), String> {
    let _guard = worker.core.lock_vm(vmid).await?;
    let volid = {
        let mut world = worker.world();
        let vm = world.unlocked(&worker.node, vmid)?;
        if vm.run.is_none() {
            return Err(format!("VM {vmid} not running"));
        }
        let volid = insert_state(&mut world, &worker, vmid, "suspend-2026-11-21", storage)?;
        let vm = world.vm_mut(&worker.node, vmid)?;
        vm.config.insert("lock".into(), "suspending".into());
        vm.config.insert("vmstate".into(), volid.clone());
        volid
    };
    worker.pass(3000).await;
    let mut world = worker.world();
    world.changes_vm(&worker.who, vmid, "hibernate");
    halt(&worker.core, &mut world, vmid);
    let vm = world.vm_mut(&worker.node, vmid)?;
    vm.config.insert("lock".into(), "suspended".into());
    drop(world);
    worker.log(format!("State saved, quitting ({volid})"));
    Ok(())
}

/// The operator's hand at the process, or the guest's own at its power.
pub(crate) fn stop_from_outside(core: &Core, vmid: u32, who: &Identity) {
    let mut world = core.world();
    world.changes_vm(who, vmid, "stop");
    end(core, &mut world, vmid);
}
