//! What the engine needs of the world besides a back end and a store. The daemon's `wire.rs` picks the real ones.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use agentlab_api::{AllowEntry, SandboxId, Vmid};
use agentlab_backend::{ByteStream, MacAddress};
use async_trait::async_trait;
use serde::Serialize;

/// One sandbox's cable: whatever leaves it must carry this MAC and this address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Names the port: `tap<vmid>i0`.
    pub vmid: Vmid,
    /// The only Ethernet source address accepted.
    pub mac: MacAddress,
    /// The only IP source address accepted.
    pub address: Ipv4Addr,
}

/// How far the network trusts a sandbox. Each level contains the ones above it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trust {
    /// Passes nothing at all.
    Sealed,
    /// The bootstrap and artifact ports of the bridge address.
    BootstrapOnly,
    /// The same, for a sandbox that runs: mode `off`.
    Off,
    /// Named destinations.
    Allowlist,
    /// The Internet through the uplink, no private or special range.
    Nat,
}

/// Why the packet policy does not stand. A sandbox is never powered on after one of these.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// The kernel, or the policy compiler, refused.
    #[error("Packet policy could not be enforced at {action}: {reason}")]
    Unenforced {
        /// What was tried.
        action: &'static str,
        /// Whole chain of causes.
        reason: String,
    },
    /// Guests of this level ask for names, and nobody would answer.
    #[error("Network mode `{mode}` cannot be enforced here: names are not resolved: {reason}")]
    Unresolved {
        /// The mode.
        mode: String,
        /// Why.
        reason: String,
    },
    /// This host has no such trust level configured.
    #[error("Network mode `{mode}` cannot be enforced here: {reason}")]
    Unsupported {
        /// The mode.
        mode: String,
        /// Why.
        reason: String,
    },
}

/// What became of the policy behind our back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Disturbance {
    /// Somebody had changed it, in these ways; it stands again as it should.
    Repaired(Vec<String>),
    /// It cannot be read back, or not be repaired.
    Broken(String),
    /// It stands again after that.
    Whole,
    /// Names of sandboxes are not resolved any more, for this reason.
    Unresolved(String),
    /// They are again.
    Resolved,
}

/// What a guest was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Denied {
    /// Whose guest.
    pub vmid: Vmid,
    /// Where it wanted to, as in `tcp 192.168.1.1:80`.
    pub target: String,
    /// One word for the rule.
    pub rule: &'static str,
    /// What it means and what to do about it.
    pub hint: &'static str,
    /// How often; in an event, refusals of any kind since the one before.
    pub count: u64,
}

/// The packet policy.
#[async_trait]
pub trait Network: Send + Sync {
    /// Whether a trust level can be enforced on this host; asked before anything is made.
    async fn supports(&self, trust: Trust) -> Result<(), NetworkError>;

    /// Makes the cable if it is absent, binds it and seals it. Returns the tap's descriptor, or `None` where the
    /// hypervisor makes its own. The same port again gives a new descriptor; a machine that held the
    /// old one has lost its cable, so this is never asked for a machine that runs.
    async fn attach(&self, port: &Port) -> Result<Option<OwnedFd>, NetworkError>;

    /// Binds and seals a cable that a running machine holds and the policy no longer knows, for example after the
    /// rules were replaced under it. The cable itself is not touched. The default has no way to do so.
    async fn adopt(&self, port: &Port) -> Result<(), NetworkError> {
        Err(NetworkError::Unenforced {
            action: "adopting",
            reason: format!("the policy does not know the port of VM {} any more", port.vmid),
        })
    }

    /// Says where a sandbox may go with [`Trust::Allowlist`], before its trust is that; again after every restart. The
    /// default has no such level.
    async fn allow(&self, _vmid: Vmid, _list: &[AllowEntry]) -> Result<(), NetworkError> {
        Ok(())
    }

    /// Changes what a bound cable may pass; live flows that the new level forbids are cut.
    async fn set_trust(&self, vmid: Vmid, trust: Trust) -> Result<(), NetworkError>;

    /// Removes binding and cable. Absent is success.
    async fn detach(&self, vmid: Vmid) -> Result<(), NetworkError>;

    /// VMIDs with a binding or a cable.
    async fn attached(&self) -> Result<Vec<Vmid>, NetworkError>;

    /// Sandboxes into which somebody is logged in over the network. The default cannot tell, and so nobody counts as
    /// absent.
    async fn reached(&self) -> Result<BTreeSet<Vmid>, NetworkError> {
        Err(NetworkError::Unenforced {
            action: "looking for logins",
            reason: "this packet policy sees no flows".into(),
        })
    }

    /// Does what an operator asks for, in the policy's own words, and answers in them. The default knows no orders.
    async fn operate(&self, _order: &str) -> Result<String, NetworkError> {
        Err(NetworkError::Unenforced {
            action: "an operator's order",
            reason: "this packet policy takes none".into(),
        })
    }

    /// Waits until a guest was refused something, and says what: now and then, however much it is. One caller at a
    /// time. The default is never told.
    async fn denied(&self) -> Denied {
        std::future::pending().await
    }

    /// What a guest was refused lately, latest first. The default knows of nothing.
    async fn denials(&self, _vmid: Vmid) -> Vec<Denied> {
        Vec::new()
    }

    /// Waits until somebody else was at the policy, and says what was found. One caller at a time; what happens while
    /// nobody waits is told to the next. The default notices nothing.
    async fn disturbed(&self) -> Disturbance {
        std::future::pending().await
    }
}

/// Speaks the guest protocol over a channel that does not use the guest's network.
#[async_trait]
pub trait GuestDoor: Send + Sync {
    /// Serves the guest routes to this sandbox until the stream ends.
    async fn serve(&self, sandbox: SandboxId, stream: Box<dyn ByteStream>);

    /// Has the guest write what it holds in memory to its disks, before its machine is switched off. Returns when it has,
    /// or when it will not. The default has no way to.
    async fn write_back(&self, _sandbox: SandboxId) {}
}
