//! The host-guest protocol, version 1 (docs/protocol.md), implemented once for both sides. No I/O.
//!
//! ```text
//!   host                                   guest
//!   Seed::encode ──► fw_cfg / SMBIOS ────► Seed::decode
//!                     RedeemRequest  ◄──── token + runner key
//!   RedeemAnswer ───────────────────────►  job order, secrets, limits
//!                  Heartbeat, LogBatch ◄── while the agent runs
//!                artifact bytes, Report ◄─ when it ended
//! ```

pub mod agent;
pub mod command;
pub mod frame;
pub mod git_name;
pub mod message;
pub mod secret;
pub mod seed;
pub mod session;
pub mod workspace;
