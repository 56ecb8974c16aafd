//! Reads what stands, and changes nothing.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::Serialize;

use super::difference;
use super::encode::Transaction;
use super::error::EnforceError;
use super::found::Found;
use super::links::{self, Links};
use super::socket::NetfilterSocket;
use super::standing::{self, FAMILIES, Standing};
use super::sysctl;
use super::writer::BridgeLink;
use crate::binding::Binding;
use crate::plan::{plan, skeleton};
use crate::ruleset::{Element, Value};
use crate::{
    BridgeSpec, Cidr, Destination, Drift, GuestPort, HostPolicy, IfName, Intent, PortRange, Protocol,
    Ruleset, Trust, USUAL_DENIAL_GROUP, check_host, rules,
};

/// Taken where the bridge has lost its address, which shows as drift.
const USUAL_PREFIX: u8 = 16;

/// Packets that a rule refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Denial {
    /// Table and chain.
    pub place: String,
    /// The rule's own words.
    pub reason: String,
    /// Packets since the policy was last replaced.
    pub packets: u64,
    /// Bytes since then.
    pub bytes: u64,
}

/// A view of what stands in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Observer {
    pub(crate) netfilter: NetfilterSocket,
    pub(crate) links: Links,
    /// Whether rules can ask which bridge a frame is on; unknown until it matters.
    names_bridges: Option<bool>,
}

/// An address that a name stands for.
pub(crate) struct Resolved {
    pub(crate) guest: Ipv4Addr,
    /// Of every port, or of those of the name.
    pub(crate) set: &'static str,
    pub(crate) element: Element,
}

/// A reading, and the bindings it amounts to.
pub(crate) struct Reading {
    pub(crate) standing: Standing,
    pub(crate) bindings: Vec<Binding>,
}

impl Observer {
    /// Opens the sockets. Needs no privilege by itself.
    pub fn open() -> Result<Self, EnforceError> {
        Ok(Self {
            netfilter: NetfilterSocket::open()?,
            links: Links::open()?,
            names_bridges: None,
        })
    }

    /// Ports that are bound.
    pub fn bindings(&mut self) -> Result<Vec<Binding>, EnforceError> {
        Ok(self.read()?.bindings)
    }

    /// Every difference between what `host` and the bindings that stand should give, and what stands.
    pub fn drift(&mut self, host: &HostPolicy) -> Result<Vec<Drift>, EnforceError> {
        check_host(host)?;
        let reading = self.read()?;
        self.compare(host, &reading, reading.bindings.iter())
    }

    /// The same as [`Self::drift`] of tables, rule by rule: lines with `-` for what stands and should not, `+` for what
    /// should and does not.
    pub fn difference(&mut self, host: &HostPolicy) -> Result<Vec<String>, EnforceError> {
        let reading = self.read()?;
        let ruleset = self.ruleset(host, reading.bindings.iter())?;
        let expected = Standing::of(&ruleset)?;
        Ok(difference::lines(&ruleset, &expected, &reading.standing))
    }

    /// What would change of a bridge that somebody else made: one that is there while no policy of ours is, nor is it
    /// the one that the policy was `last` made for. Somebody may have flushed that.
    pub fn foreign_bridge(
        &mut self,
        host: &HostPolicy,
        last: Option<&BridgeLink>,
    ) -> Result<Vec<Drift>, EnforceError> {
        let stands = self
            .host()?
            .is_some_and(|standing| standing.bridge.name == host.bridge.name);
        let there = self.bridge_link(&host.bridge.name)?;
        if stands || there.is_none() || there.as_ref() == last {
            return Ok(Vec::new());
        }
        let mut drifts = self.links.bridge_drift(&host.bridge)?;
        for link in self.links.ports(&host.bridge.name)? {
            drifts.push(Drift::new(
                format!("port {}", link.name),
                "would pass nothing any more",
            ));
        }
        Ok(drifts)
    }

    /// The link of this name, where there is one.
    pub(crate) fn bridge_link(&self, name: &IfName) -> Result<Option<BridgeLink>, EnforceError> {
        let link = self.links.find(name)?;
        Ok(link.map(|link| BridgeLink {
            name: name.clone(),
            index: link.index,
        }))
    }

