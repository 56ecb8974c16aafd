//! What `agentlab-net` does, one function per command.

use std::io::Write;
use std::net::Ipv4Addr;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use serde_json::json;

use crate::{
    Binding, BridgeSpec, Enforcer, GuestService, HostPolicy, IfName, Intent, Observer, Protocol, plan,
};

/// Bridge and packet policy of AgentLab's sandboxes.
#[derive(Debug, Parser)]
#[command(name = "agentlab-net", version)]
pub struct Arguments {
    #[command(flatten)]
    host: HostArguments,
    #[command(subcommand)]
    command: Command,
}

/// The same for every command: what stands is compared with them.
#[derive(Debug, Args)]
struct HostArguments {
    /// Bridge that the sandboxes hang on
    #[arg(long, global = true, default_value = "vmbr1", value_name = "NAME")]
    bridge: IfName,
    /// The host's address on the bridge
    #[arg(long, global = true, default_value = "10.77.0.1")]
    address: Ipv4Addr,
    /// Prefix length of the agent subnet
    #[arg(long, global = true, default_value_t = 16, value_name = "LENGTH")]
    prefix: u8,
    /// MTU of the bridge and its taps
    #[arg(long, global = true, value_name = "BYTES")]
    mtu: Option<u32>,
    /// Interface that leads to the Internet; without it no sandbox leaves the host
    #[arg(long, global = true, value_name = "NAME")]
    uplink: Option<IfName>,
    /// TCP port of the bootstrap listener
    #[arg(long, global = true, default_value_t = 8844, value_name = "PORT")]
    bootstrap_port: u16,
    /// TCP port of the artifact listener
    #[arg(long, global = true, default_value_t = 8846, value_name = "PORT")]
    artifact_port: u16,
    /// Let sandboxes in `nat` and `allowlist` ask the resolver on the bridge address
    #[arg(long, global = true)]
    dns: bool,
    /// User ids the virtual machines run under: their processes get no network of the host's own
    #[arg(long, global = true, value_name = "FIRST-LAST", value_parser = user_ids)]
    machine_uids: Option<(u32, u32)>,
}

fn user_ids(text: &str) -> Result<(u32, u32), String> {
    let range = text
        .split_once('-')
        .and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
    range.ok_or_else(|| "expected FIRST-LAST, as in 1900000000-1900004095".to_owned())
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the policy of a host without sandboxes as nft text; touches nothing
    Plan,
    /// Make the bridge and the policy; what stands and is right stays, with its bindings
    Apply {
        /// Print the policy and what differs, and touch nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Compare what stands with what should; exit status 1 when they differ
    Verify {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show bound ports, their trust and what was refused
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Take all trust from every port and cut every flow
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
    let host = arguments.host.policy();
    match arguments.command {
        Command::Plan => {
            write!(
                output,
                "{}",
                plan(&Intent {
                    host,
                    ports: Vec::new()
                })?
            )?;
            Ok(Outcome::Fine)
        }
        Command::Apply { dry_run: true } => {
            write!(
                output,
                "{}",
                plan(&Intent {
                    host: host.clone(),
                    ports: Vec::new()
                })?
            )?;
            for drift in Observer::open()?.drift(&host)? {
                writeln!(output, "# would change: {drift}")?;
            }
            Ok(Outcome::Fine)
        }
        Command::Apply { dry_run: false } => {
            let ports = Enforcer::start(host.clone())?.attached()?.len();
            writeln!(
                output,
                "The policy stands on {}, with {ports} bound ports",
                host.bridge.name
            )?;
            Ok(Outcome::Fine)
        }
        Command::Verify { json } => verify(&host, json, output),
        Command::Status { json } => status(json, output),
        Command::Seal => {
            Enforcer::start(host.clone())?.seal()?;
            writeln!(output, "Every port of {} is sealed", host.bridge.name)?;
            Ok(Outcome::Fine)
        }
    }
}

fn verify(host: &HostPolicy, as_json: bool, output: &mut Vec<u8>) -> Result<Outcome> {
    let drifts = Observer::open()?.drift(host)?;
    if as_json {
        writeln!(
            output,
            "{}",
            json!({ "standing": drifts.is_empty(), "drift": drifts })
        )?;
    } else if drifts.is_empty() {
        writeln!(output, "The policy stands as it should")?;
    }
    if drifts.is_empty() {
        return Ok(Outcome::Fine);
    }
    if !as_json {
        for drift in drifts {
            writeln!(output, "{drift}")?;
        }
    }
    Ok(Outcome::Drifted)
}

fn status(as_json: bool, output: &mut Vec<u8>) -> Result<Outcome> {
    let mut observer = Observer::open()?;
    let bindings = observer.bindings()?;
    let denials = observer.denials()?;
    if as_json {
        let ports: Vec<_> = bindings.iter().map(port_json).collect();
        writeln!(output, "{}", json!({ "ports": ports, "denials": denials }))?;
        return Ok(Outcome::Fine);
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
    Ok(Outcome::Fine)
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
    fn policy(&self) -> HostPolicy {
        let tcp = |port| GuestService {
            protocol: Protocol::Tcp,
            port,
        };
        HostPolicy {
            bridge: BridgeSpec {
                name: self.bridge.clone(),
                address: self.address,
                prefix: self.prefix,
                mtu: self.mtu,
            },
            uplink: self.uplink.clone(),
            guest_ports: vec![tcp(self.bootstrap_port), tcp(self.artifact_port)],
            dns: self.dns,
            machine_uids: self.machine_uids,
        }
    }
}
