//! `agentlab-net` as an operator meets it: words and exit status.
//!
//! ```text
//!   ground.rs       the program run in a network of its own, away from this machine's files
//!   requirement.rs  what the tests need of the machine
//!   policy.rs       plan, apply, verify, seal, smoke
//!   ports.rs        bind, trust, unbind, and a daemon that does them itself
//! ```

#[cfg(test)]
mod ground;
#[cfg(test)]
mod policy;
#[cfg(test)]
mod ports;
#[cfg(test)]
mod requirement;