    /// The policy that stands, without its ports: read from the rules, and the prefix from the bridge. `None` when none
    /// stands, or so little of one that it names no bridge.
    pub fn host(&mut self) -> Result<Option<HostPolicy>, EnforceError> {
        let standing = Standing::read(&mut self.netfilter)?;
        let Some(found) = Found::of(&standing) else {
            return Ok(None);
        };
        let addresses = self.links.addresses(&found.bridge)?;
        let own = addresses
            .iter()
            .find(|(address, _)| found.address.is_none_or(|wanted| wanted == *address))
            .copied();
        let Some((address, prefix)) = own.or(found.address.map(|address| (address, USUAL_PREFIX))) else {
            return Ok(None);
        };
        Ok(Some(HostPolicy {
            bridge: BridgeSpec {
                name: found.bridge,
                address,
                prefix,
                mtu: None,
            },
            uplink: found.uplink,
            guest_ports: found.guest_ports,
            dns: found.dns,
            machine_uids: found.machine_uids,
            tailnet: found.tailnet,
            denial_group: found.denial_group.unwrap_or(USUAL_DENIAL_GROUP),
        }))
    }

    /// What was refused so far, most frequent first.
    pub fn denials(&mut self) -> Result<Vec<Denial>, EnforceError> {
        let standing = Standing::read(&mut self.netfilter)?;
        let mut denials = Vec::new();
        for (family, word) in FAMILIES {
            let chains = standing
                .tables
                .get(&family)
                .into_iter()
                .flat_map(|table| &table.chains);
            for (chain, rule) in
                chains.flat_map(|(name, chain)| chain.rules.iter().map(move |rule| (name, rule)))
            {
                if let (Some((packets, bytes)), Some(reason)) = (rule.counter, &rule.comment) {
                    denials.push(Denial {
                        place: format!("{word} {chain}"),
                        reason: reason.clone(),
                        packets,
                        bytes,
                    });
                }
            }
        }
        denials.sort_by_key(|denial| std::cmp::Reverse(denial.packets));
        Ok(denials)
    }

    pub(crate) fn read(&mut self) -> Result<Reading, EnforceError> {
        let standing = Standing::read(&mut self.netfilter)?;
        let bindings = decode(&standing);
        Ok(Reading { standing, bindings })
    }

    /// What an intent amounts to on this host: the plan, with what only this kernel and this moment can tell.
    pub fn ruleset_of(&mut self, intent: &Intent) -> Result<Ruleset, EnforceError> {
        let mut ruleset = plan(intent)?;
        let names_bridges = self.names_bridges()?;
        self.fit(&intent.host, &mut ruleset, names_bridges)?;
        Ok(ruleset)
    }

