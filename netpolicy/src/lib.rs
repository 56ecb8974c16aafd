//! The packet policy that keeps sandboxes apart from each other, from the host and from every private network.
//!
//! ```text
//!   Intent ── plan ──► Ruleset ──┬── Display ──► nft text, for people and tests
//!   (who may talk      (tables,  │
//!    to whom)           sets,    └── Enforcer ─► one netlink transaction, read back and compared
//!                       chains)       (feature `kernel`: libnftnl, rtnetlink, TUNSETIFF)
//! ```
//!
//! The pure half has no features, no I/O and no clock. Rules never name a sandbox: whatever differs between sandboxes
//! is a set element, so that one more sandbox is a handful of elements and touches nothing that another one relies on.
//!
//! A frame from a guest passes three gates:
//!
//! ```text
//!   guest ─► tap ─► bridge table: port bound? (port, MAC, address) pinned? ip or arp? ──► marked as verified
//!                        │
//!                        ├─► another port: dropped, always
//!                        └─► host: arp table, inet guard: verified? ──► input: bridge address, published port
//!                                                                  └──► forward: uplink, public address, trust
//! ```
//!
//! A port of the bridge that nobody bound gets no mark, and so passes nothing.

mod binding;
mod denial;
mod drift;
mod intent;
mod name;
mod order;
mod plan;
mod rules;
mod ruleset;
mod text;

#[cfg(feature = "kernel")]
pub mod command;
#[cfg(feature = "kernel")]
mod kernel;

pub use binding::{Binding, Elements};
pub use denial::{Refusal, RefusedPacket};
pub use drift::Drift;
pub use intent::{
    BridgeSpec, Cidr, CidrError, Destination, DestinationError, GuestPort, GuestService, HostPolicy, Intent,
    PortRange, Protocol, Trust, USUAL_DENIAL_GROUP,
};
#[cfg(feature = "kernel")]
pub(crate) use kernel::host_settings;
#[cfg(feature = "kernel")]
pub use kernel::{
    BridgeLink, Denial, EnforceError, Enforcer, LOCK_DIRECTORY, LinkHint, LinkNews, LinkWatch, NotTheWriter,
    Observer, PortChange, RefusalWatch, STATE_DIRECTORY, StoredPorts, WriterLock, create_tap,
};
pub use name::{IfName, IfNameError};
pub use order::{Done, ORDER_PATH, Order};
pub use plan::{PlanError, check_host, plan};
pub use ruleset::Ruleset;
