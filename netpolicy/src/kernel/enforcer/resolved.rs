//! Addresses that names of allowlists stand for, each for a time: with every port, or with those of the name.
//!
//! They live in the kernel alone, which ends them by itself. A replaced policy gets those that are left, with the time
//! they have left; a guest whose trust falls or whose port goes loses them.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::Enforcer;
use crate::kernel::encode::Transaction;
use crate::kernel::error::EnforceError;
use crate::kernel::observer::Resolved;
use crate::ruleset::{Element, Family, Lasts, Value};
use crate::{Binding, Cidr, GuestPort, IfName, PortRange, Protocol, Ruleset, Trust, rules};

/// An address that lasts no time would be refused, and one that lasts for ever would outlive what it was allowed for.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(86_400);

impl Enforcer {
    /// Opens addresses to a guest in `allowlist` for a time, whether they were open before or not; with `ports`, those
    /// only. Returns once they are open, so that the answer that named them may leave. Private and special ranges stay
    /// closed all the same.
    ///
    /// # Errors
    /// The port is not bound, or its trust is another one: no address is opened then.
    pub fn resolve(
        &mut self,
        name: &IfName,
        addresses: &[Ipv4Addr],
        ports: Option<&[PortRange]>,
        time: Duration,
    ) -> Result<(), EnforceError> {
        let name = self.standing_name(name);
        let Some(Binding::Known(port)) = self.bindings.get(&name) else {
            return Err(EnforceError::UnknownPort { name });
        };
        if !matches!(port.trust, Trust::Allowlist(_)) {
            return Err(EnforceError::Unsupported {
                trust: port.trust.word(),
                reason: format!("port `{name}` has no allowlist that names could stand in"),
            });
        }
        let given = u64::try_from(time.clamp(SHORTEST, LONGEST).as_millis()).unwrap_or(u64::MAX);
        let lasts = Some(Lasts { given, left: given });
        let guest = port.address;
        let resolved = |set, element: Element| Resolved {
            guest,
            set,
            element: element.lasting(lasts),
        };
        let all: Vec<Resolved> = match ports {
            None => addresses
                .iter()
                .map(|address| resolved(rules::RESOLVED, Element::new([guest.into(), (*address).into()])))
                .collect(),
            Some(ports) => each_port(ports)
                .flat_map(|(protocol, port)| {
                    addresses.iter().map(move |address| {
                        let key = [
                            guest.into(),
                            (*address).into(),
                            Value::Protocol(protocol),
                            Value::Port(port),
                        ];
                        resolved(rules::RESOLVED_PORTS, Element::new(key))
                    })
                })
                .collect(),
        };
        self.kernel
            .netfilter
            .commit(&Transaction::renew(&self.shape, &all, false))
    }

    /// Networks that the host itself is part of, its bridge apart: no name may stand for one of their addresses.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn own_networks(&self) -> Result<Vec<Cidr>, EnforceError> {
        let networks = self.kernel.links.networks(&self.host.bridge.name)?;
        Ok(networks.into_iter().map(|(network, _)| network).collect())
    }

    /// Closes what names opened to a guest.
    pub(super) fn forget_resolved(&mut self, was: &GuestPort) -> Result<(), EnforceError> {
        if !matches!(was.trust, Trust::Allowlist(_)) {
            return Ok(());
        }
        let mut all = self.kernel.resolved()?;
        all.retain(|resolved| resolved.guest == was.address);
        if all.is_empty() {
            return Ok(());
        }
        self.kernel
            .netfilter
            .commit(&Transaction::renew(&self.shape, &all, true))
    }

    /// Has a replaced policy keep what names opened to the guests that have an allowlist.
    pub(super) fn keep_resolved(&mut self, whole: &mut Ruleset) -> Result<(), EnforceError> {
        let open: Vec<Ipv4Addr> = self
            .known()
            .filter(|port| matches!(port.trust, Trust::Allowlist(_)))
            .map(|port| port.address)
            .collect();
        if open.is_empty() {
            return Ok(());
        }
        let mut all = self.kernel.resolved()?;
        all.retain(|resolved| open.contains(&resolved.guest));
        whole.insert(
            all.into_iter()
                .map(|resolved| (Family::Inet, resolved.set, resolved.element)),
        );
        Ok(())
    }
}

/// Each port of each range, once.
fn each_port(ranges: &[PortRange]) -> impl Iterator<Item = (Protocol, u16)> {
    let ports: BTreeSet<(Protocol, u16)> = ranges
        .iter()
        .flat_map(|range| (range.first..=range.last).map(|port| (range.protocol, port)))
        .collect();
    ports.into_iter()
}
