//! What `agentlab-net` does, one function per command.

use std::io::Write;
use std::net::Ipv4Addr;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use serde_json::json;

use crate::{
    Binding, BridgeSpec, Drift, Enforcer, GuestService, HostPolicy, IfName, Intent, Observer, Protocol,
    Trust, USUAL_DENIAL_GROUP, plan,
};

/// Bridge and packet policy of AgentLab's sandboxes.
#[derive(Debug, Parser)]
#[command(name = "agentlab-net", version)]
pub struct Arguments {
    #[command(flatten)]
    host: HostArguments,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

/// The same for every command: what stands is compared with them. What is not given is taken from the policy that stands.
#[derive(Debug, Args)]
struct HostArguments {
    /// Bridge that the sandboxes hang on [default: as it stands, or vmbr1]
    #[arg(long, global = true, value_name = "NAME")]
    bridge: Option<IfName>,
    /// The host's address on the bridge [default: as it stands, or 10.77.0.1]
    #[arg(long, global = true)]
    address: Option<Ipv4Addr>,
    /// Prefix length of the agent subnet [default: as it stands, or 16]
    #[arg(long, global = true, value_name = "LENGTH")]
    prefix: Option<u8>,
    /// MTU of the bridge and its taps
    #[arg(long, global = true, value_name = "BYTES")]
    mtu: Option<u32>,
    /// Interface that leads to the Internet; without it no sandbox leaves the host [default: as it stands, or none]
    #[arg(long, global = true, value_name = "NAME", overrides_with = "no_uplink")]
    uplink: Option<IfName>,
    /// No sandbox leaves the host, even if one that stands lets them
    #[arg(long, global = true, overrides_with = "uplink")]
    no_uplink: bool,
    /// TCP port of the bootstrap listener [default: as both stand, or 8844]
    #[arg(long, global = true, value_name = "PORT")]
    bootstrap_port: Option<u16>,
    /// TCP port of the artifact listener [default: as both stand, or 8846]
    #[arg(long, global = true, value_name = "PORT")]
    artifact_port: Option<u16>,
    /// Let sandboxes in `nat` and `allowlist` ask the resolver on the bridge address [default: as it stands, or so]
    #[arg(long, global = true, overrides_with = "no_dns")]
    dns: bool,
    /// Do not let them
    #[arg(long, global = true, overrides_with = "dns")]
    no_dns: bool,
    /// User ids the virtual machines run under: their processes get no network of the host's own [default: as it
    /// stands, or 1900000000-1900004095]
    #[arg(long, global = true, value_name = "FIRST-LAST", value_parser = user_ids)]
    machine_uids: Option<(u32, u32)>,
    /// Interface of the tailnet, whose devices may reach running sandboxes [default: as it stands, or tailscale0]
    #[arg(long, global = true, value_name = "NAME", overrides_with = "no_tailnet")]
    tailnet: Option<IfName>,
    /// Nobody outside reaches a sandbox, over a tailnet neither
    #[arg(long, global = true, overrides_with = "tailnet")]
    no_tailnet: bool,
    /// NFLOG group that is told of what sandboxes are refused [default: as it stands, or 7744]
    #[arg(long, global = true, value_name = "NUMBER")]
    denial_group: Option<u16>,
}

/// The daemon's own default.
const USUAL_MACHINE_UIDS: (u32, u32) = (1_900_000_000, 1_900_004_095);

fn user_ids(text: &str) -> Result<(u32, u32), String> {
    let range = text
        .split_once('-')
        .and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
    range.ok_or_else(|| "expected FIRST-LAST, as in 1900000000-1900004095".to_owned())
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the policy of a host without sandboxes as nft text; looks at nothing and touches nothing
    Plan,
    /// Make the bridge and the policy; what stands and is not named by an option stays, with its bindings
    Apply {
        /// Print the policy and what differs, and touch nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Compare what stands with what should; exit status 1 when they differ
    Verify,
    /// Show bound ports, their trust and what was refused
    Status,
    /// Take all trust from every port and cut every flow; the rest of the policy stays
    Seal,
}

/// How it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// As it should be.
    Fine,
    /// There are differences.
    Drifted,
}

/// Performs one command. What it has to say is appended to `output`, also where it then fails.
///
/// # Errors
/// The kernel or its caller's rights did not allow it, or what stands is not what could be made.
pub fn run(arguments: &Arguments, output: &mut Vec<u8>) -> Result<Outcome> {
    let (given, json) = (&arguments.host, arguments.json);
    match arguments.command {
        Command::Plan => print_plan(&given.policy(None), json, None, output)?,
        Command::Apply { dry_run: true } => {
            let mut observer = Observer::open()?;
            let host = given.policy(observer.host()?.as_ref());
            let drifts = observer.drift(&host)?;
            print_plan(&host, json, Some(&drifts), output)?;
        }
        Command::Apply { dry_run: false } => return apply(given, json, output),
        Command::Verify => return verify(given, json, output),
        Command::Status => status(json, output)?,
        Command::Seal => return seal(given, json, output),
    }
    Ok(Outcome::Fine)
}

fn print_plan(
    host: &HostPolicy,
    as_json: bool,
    drifts: Option<&[Drift]>,
    output: &mut Vec<u8>,
) -> Result<()> {
    let ruleset = plan(&Intent {
        host: host.clone(),
        ports: Vec::new(),
    })?;
    if as_json {
        let mut document = json!({ "ruleset": ruleset.to_string() });
        if let Some(drifts) = drifts {
            document["drift"] = json!(drifts);
        }
        writeln!(output, "{document}")?;
        return Ok(());
    }
    write!(output, "{ruleset}")?;
    for drift in drifts.unwrap_or_default() {
        writeln!(output, "# would change: {drift}")?;
    }
    Ok(())
}

fn apply(given: &HostArguments, as_json: bool, output: &mut Vec<u8>) -> Result<Outcome> {
    let mut observer = Observer::open()?;
    let standing = observer.host()?;
    let host = given.policy(standing.as_ref());
    let drifts = observer.drift(&host)?;
    let ports = Enforcer::start(host.clone())?.attached()?.len();
    if as_json {
        let document =
            json!({ "changed": !drifts.is_empty(), "drift": drifts, "ports": ports, "policy": host });
        writeln!(output, "{document}")?;
        return Ok(Outcome::Fine);
    }
    if standing.is_some() && given.policy(None) != host {
        writeln!(output, "What no option named was kept as it stood")?;
    }
    writeln!(
        output,
        "The policy stands with {ports} bound ports: {}",
        words(&host)
    )?;
    Ok(Outcome::Fine)
}

fn seal(given: &HostArguments, as_json: bool, output: &mut Vec<u8>) -> Result<Outcome> {
    let mut observer = Observer::open()?;
    let host = given.policy(observer.host()?.as_ref());
    let trusted = |observer: &mut Observer| -> Result<usize> {
        let bindings = observer.bindings()?;
        Ok(bindings
            .iter()
            .filter(|binding| binding.trust() != &Trust::Sealed)
            .count())
    };
    let changed = !observer.drift(&host)?.is_empty() || trusted(&mut observer)? > 0;
    let mut enforcer = Enforcer::start(host.clone())?;
    enforcer.seal()?;
    let ports = enforcer.attached()?.len();
    if as_json {
        let document = json!({ "changed": changed, "ports": ports, "policy": host });
        writeln!(output, "{document}")?;
    } else {
        writeln!(output, "Every port is sealed: {}", words(&host))?;
    }
    Ok(Outcome::Fine)
}

fn verify(given: &HostArguments, as_json: bool, output: &mut Vec<u8>) -> Result<Outcome> {
    let mut observer = Observer::open()?;
    let host = given.policy(observer.host()?.as_ref());
    let drifts = observer.drift(&host)?;
    if as_json {
        let document = json!({ "standing": drifts.is_empty(), "drift": drifts, "policy": host });
        writeln!(output, "{document}")?;
    } else if drifts.is_empty() {
        writeln!(output, "The policy stands as it should: {}", words(&host))?;
    } else {
        for drift in &drifts {
            writeln!(output, "{drift}")?;
        }
    }
    Ok(if drifts.is_empty() {
        Outcome::Fine
    } else {
        Outcome::Drifted
    })
}

/// What the rules are made from, in one line.
fn words(host: &HostPolicy) -> String {
    let bridge = &host.bridge;
    let uplink = host
        .uplink
        .as_ref()
        .map_or_else(|| "no uplink".to_owned(), |name| format!("uplink {name}"));
    let ports: Vec<String> = host
        .guest_ports
        .iter()
        .map(|service| format!("{} {}", service.protocol, service.port))
        .collect();
    let dns = if host.dns { "dns" } else { "no dns" };
    format!(
        "bridge {}, {}/{}, {uplink}, {}, {dns}",
        bridge.name,
        bridge.address,
        bridge.prefix,
        ports.join(", ")
    )
}

fn status(as_json: bool, output: &mut Vec<u8>) -> Result<()> {
    let mut observer = Observer::open()?;
    let host = observer.host()?;
    let bindings = observer.bindings()?;
    let denials = observer.denials()?;
    if as_json {
        let ports: Vec<_> = bindings.iter().map(port_json).collect();
        let document = json!({ "policy": host, "ports": ports, "denials": denials });
        writeln!(output, "{document}")?;
        return Ok(());
    }
    match &host {
        Some(host) => writeln!(output, "Policy: {}\n", words(host))?,
        None => writeln!(output, "Policy: none stands\n")?,
    }
    writeln!(output, "{:<16} {:<10} {:<16} MAC", "PORT", "TRUST", "ADDRESS")?;
    for binding in &bindings {
        let (address, mac) = match binding {
            Binding::Known(port) => (port.address.to_string(), mac_text(port.mac)),
            Binding::SealedName(_) => ("-".to_owned(), "-".to_owned()),
        };
        writeln!(
            output,
            "{:<16} {:<10} {address:<16} {mac}",
            binding.name(),
            binding.trust().word()
        )?;
    }
    writeln!(
        output,
        "\n{:>10} {:>12} {:<24} REFUSED BECAUSE",
        "PACKETS", "BYTES", "WHERE"
    )?;
    for denial in denials.iter().filter(|denial| denial.packets > 0) {
        writeln!(
            output,
            "{:>10} {:>12} {:<24} {}",
            denial.packets, denial.bytes, denial.place, denial.reason
        )?;
    }
    Ok(())
}

fn port_json(binding: &Binding) -> serde_json::Value {
    match binding {
        Binding::Known(port) => json!({
            "name": port.name,
            "mac": mac_text(port.mac),
            "address": port.address,
            "trust": port.trust,
        }),
        Binding::SealedName(name) => json!({ "name": name, "trust": binding.trust() }),
    }
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

impl HostArguments {
    /// The options, then what stands, then what is usual.
    fn policy(&self, standing: Option<&HostPolicy>) -> HostPolicy {
        let tcp = |port| GuestService {
            protocol: Protocol::Tcp,
            port,
        };
        let bridge = standing.map(|host| &host.bridge);
        let uplink = || standing.and_then(|host| host.uplink.clone());
        let ports = match (self.bootstrap_port, self.artifact_port, standing) {
            (None, None, Some(host)) => host.guest_ports.clone(),
            (bootstrap, artifact, _) => vec![tcp(bootstrap.unwrap_or(8844)), tcp(artifact.unwrap_or(8846))],
        };
        HostPolicy {
            bridge: BridgeSpec {
                name: self
                    .bridge
                    .clone()
                    .or_else(|| bridge.map(|bridge| bridge.name.clone()))
                    .unwrap_or_else(IfName::usual_bridge),
                address: self
                    .address
                    .or(bridge.map(|bridge| bridge.address))
                    .unwrap_or(Ipv4Addr::new(10, 77, 0, 1)),
                prefix: self.prefix.or(bridge.map(|bridge| bridge.prefix)).unwrap_or(16),
                mtu: self.mtu,
            },
            uplink: match &self.uplink {
                Some(name) => Some(name.clone()),
                None if self.no_uplink => None,
                None => uplink(),
            },
            guest_ports: ports,
            machine_uids: self
                .machine_uids
                .or_else(|| standing.map_or(Some(USUAL_MACHINE_UIDS), |host| host.machine_uids)),
            dns: !self.no_dns && (self.dns || standing.is_none_or(|host| host.dns)),
            tailnet: match &self.tailnet {
                Some(name) => Some(name.clone()),
                None if self.no_tailnet => None,
                None => standing.map_or_else(|| Some(IfName::usual_tailnet()), |host| host.tailnet.clone()),
            },
            denial_group: self
                .denial_group
                .or_else(|| standing.map(|host| host.denial_group))
                .unwrap_or(USUAL_DENIAL_GROUP),
        }
    }
}
