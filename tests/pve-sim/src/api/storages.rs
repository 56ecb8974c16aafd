//! Storages and their volumes.

use std::time::Duration;

use serde_json::{Value, json};

use super::drive::{Made, insert_volume};
use super::unanswered;
use crate::call::{Call, NOTHING, Worker};
use crate::formats::bytes_of;
use crate::storage::{self, Plugin, Storage, Volume, file_of};
use crate::wire::{Answer, Refusal};
use crate::world::World;

pub(crate) fn perform(call: &Call) -> Answer {
    match call.method.name.as_str() {
        "GET /storage" => Ok(all(call)),
        "GET /nodes/{node}/storage" => Ok(list(call)),
        "GET /nodes/{node}/storage/{storage}/status" => status(call),
        "GET /nodes/{node}/storage/{storage}/content" => content(call),
        "GET /nodes/{node}/storage/{storage}/content/{volume}" => show(call),
        "DELETE /nodes/{node}/storage/{storage}/content/{volume}" => delete(call),
        _ => unanswered(call),
    }
}

fn missing(name: &str) -> Refusal {
    Refusal::died(format!("storage '{name}' does not exist"))
}

fn may_look(call: &Call, world: &World, name: &str) -> bool {
    ["Datastore.Audit", "Datastore.AllocateSpace"]
        .iter()
        .any(|privilege| world.may(&call.who, &format!("/storage/{name}"), privilege))
}

fn all(call: &Call) -> Value {
    let world = call.world();
    world
        .storages
        .iter()
        .filter(|(name, _)| may_look(call, &world, name))
        .map(|(name, storage)| {
            json!({
                "storage": name, "type": storage.plugin.name(), "content": storage.content.join(","),
                "shared": u8::from(storage.shared), "digest": "0".repeat(40),
            })
        })
        .collect()
}

fn fields(storage: &Storage) -> Value {
    json!({
        "type": storage.plugin.name(), "content": storage.content.join(","), "shared": u8::from(storage.shared),
        "active": 1, "enabled": 1, "total": storage.total, "used": storage.used, "avail": storage.total - storage.used,
    })
}

fn list(call: &Call) -> Value {
    let world = call.world();
    let wanted = call.text("content");
    world
        .storages
        .iter()
        .filter(|(name, _)| may_look(call, &world, name))
        .filter(|(name, _)| call.text("storage").is_none_or(|wanted| wanted == **name))
        .filter(|(_, storage)| {
            wanted.as_ref().is_none_or(|wanted| {
                wanted
                    .split(',')
                    .any(|kind| storage.content.iter().any(|has| has == kind))
            })
        })
        .map(|(name, storage)| {
            let mut entry = fields(storage);
            entry["storage"] = json!(name);
            entry["used_fraction"] = json!(0.125);
            entry
        })
        .collect()
}

fn status(call: &Call) -> Answer {
    let world = call.world();
    let name = call.need("storage");
    world
        .storages
        .get(&name)
        .map(fields)
        .ok_or_else(|| missing(&name))
}

fn entry(volid: &str, volume: &Volume) -> Value {
    json!({
        "volid": volid, "content": "images", "format": volume.format, "size": volume.size, "used": volume.size / 8,
        "ctime": volume.created, "vmid": volume.owner, "parent": volume.parent,
    })
}

fn content(call: &Call) -> Answer {
    let world = call.world();
    let name = call.need("storage");
    let storage = world.storages.get(&name).ok_or_else(|| missing(&name))?;
    let owner = call.number("vmid");
    let wanted = call.text("content");
    let is = |kind: &str| wanted.as_deref().is_none_or(|wanted| wanted == kind);
    let everything = world.may(&call.who, &format!("/storage/{name}"), "Datastore.Allocate");
    let mut entries: Vec<Value> = Vec::new();
    if is("images") {
        entries.extend(
            world
                .volumes
                .iter()
                .filter(|(_, volume)| {
                    volume.storage == name && (storage.shared || volume.node == call.node())
                })
                .filter(|(_, volume)| owner.is_none_or(|owner| owner == u64::from(volume.owner)))
                .filter(|(_, volume)| {
                    let path = format!("/vms/{}", volume.owner);
                    everything
                        || ["VM.Audit", "VM.Config.Disk"]
                            .iter()
                            .any(|right| world.may(&call.who, &path, right))
                })
                .map(|(volid, volume)| entry(volid, volume)),
        );
    }
    if is("snippets") && everything && owner.is_none() {
        let snippets = world
            .snippets
            .iter()
            .filter(|volid| volid.starts_with(&format!("{name}:")));
        entries.extend(snippets.map(|volid| {
            json!({ "volid": volid, "content": "snippets", "format": "snippet", "size": 100, "ctime": world.seconds() })
        }));
    }
    let imports = world
        .imports
        .iter()
        .filter(|(volid, import)| volid.starts_with(&format!("{name}:")) && is(&import.content));
    entries.extend(
        imports
            .filter(|_| owner.is_none())
            .map(|(volid, import)| super::imports::entry(volid, import)),
    );
    Ok(json!(entries))
}

/// A volume by the name in a path, which may leave the storage out.
fn volid(call: &Call) -> String {
    let volume = call.need("volume");
    if volume.contains(':') {
        volume
    } else {
        format!("{}:{volume}", call.need("storage"))
    }
}

