//! Whether a template can become sandboxes that work. What its clones are given anew does not matter: NICs, protection,
//! start at boot, cloud-init's upgrades.

use agentlab_api::Vmid;
use serde_json::Value;

use super::row::Row;
use crate::init::look::{Machine, disks, is_true, text};

const CHECK: &str = "template";

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
            "make a template, or name another number in `template_vmid` and in the profiles: docs/template.md",
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
    let all: Vec<_> = disks(config).collect();
    if all.is_empty() {
        return Row::fail(
            CHECK,
            format!("{vmid} has no disk"),
            "build it anew: docs/template.md",
        );
    }
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

/// What works and costs something.
fn remarks(vmid: Vmid, config: &Value) -> Option<Row> {
    let warn = |seen: String, next: String| Some(Row::warn(CHECK, format!("{vmid} {seen}"), next));
    let agent = text(config, "agent").unwrap_or_default();
    let agent_is_on = agent.split(',').any(|part| matches!(part, "1" | "enabled=1"));
    if !agent_is_on {
        return warn(
            "has no guest agent switched on: nobody can look into a guest that does not answer".to_owned(),
            format!("qm set {vmid} --agent 1"),
        );
    }
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
