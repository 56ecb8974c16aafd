//! This host: what stands between a sandbox and the Internet, and what could reach around it.

use std::fs;

use agentlab_config::Config;
use rustix::fs::statvfs;
use serde_json::Value;

use super::row::Row;
use crate::init::look::{list, text};
use crate::init::programs::Programs;
use crate::init::rows::{forwarding, policy, profiles};
use crate::output::size;

/// Names of our own tables begin so.
const OURS: &str = "agentlab";
/// A machine's disk and its memory.
const LITTLE_ROOM: u64 = 10 << 30;

pub(crate) async fn rows(config: &Config, programs: &Programs) -> Vec<Row> {
    let mut rows = vec![
        policy(programs, config).await,
        forwarding(config.uplink.as_deref(), "/proc/sys/net/ipv4/ip_forward"),
        resolver(config),
        profiles(config),
        room(config),
        merging(fs::read_to_string("/sys/kernel/mm/ksm/run").ok().as_deref()),
    ];
    rows.push(
        match json_of(programs, &["nft", "--json", "list", "chains"]).await {
            Ok(chains) => foreign_chains(&chains, &config.bridge),
            Err(reason) => Row::unknown(
                "other rules",
                reason,
                "run as root, with the package nftables installed",
            ),
        },
    );
    rows.extend(firewall_bridges(config));
    rows.push(match lines_of(programs, &["ss", "--vsock", "-lnH"]).await {
        Ok(text) => vsock(&text),
        Err(reason) => Row::unknown("vsock", reason, "ss --vsock -ln"),
    });
    rows
}

async fn lines_of(programs: &Programs, argv: &[&str]) -> Result<String, String> {
    let argv: Vec<String> = argv.iter().map(|word| (*word).to_owned()).collect();
    programs.done(&argv).await.map_err(|error| error.to_string())
}

async fn json_of(programs: &Programs, argv: &[&str]) -> Result<Value, String> {
    serde_json::from_str(&lines_of(programs, argv).await?).map_err(|error| error.to_string())
}

/// Chains of others that packets of sandboxes pass as well. Our accept is not final there.
pub(crate) fn foreign_chains(answer: &Value, bridge: &str) -> Row {
    let chains = answer.get("nftables").into_iter().flat_map(list);
    let mut dropping = Vec::new();
    let mut docker = false;
    for chain in chains.filter_map(|entry| entry.get("chain")) {
        let part = |key| text(chain, key).unwrap_or_default();
        docker |= part("name").starts_with("DOCKER");
        let is_ours = part("table").starts_with(OURS);
        let is_in_the_way =
            matches!(part("family").as_str(), "ip" | "inet" | "bridge") && part("hook") == "forward";
        if is_in_the_way && !is_ours && part("policy") == "drop" {
            dropping.push(format!("{} {} {}", part("family"), part("table"), part("name")));
        }
    }
    if dropping.is_empty() {
        return Row::ok("other rules", "no other forward chain drops by default");
    }
    let seen = format!(
        "{} drops by default: what our policy lets through may still be dropped there",
        dropping.join(", ")
    );
    let next = if docker {
        format!(
            "iptables -I DOCKER-USER -i {bridge} -j ACCEPT\n\
             iptables -I DOCKER-USER -o {bridge} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
        )
    } else {
        format!(
            "let that chain accept what comes in from {bridge}, and answers to it; our own policy still holds"
        )
    };
    Row::warn("other rules", seen, next)
}

/// Bridges that PVE puts between a VM and ours when its firewall has the NIC. Our policy filters the link from there to
/// our bridge, and sees nothing of one that leads elsewhere.
fn firewall_bridges(config: &Config) -> Option<Row> {
    let names = fs::read_dir("/sys/class/net").ok()?;
    let names = names.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let leads_to_ours = |link: &str| {
        let bridge = fs::read_link(format!("/sys/class/net/{link}/master")).ok();
        bridge.is_some_and(|bridge| bridge.file_name().is_some_and(|name| *name == *config.bridge))
    };
    let astray: Vec<String> = names
        .filter(|name| firewall_link(name, config).is_some_and(|link| !leads_to_ours(&link)))
        .collect();
    (!astray.is_empty()).then(|| {
        Row::fail(
            "fwbr",
            format!(
                "sandboxes hang on bridges of PVE's firewall that do not lead to {}, where our policy does not see them: {}",
                config.bridge,
                astray.join(", ")
            ),
            "destroy these sandboxes; the daemon makes none like that",
        )
    })
}

