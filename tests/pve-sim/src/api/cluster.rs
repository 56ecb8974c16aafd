//! Releases, nodes, the cluster's state and options.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{resources, unanswered};
use crate::Version;
use crate::call::Call;
use crate::wire::{Answer, Refusal};
use crate::world::World;

const MEMORY: u64 = 25_276_510_208;
const DISK: u64 = 270_553_174_016;

pub(crate) fn perform(call: &Call) -> Answer {
    match call.method.name.as_str() {
        "GET /version" | "GET /nodes/{node}/version" => Ok(version(call.version)),
        "GET /nodes" => Ok(nodes(call)),
        "GET /nodes/{node}/status" => Ok(node_status(call)),
        "GET /nodes/{node}/network" => network(call),
        "GET /cluster/nextid" => next_id(call),
        "GET /cluster/resources" => resources::list(call),
        "GET /cluster/status" => Ok(status(&call.world())),
        "GET /cluster/options" => Ok(json!(call.world().options)),
        _ => unanswered(call),
    }
}

fn version(version: Version) -> Value {
    json!({ "repoid": "deadbeefcafe0001", "version": version.text(), "release": version.release() })
}

pub(crate) fn node_entry(world: &World, name: &str, fingerprint: bool) -> Value {
    let online = world.nodes.get(name).is_some_and(|node| node.online);
    let mut entry = json!({
        "id": format!("node/{name}"), "node": name, "type": "node",
        "status": if online { "online" } else { "offline" },
        "level": "",
    });
    if fingerprint {
        entry["ssl_fingerprint"] = json!(format!("8F:B1{}", ":A6".repeat(30)));
    }
    if online {
        let figures = [
            ("cpu", json!(0.01)),
            ("maxcpu", json!(2)),
            ("mem", json!(1_603_596_288_u64)),
        ];
        let more = [
            ("maxmem", json!(MEMORY)),
            ("disk", json!(34_008_997_888_u64)),
            ("maxdisk", json!(DISK)),
            ("uptime", json!(6767 + world.now.as_secs())),
        ];
        for (key, value) in figures.into_iter().chain(more) {
            entry[key] = value;
        }
    }
    entry
}

fn nodes(call: &Call) -> Value {
    let world = call.world();
    world
        .nodes
        .keys()
        .map(|name| node_entry(&world, name, true))
        .collect()
}

fn node_status(call: &Call) -> Value {
    let world = call.world();
    json!({
        "uptime": 6767 + world.now.as_secs(),
        "cpu": 0.01,
        "cpuinfo": { "cpus": 2, "sockets": 1, "cores": 2, "model": "QEMU Virtual CPU", "hvm": "1", "mhz": "2400.000" },
        "memory": { "total": MEMORY, "used": 1_603_596_288_u64, "free": MEMORY - 1_603_596_288 },
        "rootfs": { "total": DISK, "used": 34_008_997_888_u64, "free": 236_544_176_128_u64, "avail": 63_563_747_328_u64 },
        "loadavg": ["0.10", "0.08", "0.02"],
        "pveversion": format!("pve-manager/{}/deadbeefcafe0001", call.version.text()),
        "time": world.seconds(),
    })
}

/// Bridges are listed to whoever may look at or use them, the others are passed over in silence.
fn network(call: &Call) -> Answer {
    let world = call.world();
    let bridges = world
        .nodes
        .get(&call.node())
        .map(|node| node.bridges.clone())
        .unwrap_or_default();
    Ok(bridges
        .iter()
        .filter(|bridge| {
            let path = format!("/sdn/zones/localnetwork/{bridge}");
            ["SDN.Audit", "SDN.Use"].iter().any(|privilege| world.may(&call.who, &path, privilege))
        })
        .map(|bridge| {
            json!({
                "iface": bridge, "type": "bridge", "active": 1, "autostart": 1, "method": "static", "method6": "manual",
                "families": ["inet"], "priority": 3, "bridge_ports": "", "bridge_stp": "off", "bridge_fd": "0",
            })
        })
        .collect())
}

/// A look, not a reservation: two callers get the same number.
fn next_id(call: &Call) -> Answer {
    let world = call.world();
    if let Some(wanted) = call.number("vmid").and_then(|vmid| u32::try_from(vmid).ok()) {
        if world.vms.contains_key(&wanted) {
            return Err(Refusal::parameter("vmid", format!("VM {wanted} already exists")));
        }
        return Ok(json!(wanted.to_string()));
    }
    let range: BTreeMap<&str, u32> = world
        .options
        .get("next-id")
        .into_iter()
        .flat_map(|text| text.split(','))
        .filter_map(|part| part.split_once('='))
        .filter_map(|(key, value)| Some((key, value.parse().ok()?)))
        .collect();
    let lower = range.get("lower").copied().unwrap_or(100);
    let upper = range.get("upper").copied().unwrap_or(1_000_000);
    (lower..upper)
        .find(|vmid| !world.vms.contains_key(vmid))
        .map(|vmid| json!(vmid.to_string()))
        .ok_or_else(|| Refusal::died(format!("unable to get any free VMID in range [{lower}, {upper}]")))
}

fn status(world: &World) -> Value {
    let mut entries: Vec<Value> = Vec::new();
    if world.nodes.len() > 1 {
        entries.push(json!({
            "type": "cluster", "id": "cluster", "name": "lab", "version": 1,
            "nodes": world.nodes.len(), "quorate": u8::from(world.quorate),
        }));
    }
    for (at, (name, node)) in world.nodes.iter().enumerate() {
        let number = if world.nodes.len() > 1 { at + 1 } else { 0 };
        entries.push(json!({
            "type": "node", "id": format!("node/{name}"), "name": name, "nodeid": number,
            "local": u8::from(*name == world.local), "online": u8::from(node.online), "level": "",
            "ip": format!("10.99.0.{}", at + 1),
        }));
    }
    json!(entries)
}
