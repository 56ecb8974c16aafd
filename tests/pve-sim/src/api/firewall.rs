//! Security groups and a machine's firewall options.

use serde_json::{Value, json};

use super::drive::refuse_stale;
use super::unanswered;
use crate::call::{Call, NOTHING};
use crate::schema::Kind;
use crate::wire::{Answer, Refusal};
use crate::world::{Config, World};

pub(crate) fn perform(call: &Call) -> Answer {
    match call.method.name.as_str() {
        "GET /cluster/firewall/groups" => Ok(groups(call)),
        "POST /cluster/firewall/groups" => create_group(call),
        "GET /cluster/firewall/options" => Ok(cluster_options(call)),
        "GET /nodes/{node}/qemu/{vmid}/firewall/options" => options(call),
        "GET /nodes/{node}/qemu/{vmid}/firewall/rules" => rules(call),
        _ => unanswered(call),
    }
}

fn digest(of: &str) -> String {
    use sha2::{Digest, Sha256};
    let mut digest = hex::encode(Sha256::digest(of));
    digest.truncate(40);
    digest
}

fn cluster_options(call: &Call) -> Value {
    let mut options = json!({ "digest": digest("options") });
    if call.world().firewall {
        options["enable"] = json!(1);
    }
    options
}

fn groups(call: &Call) -> Value {
    let world = call.world();
    world
        .groups
        .iter()
        .map(|(name, comment)| {
            let mut entry = json!({ "group": name, "digest": digest("groups") });
            if let Some(comment) = comment {
                entry["comment"] = json!(comment);
            }
            entry
        })
        .collect()
}

fn create_group(call: &Call) -> Answer {
    let mut world = call.world();
    let name = call.need("group");
    if world.groups.contains_key(&name) {
        return Err(Refusal::parameter(
            "group",
            format!("Security group '{name}' already exists"),
        ));
    }
    world.groups.insert(name, call.text("comment"));
    Ok(NOTHING)
}

fn options(call: &Call) -> Answer {
    let world = call.world();
    let vm = world.vm(&call.node(), call.vmid())?;
    let mut shown = json!({ "digest": digest(&format!("{:?}", vm.firewall)) });
    for (key, value) in &vm.firewall {
        let number = call_kind_is_boolean(key)
            .then(|| value.parse::<u8>().ok())
            .flatten();
        shown[key.as_str()] = number.map_or_else(|| json!(value), |number| json!(number));
    }
    Ok(shown)
}

fn call_kind_is_boolean(key: &str) -> bool {
    crate::schema::methods()
        .iter()
        .find(|method| method.name == "PUT /nodes/{node}/qemu/{vmid}/firewall/options")
        .and_then(|method| method.parameters.iter().find(|parameter| parameter.name == key))
        .is_some_and(|parameter| parameter.kind == Kind::Boolean)
}

fn rules(call: &Call) -> Answer {
    let world = call.world();
    let vm = world.vm(&call.node(), call.vmid())?;
    let of_all = digest(&format!("{:?}", vm.rules));
    Ok(vm
        .rules
        .iter()
        .enumerate()
        .map(|(at, rule)| {
            let mut shown = json!({ "pos": at, "digest": of_all });
            for (key, value) in rule {
                shown[key.as_str()] = match key.as_str() {
                    "enable" => json!(value.parse::<u64>().unwrap_or_default()),
                    _ => json!(value),
                };
            }
            shown
        })
        .collect())
}

/// A rule stands before all others unless a place is named, and does nothing unless it is enabled. That a security group
/// is not there is no reason to refuse a rule that names it.
pub(crate) fn add_rule(call: &Call) -> Answer {
    let mut world = call.world();
    let vmid = call.vmid();
    refuse_stale_rules(call, &world)?;
    world.changes_vm(&call.who, vmid, "firewall");
    let vm = world.vm_mut(&call.node(), vmid)?;
    let given = call
        .given
        .iter()
        .filter(|(key, _)| !matches!(key.as_str(), "node" | "vmid" | "pos" | "digest"));
    let mut rule: Config = given.map(|(key, value)| (key.clone(), value.text())).collect();
    rule.entry("enable".into()).or_insert_with(|| "0".into());
    let at = call.number("pos").and_then(|at| usize::try_from(at).ok());
    vm.rules.insert(at.unwrap_or(0).min(vm.rules.len()), rule);
    Ok(NOTHING)
}

pub(crate) fn remove_rule(call: &Call) -> Answer {
    let mut world = call.world();
    let vmid = call.vmid();
    refuse_stale_rules(call, &world)?;
    world.changes_vm(&call.who, vmid, "firewall");
    let vm = world.vm_mut(&call.node(), vmid)?;
    let pos = call.need("pos");
    match pos.parse::<usize>().ok().filter(|at| *at < vm.rules.len()) {
        Some(at) => {
            vm.rules.remove(at);
            Ok(NOTHING)
        }
        None => Err(Refusal::died(format!("no rule at position {pos}"))),
    }
}

fn refuse_stale_rules(call: &Call, world: &World) -> Result<(), Refusal> {
    let vm = world.vm(&call.node(), call.vmid())?;
    let is = digest(&format!("{:?}", vm.rules));
    Ok(refuse_stale(call.text("digest").as_deref(), &is)?)
}

pub(crate) fn change(call: &Call) -> Answer {
    let mut world = call.world();
    let vmid = call.vmid();
    world.vm(&call.node(), vmid)?;
    world.changes_vm(&call.who, vmid, "firewall");
    let vm = world.vm_mut(&call.node(), vmid)?;
    let wanted = call.text("digest");
    if wanted.is_some_and(|wanted| wanted != digest(&format!("{:?}", vm.firewall))) {
        return Err(Refusal::died("checksum mismatch (file change by other user?)"));
    }
    for key in call.text("delete").unwrap_or_default().split(',') {
        vm.firewall.remove(key);
    }
    for (key, value) in &call.given {
        if !matches!(key.as_str(), "node" | "vmid" | "digest" | "delete") {
            let value = value.text();
            let value = if call_kind_is_boolean(key) {
                u8::from(crate::schema::flag(&value) == Some(true)).to_string()
            } else {
                value
            };
            vm.firewall.insert(key.clone(), value);
        }
    }
    Ok(NOTHING)
}
