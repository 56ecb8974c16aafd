//! Why a command failed, in words for people and as a problem document for programs.

use std::io;

use agentlab_api::{ErrorCode, FieldError, Problem};
use agentlab_client::ClientError;
use agentlab_config::ConfigError;
use agentlab_secrets::SecretsError;

use crate::ExitStatus;
use crate::git::GitError;

/// Failure of a command.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    /// The daemon, or the way to it.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A profile file.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A bundle of secrets.
    #[error(transparent)]
    Secrets(#[from] SecretsError),
    /// A repository.
    #[error(transparent)]
    Git(#[from] GitError),
    /// Something the caller wrote.
    #[error("{message}")]
    Usage { message: String, hint: Option<String> },
    /// The thing is not in the state for that.
    #[error("{message}")]
    Refused { message: String, hint: Option<String> },
    /// No such thing, said by ourselves.
    #[error("{message}")]
    NotFound { message: String, hint: Option<String> },
    /// Ctrl-C at a question.
    #[error("Interrupted; nothing has changed")]
    Interrupted,
    /// A local file.
    #[error("{action} {path} failed")]
    File {
        action: &'static str,
        path: String,
        #[source]
        source: io::Error,
    },
    /// A program that belongs to us is missing or does not run.
    #[error("`{program}` could not be run")]
    Program {
        program: String,
        #[source]
        source: io::Error,
    },
    /// Standard output does not take what we print.
    #[error("Standard output failed")]
    Output(#[source] io::Error),
    /// The system gives no thread, timer or signal handler.
    #[error("The system refused what every program needs")]
    Runtime(#[source] io::Error),
}

impl CommandError {
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::Usage {
            message: message.into(),
            hint: None,
        }
    }

    pub(crate) fn refused(message: impl Into<String>) -> Self {
        Self::Refused {
            message: message.into(),
            hint: None,
        }
    }

    pub(crate) fn with_hint(mut self, text: impl Into<String>) -> Self {
        if let Self::Usage { hint, .. } | Self::Refused { hint, .. } | Self::NotFound { hint, .. } = &mut self
        {
            *hint = Some(text.into());
        }
        self
    }

    /// What to do next.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Client(error) => error.hint(),
            Self::Config(error) => error.hint(),
            Self::Secrets(error) => error.hint(),
            Self::Git(error) => error.hint(),
            Self::Usage { hint, .. } | Self::Refused { hint, .. } | Self::NotFound { hint, .. } => {
                hint.clone()
            }
            Self::Program { program, .. } => Some(format!(
                "install the package that brings `{program}`, or put it beside `agentlab` or into PATH"
            )),
            Self::Interrupted | Self::File { .. } | Self::Output(_) | Self::Runtime(_) => None,
        }
    }

    /// The exit code.
    pub(crate) fn status(&self) -> ExitStatus {
        match self {
            Self::Client(ClientError::Unreachable { .. }) if self.is_permission() => ExitStatus::Denied,
            Self::Client(ClientError::Unreachable { .. }) => ExitStatus::Unreachable,
            Self::Client(ClientError::TimedOut { .. }) => ExitStatus::TimedOut,
            Self::Client(ClientError::Problem(problem)) => ExitStatus::of_problem(problem.code),
            Self::Client(
                ClientError::Protocol(_) | ClientError::File { .. } | ClientError::Mismatch { .. },
            )
            | Self::Config(_)
            | Self::Secrets(_)
            | Self::Git(_)
            | Self::File { .. }
            | Self::Program { .. }
            | Self::Runtime(_) => ExitStatus::Failure,
            // As the shell says it of a program that SIGPIPE ended.
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitStatus::External(141),
            Self::Output(_) => ExitStatus::Failure,
            Self::Usage { .. } => ExitStatus::Usage,
            Self::Refused { .. } => ExitStatus::Conflict,
            Self::NotFound { .. } => ExitStatus::NotFound,
            Self::Interrupted => ExitStatus::Interrupted,
        }
    }

    /// The daemon's own answer, when it is one.
    pub(crate) fn daemons_problem(&self) -> Option<&Problem> {
        if let Self::Client(ClientError::Problem(problem)) = self {
            Some(problem)
        } else {
            None
        }
    }

    /// Whether nobody is there to be told: the reader of our output went away.
    pub(crate) fn is_silent(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }

    fn is_permission(&self) -> bool {
        matches!(self, Self::Client(error) if error.is_permission())
    }

    /// The message with its causes, on as many lines as the message has.
    pub(crate) fn sentence(&self) -> String {
        let mut text = self.to_string();
        let mut next = std::error::Error::source(self);
        while let Some(cause) = next {
            text = format!("{text}: {cause}");
            next = cause.source();
        }
        text
    }

    /// The same for programs. The daemon's own problem is handed on unchanged.
    pub(crate) fn problem(&self) -> Problem {
        let code = match self {
            Self::Client(ClientError::Problem(problem)) => return (**problem).clone(),
            Self::Client(ClientError::Unreachable { .. }) if self.is_permission() => ErrorCode::Forbidden,
            Self::Client(ClientError::Unreachable { .. } | ClientError::TimedOut { .. }) => {
                ErrorCode::DaemonUnreachable
            }
            Self::Client(
                ClientError::Protocol(_) | ClientError::File { .. } | ClientError::Mismatch { .. },
            )
            | Self::File { .. }
            | Self::Program { .. }
            | Self::Output(_)
            | Self::Runtime(_) => ErrorCode::Internal,
            Self::Git(_) => ErrorCode::RepositoryUnavailable,
            Self::Secrets(_) => ErrorCode::SecretsUnavailable,
            Self::Config(_) | Self::Usage { .. } => ErrorCode::InvalidValue,
            Self::Refused { .. } => ErrorCode::StateConflict,
            Self::NotFound { .. } => ErrorCode::NotFound,
            Self::Interrupted => ErrorCode::Cancelled,
        };
        let mut problem = Problem::new(code, self.sentence());
        problem.hint = self.hint();
        if let Self::Config(ConfigError::Invalid(faults)) = self {
            problem.errors = faults
                .iter()
                .map(|fault| FieldError {
                    pointer: String::new(),
                    detail: fault.to_string(),
                })
                .collect();
        }
        problem
    }
}
