//! The one writer of the policy.
//!
//! Order is what keeps it closed: the policy stands before the bridge is up, a port is bound before it exists, flows
//! are cut after the rules that would let them begin again are gone. A crash between two steps leaves less open than
//! either.

mod appear;
mod flows;
mod obey;
mod resolved;
mod stand;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

pub use self::appear::PortChange;
use self::stand::{refuse_taken_subnet, stand_or_seal};
use super::conntrack;
use super::encode::Transaction;
use super::error::EnforceError;
use super::links::Link;
use super::observer::{Denial, Observer};
use super::standing::Standing;
use super::sysctl;
use super::tap;
use super::writer::BridgeLink;
use crate::binding::{Binding, Elements};
use crate::plan::{check_port, check_room, plan, skeleton};
use crate::{Drift, GuestPort, HostPolicy, IfName, Intent, PlanError, Ruleset, Trust, check_host};

/// Owns the kernel's state of one network namespace: that of the thread that started it. Calls block for well under a
/// millisecond, except where they make or remove links. Dropping it removes nothing: the policy outlives the process.
#[derive(Debug)]
pub struct Enforcer {
    host: HostPolicy,
    /// The policy without guests: what the sets are like.
    shape: Ruleset,
    bindings: BTreeMap<IfName, Binding>,
    /// Addresses whose guest is gone and whose flows may not have ended. Looking for them means walking every flow of
    /// the host, so it waits until there is time, or until somebody gets the address.
    vacated: BTreeSet<Ipv4Addr>,
    /// Links that bound ports were last seen as, by index: a link of the same name may be another one.
    present: BTreeMap<IfName, u32>,
    kernel: Observer,
}

impl Enforcer {
    /// Makes the host ready: policy first, then bridge, address and settings, and only then the bridge is brought up.
    ///
    /// A policy that stands exactly as it should is adopted with its bindings, so that guests which run keep running.
    /// Anything else is replaced in one transaction, and every port that could be read back is sealed.
    pub fn start(host: HostPolicy) -> Result<Self, EnforceError> {
        check_host(&host)?;
        let mut kernel = Observer::open()?;
        if let Some(uplink) = &host.uplink
            && kernel.links.find(uplink)?.is_none()
        {
            return Err(EnforceError::NoSuchUplink { name: uplink.clone() });
        }
        refuse_taken_subnet(&host, &kernel)?;
        let bindings = stand_or_seal(&host, &mut kernel)?;
        let mut enforcer = Self {
            shape: skeleton(&host),
            host,
            bindings,
            vacated: BTreeSet::new(),
            present: BTreeMap::new(),
            kernel,
        };
        enforcer.end_strangers_flows()?;
        enforcer.ready_links()?;
        enforcer.note_present()?;
        Ok(enforcer)
    }

    /// Whether this host can enforce a trust level; asked before anything is made.
    pub fn supports(&self, trust: &Trust) -> Result<(), EnforceError> {
        let unsupported = |reason: String| {
            Err(EnforceError::Unsupported {
                trust: trust.word(),
                reason,
            })
        };
        match &self.host.uplink {
            _ if !trust.leaves_host() => Ok(()),
            None => unsupported("no uplink is configured".to_owned()),
            Some(uplink) if self.kernel.links.find(uplink)?.is_none() => {
                unsupported(format!("uplink `{uplink}` does not exist"))
            }
            Some(_) => Ok(()),
        }
    }

    /// Binds a port and makes its tap, in this order, and returns the tap's only descriptor: the link goes when the
    /// last copy of it is closed, the binding stays until [`Self::detach`].
    ///
    /// The same port again gives a new tap of the same name; the old one, whoever held it, is gone.
    pub fn attach(&mut self, port: &GuestPort) -> Result<OwnedFd, EnforceError> {
        let bridge = self.bridge()?.index;
        let old = self.kernel.links.find(&port.name)?;
        if let Some(link) = &old
            && !link.is_our_tap(bridge)
        {
            return Err(EnforceError::NotOurs {
                name: port.name.clone(),
            });
        }
        self.bind(port)?;
        if let Some(link) = old {
            self.kernel.links.delete(link.index, &port.name)?;
        }
        let tap = tap::create_tap(&port.name).map_err(|source| EnforceError::Tap {
            name: port.name.clone(),
            source,
        })?;
        let link = self.link(&port.name)?;
        for setting in sysctl::of_port(&port.name) {
            setting.write()?;
        }
        self.kernel
            .links
            .enslave(link.index, bridge, self.host.bridge.mtu, &port.name)?;
        self.kernel.links.settle(link.index, bridge, port)?;
        self.kernel.links.up(link.index, &port.name)?;
        self.present.insert(port.name.clone(), link.index);
        Ok(tap)
    }

