//! Why a call gave no answer.

use std::io;
use std::path::PathBuf;

use agentlab_api::Problem;

/// Failure of a call.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there, or we may not talk to them.
    #[error("No daemon could be reached at {socket}")]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// The system's words.
        #[source]
        source: io::Error,
    },
    /// The daemon's own answer.
    #[error("{}", .0.detail)]
    Problem(Box<Problem>),
    /// What answered does not speak our protocol, or stopped in the middle of it.
    #[error("{0}")]
    Protocol(String),
    /// No answer came in time; whether the request was carried out is not known.
    #[error("The daemon did not answer {action} within {seconds} s")]
    TimedOut {
        /// Method and path.
        action: String,
        /// How long was waited.
        seconds: u64,
    },
    /// A local file that was to be sent or written.
    #[error("{action} {path} failed")]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's words.
        #[source]
        source: io::Error,
    },
    /// What arrived is not what the daemon stored.
    #[error("{what} arrived with SHA-256 {actual}, and the daemon recorded {recorded}")]
    Mismatch {
        /// What was fetched or sent.
        what: String,
        /// As the daemon says.
        recorded: String,
        /// As computed here.
        actual: String,
    },
}

impl ClientError {
    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unreachable { socket, source } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some(format!("members of group `agentlab` may use {}; `id` shows yours", socket.display()))
            }
            Self::Unreachable { source, .. } if source.kind() == io::ErrorKind::InvalidInput => {
                Some("a socket's path has at most 107 bytes; name a shorter one with `--socket`".to_owned())
            }
            Self::Unreachable { .. } => Some(
                "is agentlabd running? `systemctl status agentlabd` says; `--socket` names another one's socket".to_owned(),
            ),
            Self::Problem(problem) => problem.hint.clone(),
            Self::TimedOut { .. } => Some("`journalctl -u agentlabd` shows what the daemon is busy with".to_owned()),
            Self::Mismatch { .. } => Some("try again; if it happens twice the artifact store is damaged".to_owned()),
            Self::Protocol(_) | Self::File { .. } => None,
        }
    }

    /// Whether the daemon was there and we were not let in.
    #[must_use]
    pub fn is_permission(&self) -> bool {
        matches!(self, Self::Unreachable { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
    }
}

/// Result of a call.
pub(crate) type Result<T> = std::result::Result<T, ClientError>;
