//! Checks of this workspace that need nothing but cargo: `cargo xtask check`.
//!
//! Dependency directions, licences and bans are decided here over `cargo metadata` and `cargo tree`, so that CI holds
//! them on machines where cargo-deny is not at hand. `deny.toml` says the same to cargo-deny.

mod layers;
mod licences;
mod proofs;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Checks of the AgentLab workspace")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// All checks.
    Check,
    /// Who may depend on whom.
    Layers,
    /// Licences, banned crates and sources of all dependencies.
    Licences,
    /// That the tests which docs/security.md names are there.
    Proofs,
}

fn main() -> Result<()> {
    let findings = match Arguments::parse().command {
        Command::Check => [layers::check()?, licences::check()?, proofs::check()?].concat(),
        Command::Layers => layers::check()?,
        Command::Licences => licences::check()?,
        Command::Proofs => proofs::check()?,
    };
    report(&findings)
}

#[expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line tool that reports to a person"
)]
fn report(findings: &[String]) -> Result<()> {
    for finding in findings {
        eprintln!("error: {finding}");
    }
    if findings.is_empty() {
        println!("xtask: layers, licences, bans, sources and proofs are in order");
        return Ok(());
    }
    bail!("{} finding(s)", findings.len())
}
