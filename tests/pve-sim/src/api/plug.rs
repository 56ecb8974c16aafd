//! A disk is put into a machine: one that is there, a new one, or a copy of an image; and a NIC with an address.

use super::drive::{Made, allocation, free_disk_name, insert_volume, with_size};
use crate::call::Worker;
use crate::storage::{self, NEW_FORMAT};
use crate::wire::Refusal;
use crate::world::{World, volume_of};

/// Size of the disk that cloud-init reads.
const CLOUD_INIT: u64 = 4 << 20;

/// Where the disk of a drive's value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source<'a> {
    /// Nowhere: a drive without a medium, or one that is taken out.
    Empty,
    There {
        volid: &'a str,
    },
    New {
        storage: &'a str,
        size: u64,
    },
    Import {
        storage: &'a str,
        from: &'a str,
    },
    CloudInit {
        storage: &'a str,
    },
}

/// Reads a drive's value, or says what is wrong with it.
pub(crate) fn source(value: &str) -> Result<Source<'_>, String> {
    let volid = volume_of(value);
    let import = value
        .split(',')
        .find_map(|part| part.strip_prefix("import-from="));
    if let Some(from) = import {
        return match volid.split_once(':') {
            Some((storage, size)) if size.parse::<f64>() == Ok(0.0) => Ok(Source::Import { storage, from }),
            Some(_) | None => {
                Err("'import-from' requires special syntax - use <storage ID>:0,import-from=<source>".into())
            }
        };
    }
    if matches!(volid, "" | "none" | "cdrom") {
        return Ok(Source::Empty);
    }
    if let Some(storage) = volid.strip_suffix(":cloudinit") {
        return Ok(Source::CloudInit { storage });
    }
    Ok(match allocation(volid) {
        Some((storage, size)) => Source::New { storage, size },
        None => Source::There { volid },
    })
}

/// A drive's value once its volume is there.
pub(crate) async fn plug(worker: &Worker, vmid: u32, value: &str) -> Result<String, Refusal> {
    match source(value)? {
        Source::Empty => Ok(value.to_owned()),
        Source::There { volid } => attach(&mut worker.world(), worker, vmid, volid, value),
        Source::CloudInit { storage } => {
            let new = New {
                storage,
                disk: Some(format!("vm-{vmid}-cloudinit")),
                format: "qcow2".to_owned(),
                size: CLOUD_INIT,
            };
            let made = allocate(worker, vmid, new).await?;
            Ok(format!("{made},media=cdrom"))
        }
        Source::New { storage, size } => {
            let new = New {
                storage,
                disk: None,
                format: asked_format(value).unwrap_or(NEW_FORMAT).to_owned(),
                size,
            };
            let made = allocate(worker, vmid, new).await?;
            Ok(with_size(&in_place_of(value, &made), size))
        }
        Source::Import { storage, from } => {
            let (format, size) = image(&worker.world(), from)?;
            let new = New {
                storage,
                disk: None,
                format: asked_format(value).map_or(format, str::to_owned),
                size,
            };
            let made = allocate(worker, vmid, new).await?;
            // The bytes are copied without the storage's lock.
            worker.pass(5_000).await;
            worker.log(format!("transferred {size} bytes (100.00%)"));
            Ok(with_size(&in_place_of(value, &made), size))
        }
    }
}

fn asked_format(value: &str) -> Option<&str> {
    value.split(',').find_map(|part| part.strip_prefix("format="))
}

/// The value with the volume that was made, and without what only said how to make it.
fn in_place_of(value: &str, made: &str) -> String {
    let options = value
        .split(',')
        .skip(1)
        .filter(|part| !part.starts_with("import-from=") && !part.starts_with("format="));
    std::iter::once(made).chain(options).collect::<Vec<_>>().join(",")
}

/// Format and size of what is to be copied.
fn image(world: &World, from: &str) -> Result<(String, u64), String> {
    let import = world.imports.get(from);
    let import = import.map(|import| (import.format.clone(), import.size));
    let volume = world.volumes.get(from);
    let volume = volume.map(|volume| (volume.format.clone(), volume.size));
    import.or(volume).ok_or_else(|| {
        format!("cannot import from '{from}' - volume_size_info on '{from}' failed - no format")
    })
}

struct New<'a> {
    storage: &'a str,
    /// The first free number of the machine's own, when it has no name.
    disk: Option<String>,
    /// What a directory makes of it; other storages hold it raw.
    format: String,
    size: u64,
}

async fn allocate(worker: &Worker, vmid: u32, new: New<'_>) -> Result<String, Refusal> {
    let _guard = worker.core.lock_storage(new.storage).await?;
    worker.pass(200).await;
    let mut world = worker.world();
    let plugin = world
        .storages
        .get(new.storage)
        .ok_or_else(|| format!("storage '{}' does not exist", new.storage))?
        .plugin;
    let disk = new
        .disk
        .unwrap_or_else(|| free_disk_name(&world, new.storage, vmid));
    let format = plugin.format_of_copy(&new.format);
    let made = storage::volid(new.storage, plugin, vmid, &disk, format);
    let of = Made {
        node: &worker.node,
        owner: vmid,
        format,
        size: new.size,
    };
    insert_volume(&mut world, &worker.who, &made, &of);
    Ok(made)
}

fn attach(
    world: &mut World,
    worker: &Worker,
    vmid: u32,
    volid: &str,
    value: &str,
) -> Result<String, Refusal> {
    if !volid.contains(':') || value.contains("media=cdrom") {
        return Ok(value.to_owned());
    }
    let size = world
        .volumes
        .get(volid)
        .ok_or_else(|| format!("volume '{volid}' does not exist"))?
        .size;
    let own = world
        .vms
        .get(&vmid)
        .is_some_and(|vm| vm.config.values().any(|held| volume_of(held) == volid));
    if !own {
        world.changes_volume(&worker.who, volid, "attach");
    }
    Ok(with_size(value, size))
}

/// A NIC without an address is given one.
pub(crate) fn with_mac(world: &mut World, value: &str) -> String {
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