    /// Binds a port that exists already: one that a running VM holds, or that the hypervisor made.
    pub fn adopt(&mut self, port: &GuestPort) -> Result<(), EnforceError> {
        let bridge = self.bridge()?.index;
        let link = self.link(&port.name)?;
        if link.controller != Some(bridge) {
            return Err(EnforceError::NotOurs {
                name: port.name.clone(),
            });
        }
        self.bind(port)?;
        self.settle(link.index, bridge, port)
    }

    /// Changes what a bound port may pass. Flows that the new level would not have let begin are cut. A port that nobody
    /// bound is as sealed as can be.
    pub fn set_trust(&mut self, name: &IfName, trust: Trust) -> Result<(), EnforceError> {
        let name = &self.standing_name(name);
        match self.bindings.get(name) {
            None if trust == Trust::Sealed => Ok(()),
            None => Err(EnforceError::UnknownPort { name: name.clone() }),
            Some(Binding::SealedName(_)) if trust == Trust::Sealed => Ok(()),
            Some(Binding::SealedName(_)) => Err(EnforceError::NameOnly { name: name.clone() }),
            Some(Binding::Known(port)) => {
                let port = GuestPort {
                    trust,
                    ..port.clone()
                };
                self.bind(&port)
            }
        }
    }

    /// Removes binding and link. Absent is success.
    pub fn detach(&mut self, name: &IfName) -> Result<(), EnforceError> {
        let name = &self.standing_name(name);
        self.unbind(name)?;
        let Some(bridge) = self.kernel.links.find(&self.host.bridge.name)? else {
            return Ok(());
        };
        match self.kernel.links.find(name)? {
            Some(link) if link.is_our_tap(bridge.index) => self.kernel.links.delete(link.index, name),
            Some(_) | None => Ok(()),
        }
    }

