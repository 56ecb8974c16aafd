//! What a guest was refused, in words that help whoever reads them: an operator, or the agent itself.

use std::net::Ipv4Addr;

use serde::Serialize;

use crate::rules::private_network;
use crate::{HostPolicy, Trust};

/// The metadata service of clouds, which agents and their tools look for by habit.
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
const DNS: u16 = 53;
const DNS_OVER_TLS: u16 = 853;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;

/// A packet that was refused, as the kernel told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RefusedPacket {
    /// The guest that sent it. Its port was compared before: a guest cannot name another one here.
    pub guest: Ipv4Addr,
    /// Where it should have gone.
    pub destination: Ipv4Addr,
    /// Number of the protocol.
    pub protocol: u8,
    /// Destination port, where the protocol has any and the packet shows it.
    pub port: Option<u16>,
}

impl RefusedPacket {
    /// Reads what the kernel copied of an IPv4 packet. `None` for what is none.
    #[must_use]
    pub fn read(packet: &[u8]) -> Option<Self> {
        let first = packet.first()?;
        if first >> 4 != 4 {
            return None;
        }
        let address = |at: usize| Some(Ipv4Addr::from(*packet.get(at..)?.first_chunk::<4>()?));
        let protocol = *packet.get(9)?;
        let first_fragment = u16::from_be_bytes(*packet.get(6..)?.first_chunk()?) & 0x1fff == 0;
        let header = usize::from(first & 0x0f) * 4;
        let port = packet
            .get(header + 2..)
            .and_then(|rest| rest.first_chunk())
            .map(|bytes| u16::from_be_bytes(*bytes))
            .filter(|_| first_fragment && matches!(protocol, TCP | UDP));
        Some(Self {
            guest: address(12)?,
            destination: address(16)?,
            protocol,
            port,
        })
    }

    /// `tcp 192.168.1.1:80`.
    #[must_use]
    pub fn target(&self) -> String {
        let protocol = match self.protocol {
            TCP => "tcp".to_owned(),
            UDP => "udp".to_owned(),
            ICMP => "icmp".to_owned(),
            other => format!("protocol {other}"),
        };
        match self.port {
            Some(port) => format!("{protocol} {}:{port}", self.destination),
            None => format!("{protocol} {}", self.destination),
        }
    }
}

/// Why a packet was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// The host has other addresses and ports; guests get the published ones of the bridge address.
    HostService,
    /// The resolver, at a level that resolves nothing.
    Resolver,
    /// A resolver other than the host's, whatever it answers over.
    OtherResolver,
    /// Another guest.
    Neighbour,
    /// The metadata service of clouds; there is none here.
    Metadata,
    /// A private or special network.
    PrivateNetwork,
    /// Anything outside, at a level that leaves the host for nothing.
    NoNetwork,
    /// Nothing that the allowlist names.
    NotAllowed,
    /// A network of the host's own, or more flows at once than one guest may have.
    HostNetworkOrFlows,
}

impl Refusal {
    /// Why a guest of this trust was refused this packet: the rules again, in words. Never says that anything is open.
    #[must_use]
    pub fn of(host: &HostPolicy, trust: &Trust, packet: &RefusedPacket) -> Self {
        let to = packet.destination;
        if to == host.bridge.address {
            let resolver = packet.port == Some(DNS) && !trust.leaves_host();
            return if resolver {
                Self::Resolver
            } else {
                Self::HostService
            };
        }
        if to == METADATA {
            return Self::Metadata;
        }
        if host.bridge.subnet().contains(to) {
            return Self::Neighbour;
        }
        if private_network(to).is_some() {
            return Self::PrivateNetwork;
        }
        match trust {
            Trust::Sealed | Trust::BootstrapOnly | Trust::Off => Self::NoNetwork,
            Trust::Allowlist(_) | Trust::Nat if matches!(packet.port, Some(DNS | DNS_OVER_TLS)) => {
                Self::OtherResolver
            }
            Trust::Allowlist(_) => Self::NotAllowed,
            Trust::Nat => Self::HostNetworkOrFlows,
        }
    }

