//! Frames between ports, and between a port and the host.
//!
//! Rules do not ask which bridge a port hangs on, which not every kernel could answer: bound ports are known by name,
//! and frames of other ports to the host are left to the tables behind, where they lack the mark. The exception is
//! [`strangers`], which is added where the kernel can answer.

use super::{ADDRESSES, PARKED, PINS, PORTS, base_chain, chain, set_of_ports};
use crate::ruleset::{
    Action, Chain, EtherType, Family, Field, Hook, Is, Match, Rule, Selector, Table, VERIFIED,
};

/// Before br_netfilter (0) hands bridged packets to the inet hooks.
const BEFORE_BRIDGE_NETFILTER: i32 = -300;

const FROM_BOUND_PORT: Match = Match::In(&[Selector::InName], Is::Equal, PORTS);
const TO_BOUND_PORT: Match = Match::In(&[Selector::OutName], Is::Equal, PORTS);
const IP: Match = Match::EtherType(EtherType::Ip);
const ARP: Match = Match::EtherType(EtherType::Arp);

pub(super) fn table() -> Table {
    let mut chains = from_guest();
    chains.push(to_guest());
    chains.extend(base_chains());
    Table {
        family: Family::Bridge,
        sets: vec![
            set_of_ports(PORTS, &[Field::IfName]),
            set_of_ports(PINS, &[Field::IfName, Field::Ether, Field::Ipv4]),
            set_of_ports(PARKED, &[Field::IfName, Field::Ether, Field::Ipv4]),
            set_of_ports(ADDRESSES, &[Field::IfName, Field::Ipv4]),
        ],
        chains,
    }
}

/// Where (port, MAC, address) are compared, for IP and for what ARP claims.
fn from_guest() -> Vec<Chain> {
    use Selector::{ArpSenderEther, ArpSenderIp, EtherSource, InName, IpSource};
    let unpinned = |sender| Match::In(sender, Is::Not, PINS);
    let arp = |operation| {
        Rule::new(
            [ARP, Match::ArpForEthernet, Match::ArpOperation(operation)],
            Action::Goto("verified"),
        )
    };
    vec![
        chain(
            "verified",
            vec![
                Rule::new([], Action::SetMark(VERIFIED)),
                Rule::new([], Action::Accept),
            ],
        ),
        chain(
            "from_guest_ip",
            vec![
                Rule::deny(
                    [IP, unpinned(&[InName, EtherSource, IpSource])],
                    "IP packet from an address, MAC or port that do not belong together",
                ),
                Rule::new([], Action::Goto("verified")),
            ],
        ),
        chain(
            "from_guest_arp",
            vec![
                Rule::deny(
                    [ARP, unpinned(&[InName, EtherSource, ArpSenderIp])],
                    "ARP packet sent from another MAC or for another address",
                ),
                Rule::deny(
                    [ARP, unpinned(&[InName, ArpSenderEther, ArpSenderIp])],
                    "ARP packet that claims another MAC",
                ),
                arp(1),
                arp(2),
                Rule::deny([], "ARP packet of an unusual kind"),
            ],
        ),
        chain(
            "from_guest",
            vec![
                Rule::new([IP], Action::Goto("from_guest_ip")),
                Rule::new([ARP], Action::Goto("from_guest_arp")),
                Rule::deny([], "Frame that is neither IPv4 nor ARP"),
            ],
        ),
    ]
}

/// A guest sees frames that are meant for it, and no others, not even broadcasts.
fn to_guest() -> Chain {
    use Selector::{ArpTargetIp, EtherDestination, IpDestination, OutName};
    chain(
        "to_guest",
        vec![
            Rule::new(
                [
                    IP,
                    Match::In(&[OutName, EtherDestination, IpDestination], Is::Equal, PINS),
                ],
                Action::Accept,
            ),
            Rule::new(
                [ARP, Match::In(&[OutName, ArpTargetIp], Is::Equal, ADDRESSES)],
                Action::Accept,
            ),
            Rule::deny(
                [],
                "Frame to a guest that it is not addressed to, or that is sealed",
            ),
        ],
    )
}

/// Only bound ports are known by name. What passes between two others on our bridge is closed by the bridge's name, on
/// kernels that know it.
pub(super) fn strangers(bridge: &crate::IfName) -> Rule {
    Rule::deny(
        [Match::OnBridge(bridge.clone())],
        "Frame between two ports that nobody bound",
    )
}

fn base_chains() -> [Chain; 4] {
    let base = |name, hook, rules| base_chain(name, hook, BEFORE_BRIDGE_NETFILTER, rules);
    [
        base(
            "prerouting",
            Hook::Prerouting,
            vec![Rule::new([FROM_BOUND_PORT], Action::Goto("from_guest"))],
        ),
        base(
            "input",
            Hook::Input,
            vec![Rule::deny(
                [FROM_BOUND_PORT, Match::ToLinkLocalGroup],
                "Frame to a link-local group, which bridges deliver without asking prerouting",
            )],
        ),
        base(
            "forward",
            Hook::Forward,
            vec![
                Rule::deny([FROM_BOUND_PORT], "Frame from a guest to another port"),
                Rule::deny([TO_BOUND_PORT], "Frame from another port to a guest"),
            ],
        ),
        base(
            "output",
            Hook::Output,
            vec![Rule::new([TO_BOUND_PORT], Action::Goto("to_guest"))],
        ),
    ]
}
