//! What the policy's thread does for the resolver: opens what names stand for, and counts what got no answer.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use agentlab_api::{Vmid, chain};
use agentlab_netpolicy::{Binding, Cidr, GuestPort};
use agentlab_resolver::judge::Why;
use agentlab_resolver::message::{MOST_ADDRESSES, Opening};

use super::allow::{self, Ports};
use super::{Watched, port_vmid};

/// How long the host's own networks are taken to be what they were.
const LASTS: Duration = Duration::from_secs(5);

/// Networks that the host itself is part of, and when they were looked at.
#[derive(Debug, Default)]
pub(super) struct OwnNetworks(Option<(Instant, Vec<Cidr>)>);

/// What the resolver wants to be open.
#[derive(Debug)]
pub(super) struct Wish {
    pub(super) guest: Ipv4Addr,
    /// Of the guest's allowlist.
    pub(super) names: Vec<String>,
    pub(super) addresses: Vec<Ipv4Addr>,
    pub(super) seconds: u32,
}

impl Watched {
    /// Opens to a guest what a name of its allowlist stands for, if it may be: the resolver that asks is not trusted.
    pub(super) fn open(&mut self, wish: &Wish) -> Opening {
        match self.try_open(wish) {
            Ok(opening) => opening,
            Err(reason) => {
                let guest = wish.guest;
                tracing::warn!(%guest, reason, "Addresses that a name stands for stay closed");
                Opening::Closed
            }
        }
    }

    fn try_open(&mut self, wish: &Wish) -> Result<Opening, String> {
        let Wish { guest, addresses, .. } = wish;
        if addresses.len() > MOST_ADDRESSES {
            return Err("there are more of them than one answer opens".into());
        }
        let ports = self.ports_of(wish)?;
        let known = self.own.0.take().filter(|(at, _)| at.elapsed() < LASTS);
        let own = match known {
            Some(own) => own,
            None => {
                let networks = self.enforcer.own_networks().map_err(|error| chain(&error))?;
                (Instant::now(), networks)
            }
        };
        let is_own = allow::any_within(&own.1, addresses);
        self.own.0 = Some(own);
        if is_own {
            return Ok(Opening::Own);
        }
        let name = self.known().find(|(port, _)| port.address == *guest);
        let name = name
            .map(|(port, _)| port.name.clone())
            .ok_or("no port has the guest's address")?;
        let time = Duration::from_secs(u64::from(wish.seconds));
        let resolved = self.enforcer.resolve(&name, addresses, ports.as_deref(), time);
        resolved.map(|()| Opening::Open).map_err(|error| chain(&error))
    }

    /// What the names of a wish open together. Names that do not stand in the guest's list open nothing.
    fn ports_of(&self, wish: &Wish) -> Result<Ports, String> {
        let list = self.listed.get(&wish.guest);
        let known = wish.names.iter().filter_map(|name| list?.get(name).cloned());
        let ports = known.reduce(allow::together);
        ports.ok_or_else(|| "no name of its list stands for them".into())
    }

    /// Counts a question of a guest that got no answer, and tells the engine now and then.
    pub(super) fn unanswered(&mut self, guest: Ipv4Addr, question: &str, why: Why) {
        let whose = self.known().find(|(port, _)| port.address == guest);
        let Some(vmid) = whose.and_then(|(_, vmid)| vmid) else {
            return;
        };
        // It is printable already, if the resolver is what it should be.
        let question: String = question.escape_default().take(160).collect();
        tracing::debug!(%vmid, question, why = why.word(), "Name not resolved");
        let target = format!("name {question}");
        let rule = (why.word(), why.hint());
        if let Some(denied) = self.denials.note(vmid, target, rule, Instant::now()) {
            // Nobody listens any more when the engine has stopped.
            let _ = self.teller.send(denied);
        }
    }

    /// Where the guest of a sandbox speaks from.
    pub(super) fn address_of(&self, vmid: Vmid) -> Option<Ipv4Addr> {
        self.known()
            .find(|(_, of)| *of == Some(vmid))
            .map(|(port, _)| port.address)
    }

    fn known(&self) -> impl Iterator<Item = (&GuestPort, Option<Vmid>)> {
        self.enforcer.bindings().filter_map(|binding| match binding {
            Binding::Known(port) => Some((port, port_vmid(&port.name))),
            Binding::SealedName(_) => None,
        })
    }
}
