//! What the packet policy must achieve, as values. Nothing here knows how.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::IfName;

/// The bridge that all sandboxes hang on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BridgeSpec {
    /// Its name, `vmbr1` by default.
    pub name: IfName,
    /// The host's own address on it: the only one guests may talk to.
    pub address: Ipv4Addr,
    /// Length of the agent subnet's prefix.
    pub prefix: u8,
    /// Fixed MTU; the kernel's choice when absent.
    pub mtu: Option<u32>,
}

impl BridgeSpec {
    /// The agent subnet.
    #[must_use]
    pub fn subnet(&self) -> Cidr {
        Cidr::containing(self.address, self.prefix)
    }
}

/// A transport protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// Its number in an IP header.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// A port of the bridge address that every guest which is not sealed may reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GuestService {
    /// Protocol.
    pub protocol: Protocol,
    /// Port.
    pub port: u16,
}

/// What does not change while sandboxes come and go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostPolicy {
    /// The agents' bridge.
    pub bridge: BridgeSpec,
    /// The one way out; without it no guest can leave the host.
    pub uplink: Option<IfName>,
    /// Published on the bridge address: bootstrap and artifacts.
    pub guest_ports: Vec<GuestService>,
    /// Port 53 of the bridge address, TCP and UDP, for guests in `nat` and `allowlist`.
    pub dns: bool,
    /// First and last user id that virtual machines run under: a process of these talks to no network of the host's
    /// own, not even to loopback. `None` leaves all processes alone.
    pub machine_uids: Option<(u32, u32)>,
    /// The tailnet's interface, whose devices may open flows to running guests, and to which no guest opens any. It need
    /// not exist.
    pub tailnet: Option<IfName>,
    /// NFLOG group that is told of what guests are refused; whoever listens there must be the only one.
    pub denial_group: u16,
}

/// The NFLOG group where nobody says otherwise.
pub const USUAL_DENIAL_GROUP: u16 = 7744;

/// An IPv4 network; host bits are always zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    network: Ipv4Addr,
    prefix: u8,
}

/// Why a text is not an IPv4 network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is not an IPv4 network: expected ADDRESS/PREFIX without host bits, as in 192.0.2.0/24", .0.escape_debug())]
pub struct CidrError(String);

impl Cidr {
    /// The network an address lies in. A prefix above 32 counts as 32.
    #[must_use]
    pub fn containing(address: Ipv4Addr, prefix: u8) -> Self {
        let prefix = prefix.min(32);
        Self {
            network: Ipv4Addr::from_bits(address.to_bits() & mask(prefix)),
            prefix,
        }
    }

    /// First address.
    #[must_use]
    pub fn network(self) -> Ipv4Addr {
        self.network
    }

    /// Last address.
    #[must_use]
    pub fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits() | !mask(self.prefix))
    }

    /// Length of the prefix.
    #[must_use]
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// Whether an address lies in it.
    #[must_use]
    pub fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.prefix) == self.network.to_bits()
    }

    /// Whether the two share an address.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.network) || other.contains(self.network)
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let wrong = || CidrError(text.to_owned());
        let (address, prefix) = text.split_once('/').unwrap_or((text, "32"));
        let address: Ipv4Addr = address.parse().map_err(|_| wrong())?;
        let prefix: u8 = prefix
            .parse()
            .ok()
            .filter(|prefix| *prefix <= 32)
            .ok_or_else(wrong)?;
        let cidr = Self::containing(address, prefix);
        if cidr.network == address {
            Ok(cidr)
        } else {
            Err(wrong())
        }
    }
}

impl TryFrom<String> for Cidr {
    type Error = CidrError;

    fn try_from(text: String) -> Result<Self, CidrError> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> Self {
        cidr.to_string()
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.prefix == 32 {
            write!(f, "{}", self.network)
        } else {
            write!(f, "{}/{}", self.network, self.prefix)
        }
    }
}

/// Ports of one protocol, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PortRange {
    /// Protocol.
    pub protocol: Protocol,
    /// Lowest.
    pub first: u16,
    /// Highest.
    pub last: u16,
}

/// Somewhere a sandbox with an allowlist may go. Private and special ranges stay closed whatever it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Destination {
    /// Which addresses.
    pub network: Cidr,
    /// Which ports; every protocol and port when absent.
    pub ports: Option<PortRange>,
}

/// Why a text is no destination.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DestinationError {
    /// The network.
    #[error(transparent)]
    Network(#[from] CidrError),
    /// What follows it.
    #[error("`{}` is not what may follow a network: expected PROTOCOL:PORT or PROTOCOL:FIRST-LAST, as in tcp:443", .0.escape_debug())]
    Ports(String),
}

impl FromStr for Destination {
    type Err = DestinationError;

