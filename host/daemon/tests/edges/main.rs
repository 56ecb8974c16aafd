//! The daemon's two edges, black box, with a hypervisor in memory behind them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::tests_outside_test_module,
    reason = "this whole program is tests"
)]

mod control;
mod guest;
mod instance;
mod lab;
mod no_network;
mod stop;
mod stream;
mod wire;
