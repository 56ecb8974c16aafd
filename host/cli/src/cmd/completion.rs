//! Completions for shells.

use clap::{Args, CommandFactory, ValueEnum};
use clap_complete::{Shell, generate};

use crate::printer::Printer;
use crate::{Arguments, CommandResult, ExitStatus};

/// `completion`.
#[derive(Debug, Args)]
pub(crate) struct Completion {
    /// Shell to complete in
    #[arg(value_enum)]
    shell: Name,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Name {
    Bash,
    Zsh,
    Fish,
}

impl Completion {
    pub(crate) fn run(&self, printer: &Printer) -> CommandResult {
        let shell = match self.shell {
            Name::Bash => Shell::Bash,
            Name::Zsh => Shell::Zsh,
            Name::Fish => Shell::Fish,
        };
        let mut script = Vec::new();
        generate(shell, &mut Arguments::command(), "agentlab", &mut script);
        printer.write(&String::from_utf8_lossy(&script))?;
        Ok(ExitStatus::Success)
    }
}
