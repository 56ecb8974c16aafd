//! The pure compile step, and what it refuses.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use crate::binding::port_elements;
use crate::ruleset::{MOST_PORTS, Ruleset};
use crate::{Cidr, GuestPort, GuestService, HostPolicy, IfName, Intent, rules};

/// Ranges an agent subnet may lie in: RFC 1918 and the shared space of RFC 6598.
const PRIVATE_NETWORKS: [&str; 4] = ["10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16"];
/// Entries of one allowlist. The kernel copies all of them, of all guests, for each one that is added.
const MOST_DESTINATIONS: usize = 1000;
/// A subnet smaller than this has no room for guests, a larger one would be a whole private range and more.
const PREFIXES: std::ops::RangeInclusive<u8> = 8..=29;

/// Why an intent contradicts itself or asks for what must not be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The agent subnet is, at least in part, public.
    #[error(
        "Agent subnet {subnet} is not private: choose one inside 10/8, 172.16/12, 192.168/16 or 100.64/10"
    )]
    PublicSubnet {
        /// The subnet.
        subnet: Cidr,
    },
    /// Too small or too large.
    #[error("Agent subnet {address}/{prefix} has an unusable prefix: choose one from /8 to /29")]
    Prefix {
        /// The bridge's address.
        address: Ipv4Addr,
        /// The prefix asked for.
        prefix: u8,
    },
    /// The bridge's address is the subnet's network or broadcast address.
    #[error("Bridge address {address} is the first or last address of {subnet}: choose one in between")]
    BridgeAddress {
        /// The address.
        address: Ipv4Addr,
        /// The subnet.
        subnet: Cidr,
    },
    /// Bridge and uplink are one.
    #[error("Uplink and bridge are both `{name}`: guests would share a segment with the outside")]
    UplinkIsBridge {
        /// The name.
        name: IfName,
    },
    /// User ids of machines that are none.
    #[error(
        "User ids {first}-{last} cannot be the machines': choose several in a row, without root, the lower one first"
    )]
    MachineUids {
        /// First of them.
        first: u32,
        /// Last of them.
        last: u32,
    },
    /// A published port that cannot be one, or that is listed twice.
    #[error("Published port {}/{} is {why}", .service.port, .service.protocol)]
    Service {
        /// The port.
        service: GuestService,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Two ports share what only one may have.
    #[error("Ports `{first}` and `{second}` have the same {what}")]
    Shared {
        /// One of them.
        first: IfName,
        /// The other.
        second: IfName,
        /// Name, MAC or address.
        what: &'static str,
    },
    /// A port's name is the bridge's, the uplink's or the loopback's.
    #[error("Port `{name}` has the name of the {what}")]
    PortName {
        /// The port.
        name: IfName,
        /// Whose name it is.
        what: &'static str,
    },
    /// A guest's address that cannot be a guest's.
    #[error("Port `{name}` has address {address}, which is {why} {subnet}")]
    GuestAddress {
        /// The port.
        name: IfName,
        /// The address.
        address: Ipv4Addr,
        /// What is wrong with it.
        why: &'static str,
        /// The agent subnet.
        subnet: Cidr,
    },
    /// A MAC that is a group's, or nobody's.
    #[error("Port `{name}` has a MAC that is a group's or all zeros: choose a unicast one")]
    GuestMac {
        /// The port.
        name: IfName,
    },
    /// The trust level needs a way out.
    #[error("Port `{name}` has trust `{trust}`, which needs an uplink, and none is configured")]
    NoUplink {
        /// The port.
        name: IfName,
        /// The trust level.
        trust: &'static str,
    },
    /// More ports than the sets have room for.
    #[error(
        "{count} ports cannot be bound at once, and {MOST_PORTS} is the most: destroy sandboxes that nobody needs"
    )]
    TooManyPorts {
        /// How many there would be.
        count: usize,
    },
    /// More entries than one allowlist may have.
    #[error(
        "Port `{name}` allows {count} networks, and {MOST_DESTINATIONS} is the most: name larger networks, or use trust `nat`"
    )]
    LongAllowlist {
        /// The port.
        name: IfName,
        /// How many there are.
        count: usize,
    },
    /// Entries of one allowlist that the kernel's interval sets cannot hold together, or an empty port range.
    #[error("Port `{name}` allows {first}, which {why} {second}")]
    Allowlist {
        /// The port.
        name: IfName,
        /// One entry.
        first: Cidr,
        /// What is wrong.
        why: &'static str,
        /// The other entry, or the same one.
        second: Cidr,
    },
}