    /// One word for programs.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::HostService => "host_service",
            Self::Resolver => "resolver",
            Self::OtherResolver => "other_resolver",
            Self::Neighbour => "neighbour",
            Self::Metadata => "metadata",
            Self::PrivateNetwork => "private_network",
            Self::NoNetwork => "no_network",
            Self::NotAllowed => "not_allowed",
            Self::HostNetworkOrFlows => "host_network_or_flows",
        }
    }

    /// What it means and what to do about it.
    #[must_use]
    pub fn hint(self) -> &'static str {
        match self {
            Self::HostService => {
                "blocked by policy: sandboxes reach the host's bootstrap and artifact ports and nothing else of it"
            }
            Self::Resolver => "blocked by policy: names are resolved only with network mode nat or allowlist",
            Self::OtherResolver => {
                "blocked by policy: names are resolved by the host's resolver only, at the bridge address"
            }
            Self::Neighbour => "blocked by policy: sandboxes do not reach each other",
            Self::Metadata => "blocked by policy: there is no metadata service here",
            Self::PrivateNetwork => {
                "blocked by policy: private network; no mode opens it, use a public address"
            }
            Self::NoNetwork => {
                "blocked by policy: network mode off; the profile's network.mode opens the Internet"
            }
            Self::NotAllowed => {
                "blocked by policy: not on the allowlist; add it to the profile's network.allow"
            }
            Self::HostNetworkOrFlows => {
                "blocked by policy: the host's own network, or more connections at once than a sandbox may have"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{BridgeSpec, USUAL_DENIAL_GROUP};

    fn host() -> HostPolicy {
        HostPolicy {
            bridge: BridgeSpec {
                name: "vmbr1".parse().unwrap(),
                address: Ipv4Addr::new(10, 77, 0, 1),
                prefix: 16,
                mtu: None,
            },
            uplink: Some("vmbr0".parse().unwrap()),
            guest_ports: Vec::new(),
            dns: true,
            machine_uids: None,
            tailnet: None,
            denial_group: USUAL_DENIAL_GROUP,
        }
    }

    fn packet(to: &str, port: u16) -> RefusedPacket {
        RefusedPacket {
            guest: Ipv4Addr::new(10, 77, 0, 11),
            destination: to.parse().unwrap(),
            protocol: TCP,
            port: Some(port),
        }
    }

    #[test]
    fn each_refusal_is_told_by_its_own_cause() {
        let allowlist = Trust::Allowlist(Vec::new());
        for (to, port, trust, why) in [
            ("10.77.0.1", 8006, &Trust::Nat, Refusal::HostService),
            ("10.77.0.1", 53, &Trust::Off, Refusal::Resolver),
            ("10.77.0.1", 53, &Trust::Nat, Refusal::HostService),
            ("10.77.0.12", 22, &Trust::Nat, Refusal::Neighbour),
            ("169.254.169.254", 80, &Trust::Off, Refusal::Metadata),
            ("192.168.1.1", 80, &Trust::Nat, Refusal::PrivateNetwork),
            ("224.0.0.251", 80, &allowlist, Refusal::PrivateNetwork),
            ("1.1.1.1", 443, &Trust::Off, Refusal::NoNetwork),
            ("1.1.1.1", 443, &allowlist, Refusal::NotAllowed),
            ("1.1.1.1", 443, &Trust::Nat, Refusal::HostNetworkOrFlows),
            ("1.1.1.1", 53, &Trust::Nat, Refusal::OtherResolver),
            ("1.1.1.1", 853, &allowlist, Refusal::OtherResolver),
            ("1.1.1.1", 53, &Trust::Off, Refusal::NoNetwork),
        ] {
            assert_eq!(Refusal::of(&host(), trust, &packet(to, port)), why, "{to}:{port}");
        }
        assert_eq!(packet("1.1.1.1", 443).target(), "tcp 1.1.1.1:443");
    }

    proptest! {
        #[test]
        fn no_bytes_of_a_guest_make_reading_fail_badly(bytes in proptest::collection::vec(any::<u8>(), 0..96)) {
            if let Some(read) = RefusedPacket::read(&bytes) {
                prop_assert!(!read.target().is_empty());
                prop_assert!(read.port.is_none() || matches!(read.protocol, TCP | UDP));
            }
        }
    }
}
