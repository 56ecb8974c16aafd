//! The cluster's resources. Which machines there are and where is true at once; what each is called, whether it runs or is
//! a template is as old as the last round of its node's status daemon, and of a number that was given again it is what
//! was true of the machine before.

use std::time::Duration;

use serde_json::{Value, json};

use super::cluster::node_entry;
use super::status::figures;
use crate::call::Call;
use crate::wire::Answer;
use crate::world::{Told, Vm, World};

/// How often the status daemon tells.
const ROUND: Duration = Duration::from_secs(10);
/// What a node told is forgotten so long after.
const KEPT: Duration = Duration::from_secs(300);

/// The status daemons' round, when one is due. To be called before anything changes, so that it tells what was.
pub(crate) fn tell(world: &mut World, scale: f64) {
    let round = ROUND.mul_f64(scale);
    let is_due = round.is_zero() || world.told_at.is_none_or(|told| world.now >= told + round);
    if !is_due {
        return;
    }
    world.told_at = Some(world.now);
    let is_up = |vm: &Vm| world.nodes.get(&vm.node).is_some_and(|node| node.online);
    let told: Vec<(u32, Told)> = world
        .vms
        .iter()
        .filter(|(_, vm)| is_up(vm))
        .map(|(vmid, vm)| {
            let told = Told {
                at: world.now,
                figures: figures(world, *vmid, vm, true),
            };
            (*vmid, told)
        })
        .collect();
    let (now, kept) = (world.now, KEPT.mul_f64(scale));
    world.told.retain(|_, told| now < told.at + kept);
    world.told.extend(told);
}

/// A machine as the cluster sees it: its file, and what was told of it.
fn machine(world: &World, vmid: u32, vm: &Vm) -> Value {
    let mut entry = match world.told.get(&vmid) {
        Some(told) => told.figures.clone(),
        None => json!({ "id": format!("qemu/{vmid}"), "type": "qemu", "vmid": vmid, "status": "unknown" }),
    };
    entry["node"] = json!(vm.node);
    for key in ["tags", "lock"] {
        match vm.config.get(key) {
            Some(value) => entry[key] = json!(value),
            None => {
                entry.as_object_mut().map(|entry| entry.remove(key));
            }
        }
    }
    if let Some(pool) = world.pool_of(vmid) {
        entry["pool"] = json!(pool);
    }
    entry
}

pub(crate) fn list(call: &Call) -> Answer {
    let world = call.world();
    let wanted = call.text("type");
    let is = |kind: &str| wanted.as_deref().is_none_or(|wanted| wanted == kind);
    let mut entries: Vec<Value> = Vec::new();
    if is("vm") {
        for (vmid, vm) in &world.vms {
            if world.may(&call.who, &format!("/vms/{vmid}"), "VM.Audit") {
                entries.push(machine(&world, *vmid, vm));
            }
        }
    }
    if is("node") {
        entries.extend(world.nodes.keys().map(|name| node_entry(&world, name, false)));
    }
    if is("storage") {
        for (name, storage) in &world.storages {
            let may = |privilege| world.may(&call.who, &format!("/storage/{name}"), privilege);
            if !may("Datastore.Audit") && !may("Datastore.AllocateSpace") {
                continue;
            }
            for node in world.nodes.keys() {
                entries.push(json!({
                    "id": format!("storage/{node}/{name}"), "type": "storage", "storage": name, "node": node,
                    "plugintype": storage.plugin.name(), "shared": u8::from(storage.shared), "status": "available",
                    "content": storage.content.join(","), "disk": storage.used, "maxdisk": storage.total,
                }));
            }
        }
    }
    if is("sdn") {
        for node in world.nodes.keys() {
            if world.may(&call.who, "/sdn/zones/localnetwork", "SDN.Audit") {
                entries.push(json!({
                    "id": format!("sdn/{node}/localnetwork"), "type": "sdn", "sdn": "localnetwork", "node": node,
                    "status": "ok",
                }));
            }
        }
    }
    Ok(json!(entries))
}
