//! The cluster's resources, as old as the last round of the status daemon.

use serde_json::{Value, json};

use super::cluster::node_entry;
use super::status::figures;
use crate::core::Call;
use crate::wire::Answer;

pub(crate) fn list(call: &Call) -> Answer {
    let world = call.world();
    let wanted = call.text("type");
    let is = |kind: &str| wanted.as_deref().is_none_or(|wanted| wanted == kind);
    let mut entries: Vec<Value> = Vec::new();
    if is("vm") {
        for (vmid, vm) in &world.vms {
            if world.may(&call.who, &format!("/vms/{vmid}"), "VM.Audit") {
                let mut entry = figures(&world, *vmid, vm, true);
                if let Some(pool) = world.pool_of(*vmid) {
                    entry["pool"] = json!(pool);
                }
                entries.push(entry);
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