    /// `1.1.1.0/24`, `1.1.1.1:tcp:443`, `1.1.1.1:udp:9000-9999`.
    fn from_str(text: &str) -> Result<Self, DestinationError> {
        let Some((network, rest)) = text.split_once(':') else {
            return Ok(Self {
                network: text.parse()?,
                ports: None,
            });
        };
        let wrong = || DestinationError::Ports(rest.to_owned());
        let (protocol, ports) = rest.split_once(':').ok_or_else(wrong)?;
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => return Err(wrong()),
        };
        let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
        let number = |text: &str| -> Result<u16, DestinationError> {
            let plain = text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|_| plain).ok_or_else(wrong)
        };
        let (first, last) = (number(first)?, number(last)?);
        if first == 0 || first > last {
            return Err(wrong());
        }
        Ok(Self {
            network: network.parse()?,
            ports: Some(PortRange {
                protocol,
                first,
                last,
            }),
        })
    }
}

/// How far the network trusts a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "mode", content = "destinations")]
pub enum Trust {
    /// Passes nothing at all, in either direction, not even ARP.
    Sealed,
    /// The published ports of the bridge address, while the sandbox boots.
    BootstrapOnly,
    /// The same, for a sandbox that runs with `network.mode: off`.
    Off,
    /// The Internet through the uplink; no private or special range.
    Nat,
    /// Named destinations through the uplink.
    Allowlist(Vec<Destination>),
}

impl Trust {
    /// The word for it in output and in chain names.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Sealed => "sealed",
            Self::BootstrapOnly => "bootstrap",
            Self::Off => "off",
            Self::Nat => "nat",
            Self::Allowlist(_) => "allowlist",
        }
    }

    /// Whether anything may leave through the uplink.
    #[must_use]
    pub fn leaves_host(&self) -> bool {
        matches!(self, Self::Nat | Self::Allowlist(_))
    }

    /// Whether the operator's own devices may come in.
    #[must_use]
    pub fn is_running(&self) -> bool {
        matches!(self, Self::Off | Self::Nat | Self::Allowlist(_))
    }

    /// Whether every flow that `other` permits is permitted here too. When not, a change from `other` to this level
    /// must cut what is alive.
    #[must_use]
    pub fn contains(&self, other: &Self) -> bool {
        match (self, other) {
            (_, Self::Sealed) | (Self::Nat, _) => true,
            (Self::Sealed, _) => false,
            (_, Self::BootstrapOnly | Self::Off) => true,
            (Self::Allowlist(mine), Self::Allowlist(theirs)) => {
                theirs.iter().all(|their| mine.contains(their))
            }
            (Self::BootstrapOnly | Self::Off | Self::Allowlist(_), Self::Nat | Self::Allowlist(_)) => false,
        }
    }
}

/// One sandbox's cable: whatever leaves it must carry this MAC and this address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestPort {
    /// The bridge port: `tap<vmid>i<n>` or `fwpr<vmid>p<n>`.
    pub name: IfName,
    /// The only Ethernet source address accepted.
    pub mac: [u8; 6],
    /// The only IP source address accepted.
    pub address: Ipv4Addr,
    /// What it may reach.
    pub trust: Trust,
}

/// Everything the packet policy must guarantee, as one value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// What does not change.
    pub host: HostPolicy,
    /// What does.
    pub ports: Vec<GuestPort>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_with_host_bits_or_wild_prefixes_are_refused() {
        for bad in [
            "10.0.0.1/8",
            "10.0.0.0/33",
            "10.0.0.0/-1",
            "10.0.0/8",
            "x",
            "",
            "10.0.0.0/8/8",
        ] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad:?} was accepted");
        }
        let all: Cidr = "0.0.0.0/0".parse().unwrap();
        assert_eq!(all.broadcast(), Ipv4Addr::BROADCAST);
        assert!(all.overlaps("10.0.0.0/8".parse().unwrap()));
    }

    #[test]
    fn destinations_that_say_less_or_more_than_one_are_refused() {
        let good: Destination = "1.1.1.0/24:udp:9000-9999".parse().unwrap();
        let ports = good.ports.unwrap();
        assert_eq!(
            (ports.protocol, ports.first, ports.last),
            (Protocol::Udp, 9000, 9999)
        );
        assert!("1.1.1.1".parse::<Destination>().unwrap().ports.is_none());
        for bad in [
            "",
            "example.org",
            "1.1.1.1:",
            "1.1.1.1:443",
            "1.1.1.1:sctp:443",
            "1.1.1.1:tcp:0",
            "1.1.1.1:tcp:+1",
            "1.1.1.1:tcp:9-1",
            "1.1.1.1:tcp:65536",
            "1.1.1.1/33:tcp:1",
            "1.1.1.1:tcp:1:2",
        ] {
            assert!(bad.parse::<Destination>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn only_a_level_that_contains_the_old_one_keeps_flows_alive() {
        let destination = |text: &str| Destination {
            network: text.parse().unwrap(),
            ports: None,
        };
        let narrow = Trust::Allowlist(vec![destination("1.1.1.1")]);
        let wide = Trust::Allowlist(vec![destination("9.9.9.9"), destination("1.1.1.1")]);
        assert!(wide.contains(&narrow) && !narrow.contains(&wide));
        assert!(Trust::Nat.contains(&wide) && !wide.contains(&Trust::Nat));
        assert!(Trust::Off.contains(&Trust::BootstrapOnly) && !Trust::Sealed.contains(&Trust::Off));
        assert!(!Trust::Off.contains(&narrow));
    }
}
