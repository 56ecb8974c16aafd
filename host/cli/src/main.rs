//! The `agentlab` command. What it does is in the library; this is the order of it.

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = match agentlab_cli::Arguments::from_command_line() {
        Ok(arguments) => arguments,
        Err(status) => return status.into(),
    };
    agentlab_cli::run(arguments).into()
}
