//! The checklist besides the steps: the node itself, and what of this host the daemon needs.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use agentlab_config::{Config, ConfigError, TlsTrust};

use super::look::Node;
use super::plan::Wanted;
use super::privilege::SMBIOS;
use super::programs::Programs;
use super::settings::pins;
use crate::doctor::{Row, State};

/// Storages that can make linked clones of a template's disks.
const LINKED: [&str; 11] = [
    "dir",
    "nfs",
    "cifs",
    "cephfs",
    "btrfs",
    "zfspool",
    "zfs",
    "lvmthin",
    "rbd",
    "glusterfs",
    "esxi",
];

pub(crate) fn of_node(node: &Node, config: &Config) -> Vec<Row> {
    let mut rows = vec![match node.release {
        Some(_) => Row::ok(
            "proxmox",
            format!("{} runs Proxmox VE {}", node.name, node.version),
        ),
        None => Row::fail(
            "proxmox",
            format!("{} runs Proxmox VE {}", node.name, node.version),
            "upgrade it to 8.4 or 9",
        ),
    }];
    rows.push(quorum(node.quorate, node.nodes));
    rows.push(match (&node.fingerprint, pins(config, &node.name)) {
        (Some(fingerprint), true) if is_pinned(config, fingerprint) => {
            Row::ok("certificate", format!("pinned: {fingerprint}"))
        }
        (Some(fingerprint), true) => Row::ok("certificate", format!("to be pinned: {fingerprint}")),
        (_, false) => Row::ok(
            "certificate",
            "believed as config.yaml says; `agentlab doctor` asks",
        ),
        (None, true) => Row::warn(
            "certificate",
            "PVE does not say its fingerprint",
            "pin it by hand with `proxmox_tls_fingerprint`: pvenode cert info",
        ),
    });
    let own = Path::new("/etc/pve/nodes")
        .join(&node.name)
        .join("pveproxy-ssl.pem");
    if own.exists() && pins(config, &node.name) {
        rows.push(Row::warn(
            "certificate",
            "this node has a certificate of its own (pveproxy-ssl.pem), which is renewed now and then",
            "after each renewal run `agentlab init --apply`, or let `proxmox_api_url` name the host it is for and take the pin out",
        ));
    }
    rows
}

/// The file with the token must be nobody else's. The daemon refuses it otherwise; a write of ours mends it.
pub(crate) fn private(path: &Path) -> Option<Row> {
    let mode = std::fs::metadata(path).ok()?.permissions().mode() & 0o7777;
    let path = path.display();
    Some(if mode & 0o077 == 0 {
        Row::ok("config", format!("{path}, mode {mode:04o}"))
    } else if mode & 0o037 == 0 {
        Row::warn(
            "config",
            format!("{path} has mode {mode:04o}: its group can read it"),
            format!("chmod 0600 {path}"),
        )
    } else {
        Row::fail(
            "config",
            format!("{path} has mode {mode:04o}: others can use it"),
            format!("chmod 0600 {path}"),
        )
    })
}

fn is_pinned(config: &Config, fingerprint: &str) -> bool {
    matches!(&config.proxmox.trust, TlsTrust::Fingerprint(pinned) if pinned.eq_ignore_ascii_case(fingerprint))
}

/// Without a quorum /etc/pve is read-only.
pub(crate) fn quorum(quorate: bool, nodes: usize) -> Row {
    match (quorate, nodes) {
        (true, 0 | 1) => Row::ok("quorum", "a node of its own"),
        (true, nodes) => Row::ok("quorum", format!("a quorum among {nodes} nodes")),
        (false, _) => Row::fail(
            "quorum",
            "the cluster has no quorum: nothing can be made, and nothing may be concluded",
            "pvecm status",
        ),
    }
}

/// What the set-up means for seeds, disks and workspaces.
pub(crate) fn of_wanted(wanted: &Wanted, node: &Node) -> Vec<Row> {
    let reach = &wanted.reach;
    let mut rows = vec![if reach.smbios_seed {
        Row::ok("seed", format!("handed over in SMBIOS ({SMBIOS})"))
    } else {
        snippets(node)
    }];
    for name in &reach.storages {
        rows.push(match node.storages.get(name) {
            None => Row::fail(
                "storage",
                format!("{} has no storage {name}", node.name),
                "pvesm status; name another one with --storage",
            ),
            Some(storage) if !storage.usable => Row::fail(
                "storage",
                format!("{name} is not active"),
                format!("pvesm status --storage {name}"),
            ),
            Some(storage) if !storage.content.contains("images") => Row::fail(
                "storage",
                format!("{name} takes no disks of VMs"),
                format!("pvesm set {name} --content images,{}", joined(&storage.content)),
            ),
            Some(storage) if !LINKED.contains(&storage.kind.as_str()) => Row::warn(
                "storage",
                format!(
                    "{name} ({}) makes no linked clones: every sandbox is a full copy",
                    storage.kind
                ),
                "keep templates on a storage that does, such as zfspool, lvmthin, rbd or dir",
            ),
            Some(storage) => Row::ok(
                "storage",
                format!(
                    "{name} ({}), {} free",
                    storage.kind,
                    crate::output::size(storage.free)
                ),
            ),
        });
    }
    rows.push(match &reach.volume_storage {
        Some(name) => Row::ok(
            "workspaces",
            format!("on {name}, where the token may delete every volume"),
        ),
        None => Row::warn(
            "workspaces",
            "cannot be deleted by the daemon: PVE lets a token delete all volumes of a storage or none",
            "give them a storage of their own: agentlab init --apply --volume-storage NAME",
        ),
    });
    rows
}

