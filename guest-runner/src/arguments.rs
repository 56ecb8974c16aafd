//! The command line: four options, read by hand, because a parser library would be a tenth of the binary.

use std::ffi::OsString;
use std::path::PathBuf;

/// Shown by `--help` and with every error.
pub const USAGE: &str = "\
Usage: agent-runner [OPTION]...
Runs inside a sandbox VM: takes the seed, redeems its token, runs the job, reports.

  --seed FILE           take the seed from FILE instead of the machine's carriers
  --line PATH           use this device or Unix socket as serial channel
  --no-machine-setup    leave host name, clock, address and resolver as they are
  --version             print the version and exit
  --help                print this and exit
";

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// Everything.
    Run(Arguments),
    /// Print the version.
    Version,
    /// Print [`USAGE`].
    Help,
}

/// Options of a run.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Arguments {
    /// `--seed`.
    pub seed_path: Option<PathBuf>,
    /// `--line`.
    pub line_path: Option<PathBuf>,
    /// Not `--no-machine-setup`.
    pub machine_setup: bool,
}

/// Reads arguments without the program's name.
///
/// # Errors
/// An unknown option, or one without its value; the text says which.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, String> {
    let mut rest = arguments.into_iter();
    let mut parsed = Arguments {
        machine_setup: true,
        ..Arguments::default()
    };
    while let Some(argument) = rest.next() {
        let mut value = |option: &str| {
            rest.next()
                .map(PathBuf::from)
                .ok_or_else(|| format!("`{option}` needs a value"))
        };
        match argument.to_str() {
            Some("--seed") => parsed.seed_path = Some(value("--seed")?),
            Some("--line") => parsed.line_path = Some(value("--line")?),
            Some("--no-machine-setup") => parsed.machine_setup = false,
            Some("--version") => return Ok(Command::Version),
            Some("--help") => return Ok(Command::Help),
            _ => return Err(format!("Unknown argument `{}`", argument.display())),
        }
    }
    Ok(Command::Run(parsed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_taken_and_anything_else_is_refused() {
        let parse = |words: &[&str]| parse(words.iter().map(OsString::from));
        let expected = Arguments {
            seed_path: Some("a".into()),
            line_path: Some("b".into()),
            machine_setup: false,
        };
        assert_eq!(
            parse(&["--seed", "a", "--no-machine-setup", "--line", "b"]),
            Ok(Command::Run(expected))
        );
        assert_eq!(
            parse(&[]),
            Ok(Command::Run(Arguments {
                machine_setup: true,
                ..Arguments::default()
            }))
        );
        assert_eq!(parse(&["--seed"]), Err("`--seed` needs a value".to_owned()));
        assert_eq!(parse(&["--sed", "a"]), Err("Unknown argument `--sed`".to_owned()));
        assert_eq!(parse(&["a"]), Err("Unknown argument `a`".to_owned()));
    }
}
