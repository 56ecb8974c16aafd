//! `agentlab-resolver`: started by the daemon with a line on standard input, and by nobody else.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use anyhow::{Context, anyhow};

fn main() -> anyhow::Result<()> {
    agentlab_resolver::harden::harden().map_err(|reason| anyhow!("The resolver does not start: {reason}"))?;
    let line = std::io::stdin().as_fd().try_clone_to_owned();
    let line = UnixStream::from(line.context("Standard input cannot be used")?);
    agentlab_resolver::run(line).context("The resolver ends")
}