/// The link by which the machine of such a bridge hangs on another one, if the machine is one of ours.
fn firewall_link(bridge: &str, config: &Config) -> Option<String> {
    let (vmid, nic) = bridge.strip_prefix("fwbr")?.split_once('i')?;
    let is_ours = |vmid| (config.vmid_first..=config.vmid_last).contains(&vmid);
    let is_one = vmid.parse::<agentlab_api::Vmid>().is_ok_and(is_ours);
    is_one.then(|| format!("fwpr{vmid}p{nic}"))
}

/// Any guest with a vsock device could speak to them.
pub(crate) fn vsock(lines: &str) -> Row {
    let listeners: Vec<String> = lines
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .filter(|line| !line.is_empty())
        .collect();
    if listeners.is_empty() {
        Row::ok("vsock", "nobody listens")
    } else {
        Row::warn(
            "vsock",
            format!(
                "{} listen, and any VM with a vsock device can speak to them: {}",
                listeners.len(),
                listeners.join("; ")
            ),
            "ss --vsock -lp says who they are; sandboxes must have no vsock device unless the daemon gave it",
        )
    }
}

/// Merged pages let one guest find out by timing what another one has in memory.
pub(crate) fn merging(run: Option<&str>) -> Row {
    match run.map(str::trim) {
        Some("1") => Row::warn(
            "ksm",
            "memory of VMs is merged, so that a guest can find out what pages others have; Proxmox VE 9 leaves sandboxes out, 8.4 does not",
            "systemctl disable --now ksmtuned; echo 2 > /sys/kernel/mm/ksm/run",
        ),
        Some(_) => Row::ok("ksm", "memory of VMs is not merged"),
        None => Row::ok("ksm", "the kernel has none"),
    }
}

fn resolver(config: &Config) -> Row {
    let address = config.bridge_address.address;
    let Ok(table) = fs::read_to_string("/proc/net/udp") else {
        return Row::unknown("resolver", "/proc/net/udp cannot be read", "run as root");
    };
    if listens(&table, address, 53) {
        Row::ok("resolver", format!("something answers on {address}:53"))
    } else if config.uplink.is_some() {
        Row::fail(
            "resolver",
            format!("nothing listens on {address}:53: sandboxes resolve no names"),
            "systemctl status agentlabd; docs/runbook.md, Internet for agents",
        )
    } else {
        Row::ok("resolver", "none, and no uplink either")
    }
}

/// Whether a line of /proc/net/udp is a socket on the address, or on all of them.
pub(crate) fn listens(table: &str, address: std::net::Ipv4Addr, port: u16) -> bool {
    // As the kernel prints it: the address in the machine's own byte order.
    let wanted = format!("{:08X}:{port:04X}", u32::from_ne_bytes(address.octets()));
    let any = format!("00000000:{port:04X}");
    let local = table
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().nth(1));
    local.into_iter().any(|local| local == wanted || local == any)
}

fn room(config: &Config) -> Row {
    let dir = &config.data_dir;
    match statvfs(dir) {
        Ok(system) => {
            let free = system.f_bavail.saturating_mul(system.f_frsize);
            let seen = format!("{} free in {}", size(free), dir.display());
            if free < LITTLE_ROOM {
                Row::warn("disk", seen, "make room, or set `data_dir` to a larger disk")
            } else {
                Row::ok("disk", seen)
            }
        }
        Err(error) => Row::unknown("disk", format!("{}: {error}", dir.display()), "run as root"),
    }
}

/// How far the clock of the API is from ours: tokens and leases are compared by it.
pub(crate) fn clock(ahead: Option<i64>) -> Row {
    match ahead {
        None => Row::unknown("clock", "the API did not say its time", "timedatectl"),
        Some(ahead) if ahead.abs() <= 5 => Row::ok("clock", "the node and this host agree"),
        Some(ahead) => {
            let word = if ahead > 0 { "ahead of" } else { "behind" };
            Row::warn(
                "clock",
                format!("the node's clock is {} s {word} this host's", ahead.abs()),
                "timedatectl set-ntp true, on both",
            )
        }
    }
}

#[cfg(test)]
#[path = "host_tests.rs"]
mod tests;
