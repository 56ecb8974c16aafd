//! Fuzz targets: every parser that reads what a guest, a hypervisor or an operator wrote.
//!
//! ```text
//!   seeds + regressions ──► mutate ──► Target::run ──► properties hold, or a panic says which does not
//!                             ▲                │
//!                             └── inputs whose outcome nobody had before
//! ```
//! Two drivers share [`TARGETS`]: the one in [`driver`], for every toolchain and for CI, and libFuzzer's in `fuzz/`,
//! for those who have nightly and cargo-fuzz. An input that failed once lies in `regressions/<target>/` and is run
//! first by both.

pub mod driver;
mod input;
mod limits;
mod mutate;
mod panics;
mod properties;
mod random;
mod target;

pub use limits::check;
pub use target::{Outcome, TARGETS, Target, find};

#[cfg(test)]
mod tests;