fn path_of(world: &World, volid: &str) -> String {
    let Some(volume) = world.volumes.get(volid) else {
        return String::new();
    };
    match world.storages.get(&volume.storage) {
        Some(storage) if storage.plugin == Plugin::Dir => {
            format!("{}/images/{}/{}", storage.path, volume.owner, file_of(volid))
        }
        Some(_) | None => format!("/dev/{}/{}", volume.storage, file_of(volid)),
    }
}

fn show(call: &Call) -> Answer {
    let volid = volid(call);
    let owner = call.world().volumes.get(&volid).map(|volume| volume.owner);
    if let Some(owner) = owner {
        call.require(&format!("/vms/{owner}"), &["VM.Config.Disk", "VM.Audit"])?;
    }
    let world = call.world();
    if let Some(import) = world.imports.get(&volid) {
        let storage = world.storages.get(&call.need("storage"));
        let (_, file) = volid.split_once(':').unwrap_or_default();
        return Ok(json!({
            "path": format!("{}/{file}", storage.map_or("", |storage| &storage.path)), "size": import.size,
            "used": import.size, "format": import.format,
        }));
    }
    let volume = world
        .volumes
        .get(&volid)
        .ok_or_else(|| Refusal::died(format!("volume_size_info on '{volid}' failed - no format")))?;
    Ok(json!({
        "path": path_of(&world, &volid), "size": volume.size, "used": volume.size / 8, "format": volume.format,
    }))
}

pub(crate) async fn allocate(call: &Call) -> Answer {
    let name = call.need("storage");
    let file = call.need("filename");
    let vmid = call.vmid();
    let (plugin, path) = {
        let world = call.world();
        let storage = world.storages.get(&name).ok_or_else(|| missing(&name))?;
        (storage.plugin, storage.path.clone())
    };
    let format = format_of(plugin, &file, call.text("format"))?;
    if plugin != Plugin::Dir && !file.starts_with(&format!("vm-{vmid}-")) {
        return Err(Refusal::died(format!(
            "illegal name '{file}' - should be 'vm-{vmid}-*'"
        )));
    }
    let volid = match plugin {
        Plugin::Dir => format!("{name}:{vmid}/{file}"),
        Plugin::Zfs | Plugin::LvmThin | Plugin::Lvm | Plugin::Rbd => format!("{name}:{file}"),
    };
    let _guard = call.core.lock_storage(&name).await?;
    call.core.pass(Duration::from_millis(200)).await;
    let mut world = call.world();
    if world.volumes.contains_key(&volid) {
        return Err(Refusal::died(match plugin {
            Plugin::Dir => format!("disk image '{path}/images/{vmid}/{file}' already exists"),
            Plugin::Zfs => format!("zfs error: cannot create '{name}/{file}': dataset already exists"),
            Plugin::Rbd => format!("rbd create '{file}' error: rbd: create error: (17) File exists"),
            Plugin::LvmThin | Plugin::Lvm => format!(
                "lvcreate '{name}/{file}' error:   Logical Volume \"{file}\" already exists in volume group \"{name}\""
            ),
        }));
    }
    let made = Made {
        node: &call.node(),
        owner: vmid,
        format: &format,
        size: bytes_of(&call.need("size"), 1 << 10),
    };
    insert_volume(&mut world, &call.who, &volid, &made);
    Ok(json!(volid))
}

fn format_of(plugin: Plugin, file: &str, wanted: Option<String>) -> Result<String, Refusal> {
    let ending = file.rsplit_once('.').map(|(_, ending)| ending.to_owned());
    if plugin != Plugin::Dir {
        return Ok(wanted.unwrap_or_else(|| "raw".into()));
    }
    let Some(ending) = ending.filter(|ending| matches!(ending.as_str(), "raw" | "qcow2" | "vmdk")) else {
        return Err(Refusal::died(format!("unable to parse volume filename '{file}'")));
    };
    match wanted {
        Some(wanted) if wanted != ending => Err(Refusal::parameter(
            "format",
            format!("different storage formats ({ending} != {wanted})"),
        )),
        Some(_) | None => Ok(ending),
    }
}

/// Nothing asks whether a stopped machine uses the volume.
fn delete(call: &Call) -> Answer {
    let name = call.need("storage");
    call.require(&format!("/storage/{name}"), &["Datastore.Allocate"])?;
    let volid = volid(call);
    let owner = call.world().volumes.get(&volid).map(|volume| volume.owner);
    let id = match owner {
        Some(owner) => format!("{owner}@{name}"),
        None => format!("@{name}"),
    };
    let upid = call.fork("imgdel", &id, move |worker| deleting(worker, volid))?;
    Ok(if call.number("delay").is_some() {
        NOTHING
    } else {
        upid
    })
}

async fn deleting(worker: Worker, volid: String) -> Result<(), String> {
    let storage = volid.split(':').next().unwrap_or_default().to_owned();
    let _guard = worker.core.lock_storage(&storage).await?;
    worker.pass(100).await;
    {
        let mut world = worker.world();
        let used = storage::is_base(&volid)
            && world
                .volumes
                .values()
                .any(|volume| volume.parent.as_deref() == Some(volid.as_str()));
        if used {
            return Err(format!("base volume '{volid}' is still in use by linked cloned"));
        }
        world.changes_volume(&worker.who, &volid, "delete");
        world.volumes.remove(&volid);
        world.snippets.remove(&volid);
        world.imports.remove(&volid);
    }
    worker.log(format!("Removed volume '{volid}'"));
    Ok(())
}
