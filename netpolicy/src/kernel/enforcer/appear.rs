//! Ports that come and go behind our back, as a hypervisor makes and removes them.
//!
//! ```text
//!   link appears on the bridge ──► bound by name?  ──► flags, forwarding and neighbour entry
//!                                  its twin bound? ──► the binding moves to the new name
//!                                  neither         ──► isolated, sealed by name
//!   link is gone               ──► its binding goes too: a link of the same name is somebody else's
//! ```

use super::Enforcer;
use crate::binding::Elements;
use crate::kernel::error::EnforceError;
use crate::kernel::sysctl;
use crate::kernel::watch::LinkHint;
use crate::{Binding, GuestPort, IfName};

/// What became of a port because of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortChange {
    /// A port whose binding was waiting for it is ready.
    Bound(IfName),
    /// Nobody bound it; it is isolated and sealed.
    Sealed(IfName),
    /// Its link is gone, and so is its binding.
    Unbound(IfName),
}

impl Enforcer {
    /// Looks at what a link event hints at, and binds, seals or unbinds. What is as it should be costs a lookup or two.
    ///
    /// A port that left the bridge while its link lives keeps its binding: bound ports pass nothing elsewhere, and
    /// [`Self::verify`] puts taps back.
    pub fn link_changed(&mut self, hint: &LinkHint) -> Result<Vec<PortChange>, EnforceError> {
        let mut changes = Vec::new();
        let known = self.present.iter().find(|(_, index)| **index == hint.index);
        if let Some(name) = known.map(|(name, _)| name.clone())
            && self
                .kernel
                .links
                .find(&name)?
                .is_none_or(|link| link.index != hint.index)
        {
            self.unbind(&name)?;
            changes.push(PortChange::Unbound(name));
        }
        let Ok(name) = hint.name.parse::<IfName>() else {
            return Ok(changes);
        };
        if hint.controller.is_none() || self.present.get(&name) == Some(&hint.index) {
            return Ok(changes);
        }
        let Some(bridge) = self.kernel.links.find(&self.host.bridge.name)? else {
            return Ok(changes);
        };
        if let Some(link) = self.kernel.links.find(&name)?
            && link.controller == Some(bridge.index)
            && self.present.get(&name) != Some(&link.index)
        {
            changes.push(self.appeared(name, link.index, bridge.index)?);
        }
        Ok(changes)
    }

    fn appeared(&mut self, name: IfName, link: u32, bridge: u32) -> Result<PortChange, EnforceError> {
        self.claim(&name)?;
        let change = match self.bindings.get(&name).cloned() {
            Some(Binding::Known(port)) => {
                self.settle(link, bridge, &port)?;
                PortChange::Bound(name.clone())
            }
            Some(Binding::SealedName(_)) => {
                self.kernel.links.isolate(link, &name)?;
                PortChange::Sealed(name.clone())
            }
            None => {
                self.kernel.links.isolate(link, &name)?;
                let binding = Binding::SealedName(name.clone());
                self.change(&Elements::default(), &binding.elements(), |bindings| {
                    bindings.insert(name.clone(), binding.clone());
                })?;
                PortChange::Sealed(name.clone())
            }
        };
        self.present.insert(name, link);
        Ok(change)
    }

    /// Moves the binding of a port's twin to it: with the hypervisor's own firewall, another link of the same NIC is what
    /// hangs on our bridge.
    fn claim(&mut self, name: &IfName) -> Result<(), EnforceError> {
        let Some(twin) = name.twin() else { return Ok(()) };
        let Some(Binding::Known(old)) = self.bindings.get(&twin).cloned() else {
            return Ok(());
        };
        if self.bindings.contains_key(name) || self.present.contains_key(&twin) {
            return Ok(());
        }
        let port = GuestPort {
            name: name.clone(),
            ..old.clone()
        };
        let before = Binding::Known(old).elements();
        let binding = Binding::Known(port);
        let after = binding.elements();
        self.change(&before.without(&after), &after.without(&before), |bindings| {
            bindings.remove(&twin);
            bindings.insert(name.clone(), binding);
        })
    }

    /// The name that a port is bound by: its own, or its twin's.
    pub(super) fn standing_name(&self, name: &IfName) -> IfName {
        let twin = name.twin().filter(|twin| self.bindings.contains_key(twin));
        match twin {
            Some(twin) if !self.bindings.contains_key(name) => twin,
            Some(_) | None => name.clone(),
        }
    }

    /// A binding that is made now is not for a link that is gone, whose end is perhaps not told yet.
    pub(super) fn forget_old_link(&mut self, name: &IfName) -> Result<(), EnforceError> {
        if let Some(index) = self.present.get(name).copied()
            && self
                .kernel
                .links
                .find(name)?
                .is_none_or(|link| link.index != index)
        {
            self.present.remove(name);
        }
        Ok(())
    }

    /// Sets what a bound port's link must be like.
    pub(super) fn settle(&mut self, link: u32, bridge: u32, port: &GuestPort) -> Result<(), EnforceError> {
        for setting in sysctl::of_port(&port.name) {
            setting.write()?;
        }
        self.kernel.links.settle(link, bridge, port)?;
        self.present.insert(port.name.clone(), link);
        Ok(())
    }

    /// Notes the links of ports that are bound already.
    pub(super) fn note_present(&mut self) -> Result<(), EnforceError> {
        for link in self.kernel.links.ports(&self.host.bridge.name)? {
            if let Ok(name) = link.name.parse::<IfName>()
                && self.bindings.contains_key(&name)
            {
                self.present.insert(name, link.index);
            }
        }
        Ok(())
    }
}
