//! A sandbox in the packet policy: a handful of set elements, and nothing else.

use std::collections::BTreeSet;

use crate::intent::{GuestPort, Trust};
use crate::ruleset::{Element, Family, Value};
use crate::{IfName, rules};

/// A bound port as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Binding {
    /// Bound by us, or read back with everything.
    Known(GuestPort),
    /// Found on the bridge without a binding, and sealed: nobody knows whose it is.
    SealedName(IfName),
}

impl Binding {
    /// The port.
    #[must_use]
    pub fn name(&self) -> &IfName {
        match self {
            Self::Known(port) => &port.name,
            Self::SealedName(name) => name,
        }
    }

    /// What it may reach.
    #[must_use]
    pub fn trust(&self) -> &Trust {
        match self {
            Self::Known(port) => &port.trust,
            Self::SealedName(_) => &Trust::Sealed,
        }
    }

    /// Its elements in all tables.
    pub(crate) fn list(&self) -> Vec<Placed> {
        match self {
            Self::Known(port) => port_elements(port),
            Self::SealedName(name) => name_elements(name),
        }
    }

    /// The same, to be compared with those of others.
    #[must_use]
    pub fn elements(&self) -> Elements {
        Elements(self.list().into_iter().collect())
    }
}

/// An element with its table's family and its set.
pub(crate) type Placed = (Family, &'static str, Element);

/// What every bound port has: without more it is sealed.
fn name_elements(name: &IfName) -> Vec<Placed> {
    // A port has seven at most that no allowlist asks for.
    let mut list = Vec::with_capacity(7);
    for family in [Family::Bridge, Family::Arp, Family::Inet] {
        let key = [Value::IfName(name.clone())];
        list.push((family, rules::PORTS, Element::new(key)));
    }
    list
}

/// Elements of a port that is known.
pub(crate) fn port_elements(port: &GuestPort) -> Vec<Placed> {
    let mut list = name_elements(&port.name);
    let name = || Value::IfName(port.name.clone());
    let address = || Value::Ipv4(port.address);
    let pin = Element::new([name(), Value::Ether(port.mac), address()]);
    let Some(chain) = rules::trust_chain(&port.trust) else {
        list.push((Family::Bridge, rules::PARKED, pin));
        return list;
    };
    let trust = Element::new([address()]).leading_to(chain);
    list.push((Family::Bridge, rules::PINS, pin));
    list.push((
        Family::Bridge,
        rules::ADDRESSES,
        Element::new([name(), address()]),
    ));
    list.push((Family::Inet, rules::TRUST, trust));
    if port.trust.is_running() {
        list.push((Family::Inet, rules::RUNNING, Element::new([address()])));
    }
    if let Trust::Allowlist(destinations) = &port.trust {
        list.extend(destinations.iter().map(|destination| {
            let network = Value::Network(destination.network);
            let (set, element) = match destination.ports {
                None => (rules::ALLOWED, Element::new([address(), network])),
                Some(ports) => {
                    let protocol = Value::Protocol(ports.protocol);
                    let key = [address(), network, protocol, Value::Ports(ports)];
                    (rules::ALLOWED_PORTS, Element::new(key))
                }
            };
            (Family::Inet, set, element)
        }));
    }
    list
}

/// Set elements of ports, or the difference between two of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Elements(BTreeSet<Placed>);

impl Elements {
    /// Those of several.
    #[cfg(feature = "kernel")]
    pub(crate) fn of_all<'a>(bindings: impl Iterator<Item = &'a Binding>) -> Self {
        Self(bindings.flat_map(Binding::list).collect())
    }

    #[cfg(feature = "kernel")]
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Placed> {
        self.0.iter()
    }

    /// What is here and not there.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        Self(self.0.difference(&other.0).cloned().collect())
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
