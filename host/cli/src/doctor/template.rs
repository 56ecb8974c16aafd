//! Whether a template can become sandboxes that work and that are not in somebody's way.

use agentlab_api::Vmid;
use serde_json::Value;

use super::row::Row;
use crate::init::look::{Machine, disks, is_true, nics, option, text};

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
    let cards: Vec<_> = nics(config).collect();
    match cards.as_slice() {
        [("net0", _)] => {}
        [] => {
            return Row::fail(
                CHECK,
                format!("{vmid} has no NIC"),
                format!("qm set {vmid} --net0 virtio,bridge=vmbr1"),
            );
        }
        _ => {
            return Row::fail(
                CHECK,
                format!("{vmid} must have net0 and no other NIC: what hangs on others nobody guards"),
                format!("qm set {vmid} --delete net1"),
            );
        }
    }
    remarks(vmid, config).unwrap_or_else(|| {
        let storages: Vec<&str> = all.iter().map(|(_, storage, _)| storage.as_str()).collect();
        Row::ok(
            CHECK,
            format!(
                "{vmid} {} is a template on {}",
                text(config, "name").unwrap_or_default(),
                storages.join(", ")
            ),
        )
    })
}

/// What works and costs something.
fn remarks(vmid: Vmid, config: &Value) -> Option<Row> {
    let warn = |seen: String, next: String| Some(Row::warn(CHECK, format!("{vmid} {seen}"), next));
    let agent = text(config, "agent").unwrap_or_default();
    let agent_is_on = agent.split(',').any(|part| matches!(part, "1" | "enabled=1"));
    if let Some((key, value)) = nics(config).find(|(_, value)| option(value, "firewall") == Some("1")) {
        let plain = value.replace(",firewall=1", "");
        return warn(
            format!(
                "has firewall=1 on {key}: with PVE's firewall on, clones hang on a bridge of their own (fwbr), where our policy does not see them"
            ),
            format!("qm set {vmid} --{key} {plain}"),
        );
    }
    if !agent_is_on {
        return warn(
            "has no guest agent switched on: addresses are not double-checked".to_owned(),
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
    let has_cloud_init = config.as_object().into_iter().flatten().any(|(_, value)| {
        value
            .as_str()
            .is_some_and(|value| value.contains("cloudinit") && value.contains("media=cdrom"))
    });
    let upgrades = config.get("ciupgrade").is_none_or(|value| is_true(Some(value)));
    if has_cloud_init && upgrades {
        return warn(
            "has a cloud-init drive and lets packages be upgraded at each first boot".to_owned(),
            format!("qm set {vmid} --ciupgrade 0"),
        );
    }
    if is_true(config.get("onboot")) {
        return warn(
            "starts at boot: clones inherit it until they are configured".to_owned(),
            format!("qm set {vmid} --onboot 0"),
        );
    }
    None
}

#[cfg(test)]
#[path = "template_tests.rs"]
mod tests;
