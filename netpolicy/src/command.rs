//! What `agentlab-net` does, one function per command.

mod config;
mod dhcp;
mod difference;
mod host;
mod interfaces;
mod operate;
mod smoke;
mod tailscale;

use std::io::Write;

use anyhow::Result;
use clap::{Parser, Subcommand};
use serde_json::json;

use self::host::HostArguments;
use self::operate::{Places, Writer};
use crate::{Binding, Denial, Enforcer, HostPolicy, IfName, Observer, Order, StoredPorts};

/// Bridge and packet policy of AgentLab's sandboxes.
#[derive(Debug, Parser)]
#[command(name = "agentlab-net", version)]
pub struct Arguments {
    #[command(flatten)]
    host: HostArguments,
    #[command(flatten)]
    places: Places,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the policy as nft text and, where it can be read, what would change of the one that stands; touches nothing
    Plan {
        /// Print what would change only
        #[arg(long)]
        diff: bool,
    },
    /// Make the bridge and the policy; what stands and is not named by an option stays, with its bindings
    Apply {
        /// Print the policy and what differs, and touch nothing
        #[arg(long)]
        dry_run: bool,
        /// Take over a bridge that somebody else made, with other settings
        #[arg(long)]
        force: bool,
        /// Keep kernel settings and bridge for the next boot as well: /etc/sysctl.d and /etc/network/interfaces.d
        #[arg(long)]
        persist: bool,
    },
    /// Compare what stands with what should; exit status 1 when they differ
    Verify,
    /// Show bound ports, their trust and what was refused
    Status,
    /// Take all trust from every port and cut every flow; the rest of the policy stays
    Seal,
    /// Bind a port of the bridge to the one MAC and address it may have; the daemon's own sandboxes need none of this
    Bind(operate::BindArguments),
    /// Forget a port: it passes nothing any more
    Unbind {
        /// Bound port
        port: IfName,
    },
    /// Change what a bound port may pass
    Trust(operate::ChangeArguments),
    /// Check from inside of a sandbox, over SSH, that the policy holds; exit status 1 when it does not
    Smoke(smoke::SmokeArguments),
    /// Have Tailscale advertise the agent subnet beside what it advertises already
    Tailscale(tailscale::TailscaleArguments),
    /// Print the dnsmasq configuration that gives addresses on the bridge, or write it; the packet policy itself passes no
    /// DHCP of a sandbox, whose address is given to it
    Dhcp(dhcp::DhcpArguments),
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
    let (given, places, json) = (&arguments.host, &arguments.places, arguments.json);
    match &arguments.command {
        Command::Plan { diff } => return difference::plan(given, *diff, json, output),
        Command::Apply { dry_run: true, .. } => return difference::plan(given, false, json, output),
        Command::Apply { force, persist, .. } => {
            return apply(given, places, (*force, *persist), json, output);
        }
        Command::Verify => return verify(given, json, output),
        Command::Status => status(json, output)?,
        Command::Seal => operate::perform(&Order::Seal, given, places, json, output)?,
        Command::Bind(bind) => operate::perform(&bind.order()?, given, places, json, output)?,
        Command::Unbind { port } => {
            let name = port.clone();
            operate::perform(&Order::Unbind { name }, given, places, json, output)?;
        }
        Command::Trust(change) => operate::perform(&change.order()?, given, places, json, output)?,
        Command::Smoke(smoke) => return smoke::run(smoke, given, json, output),
        Command::Tailscale(tailscale) => tailscale::run(tailscale, given, json, output)?,
        Command::Dhcp(dhcp) => dhcp::run(dhcp, given, json, output)?,
    }
    Ok(Outcome::Fine)
}

fn apply(
    given: &HostArguments,
    places: &Places,
    (force, persist): (bool, bool),
    as_json: bool,
    output: &mut Vec<u8>,
) -> Result<Outcome> {
    let Writer::Me(mut lock) = operate::writer(&places.lock_dir)? else {
        anyhow::ensure!(
            given.is_empty(),
            "the daemon writes the policy, from /etc/agentlab/config.yaml: change it there and restart agentlabd"
        );
        operate::perform(&Order::Verify, given, places, as_json, output)?;
        return Ok(Outcome::Fine);
    };
    let mut observer = Observer::open()?;
    let standing = observer.host()?;
    let host = given.policy(standing.as_ref())?;
    let foreign = observer.foreign_bridge(&host, lock.bridge())?;
    if !foreign.is_empty() && !force {
        let words: Vec<String> = foreign.iter().map(ToString::to_string).collect();
        anyhow::bail!(
            "bridge `{}` was made by somebody else, and would be changed: {}; --force does it, another --bridge leaves \
             it alone",
            host.bridge.name,
            words.join("; ")
        );
    }
    let drifts = observer.drift(&host)?;
    let mut enforcer = Enforcer::start(host.clone())?;
    lock.note_bridge(enforcer.bridge_link()?)?;
    enforcer.restore(&StoredPorts::new(&places.state_dir))?;
    let ports = enforcer.attached()?.len();
    let files = if persist {
        interfaces::persist(&host, force)?
    } else {
        Vec::new()
    };
    if as_json {
        let document = json!({
            "changed": !drifts.is_empty(), "drift": drifts, "ports": ports, "policy": host, "files": files,
        });
        writeln!(output, "{document}")?;
        return Ok(Outcome::Fine);
    }
    if standing.is_some() && given.policy(None)? != host {
        writeln!(output, "What no option named was kept as it stood")?;
    }
    for file in files {
        writeln!(output, "Wrote {}", file.display())?;
    }
    writeln!(
        output,
        "The policy stands with {ports} bound ports: {}",
        words(&host)
    )?;
    Ok(Outcome::Fine)
}

fn verify(given: &HostArguments, as_json: bool, output: &mut Vec<u8>) -> Result<Outcome> {
    let mut observer = Observer::open()?;
    let host = given.policy(observer.host()?.as_ref())?;
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
        None => writeln!(output, "Policy: none stands; `agentlab net apply` makes it\n")?,
    }
    write_bindings(&bindings, output)?;
    write_denials(&denials, output)
}

fn write_bindings(bindings: &[Binding], output: &mut Vec<u8>) -> Result<()> {
    if bindings.is_empty() {
        writeln!(output, "No port is bound")?;
        return Ok(());
    }
    writeln!(output, "{:<16} {:<10} {:<16} MAC", "PORT", "TRUST", "ADDRESS")?;
    for binding in bindings {
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
    Ok(())
}

fn write_denials(denials: &[Denial], output: &mut Vec<u8>) -> Result<()> {
    let mut refused = denials.iter().filter(|denial| denial.packets > 0).peekable();
    if refused.peek().is_none() {
        writeln!(output, "\nNothing was refused")?;
        return Ok(());
    }
    writeln!(
        output,
        "\n{:>10} {:>12} {:<24} REFUSED BECAUSE",
        "PACKETS", "BYTES", "WHERE"
    )?;
    for denial in refused {
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
