//! What is wrong with a file, and where in it.

use std::fmt;
use std::io::ErrorKind;
use std::path::PathBuf;

use crate::yaml::Place;

/// Most characters of a message.
const MOST_SHOWN: usize = 1000;

/// One thing that is wrong at one place of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Path of the file, or the label its text came with.
    pub file: String,
    /// Line, from 1; 0 when only the file is known.
    pub line: u64,
    /// Column in characters, from 1.
    pub column: u64,
    /// What is wrong. Never holds a value of a key that may be a secret.
    pub message: String,
}

impl Fault {
    /// What is wrong, in one line: texts of whoever wrote the file are part of many messages, and a terminal must not
    /// obey them.
    pub(crate) fn new(file: &str, place: Place, message: &str) -> Self {
        let mut shown = String::new();
        for letter in message.chars().take(MOST_SHOWN) {
            if letter.is_control() {
                shown.extend(letter.escape_debug());
            } else {
                shown.push(letter);
            }
        }
        if message.chars().nth(MOST_SHOWN).is_some() {
            shown.push_str("...");
        }
        Self {
            file: file.to_owned(),
            line: place.line,
            column: place.column,
            message: shown,
        }
    }
}

impl fmt::Display for Fault {
    /// `file:line:column: message`, as editors jump to it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line == 0 {
            write!(f, "{}: {}", self.file, self.message)
        } else {
            write!(f, "{}:{}:{}: {}", self.file, self.line, self.column, self.message)
        }
    }
}

/// Why nothing was loaded.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No such file or directory.
    #[error("{what} {path} does not exist")]
    Missing {
        /// `Configuration file` or `Profile directory`.
        what: &'static str,
        /// Where it was looked for.
        path: PathBuf,
    },
    /// It is a directory, a device or a pipe.
    #[error("{path} is not a regular file")]
    NotAFile {
        /// What was given.
        path: PathBuf,
    },
    /// Others may read or change it.
    #[error("{path} has mode {mode:04o}: {reason}")]
    Permissions {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// Which of them is too many.
        reason: &'static str,
    },
    /// The system refused.
    #[error("{path} could not be read")]
    Unreadable {
        /// The file or directory.
        path: PathBuf,
        /// The system's words.
        #[source]
        source: std::io::Error,
    },
    /// The text is not what it should be.
    #[error("{}", lines(.0))]
    Invalid(Vec<Fault>),
}

impl ConfigError {
    /// What to do next, where that does not stand in the message.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Missing { what, path } => Some(format!(
                "create {} (examples are in /usr/share/doc/agentlabd/examples), or name another {}",
                path.display(),
                what.to_lowercase()
            )),
            Self::Permissions { path, .. } => Some(format!("chmod 0600 {}", path.display())),
            Self::Unreadable { path, source } if source.kind() == ErrorKind::PermissionDenied => {
                Some(format!("run it as root, or as the owner of {}", path.display()))
            }
            Self::Unreadable { path, source } if source.kind() == ErrorKind::InvalidData => {
                Some(format!("save {} as UTF-8", path.display()))
            }
            Self::NotAFile { .. } => Some("give the path of a YAML file".to_owned()),
            Self::Unreadable { .. } | Self::Invalid(_) => None,
        }
    }
}

fn lines(faults: &[Fault]) -> String {
    faults
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("\n")
}
