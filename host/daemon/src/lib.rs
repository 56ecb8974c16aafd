//! The daemon: composition root, control edge and guest edge. It decides nothing.
//!
//! ```text
//!   agentlab (CLI) ── unix socket ──► http/ ──┐            ┌── Backend   (qemu, proxmox, shell)
//!                                             ├─► Engine ──┼── Network   (netpolicy, on a thread of its own)
//!   agent-runner ── TLS or serial ──► guest/ ─┘            └── Store     (SQLite, files)
//! ```
//!
//! `main.rs` starts it as a program; tests start [`Daemon`] with a [`World`] of their own.

mod activation;
mod ask;
mod connection;
mod control;
mod daemon;
mod error;
mod flags;
mod guest;
mod home;
mod http;
mod keys;
mod lock;
mod log;
mod network;
mod notify;
mod reload;
mod run;
mod secrets;
mod settings;
mod wire;

pub use activation::take_control_socket;
pub use ask::ask_proxmox;
pub use daemon::Daemon;
pub use error::StartError;
pub use flags::Flags;
pub use log::Log;
pub use network::EnforcedNetwork;
pub use reload::Reload;
pub use run::{Surroundings, run, run_in};
pub use wire::{World, backend};
