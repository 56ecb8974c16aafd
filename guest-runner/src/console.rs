//! One line at a time on standard error, which is the VM's console. Best effort: a runner without a console works.

use std::fmt::Display;
use std::io::Write as _;

/// Prints one line; line ends inside are shown escaped, so that one message stays one line.
pub fn say(message: impl Display) {
    let line = format!(
        "agent-runner: {}\n",
        message.to_string().replace('\n', "\\n").replace('\r', "\\r")
    );
    let _ = std::io::stderr().write_all(line.as_bytes());
}
