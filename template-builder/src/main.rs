//! `agentlab-template`: builds, lists, checks and clears template images.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    agentlab_template::command::run(&agentlab_template::command::Arguments::parse())
}
