//! A node: what holds up clones, and what is left over.

use std::collections::BTreeMap;
use std::path::Path;

use agentlab_api::{SandboxState, Vmid};
use agentlab_client::Client;
use agentlab_config::Config;
use serde_json::Value;

use super::ask::Way;
use super::row::Row;
use super::template;
use crate::init::look::{Machine, Node, is_true, list, nics, option, text};
use crate::init::settings::{NodeArguments, OfTemplates, templates};

/// Machines looked at one by one; each costs two programs of half a second.
const MOST_MACHINES: usize = 32;
/// Where `local` keeps snippets.
const SNIPPETS: &str = "/var/lib/vz/snippets";

/// A node and the way to it.
#[derive(Debug)]
pub(crate) struct Looked<'a> {
    pub(crate) arguments: &'a NodeArguments,
    pub(crate) config: &'a Config,
    pub(crate) node: &'a Node,
    pub(crate) quorum: Row,
    pub(crate) client: &'a Client,
    pub(crate) way: Way<'a>,
}

/// All rows of it, and what its templates say of storages and bridges.
pub(crate) async fn rows(looked: Looked<'_>) -> (Vec<Row>, OfTemplates) {
    let Looked {
        config, node, way, ..
    } = looked;
    let mut rows = vec![
        Row::ok("node", format!("{}, Proxmox VE {}", node.name, node.version)),
        looked.quorum,
    ];
    let pool = config.proxmox.pool.as_deref().unwrap_or("agentlab");
    let mut configs = Vec::new();
    for vmid in templates(looked.arguments, config) {
        let machine = node.machines.get(&vmid);
        let home = machine.map_or(node.name.as_str(), |machine| machine.node.as_str());
        let path = format!("/nodes/{home}/qemu/{vmid}");
        let answer = way.ask(&format!("{path}/config"), &[]).await;
        rows.push(template::row(&template::Seen {
            vmid,
            machine,
            config: answer.as_ref().map_err(Clone::clone),
            pool,
        }));
        if let Ok(answer) = answer {
            configs.push(answer);
            rows.extend(features(vmid, &path, way).await);
        }
    }
    rows.push(match way.ask("/cluster/firewall/options", &[]).await {
        Ok(options) => firewall(&options, &config.bridge, &node.name),
        Err(error) => Row::unknown("pve-firewall", error, "pve-firewall status, as root on the node"),
    });
    if way.sees_all() {
        rows.push(numbers(config, node, pool));
        let range = config.vmid_first..=config.vmid_last;
        let sandboxes = node
            .machines
            .iter()
            .filter(|(vmid, machine)| range.contains(vmid) && machine.pool.as_deref() == Some(pool));
        rows.extend(strays(sandboxes, &node.name));
    }
    rows.extend(left_over(config, node, looked.client, way).await);
    (rows, OfTemplates::of(&configs, node, &looked.arguments.user))
}

/// What a template's storage can, in PVE's own words.
async fn features(vmid: Vmid, path: &str, way: Way<'_>) -> Vec<Row> {
    let path = format!("{path}/feature");
    let mut rows = Vec::new();
    for (feature, lack) in [
        (
            "clone",
            "makes no linked clones: every sandbox is a full copy, which is slow",
        ),
        ("snapshot", "takes no snapshots: sandboxes cannot be rolled back"),
    ] {
        rows.push(match way.ask(&path, &[("feature", feature)]).await {
            Ok(answer) if is_true(answer.get("hasFeature")) => {
                Row::ok("storage", format!("that of template {vmid} can do `{feature}`"))
            }
            Ok(_) => Row::warn(
                "storage",
                format!("that of template {vmid} {lack}"),
                "keep templates on zfspool, lvmthin, rbd, or on dir with qcow2",
            ),
            Err(error) => Row::unknown("storage", error, format!("pvesh get {path} --feature {feature}")),
        });
    }
    rows
}

/// PVE's own firewall filters what is forwarded as soon as it is on for the cluster.
fn firewall(options: &Value, bridge: &str, node: &str) -> Row {
    if !is_true(options.get("enable")) {
        return Row::ok("pve-firewall", "off");
    }
    Row::warn(
        "pve-firewall",
        "on: what our policy accepts it may still drop, and it lets nobody reach this host by default, sandboxes neither",
        format!(
            "pvesh create /nodes/{node}/firewall/rules --type in --action ACCEPT --iface {bridge} --enable 1\n\
             lets sandboxes reach the ports that our own policy leaves open to them"
        ),
    )
}