/// Compiles an intent. The same intent always gives the same ruleset; one more port changes no rule.
pub fn plan(intent: &Intent) -> Result<Ruleset, PlanError> {
    check_host(&intent.host)?;
    let mut seen = Ports::default();
    let mut ruleset = skeleton(&intent.host);
    check_room(intent.ports.len())?;
    for port in &intent.ports {
        check_port(&intent.host, port)?;
        seen.add(port)?;
    }
    ruleset.insert(intent.ports.iter().flat_map(port_elements));
    Ok(ruleset)
}

/// Refuses more ports than the sets have room for.
pub(crate) fn check_room(count: usize) -> Result<(), PlanError> {
    if u32::try_from(count).is_ok_and(|count| count <= MOST_PORTS) {
        Ok(())
    } else {
        Err(PlanError::TooManyPorts { count })
    }
}

/// The policy without any guest: what is sealed and nothing more.
pub(crate) fn skeleton(host: &HostPolicy) -> Ruleset {
    Ruleset {
        tables: rules::tables(host),
    }
}

/// Refuses a host policy that would not keep its promises.
pub fn check_host(host: &HostPolicy) -> Result<(), PlanError> {
    let bridge = &host.bridge;
    if !PREFIXES.contains(&bridge.prefix) {
        return Err(PlanError::Prefix {
            address: bridge.address,
            prefix: bridge.prefix,
        });
    }
    let subnet = bridge.subnet();
    let within = |range: &str| {
        range
            .parse::<Cidr>()
            .is_ok_and(|range| range.contains(subnet.network()) && range.contains(subnet.broadcast()))
    };
    if !PRIVATE_NETWORKS.iter().any(|range| within(range)) {
        return Err(PlanError::PublicSubnet { subnet });
    }
    if bridge.address == subnet.network() || bridge.address == subnet.broadcast() {
        return Err(PlanError::BridgeAddress {
            address: bridge.address,
            subnet,
        });
    }
    if let Some(tailnet) = &host.tailnet
        && (tailnet == &bridge.name || host.uplink.as_ref() == Some(tailnet))
    {
        return Err(PlanError::PortName {
            name: tailnet.clone(),
            what: "bridge or the uplink, and is named as the tailnet's interface",
        });
    }
    if host.uplink.as_ref() == Some(&bridge.name) {
        return Err(PlanError::UplinkIsBridge {
            name: bridge.name.clone(),
        });
    }
    if let Some((first, last)) = host.machine_uids
        && (first == 0 || first >= last)
    {
        return Err(PlanError::MachineUids { first, last });
    }
    for (index, service) in host.guest_ports.iter().enumerate() {
        let why = if service.port == 0 {
            "not a port"
        } else if host.guest_ports.iter().take(index).any(|other| other == service) {
            "listed twice"
        } else {
            continue;
        };
        return Err(PlanError::Service {
            service: *service,
            why,
        });
    }
    Ok(())
}

/// The ports that fit this host and each other; of two that clash, the first.
#[cfg_attr(
    not(feature = "kernel"),
    allow(dead_code, reason = "only the kernel half finds ports it did not plan")
)]
pub(crate) fn fitting<'a>(host: &HostPolicy, ports: &'a [GuestPort]) -> Vec<&'a GuestPort> {
    let mut seen = Ports::default();
    ports
        .iter()
        .filter(|port| check_port(host, port).is_ok() && seen.add(port).is_ok())
        .collect()
}

