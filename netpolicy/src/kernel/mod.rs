//! The half that talks to the kernel, and links libnftnl.
//!
//! What should stand is the byte stream of the transaction we would send; what stands is the kernel's dump. Both are
//! read by one parser (`standing.rs`) and compared, so that a difference cannot hide between two encoders.

mod attributes;
mod conntrack;
mod difference;
mod element;
mod encode;
mod enforcer;
mod error;
mod expressions;
mod found;
mod lack;
mod links;
mod observer;
mod refusals;
mod repair;
mod socket;
mod standing;
mod sysctl;
mod tap;
mod watch;
mod writer;

pub use enforcer::{Enforcer, PortChange};
pub use error::EnforceError;
pub use observer::{Denial, Observer};
pub use refusals::RefusalWatch;
pub(crate) use sysctl::host_settings;
pub use tap::create_tap;
pub use watch::{LinkHint, LinkNews, LinkWatch};
pub use writer::{BridgeLink, LOCK_DIRECTORY, NotTheWriter, STATE_DIRECTORY, StoredPorts, WriterLock};
