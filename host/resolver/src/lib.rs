//! The resolver that sandboxes ask, and the only one they reach: port 53 of the bridge address.
//!
//! ```text
//!   guest ──► 10.77.0.1:53 ──► read ──► judge ──► cache | upstream ──► sift ──► opened? ──► reply
//!             (UDP, TCP;       │        │                              │         ▲ │
//!              bound by the    │        └ NXDOMAIN, empty, refused     │         │ └ ask the daemon
//!              daemon)         └ malformed: FORMERR or silence         └ private address: NXDOMAIN
//! ```
//!
//! It reads bytes that hostile guests and distant servers chose, so it is a process of its own: a user of its own, no
//! capability, no file to write. Its two listening sockets and its line to the daemon are all it is given. Who asks is
//! the source address of the packet, which the packet policy has pinned to the guest's port. What it may open it asks
//! the daemon for, and the daemon decides.
//!
//! [`judge`] and [`sift`] decide without clock and I/O; [`budget`] and [`cache`] are told the time.

pub mod budget;
pub mod cache;
mod channel;
pub mod domain;
mod guest;
pub mod harden;
pub mod judge;
pub mod message;
pub mod question;
mod serve;
pub mod sift;
mod upstream;

pub use channel::run;
