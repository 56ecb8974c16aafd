//! Root helpers are programs of their own, so that this one needs no privilege and no C library.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::CommandResult;
use crate::error::CommandError;

/// Becomes the program, found beside this executable or in PATH. Returns only when that failed. `json` is handed on
/// where the arguments do not say it themselves.
pub(crate) fn replace_process(program: &str, arguments: &[OsString], json: bool) -> CommandResult {
    let said = arguments.iter().any(|argument| argument == "--json");
    let forwarded = (json && !said).then_some("--json");
    let beside = std::env::current_exe()
        .ok()
        .map(|own| own.with_file_name(program))
        .filter(|path| path.is_file());
    let source = Command::new(beside.unwrap_or_else(|| program.into()))
        .args(forwarded)
        .args(arguments)
        .exec();
    let source = if source.kind() == ErrorKind::NotFound {
        std::io::Error::new(ErrorKind::NotFound, "it is neither beside `agentlab` nor in PATH")
    } else {
        source
    };
    Err(CommandError::Program {
        program: program.to_owned(),
        source,
    })
}
