//! The `agentlab` command: one file per noun, and the few things they share.
//!
//! ```text
//!   main ──► arguments.rs ──► cmd/<noun>.rs ──► agentlab-client ──► agentlabd
//!                                │  ├──► follow/  a job's events and output as one live view
//!                                │  ├──► git/     bundles out of and into repositories, never running what is in them
//!                                │  ├──► init/, doctor/  a Proxmox VE node or a host made ready, and looked at
//!                                │  ├──► landing.rs, tree/  what guests made, into a directory of the operator's; and back
//!                                │  └──► printer.rs, terminal.rs (guests choose bytes; terminals obey bytes)
//!                                └──► error.rs ──► exit.rs
//! ```

mod arguments;
mod cmd;
mod doctor;
mod error;
mod exit;
mod follow;
mod git;
mod init;
mod landing;
mod output;
mod printer;
mod secret_input;
mod terminal;
mod tree;

use std::cell::RefCell;

use agentlab_client::Client;
use tokio::signal::unix::{SignalKind, signal};

pub use arguments::Arguments;
pub use exit::ExitStatus;

use error::CommandError;
use printer::Printer;

/// What every command gets.
struct Context {
    client: Client,
    printer: Printer,
    /// Said when Ctrl-C ends the command: what goes on without us.
    farewell: RefCell<Option<String>>,
}

type CommandResult = Result<ExitStatus, CommandError>;

/// Runs one command to its end, prints what went wrong, and says how to exit.
#[must_use]
pub fn run(arguments: Arguments) -> ExitStatus {
    let printer = Printer::new(arguments.global.json, arguments.global.color);
    let result = match arguments.command {
        None => Ok(arguments::print_help(&printer, arguments.version)),
        Some(command) => match command.without_daemon(&printer) {
            Some(result) => result,
            None => {
                let context = Context {
                    client: Client::unix(arguments.global.socket),
                    printer,
                    farewell: RefCell::new(None),
                };
                return finish(&context.printer, attend(command, &context));
            }
        },
    };
    finish(&printer, result)
}

fn finish(printer: &Printer, result: CommandResult) -> ExitStatus {
    match result {
        Ok(status) => status,
        Err(error) => {
            printer.error(&error);
            error.status()
        }
    }
}

/// Runs a command on a runtime of one thread. Ctrl-C and SIGTERM drop it where it stands, so that what it holds, such as
/// the settings of a terminal, is put back.
fn attend(command: cmd::Command, context: &Context) -> CommandResult {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CommandError::Runtime)?;
    let result = runtime.block_on(async {
        tokio::select! {
            result = command.run(context) => result,
            told = told_to_end() => {
                let status = told.map_err(CommandError::Runtime)?;
                context.printer.interrupted(context.farewell.borrow().as_deref());
                Ok(status)
            }
        }
    });
    // A read of standard input or of a hanging file system must not hold up the exit.
    runtime.shutdown_background();
    result
}

/// Waits for Ctrl-C or SIGTERM. A hang-up ends the process as it always does: `nohup` has to be able to prevent that.
async fn told_to_end() -> std::io::Result<ExitStatus> {
    let mut terminated = signal(SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted.map(|()| ExitStatus::Interrupted),
        _ = terminated.recv() => Ok(ExitStatus::Terminated),
    }
}
