//! The one static binary inside every sandbox VM, as a library so that its halves can be tested on a host.
//!
//! ```text
//!   seed ──► machine setup ──► link ── redeem ──► job half ──► report
//!  (carrier)  (address, name,  (serial, TLS;      (repository, agent,
//!              clock)           HTTP/2)            artifacts)
//! ```

pub mod arguments;
pub mod command;
pub mod console;
pub mod hold;
pub mod job;
pub mod link;
pub mod machine_setup;
pub mod redact;
pub mod remains;
#[cfg(test)]
mod requirement;
pub mod secrets;
pub mod seed;
mod sys_mount;
mod sys_net;
mod sys_port;
pub mod vitals;
pub mod workspace;
