//! Pools and their members.

use serde_json::{Value, json};

use super::status::figures;
use super::unanswered;
use crate::call::{Call, NOTHING};
use crate::wire::{Answer, Refusal};
use crate::world::Pool;

pub(crate) fn perform(call: &Call) -> Answer {
    match call.method.name.as_str() {
        "GET /pools" => list(call),
        "GET /pools/{poolid}" => show(call),
        "POST /pools" => create(call),
        "PUT /pools/{poolid}" | "PUT /pools" => change(call),
        "DELETE /pools/{poolid}" | "DELETE /pools" => delete(call),
        _ => unanswered(call),
    }
}

fn missing(name: &str) -> Refusal {
    Refusal::died(format!("pool '{name}' does not exist"))
}

fn list(call: &Call) -> Answer {
    if call.text("poolid").is_some() {
        return Ok(json!([show(call)?]));
    }
    let world = call.world();
    Ok(world
        .pools
        .iter()
        .filter(|(name, _)| world.may(&call.who, &format!("/pool/{name}"), "Pool.Audit"))
        .map(|(name, pool)| {
            let mut entry = json!({ "poolid": name });
            if let Some(comment) = &pool.comment {
                entry["comment"] = json!(comment);
            }
            entry
        })
        .collect())
}

fn show(call: &Call) -> Answer {
    let world = call.world();
    let name = call.need("poolid");
    let pool = world.pools.get(&name).ok_or_else(|| missing(&name))?;
    let mut members: Vec<Value> = pool
        .vms
        .iter()
        .filter(|vmid| world.may(&call.who, &format!("/vms/{vmid}"), "VM.Audit"))
        .filter_map(|vmid| Some(figures(&world, *vmid, world.vms.get(vmid)?, true)))
        .collect();
    for storage in &pool.storages {
        members.push(json!({ "id": format!("storage/{}/{storage}", world.local), "type": "storage", "storage": storage }));
    }
    let mut shown = json!({ "members": members });
    if let Some(comment) = &pool.comment {
        shown["comment"] = json!(comment);
    }
    Ok(shown)
}

fn create(call: &Call) -> Answer {
    let mut world = call.world();
    let name = call.need("poolid");
    if world.pools.contains_key(&name) {
        return Err(Refusal::died(format!(
            "create pool failed: pool '{name}' already exists"
        )));
    }
    let pool = Pool {
        comment: call.text("comment"),
        ..Pool::default()
    };
    world.pools.insert(name, pool);
    Ok(NOTHING)
}

fn change(call: &Call) -> Answer {
    let name = call.need("poolid");
    let vms: Vec<u32> = call
        .text("vms")
        .unwrap_or_default()
        .split(',')
        .filter_map(|vmid| vmid.parse().ok())
        .collect();
    for vmid in &vms {
        call.require(&format!("/vms/{vmid}"), &["VM.Allocate"])?;
    }
    let mut world = call.world();
    for vmid in &vms {
        world.changes_vm(&call.who, *vmid, "pool");
        let other = world.pool_of(*vmid).map(str::to_owned);
        if let Some(other) =
            other.filter(|other| *other != name && !call.flag("delete") && !call.flag("allow-move"))
        {
            return Err(Refusal::died(format!(
                "update pool failed: VM {vmid} belongs already to pool '{other}'"
            )));
        }
    }
    if !world.pools.contains_key(&name) {
        return Err(Refusal::died(format!(
            "update pool failed: pool '{name}' does not exist"
        )));
    }
    for (at, pool) in &mut world.pools {
        for vmid in &vms {
            pool.vms.remove(vmid);
            if *at == name && !call.flag("delete") {
                pool.vms.insert(*vmid);
            }
        }
    }
    if let (Some(comment), Some(pool)) = (call.text("comment"), world.pools.get_mut(&name)) {
        pool.comment = Some(comment);
    }
    Ok(NOTHING)
}

fn delete(call: &Call) -> Answer {
    let mut world = call.world();
    let name = call.need("poolid");
    let pool = world.pools.get(&name).ok_or_else(|| missing(&name))?;
    if !pool.vms.is_empty() || !pool.storages.is_empty() {
        return Err(Refusal::died(format!(
            "delete pool failed: pool '{name}' is not empty"
        )));
    }
    world.pools.remove(&name);
    Ok(NOTHING)
}
