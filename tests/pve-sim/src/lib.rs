//! A Proxmox VE stand-in for tests: the methods AgentLab uses, with the texts, locks, tasks and traps of genuine
//! releases 8.4 and 9.2.
//!
//! ```text
//!   request ──► core.rs: token, method, permission, node, parameters ──► api/: one file per noun
//!                  │                                                        │
//!                  │  fault.rs may answer otherwise                         ▼
//!                  ▼                                                     world.rs: plain data
//!             timeline.rs: workers go on when the caller is gone         audit.rs: who changed what
//! ```
//!
//! It is asked in process with [`PveSim::answer`], or over TLS as a node is ([`PveSim::start`]). How true it is to the
//! real thing is shown by `tests/replay.rs`, which sends it what genuine nodes were asked and compares the answers.

mod access;
mod api;
mod audit;
mod boot;
mod call;
mod core;
mod fault;
mod formats;
mod locks;
mod operator;
mod permission;
pub mod properties;
#[cfg(feature = "qemu")]
mod qemu;
mod random;
pub mod schema;
mod server;
mod setup;
mod storage;
mod task;
mod timeline;
mod upload;
mod wire;
mod world;

pub use audit::{Audit, Origin};
pub use boot::{Boot, NoBoot, Powered};
pub use fault::{FAULTS, Rates};
pub use operator::{Keys, Operator};
#[cfg(feature = "qemu")]
pub use qemu::{BootOptions, Booter, QemuBoot, boot_with_qemu};
pub use setup::{PveSim, Scale, Setup};
pub use storage::Plugin;
pub use wire::{Request, Response};
pub use world::Guests;

/// Which genuine release is stood in for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// 8.4.21.
    V8,
    /// 9.2.11.
    V9,
}

impl Version {
    /// The whole version.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::V8 => "8.4.21",
            Self::V9 => "9.2.11",
        }
    }

    /// Major and minor version.
    #[must_use]
    pub fn release(self) -> &'static str {
        match self {
            Self::V8 => "8.4",
            Self::V9 => "9.2",
        }
    }

    /// What the node of a fresh stand-in is called.
    #[must_use]
    pub fn node(self) -> &'static str {
        match self {
            Self::V8 => "pve8",
            Self::V9 => "pve9",
        }
    }
}
