//! The real program as a process: what a service manager, an operator with `kill` and a client see of it. It runs in
//! a network namespace of its own, with a QEMU that only says its version.

#![allow(
    clippy::unwrap_used,
    clippy::tests_outside_test_module,
    reason = "this whole program is tests"
)]

mod lab;
mod notify;
mod private;
mod reload;
mod socket;
