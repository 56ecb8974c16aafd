//! Operators' orders, the same whoever holds the lock: the daemon, or `agentlab-net` while there is none.

use super::Enforcer;
use crate::kernel::error::EnforceError;
use crate::{Done, GuestPort, Order, StoredPorts, Trust};

impl Enforcer {
    /// Does what an operator asked for, and keeps it for the next boot.
    ///
    /// # Errors
    /// The order contradicts the policy, or it was done and could not be kept.
    pub fn obey(&mut self, order: &Order, stored: &StoredPorts) -> Result<Done, EnforceError> {
        let kept = |source| EnforceError::Stored { source };
        let mut drift = Vec::new();
        match order {
            Order::Bind { port } => {
                self.supports(&port.trust)?;
                self.bind_and_settle(port)?;
                stored.keep(port).map_err(kept)?;
            }
            Order::Unbind { name } => {
                self.unbind(name)?;
                stored.forget(name).map_err(kept)?;
            }
            Order::Trust { name, trust } => {
                self.supports(trust)?;
                self.set_trust(name, trust.clone())?;
                let mut ports = stored.read().map_err(kept)?;
                if let Some(port) = ports.iter_mut().find(|port| port.name == *name) {
                    port.trust = trust.clone();
                    stored.write(&ports).map_err(kept)?;
                }
            }
            Order::Verify => drift = self.verify()?,
            Order::Seal => self.seal()?,
        }
        Ok(Done {
            drift,
            ports: self.bindings.len(),
            policy: self.host.clone(),
        })
    }

    /// Binds a port, and its link where that is on the bridge already.
    fn bind_and_settle(&mut self, port: &GuestPort) -> Result<(), EnforceError> {
        self.bind(port)?;
        let bridge = self.bridge()?.index;
        match self.kernel.links.find(&port.name)? {
            Some(link) if link.controller == Some(bridge) => self.settle(link.index, bridge, port),
            Some(_) | None => Ok(()),
        }
    }

    /// Binds what operators bound before, sealed: whose machine hangs there after a boot is theirs to say again. A port
    /// that does not fit any more is left out.
    ///
    /// # Errors
    /// The list cannot be read, or the kernel refused.
    pub fn restore(&mut self, stored: &StoredPorts) -> Result<(), EnforceError> {
        for port in stored.read().map_err(|source| EnforceError::Stored { source })? {
            if self.bindings.contains_key(&port.name) {
                continue;
            }
            let sealed = GuestPort {
                trust: Trust::Sealed,
                ..port
            };
            match self.bind_and_settle(&sealed) {
                Err(EnforceError::Plan(error)) => {
                    tracing::warn!(port = %sealed.name, %error, "a kept binding does not fit any more");
                }
                other => other?,
            }
        }
        Ok(())
    }
}
