//! `agentlab-net`: shows, applies, verifies and seals the packet policy of this network namespace.

use std::io::{self, Write};
use std::process::ExitCode;

use agentlab_netpolicy::command;
use clap::Parser;

/// Nothing to say: everything is as it should be.
const FINE: u8 = 0;
/// What stands is not what should stand.
const DRIFTED: u8 = 1;
/// Nothing is known, or nothing was done.
const FAILED: u8 = 2;

fn main() -> ExitCode {
    let arguments = command::Arguments::parse();
    let mut output = Vec::new();
    let outcome = command::run(&arguments, &mut output);
    let written = io::stdout().write_all(&output);
    let code = match (outcome, written) {
        (Ok(command::Outcome::Fine), Ok(())) => FINE,
        (Ok(command::Outcome::Drifted), Ok(())) => DRIFTED,
        (Ok(_), Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => FINE,
        (Ok(_), Err(error)) => complain(&error.into()),
        (Err(error), _) => complain(&error),
    };
    ExitCode::from(code)
}

fn complain(error: &anyhow::Error) -> u8 {
    // Nothing is left to do when even this fails.
    let _ = writeln!(io::stderr(), "error: {error:#}");
    FAILED
}