/// Machines of others with numbers of ours.
fn numbers(config: &Config, node: &Node, pool: &str) -> Row {
    let (first, last) = (config.vmid_first, config.vmid_last);
    let others: Vec<String> = node
        .machines
        .iter()
        .filter(|(vmid, machine)| (first..=last).contains(*vmid) && machine.pool.as_deref() != Some(pool))
        .map(|(vmid, _)| vmid.to_string())
        .collect();
    if others.is_empty() {
        return Row::ok("numbers", format!("{first} to {last} are the sandboxes' alone"));
    }
    Row::warn(
        "numbers",
        format!(
            "machines outside of pool {pool} have numbers of the sandboxes: {}",
            others.join(", ")
        ),
        "set `vmid_first` and `vmid_last` to a range nobody uses; pvesh set /cluster/options --next-id keeps PVE out of it",
    )
}

/// Sandboxes that somebody took to another node: they are still the daemon's to stop and destroy, and its policy does not
/// see their packets.
fn strays<'a>(sandboxes: impl Iterator<Item = (&'a Vmid, &'a Machine)>, node: &str) -> Option<Row> {
    let astray: Vec<(Vmid, &str)> = sandboxes
        .filter(|(_, machine)| machine.node != node)
        .map(|(vmid, machine)| (*vmid, machine.node.as_str()))
        .collect();
    let (vmid, elsewhere) = *astray.first()?;
    let named: Vec<String> = astray
        .iter()
        .map(|(vmid, elsewhere)| format!("{vmid} on {elsewhere}"))
        .collect();
    Some(Row::fail(
        "nodes",
        format!(
            "sandboxes are on other nodes, where nobody filters their packets: {}",
            named.join(", ")
        ),
        format!("agentlab sandbox destroy {vmid}, or, on {elsewhere}, qm migrate {vmid} {node}"),
    ))
}

async fn left_over(config: &Config, node: &Node, client: &Client, way: Way<'_>) -> Vec<Row> {
    let known = sandboxes(client).await;
    let range = config.vmid_first..=config.vmid_last;
    let ours: Vec<_> = node
        .machines
        .iter()
        .filter(|(vmid, _)| range.contains(vmid))
        .collect();
    let mut rows = Vec::new();
    for (vmid, machine) in ours.iter().take(MOST_MACHINES) {
        let path = format!("/nodes/{}/qemu/{vmid}", machine.node);
        let (config_path, snapshot_path) = (format!("{path}/config"), format!("{path}/snapshot"));
        let (config, snapshots) = tokio::join!(way.ask(&config_path, &[]), way.ask(&snapshot_path, &[]));
        match config {
            Ok(config) => rows.extend(of_machine(**vmid, &config, known.as_ref())),
            Err(error) => rows.push(Row::unknown(
                "left over",
                format!("{vmid}: {error}"),
                "run it again",
            )),
        }
        match snapshots {
            Ok(snapshots) => rows.extend(with_memory(**vmid, &snapshots)),
            Err(error) => rows.push(Row::unknown(
                "snapshots",
                format!("{vmid}: {error}"),
                "run it again",
            )),
        }
    }
    let configured = config.proxmox.snippets.as_ref();
    let dir = configured.map_or(Path::new(SNIPPETS), |snippets| &snippets.dir);
    if let Some(entries) = std::fs::read_dir(dir).ok().filter(|_| way.sees_all()) {
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        rows.extend(snippets(dir, names, known.as_ref()));
    }
    if ours.len() > MOST_MACHINES {
        let seen = format!(
            "only the first {MOST_MACHINES} of {} machines were looked at",
            ours.len()
        );
        rows.push(Row::unknown(
            "left over",
            seen,
            "end some sandboxes, and run it again",
        ));
    }
    if known.is_none() {
        let seen = "which machines are sandboxes only the daemon knows, and it does not answer";
        rows.push(Row::unknown("left over", seen, "systemctl start agentlabd"));
    } else if rows.is_empty() {
        rows.push(Row::ok(
            "left over",
            format!("nothing among {} machines of ours", ours.len()),
        ));
    }
    rows
}

type Sandboxes = BTreeMap<Vmid, SandboxState>;

/// Every sandbox that is; `None` where the daemon does not say.
async fn sandboxes(client: &Client) -> Option<Sandboxes> {
    let mut all = Sandboxes::new();
    let mut cursor = None;
    loop {
        let page = client.sandboxes(false, cursor.as_deref(), None).await.ok()?;
        all.extend(page.sandboxes.iter().map(|sandbox| (sandbox.vmid, sandbox.state)));
        cursor = page.next_cursor;
        if cursor.is_none() {
            return Some(all);
        }
    }
}