fn joined(words: &std::collections::BTreeSet<String>) -> String {
    words.iter().map(String::as_str).collect::<Vec<_>>().join(",")
}

/// What earlier versions did instead.
fn snippets(node: &Node) -> Row {
    let names: Vec<&str> = node
        .storages
        .iter()
        .filter(|(_, storage)| storage.content.contains("snippets"))
        .map(|(name, _)| name.as_str())
        .collect();
    let names = if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    };
    Row::warn(
        "seed",
        format!(
            "without {SMBIOS} seeds go the legacy way, as cloud-init snippets, and only to templates with a cloud-init \
             drive: `snippets_dir` in config.yaml, /var/lib/vz/snippets of `local` (storages that take them: {names})"
        ),
        "leave --no-smbios-seed out",
    )
}

/// Bridge, packet policy, forwarding and profiles. The daemon makes the first three when it starts, which may be later.
pub(crate) async fn of_host(programs: &Programs, config: &Config) -> Vec<Row> {
    let forwarding = forwarding(config.uplink.as_deref(), "/proc/sys/net/ipv4/ip_forward");
    let mut rows: Vec<Row> = [policy(programs, config).await, forwarding]
        .into_iter()
        .map(|row| match row.state {
            State::Fail => Row {
                state: State::Warn,
                seen: format!("{}; the daemon sees to it when it starts", row.seen),
                ..row
            },
            State::Ok | State::Warn | State::Unknown => row,
        })
        .collect();
    rows.push(profiles(config));
    rows
}

/// What `agentlab-net` is told, so that it compares with what config.yaml wants.
pub(crate) fn policy_options(config: &Config) -> Vec<String> {
    let mut options = vec![
        format!("--bridge={}", config.bridge),
        format!("--address={}", config.bridge_address.address),
        format!("--prefix={}", config.bridge_address.prefix),
    ];
    options.sort();
    options
}

/// What `agentlab-net verify` says.
pub(crate) async fn policy(programs: &Programs, config: &Config) -> Row {
    let argv = |verb: &str| {
        let mut argv = vec!["agentlab-net".to_owned(), verb.to_owned()];
        argv.extend(policy_options(config));
        argv
    };
    let next = format!(
        "systemctl restart agentlabd\n{}, without the daemon",
        super::step::typed(&argv("apply"))
    );
    match programs.run(&argv("verify"), b"").await {
        Ok(output) if output.code == Some(0) => Row::ok(
            "policy",
            format!("bridge {} and its packet policy stand", config.bridge),
        ),
        Ok(output) => {
            let said = output
                .stdout
                .lines()
                .chain([output.words().as_str()])
                .take(3)
                .collect::<Vec<_>>()
                .join("; ");
            let said: String = said.trim_matches([';', ' ']).chars().take(300).collect();
            Row::fail(
                "policy",
                format!("bridge {} is not as it should be: {said}", config.bridge),
                next,
            )
        }
        Err(error) => Row::unknown("policy", error.to_string(), "install the package agentlabd"),
    }
}

pub(crate) fn forwarding(uplink: Option<&str>, path: &str) -> Row {
    let Some(uplink) = uplink else {
        return Row::ok("forwarding", "no uplink: sandboxes leave this host nowhere");
    };
    match std::fs::read_to_string(path) {
        Ok(text) if text.trim() == "1" => Row::ok("forwarding", format!("on, towards {uplink}")),
        Ok(_) => Row::fail(
            "forwarding",
            format!("off, and {uplink} is to lead outside"),
            "systemctl restart agentlabd",
        ),
        Err(error) => Row::unknown("forwarding", format!("{path}: {error}"), "run as root"),
    }
}

pub(crate) fn profiles(config: &Config) -> Row {
    let dir = config.profiles_dir.display();
    match config.load_profiles() {
        Ok(profiles) if profiles.is_empty() => Row::warn(
            "profiles",
            format!("{dir} holds none"),
            format!("cp /usr/share/doc/agentlabd/examples/demo.yaml {dir}/, and change it to your needs"),
        ),
        Ok(profiles) => {
            let names: Vec<&str> = profiles.iter().map(|profile| profile.name.as_str()).collect();
            Row::ok("profiles", names.join(", "))
        }
        Err(error @ ConfigError::Missing { .. }) => {
            Row::warn("profiles", error.to_string(), error.hint().unwrap_or_default())
        }
        Err(error) => Row::fail("profiles", error.to_string(), "agentlab profile validate FILE"),
    }
}
