//! Whether a template can become sandboxes that work. What its clones are given anew does not matter: NICs, protection,
//! start at boot, cloud-init's upgrades.

use agentlab_api::{Vmid, device_of_host, is_agent_enabled};
use serde_json::Value;

use super::row::Row;
use crate::init::look::{Machine, disks, is_true, option, text};

const CHECK: &str = "template";
/// The runner of this release; a template says in its description which one it has.
const RUNNER: &str = env!("CARGO_PKG_VERSION");

/// What is to be known of one.
#[derive(Debug)]
pub(crate) struct Seen<'a> {
    pub(crate) vmid: Vmid,
    /// `None`: no VM has the number.
    pub(crate) machine: Option<&'a Machine>,
    /// Its configuration, or why it could not be read.
    pub(crate) config: Result<&'a Value, String>,
    pub(crate) pool: &'a str,
}

/// The most important thing that is wrong with it, or that all is well.
pub(crate) fn row(seen: &Seen<'_>) -> Row {
    let vmid = seen.vmid;
    let Some(machine) = seen.machine else {
        return Row::fail(
            CHECK,
            format!("no VM has the number {vmid}"),
            format!(
                "make it (`agentlab-template build RECIPE --vmid {vmid} --storage STORAGE --bridge BRIDGE`), or name another number in \
                 `template_vmid` and in the profiles: docs/template.md"
            ),
        );
    };
    let config = match &seen.config {
        Ok(config) => *config,
        Err(reason) => {
            return Row::unknown(
                CHECK,
                format!("{vmid} cannot be looked at: {reason}"),
                "run as root on the node",
            );
        }
    };
    if !machine.template && !is_true(config.get("template")) {
        return Row::fail(
            CHECK,
            format!("{vmid} is a VM and no template"),
            format!("qm template {vmid}"),
        );
    }
    if machine.pool.as_deref() == Some(seen.pool) {
        return Row::fail(
            CHECK,
            format!(
                "{vmid} is in the sandboxes' pool {}: the token can change and end it",
                seen.pool
            ),
            format!("pveum pool modify {} --delete 1 --vms {vmid}", seen.pool),
        );
    }
    if let Some(row) = lack(vmid, config) {
        return row;
    }
    let all: Vec<_> = disks(config).collect();
    remarks(vmid, config).unwrap_or_else(|| {
        let storages: Vec<&str> = all.iter().map(|(_, storage, _)| storage.as_str()).collect();
        let name = text(config, "name").unwrap_or_default();
        let shield = if is_true(config.get("protection")) {
            "protected"
        } else {
            "not protected"
        };
        Row::ok(
            CHECK,
            format!("{vmid} {name} is a template on {}, {shield}", storages.join(", ")),
        )
    })
}

/// What it lacks so that nothing is cloned from it.
fn lack(vmid: Vmid, config: &Value) -> Option<Row> {
    let fail = |seen: String, next: String| Some(Row::fail(CHECK, format!("{vmid} {seen}"), next));
    let small = |slot: &str| slot.starts_with("efidisk") || slot.starts_with("tpmstate");
    let Some((slot, _, value)) = disks(config).find(|(slot, ..)| !small(slot)) else {
        return fail(
            "has no disk".to_owned(),
            "build it anew: docs/template.md".to_owned(),
        );
    };
    if option(&value, "size").is_none() {
        return fail(
            format!("has a disk of unknown size, {slot}"),
            format!("qm rescan --vmid {vmid}"),
        );
    }
    if let Some((key, what)) = of_host(config) {
        return fail(
            format!("hands {what} of its host to every sandbox, by its key {key}"),
            format!("qm set {vmid} --delete {key}"),
        );
    }
    let agent = text(config, "agent").unwrap_or_default();
    if !is_agent_enabled(&agent) {
        return fail(
            "has its guest agent switched off".to_owned(),
            format!("qm set {vmid} --agent 1"),
        );
    }
    let net0 = text(config, "net0").unwrap_or_default();
    if option(&net0, "bridge").is_none() {
        return fail(
            "has no NIC net0 on a bridge".to_owned(),
            format!(
                "qm set {vmid} --net0 virtio,bridge=vmbr0, or any other: each clone gets a NIC of its own"
            ),
        );
    }
    let description = text(config, "description").unwrap_or_default();
    let mut lines = description.lines();
    let runner = lines.find_map(|line| line.trim().strip_prefix("agentlab-runner:"));
    let runner = runner.map(str::trim).filter(|runner| *runner != RUNNER)?;
    fail(
        format!("has runner {runner}, and this release works with {RUNNER}"),
        format!(
            "agentlab-template build RECIPE --vmid {vmid} --storage STORAGE --bridge BRIDGE --replace, with the recipe it was built from: \
             docs/template.md"
        ),
    )
}

/// A key that gives guests something of the host's own, and what that is.
fn of_host(config: &Value) -> Option<(&str, &'static str)> {
    let mut entries = config.as_object().into_iter().flatten();
    entries.find_map(|(key, value)| Some((key.as_str(), device_of_host(key, value.as_str()?)?)))
}

/// What works and costs something.
fn remarks(vmid: Vmid, config: &Value) -> Option<Row> {
    let warn = |seen: String, next: String| Some(Row::warn(CHECK, format!("{vmid} {seen}"), next));
    let slow = ["efidisk0", "tpmstate0"]
        .into_iter()
        .find(|key| config.get(*key).is_some());
    if let Some(key) = slow {
        return warn(
            format!("has {key}: it is copied whole into every clone"),
            "use SeaBIOS and no TPM in templates for sandboxes".to_owned(),
        );
    }
    if config.get("args").is_some() {
        return warn(
            "has `args`: every clone gets the same ones".to_owned(),
            format!("see what they are for (qm config {vmid}), or qm set {vmid} --delete args"),
        );
    }
    None
}

#[cfg(test)]
#[path = "template_tests.rs"]
mod tests;
