//! The command and the daemon as a user meets them: text, JSON and exit codes, and everything that is refused.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::tests_outside_test_module,
    clippy::disallowed_methods,
    reason = "this whole program is tests, which wait for the programs they are about"
)]

mod bad_input;
mod control;
mod hostile_guest;
mod hostile_upload;
mod job;
mod job_end;
mod node;
mod node_doctor;
mod process;
mod profile;
mod sandbox;
mod secrets;
mod shown;
mod status;
mod terminal;
mod upload;
mod workspace_wait;
