//! Flows that live: which guests have any, and their end when permission goes.
//!
//! A flow that was allowed goes on by itself, whatever the rules say of its first packet now. So it is cut after the
//! rules that would let it begin again are gone.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use super::Enforcer;
use crate::kernel::conntrack;
use crate::kernel::error::EnforceError;
use crate::{GuestPort, IfName, Trust};

impl Enforcer {
    /// Bound ports whose guests somebody has a TCP flow to at this port: whoever is logged in is not idle. One walk of the
    /// kernel's flows, for all of them.
    pub fn reached(&mut self, port: u16) -> Result<BTreeSet<IfName>, EnforceError> {
        let addresses = conntrack::reached(&mut self.kernel.netfilter, port)?;
        let reached = self.known().filter(|known| addresses.contains(&known.address));
        Ok(reached.map(|port| port.name.clone()).collect())
    }

    /// Ends the flows of a guest that lost the permission to have them. Only one that could leave the host has any that
    /// outlive their permission: towards the host every packet is judged by itself.
    pub(super) fn end_flows(&mut self, was: &GuestPort, is: &GuestPort) -> Result<(), EnforceError> {
        if !was.trust.leaves_host() {
            return Ok(());
        }
        if was.address != is.address || is.trust == Trust::Sealed {
            return conntrack::cut_whole(&mut self.kernel.netfilter, was.address);
        }
        let flows = conntrack::cut(&mut self.kernel.netfilter, was.address, self.host.bridge.address)?;
        tracing::debug!(port = %was.name, flows, "flows cut");
        Ok(())
    }

    /// Ends what flows are left of guests that are gone, in one walk.
    pub(super) fn end_vacated_flows(&mut self) -> Result<(), EnforceError> {
        if !self.vacated.is_empty() {
            conntrack::cut_all(&mut self.kernel.netfilter, |source, _| {
                self.vacated.contains(&source)
            })?;
            self.vacated.clear();
        }
        Ok(())
    }

    /// Ends flows from addresses of the agent subnet that no open port has: an earlier process may have left them.
    pub(super) fn end_strangers_flows(&mut self) -> Result<(), EnforceError> {
        let subnet = self.host.bridge.subnet();
        let open: BTreeSet<Ipv4Addr> = self
            .known()
            .filter(|port| port.trust.leaves_host())
            .map(|port| port.address)
            .collect();
        conntrack::cut_all(&mut self.kernel.netfilter, |source, destination| {
            let ours = self.host.bridge.address;
            subnet.contains(source) && source != ours && destination != ours && !open.contains(&source)
        })
        .map(drop)
    }
}
