//! What can be wrong with secrets, said without ever showing one.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::tree::Place;

/// One thing that is wrong in a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Keys from the top, as in `git.token`.
    pub path: String,
    /// Where; unknown in JSON and in what sops encrypted.
    pub place: Place,
    /// What is wrong. Never holds a value.
    pub reason: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "`{}` ", self.path)?;
        }
        f.write_str(&self.reason)?;
        if self.place.line > 0 {
            write!(f, " ({})", self.place)?;
        }
        Ok(())
    }
}

/// Why a bundle could not be read, written or given out.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    /// Not a name.
    #[error("`{0}` is no name of a bundle: letters, digits, `.`, `_` and `-`, not beginning with a dot")]
    Name(String),
    /// No file of that name.
    #[error("There is no secrets bundle `{name}` in {}", dir.display())]
    Absent {
        /// As asked for.
        name: String,
        /// Where it was looked for.
        dir: PathBuf,
    },
    /// More than one file of that name.
    #[error("Secrets bundle `{name}` could be any of {}", files.join(", "))]
    Ambiguous {
        /// As asked for.
        name: String,
        /// File names.
        files: Vec<String>,
    },
    /// Others could read or change it.
    #[error("{} has mode {mode:04o}: {reason}", path.display())]
    Permissions {
        /// Which file or directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// What is wrong with them.
        reason: &'static str,
    },
    /// The kernel refused.
    #[error("{action} {} failed: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's words.
        source: io::Error,
    },
    /// Somebody else is writing.
    #[error("Another command is changing the bundles in {}", .0.display())]
    Busy(PathBuf),
    /// The key file is not there.
    #[error("There is no age key at {}", .0.display())]
    KeyAbsent(PathBuf),
    /// The key file holds something else.
    #[error("{}:{line}: {reason}", path.display())]
    KeyFile {
        /// Which file.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// It was encrypted to somebody else.
    #[error("{label} is encrypted to none of the keys in {}", key_path.display())]
    NoMatchingKey {
        /// Which bundle.
        label: String,
        /// The key file.
        key_path: PathBuf,
    },
    /// It cannot be what somebody once encrypted.
    #[error("{label} {reason}")]
    Damaged {
        /// Which bundle.
        label: String,
        /// In what way.
        reason: String,
    },
    /// What it holds is no YAML or JSON.
    #[error("{label} holds what is no {form}{}", at(*.place))]
    Syntax {
        /// Which bundle.
        label: String,
        /// `YAML` or `JSON`.
        form: &'static str,
        /// Where reading ended.
        place: Place,
    },
    /// What it holds is no bundle.
    #[error("{label} is no secrets bundle: {}", listed(.faults))]
    Faults {
        /// Which bundle.
        label: String,
        /// All of them.
        faults: Vec<Fault>,
    },
    /// sops writes its own files.
    #[error("{label} belongs to sops, and is only read here")]
    ReadOnly {
        /// Which bundle.
        label: String,
    },
    /// It would be taken away from somebody.
    #[error(
        "{label} is encrypted to {recipients} keys, of which this host knows {known}: the others would lose it"
    )]
    OtherRecipients {
        /// Which bundle.
        label: String,
        /// How many it is encrypted to.
        recipients: usize,
        /// How many of them would be written.
        known: usize,
    },
    /// A profile names what is not there.
    #[error("{label} has no {}", names.join(", "))]
    Missing {
        /// Which bundle.
        label: String,
        /// Names as a profile writes them.
        names: Vec<String>,
    },
    /// A value that cannot be what it is said to be.
    #[error("{what} {reason}")]
    Value {
        /// Which one.
        what: String,
        /// Never holds the value.
        reason: &'static str,
    },
}

fn at(place: Place) -> String {
    if place.line > 0 {
        format!(", at {place}")
    } else {
        String::new()
    }
}

/// More of them help nobody.
const MOST_FAULTS: usize = 20;

fn listed(faults: &[Fault]) -> String {
    let mut said: Vec<String> = faults.iter().take(MOST_FAULTS).map(Fault::to_string).collect();
    if faults.len() > MOST_FAULTS {
        said.push(format!("and {} more", faults.len() - MOST_FAULTS));
    }
    said.join("; ")
}

impl SecretsError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Name(_) => "give the name without a directory, as in `default`".to_owned(),
            Self::Absent { name, dir } => format!(
                "`agentlab secrets set-env` makes {}/{name}.age with its first value",
                dir.display()
            ),
            Self::Ambiguous { .. } => "name the whole file, or remove all but one".to_owned(),
            Self::Permissions { path, .. } => format!("chmod go-rwx {}", path.display()),
            Self::Busy(_) => "wait for it and try again".to_owned(),
            Self::KeyAbsent(path) => format!(
                "`age-keygen -o {}` makes one, and so does the first `agentlab secrets set-env`",
                path.display()
            ),
            Self::KeyFile { .. } => {
                "it must hold AGE-SECRET-KEY-1… lines, as age-keygen writes them, and comments".to_owned()
            }
            Self::NoMatchingKey { .. } => {
                "restore the key it was encrypted to, or encrypt it anew to `age-keygen -y` of this one".to_owned()
            }
            Self::Damaged { .. } | Self::Syntax { .. } => "restore it from a copy, or make it anew".to_owned(),
            Self::ReadOnly { .. } => "change it with sops".to_owned(),
            Self::OtherRecipients { .. } => {
                "name the others with --recipient, or let them lose it with --drop-recipients".to_owned()
            }
            Self::Missing { .. } => {
                "add what is missing with `agentlab secrets set-env` or `set-git`, or take it out of the profile"
                    .to_owned()
            }
            Self::File { .. } | Self::Faults { .. } | Self::Value { .. } => return None,
        })
    }
}
