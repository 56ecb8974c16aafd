//! dnsmasq for those who want DHCP on the bridge. Sandboxes of the daemon need none, their addresses are given to them; and
//! the packet policy passes no DHCP of a guest, which the command says.

use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use serde_json::json;

use super::host::HostArguments;
use super::interfaces;
use crate::HostPolicy;

/// Guests of a /16 begin here, and those of smaller subnets as far from the bridge address.
const FIRST: u32 = 100;

#[derive(Debug, Args)]
pub(super) struct DhcpArguments {
    /// Write the file instead of printing it; dnsmasq reads it when it is restarted
    #[arg(long)]
    write: bool,
    /// The file
    #[arg(long, value_name = "PATH", default_value = "/etc/dnsmasq.d/agentlab.conf")]
    file: PathBuf,
    /// Overwrite a file that is somebody else's
    #[arg(long)]
    force: bool,
    /// Let dnsmasq answer DNS on the bridge too; leave it out where AgentLab's own resolver does
    #[arg(long)]
    with_dns: bool,
}

pub(super) fn run(
    arguments: &DhcpArguments,
    given: &HostArguments,
    as_json: bool,
    output: &mut Vec<u8>,
) -> Result<()> {
    let host = given.policy_here()?;
    let text = file(&host, arguments.with_dns)?;
    let written = arguments.write && write(&arguments.file, &text, arguments.force)?;
    if as_json {
        let document = json!({ "file": arguments.file, "written": written, "text": text });
        return Ok(writeln!(output, "{document}")?);
    }
    if !arguments.write {
        return Ok(output.write_all(text.as_bytes())?);
    }
    let path = arguments.file.display();
    let word = if written { "Wrote" } else { "Nothing to change in" };
    Ok(writeln!(
        output,
        "{word} {path}; `systemctl restart dnsmasq` reads it. While the packet policy stands it passes no DHCP of a sandbox"
    )?)
}

fn write(path: &Path, text: &str, force: bool) -> Result<bool> {
    interfaces::put(path, text, force).context("no DHCP on the bridge yet")
}

fn file(host: &HostPolicy, with_dns: bool) -> Result<String> {
    crate::check_host(host)?;
    let (subnet, bridge) = (host.bridge.subnet(), &host.bridge);
    let bits = |address: Ipv4Addr| address.to_bits();
    let last = Ipv4Addr::from_bits(bits(subnet.broadcast()) - 1);
    let wanted = bits(subnet.network()).saturating_add(FIRST);
    let first = Ipv4Addr::from_bits(wanted.max(bits(bridge.address).saturating_add(1)));
    let first = if bits(first) < bits(last) {
        first
    } else {
        Ipv4Addr::from_bits(bits(bridge.address) + 1)
    };
    ensure!(
        bits(first) <= bits(last),
        "subnet {subnet} has no room behind the bridge address {}",
        bridge.address
    );
    let mask = Ipv4Addr::from_bits(!(bits(subnet.network()) ^ bits(subnet.broadcast())));
    let dns = if with_dns { "" } else { "port=0\n" };
    Ok(format!(
        "# Written by `agentlab net dhcp`. Addresses on {name}, and on no other interface.\n\
         interface={name}\nbind-dynamic\nexcept-interface=lo\n{dns}dhcp-authoritative\n\
         dhcp-range={first},{last},{mask},12h\ndhcp-option=option:router,{address}\n\
         dhcp-option=option:dns-server,{address}\n",
        name = bridge.name,
        address = bridge.address,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(address: &str, prefix: u8, with_dns: bool) -> Result<String> {
        let given = HostArguments {
            address: Some(address.parse().unwrap()),
            prefix: Some(prefix),
            config: Some("/dev/null".into()),
            ..HostArguments::default()
        };
        file(&given.policy(None).unwrap(), with_dns)
    }

    #[test]
    fn the_range_is_inside_the_subnet_and_without_the_bridge_address() {
        let usual = text("10.77.0.1", 16, false).unwrap();
        assert!(
            usual.contains("dhcp-range=10.77.0.100,10.77.255.254,255.255.0.0,12h\n"),
            "{usual}"
        );
        assert!(
            usual.contains("\nport=0\n") && usual.contains("\ninterface=vmbr1\n"),
            "{usual}"
        );
        let small = text("10.77.0.1", 28, true).unwrap();
        assert!(
            small.contains("dhcp-range=10.77.0.2,10.77.0.14,255.255.255.240,12h\n"),
            "{small}"
        );
        assert!(!small.contains("port=0"), "{small}");
        let late = text("10.77.0.200", 24, true).unwrap();
        assert!(late.contains("dhcp-range=10.77.0.201,10.77.0.254,"), "{late}");
        assert!(text("10.77.0.14", 28, true).is_err());
        assert!(text("9.9.9.1", 16, true).is_err());
    }
}
