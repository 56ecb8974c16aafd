//! One sandbox: what it may do (`machine`), how it is made and taken away (`step`), and who does so (`driver`).
//!
//! ```text
//!   machine, step, reserve                  pure decisions
//!   driver ─ taken_up ─ asked ─ pursue ─ outcome ─ stopping ─ unwind ─ redemption ─ session     one task: inbox, clocks, commits
//!   attempt, perform, watch, spent                   calls to the back end and the network
//! ```

mod again;
pub(crate) mod asked;
mod attempt;
pub(crate) mod clocks;
pub(crate) mod driver;
pub(crate) mod inbox;
mod kept;
pub mod machine;
mod outcome;
pub(crate) mod perform;
mod pursue;
mod redemption;
pub(crate) mod reserve;
pub(crate) mod session;
mod spent;
pub mod step;
mod stopping;
mod taken_up;
mod unused;
mod unwind;
pub(crate) mod vitals;
mod watch;
pub(crate) mod workspace;