/// What a machine of ours should not have.
fn of_machine(vmid: Vmid, config: &Value, known: Option<&Sandboxes>) -> Vec<Row> {
    let mut rows = Vec::new();
    let smbios = text(config, "smbios1").unwrap_or_default();
    let state = known.map(|known| known.get(&vmid));
    let seen = match state {
        Some(None) => Some(format!(
            "{vmid} has a seed in SMBIOS, and the daemon knows no such sandbox"
        )),
        Some(Some(state @ (SandboxState::Ready | SandboxState::Running))) => Some(format!(
            "{vmid} is {state} and still has its seed in SMBIOS, which is taken away once it was used"
        )),
        Some(Some(_)) | None => None,
    };
    if let Some(seen) = seen.filter(|_| option(&smbios, "serial").is_some()) {
        let next = format!("qm config {vmid}; when it is a sandbox nobody has, qm destroy {vmid} --purge");
        rows.push(Row::warn("left over", seen, next));
    }
    // Without a description nothing proves that it was to be ours, and no token ends the lock of a worker that died.
    let is_half_made = matches!(text(config, "lock").as_deref(), Some("clone" | "create"));
    if is_half_made && matches!(state, Some(None)) {
        rows.push(Row::warn(
            "left over",
            format!("{vmid} is half a clone, and the daemon knows no such sandbox"),
            format!(
                "pvesh get /nodes/localhost/tasks --source active\n\
                 when no task makes it any more, \
                 qm unlock {vmid} && qm destroy {vmid} --purge 1 --destroy-unreferenced-disks 1"
            ),
        ));
    }
    let behind_firewall = nics(config).find(|(_, value)| option(value, "firewall") == Some("1"));
    if let Some((key, _)) = behind_firewall.filter(|_| !asks_for_firewall(config)) {
        rows.push(Row::fail(
            "fwbr",
            format!("{vmid} has firewall=1 on {key}, which its profile does not ask for"),
            "destroy this sandbox; the daemon makes none like that",
        ));
    }
    rows
}

/// Whether the daemon itself put a machine behind PVE's firewall; its label says so.
fn asks_for_firewall(config: &Value) -> bool {
    let description = text(config, "description").unwrap_or_default();
    let mut ours = description
        .lines()
        .filter(|line| line.trim().starts_with("agentlab:"));
    ours.any(|line| line.split_whitespace().any(|word| word.starts_with("firewall=")))
}

/// A snapshot with memory holds the secrets a job was given.
fn with_memory(vmid: Vmid, snapshots: &Value) -> Option<Row> {
    let names: Vec<String> = list(snapshots)
        .filter(|snapshot| is_true(snapshot.get("vmstate")))
        .filter_map(|snapshot| text(snapshot, "name"))
        .collect();
    (!names.is_empty()).then(|| {
        Row::fail(
            "snapshots",
            format!(
                "{vmid} has snapshots with memory, which hold whatever secrets it was given: {}",
                names.join(", ")
            ),
            names
                .iter()
                .map(|name| format!("qm delsnapshot {vmid} {name}"))
                .collect::<Vec<_>>()
                .join("\n"),
        )
    })
}

/// Files that name a sandbox that is no more.
fn snippets(dir: &Path, names: impl Iterator<Item = String>, known: Option<&Sandboxes>) -> Option<Row> {
    let (known, dir) = (known?, dir.display());
    let is_stale = |name: &String| {
        let digits: String = name
            .strip_prefix("agentlab-")
            .unwrap_or_default()
            .chars()
            .take_while(char::is_ascii_digit)
            .collect();
        digits
            .parse::<Vmid>()
            .is_ok_and(|vmid| !known.contains_key(&vmid))
    };
    let stale: Vec<String> = names.filter(is_stale).collect();
    (!stale.is_empty()).then(|| {
        Row::warn(
            "left over",
            format!(
                "seeds of sandboxes that are no more lie in {dir}: {}",
                stale.join(", ")
            ),
            format!(
                "rm {}",
                stale
                    .iter()
                    .map(|name| format!("{dir}/{name}"))
                    .collect::<Vec<_>>()
                    .join(" ")
            ),
        )
    })
}

#[cfg(test)]
#[path = "pve_tests.rs"]
mod tests;
