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
    #[must_use]
    pub fn elements(&self) -> Elements {
        match self {
            Self::Known(port) => port_elements(port),
            Self::SealedName(name) => name_elements(name),
        }
    }
}

/// What every bound port has: without more it is sealed.
fn name_elements(name: &IfName) -> Elements {
    let mut elements = Elements::default();
    for family in [Family::Bridge, Family::Arp, Family::Inet] {
        elements.add(family, rules::PORTS, vec![Value::IfName(name.clone())]);
    }
    elements
}

/// Elements of a port that is known.
pub(crate) fn port_elements(port: &GuestPort) -> Elements {
    let mut elements = name_elements(&port.name);
    let name = || Value::IfName(port.name.clone());
    let address = || Value::Ipv4(port.address);
    let pin = vec![name(), Value::Ether(port.mac), address()];
    let Some(chain) = rules::trust_chain(&port.trust) else {
        elements.add(Family::Bridge, rules::PARKED, pin);
        return elements;
    };
    elements.add(Family::Bridge, rules::PINS, pin);
    elements.add(Family::Bridge, rules::ADDRESSES, vec![name(), address()]);
    elements.lead(Family::Inet, rules::TRUST, vec![address()], chain);
    if port.trust.is_running() {
        elements.add(Family::Inet, rules::RUNNING, vec![address()]);
    }
    if let Trust::Allowlist(destinations) = &port.trust {
        for destination in destinations {
            let network = Value::Network(destination.network);
            match destination.ports {
                None => elements.add(Family::Inet, rules::ALLOWED, vec![address(), network]),
                Some(ports) => elements.add(
                    Family::Inet,
                    rules::ALLOWED_PORTS,
                    vec![
                        address(),
                        network,
                        Value::Protocol(ports.protocol),
                        Value::Ports(ports),
                    ],
                ),
            }
        }
    }
    elements
}

/// Set elements of one port, or the difference between two of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Elements(BTreeSet<(Family, &'static str, Element)>);

impl Elements {
    fn add(&mut self, family: Family, set: &'static str, key: Vec<Value>) {
        self.0.insert((family, set, Element::new(key)));
    }

    fn lead(&mut self, family: Family, set: &'static str, key: Vec<Value>, chain: &'static str) {
        let element = Element {
            chain: Some(chain),
            ..Element::new(key)
        };
        self.0.insert((family, set, element));
    }

    #[cfg(feature = "kernel")]
    pub(crate) fn iter(&self) -> impl Iterator<Item = &(Family, &'static str, Element)> {
        self.0.iter()
    }

    pub(crate) fn into_iter(self) -> impl Iterator<Item = (Family, &'static str, Element)> {
        self.0.into_iter()
    }

    /// These and those.
    #[cfg(feature = "kernel")]
    pub(crate) fn with(mut self, mut other: Self) -> Self {
        self.0.append(&mut other.0);
        self
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