/// Refuses a port that cannot belong to a guest of this host.
pub(crate) fn check_port(host: &HostPolicy, port: &GuestPort) -> Result<(), PlanError> {
    let name = || port.name.clone();
    for (taken, what) in [
        (Some(&host.bridge.name), "bridge"),
        (host.uplink.as_ref(), "uplink"),
        (host.tailnet.as_ref(), "tailnet's interface"),
    ] {
        if taken == Some(&port.name) {
            return Err(PlanError::PortName { name: name(), what });
        }
    }
    if port.name.as_str() == "lo" {
        return Err(PlanError::PortName {
            name: name(),
            what: "loopback",
        });
    }
    let subnet = host.bridge.subnet();
    let why = if !subnet.contains(port.address) {
        Some("outside")
    } else if port.address == host.bridge.address {
        Some("the bridge's own in")
    } else if port.address == subnet.network() || port.address == subnet.broadcast() {
        Some("the first or last of")
    } else {
        None
    };
    if let Some(why) = why {
        return Err(PlanError::GuestAddress {
            name: name(),
            address: port.address,
            why,
            subnet,
        });
    }
    if port.mac[0] & 1 == 1 || port.mac == [0; 6] {
        return Err(PlanError::GuestMac { name: name() });
    }
    if port.trust.leaves_host() && host.uplink.is_none() {
        return Err(PlanError::NoUplink {
            name: name(),
            trust: port.trust.word(),
        });
    }
    check_allowlist(port)
}

/// Interval sets of the kernel refuse overlapping elements, and would fail a whole transaction for them.
fn check_allowlist(port: &GuestPort) -> Result<(), PlanError> {
    let crate::Trust::Allowlist(destinations) = &port.trust else {
        return Ok(());
    };
    let refuse = |first, why, second| {
        Err(PlanError::Allowlist {
            name: port.name.clone(),
            first,
            why,
            second,
        })
    };
    if destinations.len() > MOST_DESTINATIONS {
        return Err(PlanError::LongAllowlist {
            name: port.name.clone(),
            count: destinations.len(),
        });
    }
    let mut sorted: Vec<_> = destinations.iter().collect();
    sorted.sort();
    sorted.dedup();
    for (index, one) in sorted.iter().enumerate() {
        if one
            .ports
            .is_some_and(|ports| ports.first > ports.last || ports.first == 0)
        {
            return refuse(one.network, "has an empty port range in", one.network);
        }
        // Sorted by network, so everything that overlaps `one` follows it without a gap.
        for other in sorted
            .iter()
            .skip(index + 1)
            .take_while(|other| one.network.overlaps(other.network))
        {
            let same_set = match (one.ports, other.ports) {
                (None, None) => true,
                (Some(mine), Some(theirs)) => {
                    mine.protocol == theirs.protocol && mine.first <= theirs.last && theirs.first <= mine.last
                }
                (None, Some(_)) | (Some(_), None) => false,
            };
            if same_set {
                return refuse(one.network, "overlaps", other.network);
            }
        }
    }
    Ok(())
}

/// Who has what already.
#[derive(Debug, Default)]
struct Ports<'a> {
    names: BTreeMap<&'a IfName, &'a IfName>,
    macs: BTreeMap<[u8; 6], &'a IfName>,
    addresses: BTreeMap<Ipv4Addr, &'a IfName>,
}

impl<'a> Ports<'a> {
    fn add(&mut self, port: &'a GuestPort) -> Result<(), PlanError> {
        let clash = |first: Option<&'a IfName>, what| match first {
            None => Ok(()),
            Some(first) => Err(PlanError::Shared {
                first: first.clone(),
                second: port.name.clone(),
                what,
            }),
        };
        clash(self.names.insert(&port.name, &port.name), "name")?;
        clash(self.macs.insert(port.mac, &port.name), "MAC")?;
        clash(self.addresses.insert(port.address, &port.name), "address")
    }
}

#[cfg(test)]
pub(crate) mod tests;
