//! The rules themselves. They name no sandbox; `docs/security.md` lists what they guarantee, by number.

mod bridge;
mod inet;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use crate::ruleset::{
    Base, BaseKind, Chain, Direction, Element, Family, Field, Hook, Is, MOST_PORTS, Match, Rule, Ruleset,
    Selector, Set, Table, VERIFIED, Value,
};
use crate::{Cidr, HostPolicy, Trust};

/// Bound ports, by name.
pub(crate) const PORTS: &str = "ports";
/// (port, MAC, address) of every port that is not sealed.
pub(crate) const PINS: &str = "pins";
/// The same of ports that are sealed. No rule reads it: it is there for whoever writes the policy next.
pub(crate) const PARKED: &str = "parked";
/// (port, address) of every port that is not sealed.
pub(crate) const ADDRESSES: &str = "addresses";
/// Guest address to the chain of its trust.
pub(crate) const TRUST: &str = "trust";
/// Guests that the operator's own devices may reach.
pub(crate) const RUNNING: &str = "running";
/// (guest, network) of allowlists.
pub(crate) const ALLOWED: &str = "allowed";
/// (guest, network, protocol, ports) of allowlists.
pub(crate) const ALLOWED_PORTS: &str = "allowed_ports";

/// (guest, address) that a name of an allowlist stands for at the moment. The resolver fills it, and time empties it.
pub(crate) const RESOLVED: &str = "resolved";

/// (guest, address, protocol, port) that a name with ports of its own stands for at the moment.
pub(crate) const RESOLVED_PORTS: &str = "resolved_ports";

/// The chain that judges guests of a trust level; a sealed guest reaches none.
pub(crate) fn trust_chain(trust: &Trust) -> Option<&'static str> {
    match trust {
        Trust::Sealed => None,
        Trust::BootstrapOnly => Some("bootstrap"),
        Trust::Off => Some("off"),
        Trust::Nat => Some("nat"),
        Trust::Allowlist(_) => Some("allowlist"),
    }
}

/// The private or special network that an address lies in, if any. No trust level opens one.
pub(crate) fn private_network(address: Ipv4Addr) -> Option<Cidr> {
    inet::denied_networks().find(|network| network.contains(address))
}

/// The three tables of a host without any guest.
pub(crate) fn tables(host: &HostPolicy) -> Vec<Table> {
    vec![bridge::table(), arp_table(host), inet::table(host)]
}

/// Closes networks to every guest in addition to the private and special ranges: those that the host itself is part of,
/// whose other members take it, and so a guest, for a neighbour. Interval sets refuse overlaps, so of two networks that
/// overlap the larger one stays.
#[cfg_attr(
    not(feature = "kernel"),
    allow(dead_code, reason = "only the kernel half knows the host's networks")
)]
pub(crate) fn deny_networks(ruleset: &mut Ruleset, networks: impl IntoIterator<Item = Cidr>) {
    let Some(denied) = ruleset.set_mut(Family::Inet, inet::DENIED) else {
        return;
    };
    let mut all: Vec<Cidr> = networks
        .into_iter()
        .filter(|network| network.prefix() > 0)
        .collect();
    for element in &denied.elements {
        if let Some(Value::Network(network)) = element.key().next() {
            all.push(*network);
        }
    }
    all.sort_by_key(|network| (network.prefix(), network.network()));
    let mut largest: Vec<Cidr> = Vec::new();
    for network in all {
        if !largest.iter().any(|larger| larger.overlaps(network)) {
            largest.push(network);
        }
    }
    denied.elements = largest
        .into_iter()
        .map(|network| Element::new([Value::Network(network)]))
        .collect();
}

/// Closes our bridge to what passes between two ports that nobody bound. Not every kernel takes the rule.
#[cfg_attr(
    not(feature = "kernel"),
    allow(dead_code, reason = "only the kernel half knows what the kernel takes")
)]
pub(crate) fn close_to_strangers(ruleset: &mut Ruleset, host: &HostPolicy) {
    let chains = ruleset
        .tables
        .iter_mut()
        .filter(|table| table.family == Family::Bridge)
        .flat_map(|table| &mut table.chains);
    for chain in chains.filter(|chain| chain.name == "forward") {
        chain.rules.push(bridge::strangers(&host.bridge.name));
    }
}

fn set(name: &'static str, fields: &'static [Field]) -> Set {
    Set {
        name,
        fields,
        interval: false,
        verdicts: false,
        dynamic: false,
        timed: false,
        size: None,
        elements: BTreeSet::new(),
    }
}

/// A set with an element for each bound port.
fn set_of_ports(name: &'static str, fields: &'static [Field]) -> Set {
    Set {
        size: Some(MOST_PORTS),
        ..set(name, fields)
    }
}

fn chain(name: &'static str, rules: Vec<Rule>) -> Chain {
    Chain {
        name,
        base: None,
        rules,
    }
}

fn base_chain(name: &'static str, hook: Hook, priority: i32, rules: Vec<Rule>) -> Chain {
    Chain {
        name,
        base: Some(Base {
            kind: BaseKind::Filter,
            hook,
            priority,
        }),
        rules,
    }
}

/// ARP decides whom the host believes to be whom, and no inet hook sees it.
fn arp_table(host: &HostPolicy) -> Table {
    Table {
        family: Family::Arp,
        sets: vec![set_of_ports(PORTS, &[Field::IfName])],
        chains: vec![base_chain(
            "input",
            Hook::Input,
            0,
            vec![
                Rule::deny(
                    [Match::In(&[Selector::InName], Is::Equal, PORTS)],
                    "ARP packet delivered on a port itself",
                ),
                Rule::deny(
                    [on_bridge(host, Direction::In), Match::Mark(Is::Not, VERIFIED)],
                    "ARP packet from a port that nobody bound",
                ),
            ],
        )],
    }
}

fn on_bridge(host: &HostPolicy, direction: Direction) -> Match {
    Match::Name(direction, Is::Equal, host.bridge.name.clone())
}
