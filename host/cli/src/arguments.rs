//! The command line. Help texts are the doc comments.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser};

use crate::ExitStatus;
use crate::cmd::Command;
use crate::error::CommandError;
use crate::printer::{Color, Printer};

/// Runs AI coding agents in VMs of their own and brings the work back.
#[derive(Debug, Parser)]
#[command(
    name = "agentlab",
    disable_version_flag = true,
    subcommand_required = false,
    after_help = "Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 not allowed, 5 not in this state, \
                  6 no daemon, 7 out of time, 130 Ctrl-C. `job run` returns the agent's own code."
)]
pub struct Arguments {
    #[command(flatten)]
    pub(crate) global: Global,
    /// Print one line `version=… commit=… date=…`
    #[arg(long, short = 'V')]
    pub(crate) version: bool,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// Over the options that every command has: below its own.
const EVERYWHERE: &str = "Everywhere";

#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Socket of agentlabd
    #[arg(
        long,
        global = true,
        env = "AGENTLAB_SOCKET",
        default_value = "/run/agentlab/agentlabd.sock",
        value_name = "PATH",
        hide_env_values = true,
        help_heading = EVERYWHERE
    )]
    pub(crate) socket: PathBuf,
    /// Print JSON documents; errors too, as problem documents (RFC 9457) on standard output
    #[arg(long, global = true, help_heading = EVERYWHERE)]
    pub(crate) json: bool,
    /// When to use colour
    #[arg(long, global = true, value_name = "WHEN", value_enum, default_value_t, help_heading = EVERYWHERE)]
    pub(crate) color: Color,
}

impl Arguments {
    /// Parses this process's command line. Help is printed here, and so is what is wrong with it.
    ///
    /// # Errors
    /// How to exit when nothing is to be run.
    pub fn from_command_line() -> Result<Self, ExitStatus> {
        let line: Vec<OsString> = std::env::args_os().collect();
        Self::try_parse_from(&line).map_err(|error| {
            let failed = error.use_stderr();
            let json = line.iter().any(|argument| argument == "--json");
            if failed && json {
                let text = error.render().to_string();
                let message = text
                    .trim()
                    .strip_prefix("error: ")
                    .unwrap_or(text.trim())
                    .to_owned();
                Printer::new(true, Color::Never).error(&CommandError::usage(message));
            } else {
                // A closed standard output leaves nobody to be told.
                let _ = error.print();
            }
            if failed {
                ExitStatus::Usage
            } else {
                ExitStatus::Success
            }
        })
    }
}

/// Without a command: the version when it was asked for, help otherwise.
pub(crate) fn print_help(printer: &Printer, version: bool) -> ExitStatus {
    let printed = if version {
        printer.line(&version_line())
    } else {
        printer.write(&Arguments::command().render_help().ansi().to_string())
    };
    printed.map_or_else(|error| error.status(), |()| ExitStatus::Success)
}

/// `version=… commit=… date=…`; commit and date are what the build was told.
fn version_line() -> String {
    format!(
        "version={} commit={} date={}",
        env!("CARGO_PKG_VERSION"),
        option_env!("AGENTLAB_BUILD_COMMIT").unwrap_or("unknown"),
        option_env!("AGENTLAB_BUILD_DATE").unwrap_or("unknown"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn what_people_type_is_understood() {
        for line in [
            "agentlab status --json",
            "agentlab --json status",
            "agentlab ls",
            "agentlab rm 1000",
            "agentlab sandbox delete 1000 --force",
            "agentlab sandbox rm sandbox-1000",
            "agentlab sandbox ls --all",
            "agentlab stop 1000 1001",
            "agentlab start 1000 --detach",
            "agentlab sandbox lease renew --ttl 2h 1000",
            "agentlab sandbox prune --stopped --dry-run",
            "agentlab job ls",
            "agentlab job prune --dry-run --json",
            "agentlab job logs -f job_000000000000",
            "agentlab job artifacts job_000000000000",
            "agentlab job artifacts download job_000000000000 --out d --name report.json",
            "agentlab job artifacts download job_000000000000 --bundle --out d",
            "agentlab job artifacts download job_000000000000 --path files/a/b",
            "agentlab job run --repo . --task true --profile demo --push agentlab/x",
            "agentlab cp -r 1000:out . --max-bytes 1000",
            "agentlab job run --repo . --task true --profile demo --deadline 10m --ttl 1h --keepalive",
            "agentlab job run --repo . --task-file - --profile demo --keepalive=false --ref main",
            "agentlab job apply job_000000000000 --branch x --force",
            "agentlab job apply job_000000000000 --strict --merge",
            "agentlab net status --json --whatever",
            "agentlab init --apply --rotate --template 9000 --template 9001 --volume-storage work",
            "agentlab doctor --json --config config.yaml",
            "agentlab template build demo --store x",
            "agentlab profile validate a.yaml b.yaml",
            "agentlab completion fish",
            "agentlab secrets show --json --bundle ci",
            "agentlab secrets set-env --name A --value-file -",
            "agentlab secrets set-git --git-token-file f --username me",
            "agentlab secrets rotate --recipient age1x --drop-recipients",
        ] {
            assert!(Arguments::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
        for line in [
            "agentlab job run --repo . --profile demo",
            "agentlab job run --repo . --task a --task-file b --profile demo",
            "agentlab job run --repo . --task a --profile demo --deadline soon",
            "agentlab job run --repo . --task a --profile demo --deadline=-5m",
            "agentlab job show job_1",
            "agentlab sandbox pause",
            "agentlab sandbox lease renew 1000",
            "agentlab job artifacts",
            "agentlab job artifacts download job_000000000000 --latest --all",
            "agentlab profile validate",
            "agentlab secrets set-env",
            "agentlab secrets set-env --name A --from-file f",
            "agentlab stauts",
        ] {
            assert!(Arguments::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
        let said = Arguments::try_parse_from(["agentlab", "stauts"])
            .unwrap_err()
            .to_string();
        assert!(said.contains("'status'"), "{said}");
    }

    #[test]
    fn the_version_is_one_line_of_three_words() {
        let line = version_line();
        let words: Vec<_> = line
            .split(' ')
            .map(|word| word.split_once('=').unwrap().0)
            .collect();
        assert_eq!(words, ["version", "commit", "date"]);
    }
}