    /// Writes a port's binding alone, for a port that the hypervisor makes later: whatever the binding was before, it
    /// is this one now, and flows that lost their permission are cut.
    pub fn bind(&mut self, port: &GuestPort) -> Result<(), EnforceError> {
        check_port(&self.host, port)?;
        if !self.bindings.contains_key(&port.name) {
            check_room(self.bindings.len() + 1)?;
        }
        self.refuse_shared(port)?;
        self.forget_old_link(&port.name)?;
        if self.vacated.contains(&port.address) {
            conntrack::cut_whole(&mut self.kernel.netfilter, port.address)?;
            self.vacated.remove(&port.address);
        }
        let binding = Binding::Known(port.clone());
        let old = self.bindings.get(&port.name).cloned();
        let before = old.as_ref().map(Binding::elements).unwrap_or_default();
        let after = binding.elements();
        self.change(&before.without(&after), &after.without(&before), |bindings| {
            bindings.insert(port.name.clone(), binding);
        })?;
        match old {
            Some(Binding::Known(old)) if old.address != port.address || !port.trust.contains(&old.trust) => {
                self.forget_resolved(&old)?;
                self.end_flows(&old, port)
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Removes a port's binding, and leaves its link alone. Absent is success. Nothing passes from here on; what is left
    /// of its flows in the kernel's table is removed by [`Self::verify`], or before the address is bound again.
    pub fn unbind(&mut self, name: &IfName) -> Result<(), EnforceError> {
        let name = &self.standing_name(name);
        self.present.remove(name);
        let Some(old) = self.bindings.get(name).cloned() else {
            return Ok(());
        };
        self.change(&old.elements(), &Elements::default(), |bindings| {
            bindings.remove(name);
        })?;
        let Binding::Known(port) = old else { return Ok(()) };
        self.forget_resolved(&port)?;
        if port.trust.leaves_host() {
            self.vacated.insert(port.address);
        }
        match self.kernel.links.find(&self.host.bridge.name)? {
            Some(bridge) => self.kernel.links.forget(bridge.index, port.address, name),
            None => Ok(()),
        }
    }

    /// Binds exactly these ports and no others, in one transaction. Either all of them stand, or what stood before.
    pub fn bind_all(&mut self, ports: &[GuestPort]) -> Result<(), EnforceError> {
        let intent = Intent {
            host: self.host.clone(),
            ports: ports.to_vec(),
        };
        plan(&intent)?;
        let bound = |port: &GuestPort| (port.name.clone(), Binding::Known(port.clone()));
        let before = self.bindings.clone();
        self.exchange(ports.iter().map(bound).collect())?;
        let keeps = |old: &GuestPort| match self.bindings.get(&old.name) {
            Some(Binding::Known(port)) => port.address == old.address && port.trust.contains(&old.trust),
            Some(Binding::SealedName(_)) | None => false,
        };
        let lost: Vec<&GuestPort> = before
            .values()
            .filter_map(|binding| match binding {
                Binding::Known(old) if old.trust.leaves_host() && !keeps(old) => Some(old),
                Binding::Known(_) | Binding::SealedName(_) => None,
            })
            .collect();
        for old in lost {
            self.vacated.insert(old.address);
            self.forget_resolved(old)?;
        }
        self.end_vacated_flows()
    }

    /// Has these bindings instead of those, in one transaction.
    fn exchange(&mut self, bindings: BTreeMap<IfName, Binding>) -> Result<(), EnforceError> {
        let differing = |these: &BTreeMap<IfName, Binding>, those: &BTreeMap<IfName, Binding>| {
            let differing = these
                .iter()
                .filter(|(name, binding)| those.get(*name) != Some(*binding));
            Elements::of_all(differing.map(|(_, binding)| binding))
        };
        let before = differing(&self.bindings, &bindings);
        let after = differing(&bindings, &self.bindings);
        self.change(&before.without(&after), &after.without(&before), |books| {
            *books = bindings;
        })
    }

    /// What does not change while ports come and go.
    #[must_use]
    pub fn host(&self) -> &HostPolicy {
        &self.host
    }

    /// Ports that are bound, with all that is known of them.
    pub fn bindings(&self) -> impl Iterator<Item = &Binding> {
        self.bindings.values()
    }

    /// Ports that are bound.
    pub fn attached(&mut self) -> Result<Vec<IfName>, EnforceError> {
        Ok(self.bindings.keys().cloned().collect())
    }

    /// Reads everything back, repairs what differs and reports it.
    ///
    /// Tables that differ are replaced as a whole; a port on the bridge that nobody bound is sealed by name and
    /// isolated. A bridge that is gone is made again and gets its taps back. Other links that are gone are reported
    /// and not made again: their owner is gone too.
    pub fn verify(&mut self) -> Result<Vec<Drift>, EnforceError> {
        let reading = self.kernel.read()?;
        let drifts = self
            .kernel
            .compare(&self.host, &reading, self.bindings.values())?;
        if !drifts.is_empty() {
            tracing::warn!(differences = drifts.len(), first = %drifts[0], "the packet policy had drifted and is repaired");
            for link in self.kernel.links.ports(&self.host.bridge.name)? {
                self.repair_port(&link)?;
            }
            self.make_stand()?;
            let has_bridge = self.kernel.links.find(&self.host.bridge.name)?.is_some();
            self.ready_links()?;
            if !has_bridge {
                self.return_taps()?;
            }
        }
        self.end_vacated_flows()?;
        Ok(drifts)
    }

    /// Takes all trust from every port, in one transaction, and cuts every flow. The ports stay bound.
    pub fn seal(&mut self) -> Result<(), EnforceError> {
        let before = self.bindings.clone();
        let mut after = before.clone();
        for binding in after.values_mut() {
            if let Binding::Known(port) = binding {
                port.trust = Trust::Sealed;
            }
        }
        self.exchange(after)?;
        for binding in before.values() {
            if let Binding::Known(port) = binding
                && port.trust.leaves_host()
            {
                self.vacated.insert(port.address);
            }
        }
        self.kernel.clear_resolved(&self.shape)?;
        self.end_vacated_flows()
    }

    /// What was refused so far, most frequent first.
    pub fn denials(&mut self) -> Result<Vec<Denial>, EnforceError> {
        self.kernel.denials()
    }

    fn known(&self) -> impl Iterator<Item = &GuestPort> {
        self.bindings.values().filter_map(|binding| match binding {
            Binding::Known(port) => Some(port),
            Binding::SealedName(_) => None,
        })
    }

    /// The bridge as it is now, for [`crate::WriterLock::note_bridge`].
    pub fn bridge_link(&self) -> Result<BridgeLink, EnforceError> {
        Ok(BridgeLink {
            name: self.host.bridge.name.clone(),
            index: self.bridge()?.index,
        })
    }

    fn bridge(&self) -> Result<Link, EnforceError> {
        self.link(&self.host.bridge.name)
    }

    fn link(&self, name: &IfName) -> Result<Link, EnforceError> {
        self.kernel.links.find(name)?.ok_or_else(|| EnforceError::Link {
            action: "look up",
            name: name.clone(),
            reason: "it does not exist".to_owned(),
        })
    }

    fn ready_links(&mut self) -> Result<(), EnforceError> {
        let index = self.kernel.links.ensure_bridge(&self.host.bridge)?;
        for setting in sysctl::of_host(&self.host) {
            setting.write()?;
        }
        self.kernel.links.ensure_address(index, &self.host.bridge)?;
        self.kernel.links.up(index, &self.host.bridge.name)
    }

    fn refuse_shared(&self, port: &GuestPort) -> Result<(), PlanError> {
        for other in self.known().filter(|other| other.name != port.name) {
            let what = if other.address == port.address {
                "address"
            } else if other.mac == port.mac {
                "MAC"
            } else {
                continue;
            };
            return Err(PlanError::Shared {
                first: other.name.clone(),
                second: port.name.clone(),
                what,
            });
        }
        Ok(())
    }

    /// Performs a change of elements, and of our own books when the kernel took it. When the kernel does not know what
    /// should be removed, somebody else was at our tables, and they are replaced as a whole.
    fn change(
        &mut self,
        removed: &Elements,
        added: &Elements,
        note: impl FnOnce(&mut BTreeMap<IfName, Binding>),
    ) -> Result<(), EnforceError> {
        if removed.is_empty() && added.is_empty() {
            note(&mut self.bindings);
            return Ok(());
        }
        match self
            .kernel
            .netfilter
            .commit(&Transaction::update(&self.shape, removed, added))
        {
            Ok(()) => {
                note(&mut self.bindings);
                Ok(())
            }
            Err(error @ EnforceError::Refused { .. }) => {
                tracing::warn!(%error, "a change was refused, the whole policy is replaced");
                let before = self.bindings.clone();
                note(&mut self.bindings);
                self.make_stand().inspect_err(|_| self.bindings = before)
            }
            Err(other) => Err(other),
        }
    }

    /// Makes the tables stand, whatever is there instead: a part of [`Self::verify`], which looks at links as well.
    pub fn make_stand(&mut self) -> Result<(), EnforceError> {
        let mut whole = self.kernel.ruleset(&self.host, self.bindings.values())?;
        self.keep_resolved(&mut whole)?;
        let standing = Standing::read(&mut self.kernel.netfilter)?;
        self.kernel.make_stand(&whole, &standing)
    }

    /// Puts bound taps that have lost their bridge back onto it.
    fn return_taps(&mut self) -> Result<(), EnforceError> {
        let bridge = self.bridge()?.index;
        let known: Vec<GuestPort> = self.known().cloned().collect();
        for port in known {
            let Some(link) = self.kernel.links.find(&port.name)? else {
                continue;
            };
            if link.controller.is_some() || !link.is_our_tap(bridge) {
                continue;
            }
            let mtu = self.host.bridge.mtu;
            self.kernel.links.enslave(link.index, bridge, mtu, &port.name)?;
            self.settle(link.index, bridge, &port)?;
            self.kernel.links.up(link.index, &port.name)?;
        }
        Ok(())
    }

    fn repair_port(&mut self, link: &Link) -> Result<(), EnforceError> {
        let Ok(name) = link.name.parse::<IfName>() else {
            return Ok(());
        };
        match self.bindings.get(&name).cloned() {
            Some(Binding::Known(port)) => {
                let bridge = self.bridge()?.index;
                self.settle(link.index, bridge, &port)
            }
            Some(Binding::SealedName(_)) => self.kernel.links.isolate(link.index, &name),
            None => {
                self.bindings
                    .insert(name.clone(), Binding::SealedName(name.clone()));
                self.kernel.links.isolate(link.index, &name)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Enforcer;

    #[test]
    fn the_enforcer_can_move_to_a_thread_of_its_own() {
        fn moves<T: Send + 'static>() {}
        moves::<Enforcer>();
    }
}
