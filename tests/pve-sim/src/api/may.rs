//! Who may set which key of a configuration. Every key asks for its own privilege, whatever let the caller in.

use std::collections::BTreeSet;

use super::clone::bridge_of;
use super::config::Change;
use super::plug::{Source, source};
use crate::call::Call;
use crate::schema::key_of;
use crate::wire::Refusal;
use crate::world::{Vm, volume_of};

/// On a machine that is being made, a privilege on the pool it is to be in is as good as one on itself.
struct On<'a> {
    call: &'a Call,
    machine: String,
    pool: Option<&'a str>,
}

impl On<'_> {
    fn require(&self, any_of: &[&str]) -> Result<(), Refusal> {
        let in_pool = self.pool.map(|pool| format!("/pool/{pool}"));
        if in_pool.is_some_and(|path| self.call.require(&path, any_of).is_ok()) {
            return Ok(());
        }
        self.call.require(&self.machine, any_of)
    }
}

/// `creating`: the pool that a new machine is to be in, when it is a new one.
pub(crate) fn may_set(call: &Call, change: &Change, creating: Option<Option<&str>>) -> Result<(), Refusal> {
    let on = On {
        call,
        machine: format!("/vms/{}", call.need("vmid")),
        pool: creating.flatten(),
    };
    let revert = change.revert.iter().map(|name| (name, ""));
    let delete = change.delete.iter().map(|name| (name, ""));
    let set = change.set.iter().map(|(name, value)| (name, value.as_str()));
    for (name, value) in set.chain(delete).chain(revert) {
        let Some(key) = key_of(name) else {
            continue;
        };
        if key.privilege == "Drive" {
            may_use_drive(&on, name, value, creating.is_some())?;
        } else if !call.who.is_root() {
            may_set_key(&on, name, value, &key.privilege)?;
        }
    }
    Ok(())
}

fn may_set_key(on: &On<'_>, name: &str, value: &str, privilege: &str) -> Result<(), Refusal> {
    match privilege {
        "Root" => Err(Refusal::died(format!("only root can set '{name}' config"))),
        "Unused" => on.require(&["VM.Config.Disk"]),
        "Serial" if value.is_empty() || value == "socket" || value.starts_with("spice") => {
            on.require(&["VM.Config.HWType"])
        }
        "Serial" => Err(Refusal::died(format!(
            "only root can set '{name}' config for real devices"
        ))),
        "Startup" => {
            on.require(&["VM.Config.Options"])?;
            on.call.require("/", &["Sys.Modify"])
        }
        "PowerMgmt" => on.require(&["VM.PowerMgmt"]),
        "Cloudinit" => on.require(&["VM.Config.Cloudinit", "VM.Config.Network"]),
        "Network" => {
            on.require(&["VM.Config.Network"])?;
            match bridge_of(value).filter(|_| name.starts_with("net")) {
                Some(bridge) => on
                    .call
                    .require(&format!("/sdn/zones/localnetwork/{bridge}"), &["SDN.Use"]),
                None => Ok(()),
            }
        }
        "Tags" => {
            on.require(&["VM.Config.Options"])?;
            may_tag(on.call, value)
        }
        privilege => on.require(&[&format!("VM.Config.{privilege}")]),
    }
}

/// Tags that an administrator has registered are the administrator's to give and to take.
fn may_tag(call: &Call, value: &str) -> Result<(), Refusal> {
    let world = call.world();
    let registered = tags(world.options.get("registered-tags").map_or("", String::as_str));
    let has = world.vms.get(&call.vmid()).map(Vm::wanted).unwrap_or_default();
    let before = tags(has.get("tags").map_or("", String::as_str));
    let after = tags(value);
    let reserved = before
        .symmetric_difference(&after)
        .find(|tag| registered.contains(*tag));
    match reserved {
        Some(tag) if !world.may(&call.who, "/", "Sys.Modify") => Err(Refusal::Forbidden(format!(
            "Permission check failed (/, Sys.Modify for modifying tag '{tag}')"
        ))),
        Some(_) | None => Ok(()),
    }
}

fn tags(text: &str) -> BTreeSet<&str> {
    text.split([',', ';', ' '])
        .filter(|tag| !tag.is_empty())
        .collect()
}

/// What is wrong with a drive's value is said to root too. A machine that is being made is given disks by whoever may
/// make it.
fn may_use_drive(on: &On<'_>, name: &str, value: &str, creating: bool) -> Result<(), Refusal> {
    let call = on.call;
    let source = source(value).map_err(|text| Refusal::parameter(name, text))?;
    if !creating && !call.who.is_root() {
        let cdrom =
            value.contains("media=cdrom") || matches!(source, Source::CloudInit { .. } | Source::Empty);
        on.require(&[if cdrom && !value.is_empty() {
            "VM.Config.CDROM"
        } else {
            "VM.Config.Disk"
        }])?;
    }
    match source {
        Source::Empty => Ok(()),
        Source::CloudInit { storage } | Source::New { storage, .. } => may_allocate(call, storage),
        Source::Import { storage, from } => {
            may_allocate(call, storage)?;
            may_import(call, name, from)
        }
        Source::There { volid } if volid.starts_with('/') => may_name_a_path(call),
        Source::There { volid } => {
            let Some((storage, _)) = volid.split_once(':') else {
                return Ok(());
            };
            exists(call, storage)?;
            let owner = call
                .world()
                .volumes
                .get(volume_of(value))
                .map(|volume| volume.owner);
            match owner.filter(|owner| *owner != call.vmid()) {
                Some(owner) => {
                    call.require(&format!("/storage/{storage}"), &["Datastore.Audit"])?;
                    call.require(&format!("/vms/{owner}"), &["VM.Config.Disk"])
                }
                None => Ok(()),
            }
        }
    }
}

fn may_name_a_path(call: &Call) -> Result<(), Refusal> {
    if call.who.is_root() {
        return Ok(());
    }
    Err(Refusal::died("Only root can pass arbitrary filesystem paths."))
}

fn exists(call: &Call, storage: &str) -> Result<(), Refusal> {
    if call.world().storages.contains_key(storage) {
        return Ok(());
    }
    Err(Refusal::died(format!("storage '{storage}' does not exist")))
}

fn may_allocate(call: &Call, storage: &str) -> Result<(), Refusal> {
    call.require(&format!("/storage/{storage}"), &["Datastore.AllocateSpace"])?;
    exists(call, storage)?;
    let world = call.world();
    let images = world
        .storages
        .get(storage)
        .is_some_and(|found| found.content.iter().any(|kind| kind == "images"));
    if images {
        return Ok(());
    }
    Err(Refusal::parameter(
        "storage",
        format!("storage '{storage}' does not support vm images"),
    ))
}

fn may_import(call: &Call, name: &str, from: &str) -> Result<(), Refusal> {
    let Some((storage, volume)) = from.split_once(':').filter(|_| !from.starts_with('/')) else {
        return may_name_a_path(call);
    };
    exists(call, storage)?;
    let owner = call.world().volumes.get(from).map(|volume| volume.owner);
    if let Some(owner) = owner {
        return call.require(&format!("/vms/{owner}"), &["VM.Clone"]);
    }
    let kind = volume.split('/').next().unwrap_or_default();
    if matches!(kind, "iso" | "vztmpl" | "snippets" | "backup") {
        return Err(Refusal::parameter(
            name,
            format!("{from} has wrong type '{kind}' - needs to be 'images' or 'import'"),
        ));
    }
    call.require(
        &format!("/storage/{storage}"),
        &["Datastore.AllocateSpace", "Datastore.Audit"],
    )
}