    /// The whole policy for a host as it is now, and its bindings.
    pub(crate) fn ruleset<'a>(
        &mut self,
        host: &HostPolicy,
        bindings: impl Iterator<Item = &'a Binding>,
    ) -> Result<Ruleset, EnforceError> {
        let names_bridges = self.names_bridges()?;
        self.ruleset_where(host, bindings, names_bridges)
    }

    /// The same for a kernel that has `meta ibrname`, or has it not; which one this is, is not asked.
    fn ruleset_where<'a>(
        &self,
        host: &HostPolicy,
        bindings: impl Iterator<Item = &'a Binding>,
        names_bridges: bool,
    ) -> Result<Ruleset, EnforceError> {
        let mut ruleset = skeleton(host);
        ruleset.insert(bindings.flat_map(Binding::list));
        self.fit(host, &mut ruleset, names_bridges)?;
        Ok(ruleset)
    }

    /// Whether exactly what should stand for a host and the bindings read does. The kernel is not asked what it can do,
    /// which takes it tens of milliseconds: rules of either kind will do, and the next comparison asks.
    pub(crate) fn is_whole(&mut self, host: &HostPolicy, reading: &Reading) -> Result<bool, EnforceError> {
        if reading.standing.tables.is_empty() {
            return Ok(false);
        }
        for names_bridges in [true, false] {
            let expected = self.ruleset_where(host, reading.bindings.iter(), names_bridges)?;
            if Standing::of(&expected)?.drift(&reading.standing).is_empty() {
                // It took these rules, so it has what they need; that it lacks something they do without is not said.
                self.names_bridges = names_bridges.then_some(true);
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Closes the bridge to frames between strangers, where the kernel can tell its bridges apart, and the networks
    /// that the host's addresses lie in. These come and go with the host's own configuration, so they are read anew
    /// whenever the policy is compared or replaced.
    fn fit(&self, host: &HostPolicy, ruleset: &mut Ruleset, names_bridges: bool) -> Result<(), EnforceError> {
        if names_bridges {
            rules::close_to_strangers(ruleset, host);
        }
        if host.uplink.is_some() {
            let networks = self.links.networks(&host.bridge.name)?;
            rules::deny_networks(ruleset, networks.into_iter().map(|(network, _)| network));
        }
        Ok(())
    }

    /// Makes a policy stand where something else does, or nothing.
    pub(crate) fn make_stand(&mut self, whole: &Ruleset, standing: &Standing) -> Result<(), EnforceError> {
        let repair = if standing.tables.is_empty() {
            None
        } else {
            Transaction::repair(whole, &Standing::of(whole)?, standing)
        };
        let Some(repair) = repair else {
            return self.netfilter.commit(&Transaction::replace(whole));
        };
        match self.netfilter.commit(&repair) {
            Err(error @ EnforceError::Refused { .. }) => {
                tracing::warn!(%error, "the policy cannot be repaired in place and is replaced");
                self.netfilter.commit(&Transaction::replace(whole))
            }
            other => other,
        }
    }

    /// Closes everything that names opened, for whomever.
    pub(crate) fn clear_resolved(&mut self, shape: &Ruleset) -> Result<(), EnforceError> {
        let all = self.resolved()?;
        if all.is_empty() {
            return Ok(());
        }
        self.netfilter.commit(&Transaction::renew(shape, &all, true))
    }

    /// Whether this kernel has `meta ibrname`: asked with a transaction that could not be performed in any case.
    fn names_bridges(&mut self) -> Result<bool, EnforceError> {
        if let Some(known) = self.names_bridges {
            return Ok(known);
        }
        let known = self.netfilter.accepts(&Transaction::question()?)?;
        if !known {
            tracing::info!(
                "this kernel has no `meta ibrname`: strangers are closed off when their link appears"
            );
        }
        self.names_bridges = Some(known);
        Ok(known)
    }

    /// Addresses that names of allowlists stand for at the moment, with the time they have left.
    pub(crate) fn resolved(&mut self) -> Result<Vec<Resolved>, EnforceError> {
        let [_, _, (inet, _)] = FAMILIES;
        let mut all = Vec::new();
        for set in [rules::RESOLVED, rules::RESOLVED_PORTS] {
            let standing = Standing::elements(&mut self.netfilter, inet, set)?;
            all.extend(
                standing
                    .iter()
                    .filter_map(|element| decode_resolved(set, element)),
            );
        }
        Ok(all)
    }

    /// Compares a reading, the links and the settings with what `bindings` should give.
    pub(crate) fn compare<'a>(
        &mut self,
        host: &HostPolicy,
        reading: &Reading,
        bindings: impl Iterator<Item = &'a Binding> + Clone,
    ) -> Result<Vec<Drift>, EnforceError> {
        let expected = self.ruleset(host, bindings.clone())?;
        let mut drifts = Standing::of(&expected)?.drift(&reading.standing);
        drifts.extend(self.links.bridge_drift(&host.bridge)?);
        drifts.extend(sysctl::of_host(host).iter().filter_map(sysctl::Setting::drift));
        let bound: std::collections::BTreeSet<&str> =
            bindings.map(|binding| binding.name().as_str()).collect();
        for link in self.links.ports(&host.bridge.name)? {
            if bound.contains(link.name.as_str()) {
                drifts.extend(links::port_drift(&link));
            } else {
                drifts.push(Drift::new(
                    format!("port {}", link.name),
                    "is on the bridge and nobody bound it",
                ));
            }
        }
        Ok(drifts)
    }
}

/// Reads bindings back from set elements. Whatever does not fit together is left out, and then shows as drift.
fn decode(standing: &Standing) -> Vec<Binding> {
    let elements = |family: u8, set: &str| {
        let set = standing.tables.get(&family).and_then(|table| table.sets.get(set));
        set.into_iter().flat_map(|set| &set.elements)
    };
    let [(bridge, _), _, (inet, _)] = FAMILIES;
    let chains: BTreeMap<&[u8], &str> = elements(inet, rules::TRUST)
        .filter_map(|element| Some((element.key.as_slice(), element.chain.as_deref()?)))
        .collect();
    let mut destinations: BTreeMap<Ipv4Addr, Vec<Destination>> = BTreeMap::new();
    for element in elements(inet, rules::ALLOWED).chain(elements(inet, rules::ALLOWED_PORTS)) {
        if let Some((guest, destination)) = decode_destination(element) {
            destinations.entry(guest).or_default().push(destination);
        }
    }
    let open = elements(bridge, rules::PINS).filter_map(|element| {
        let port = decode_pin(&element.key)?;
        let chain = *chains.get(port.address.octets().as_slice())?;
        let allowlist = Trust::Allowlist(destinations.remove(&port.address).unwrap_or_default());
        let mut levels = [Trust::BootstrapOnly, Trust::Off, Trust::Nat, allowlist].into_iter();
        let trust = levels.find(|level| rules::trust_chain(level) == Some(chain))?;
        Some(GuestPort { trust, ..port })
    });
    let parked = elements(bridge, rules::PARKED).filter_map(|element| decode_pin(&element.key));
    // Parked first: what claims to be both is not believed to be sealed, and shows as drift.
    let mut known: BTreeMap<IfName, GuestPort> =
        parked.chain(open).map(|port| (port.name.clone(), port)).collect();
    elements(bridge, rules::PORTS)
        .filter_map(|element| decode_name(&element.key))
        .map(|name| {
            known
                .remove(&name)
                .map_or(Binding::SealedName(name), Binding::Known)
        })
        .collect()
}

fn decode_name(key: &[u8]) -> Option<IfName> {
    let end = key.iter().take(IfName::SIZE).position(|byte| *byte == 0)?;
    std::str::from_utf8(key.get(..end)?).ok()?.parse().ok()
}

fn decode_address(bytes: Option<&[u8]>) -> Option<Ipv4Addr> {
    Some(Ipv4Addr::from(*bytes?.first_chunk::<4>()?))
}

fn decode_resolved(set: &'static str, element: &standing::Element) -> Option<Resolved> {
    let guest = decode_address(element.key.get(..4))?;
    let address = decode_address(element.key.get(4..8))?;
    let decoded = if set == rules::RESOLVED_PORTS {
        let (protocol, port) = decode_port(&element.key)?;
        let (protocol, port) = (Value::Protocol(protocol), Value::Port(port));
        Element::new([guest.into(), address.into(), protocol, port])
    } else {
        Element::new([guest.into(), address.into()])
    };
    Some(Resolved {
        guest,
        set,
        element: decoded.lasting(element.lasts),
    })
}

/// Protocol and port of a key that has two addresses before them.
fn decode_port(key: &[u8]) -> Option<(Protocol, u16)> {
    let number = key.get(8)?;
    let protocol = [Protocol::Tcp, Protocol::Udp]
        .into_iter()
        .find(|protocol| protocol.number() == *number)?;
    Some((protocol, u16::from_be_bytes(*key.get(12..14)?.first_chunk()?)))
}

/// A port as it stands in `pins` and `parked`, sealed until its trust is known.
fn decode_pin(key: &[u8]) -> Option<GuestPort> {
    let name = decode_name(key)?;
    let mac: [u8; 6] = *key.get(16..22)?.first_chunk()?;
    let address = decode_address(key.get(24..28))?;
    Some(GuestPort {
        name,
        mac,
        address,
        trust: Trust::Sealed,
    })
}

fn decode_destination(element: &standing::Element) -> Option<(Ipv4Addr, Destination)> {
    let (first, last) = (&element.key, element.end.as_ref()?);
    let guest = decode_address(first.get(..4))?;
    let network = decode_address(first.get(4..8))?;
    let differing = network.to_bits() ^ decode_address(last.get(4..8))?.to_bits();
    let network = Cidr::containing(network, u8::try_from(differing.leading_zeros()).ok()?);
    let ports = if first.len() > 8 {
        let (protocol, first) = decode_port(first)?;
        let (_, last) = decode_port(last)?;
        Some(PortRange {
            protocol,
            first,
            last,
        })
    } else {
        None
    };
    Some((guest, Destination { network, ports }))
}
