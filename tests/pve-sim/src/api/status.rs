//! Machines looked at: lists, configuration, pending changes, status, features.

use serde_json::{Value, json};

use super::unanswered;
use crate::Version;
use crate::call::Call;
use crate::formats::bytes_of;
use crate::wire::{Answer, Refusal};
use crate::world::{Vm, World, shown, typed};

pub(crate) fn perform(call: &Call) -> Answer {
    match call.method.name.as_str() {
        "GET /nodes/{node}/qemu" => Ok(list(call)),
        "GET /nodes/{node}/qemu/{vmid}/config" => config(call),
        "GET /nodes/{node}/qemu/{vmid}/pending" => pending(call),
        "GET /nodes/{node}/qemu/{vmid}/feature" => feature(call),
        _ => unanswered(call),
    }
}

fn list(call: &Call) -> Value {
    let world = call.world();
    let node = call.node();
    world
        .vms
        .iter()
        .filter(|(_, vm)| vm.node == node)
        .filter(|(vmid, _)| world.may(&call.who, &format!("/vms/{vmid}"), "VM.Audit"))
        .map(|(vmid, vm)| figures(&world, *vmid, vm, false))
        .collect()
}

/// What lists show of a machine.
pub(crate) fn figures(world: &World, vmid: u32, vm: &Vm, resource: bool) -> Value {
    let mut entry = json!({
        "vmid": vmid,
        "name": vm.name(vmid),
        "status": if vm.run.is_some() { "running" } else { "stopped" },
        "cpu": 0, "mem": 0, "disk": 0, "netin": 0, "netout": 0,
        "maxmem": vm.number("memory", 512) << 20,
        "maxdisk": boot_disk(vm),
        "uptime": uptime(world, vm),
    });
    let processors = vm.number("cores", 1) * vm.number("sockets", 1);
    if resource {
        entry["id"] = json!(format!("qemu/{vmid}"));
        entry["type"] = json!("qemu");
        entry["node"] = json!(vm.node);
        entry["maxcpu"] = json!(processors);
        entry["template"] = json!(u8::from(vm.is_template()));
        entry["diskread"] = json!(0);
        entry["diskwrite"] = json!(0);
    } else {
        entry["cpus"] = json!(processors);
        if vm.is_template() {
            entry["template"] = json!(1);
        }
        if let Some(run) = &vm.run {
            entry["pid"] = json!(run.pid);
        }
        if vm.config.contains_key("serial0") {
            entry["serial"] = json!(1);
        }
    }
    for key in ["tags", "lock"] {
        if let Some(value) = vm.config.get(key) {
            entry[key] = json!(value);
        }
    }
    if world.version == Version::V9 {
        entry["memhost"] = json!(0);
    }
    entry
}

fn boot_disk(vm: &Vm) -> u64 {
    let drive = vm
        .config
        .get("boot")
        .and_then(|boot| boot.strip_prefix("order="))
        .and_then(|order| order.split(';').next())
        .unwrap_or("scsi0");
    vm.config
        .get(drive)
        .and_then(|value| value.split(',').find_map(|part| part.strip_prefix("size=")))
        .map_or(0, |size| bytes_of(size, 1))
}

fn uptime(world: &World, vm: &Vm) -> u64 {
    vm.run
        .as_ref()
        .map_or(0, |run| world.now.saturating_sub(run.since).as_secs())
}

pub(crate) fn current(call: &Call) -> Answer {
    let world = call.world();
    let vmid = call.vmid();
    let vm = world.vm(&call.node(), vmid)?;
    let mut status = figures(&world, vmid, vm, false);
    let qmp = match &vm.run {
        None => "stopped",
        Some(run) if run.paused => "paused",
        Some(_) => "running",
    };
    status["qmpstatus"] = json!(qmp);
    status["ha"] = if vm.ha {
        let state = if vm.run.is_some() { "started" } else { "stopped" };
        json!({ "managed": 1, "state": state })
    } else {
        json!({ "managed": 0 })
    };
    if vm.config.get("agent").is_some_and(|agent| agent_enabled(agent)) {
        status["agent"] = json!(1);
    }
    if vm.run.is_some() {
        if vm.config.contains_key("net0") {
            status["nics"] = json!({ format!("tap{vmid}i0"): { "netin": 220, "netout": 176 } });
        }
        if world.version == Version::V9 {
            for what in ["cpu", "io", "memory"] {
                for share in ["some", "full"] {
                    status[format!("pressure{what}{share}")] = json!(0);
                }
            }
        }
    }
    Ok(status)
}

pub(crate) fn agent_enabled(value: &str) -> bool {
    let first = value.split(',').next().unwrap_or_default();
    matches!(first, "1" | "enabled=1")
}

fn config(call: &Call) -> Answer {
    let mut world = call.world();
    world.reads_vm(&call.who, call.vmid());
    let vm = world.vm(&call.node(), call.vmid())?;
    if let Some(name) = call.text("snapshot") {
        let snapshot = vm
            .snapshots
            .get(&name)
            .ok_or_else(|| Refusal::died(format!("snapshot '{name}' does not exist")))?;
        return Ok(shown(&snapshot.config));
    }
    let mut config = if call.flag("current") {
        vm.config.clone()
    } else {
        vm.wanted()
    };
    config.insert("digest".into(), vm.digest());
    Ok(shown(&config))
}

fn pending(call: &Call) -> Answer {
    let world = call.world();
    let vm = world.vm(&call.node(), call.vmid())?;
    let mut entries: Vec<Value> = vm
        .config
        .iter()
        .map(|(key, value)| {
            let mut entry = json!({ "key": key, "value": typed(key, value) });
            match vm.pending.get(key) {
                Some(Some(pending)) => entry["pending"] = typed(key, pending),
                Some(None) => entry["delete"] = json!(1),
                None => {}
            }
            entry
        })
        .collect();
    for (key, value) in vm.pending.iter().filter(|(key, _)| !vm.config.contains_key(*key)) {
        if let Some(value) = value {
            entries.push(json!({ "key": key, "pending": typed(key, value) }));
        }
    }
    entries.push(json!({ "key": "digest", "value": vm.digest() }));
    Ok(json!(entries))
}

fn feature(call: &Call) -> Answer {
    let world = call.world();
    let vm = world.vm(&call.node(), call.vmid())?;
    let has = match call.need("feature").as_str() {
        "snapshot" => can_snapshot(&world, vm).is_ok(),
        "clone" => Vm::drives(&vm.config).all(|(_, volid)| {
            let plugin = world
                .volumes
                .get(volid)
                .and_then(|volume| world.storages.get(&volume.storage));
            crate::storage::is_base(volid) && plugin.is_some_and(|storage| storage.plugin.links())
        }),
        _ => true,
    };
    let nodes: Vec<&String> = world.nodes.keys().filter(|name| **name == vm.node).collect();
    Ok(json!({ "hasFeature": u8::from(has), "nodes": nodes }))
}

/// Every attached disk takes part in a snapshot, so every one must be able to.
pub(crate) fn can_snapshot(world: &World, vm: &Vm) -> Result<(), String> {
    let able = Vm::drives(&vm.config)
        .filter(|(key, _)| !key.starts_with("unused"))
        .filter_map(|(_, volid)| world.volumes.get(volid))
        .all(|volume| {
            world
                .storages
                .get(&volume.storage)
                .is_some_and(|storage| storage.plugin.snapshots(&volume.format))
        });
    if able {
        Ok(())
    } else {
        Err("snapshot feature is not available".into())
    }
}
