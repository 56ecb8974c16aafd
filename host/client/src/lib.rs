//! Typed calls to agentlabd over its Unix socket.
//!
//! ```text
//!   Client ── job.rs, sandbox.rs, profile.rs, status.rs, artifact.rs, bundle.rs ──► one HTTP/1.1 connection a call
//!          └─ event.rs, log.rs ──► stream.rs ──► sse.rs (pure)    resumes by Last-Event-ID when a connection is lost
//! ```
//!
//! A connection serves one call and dies with it: a Unix socket costs nothing to open, and dropping a call's future
//! or stream is then all it takes to end it.

mod artifact;
mod bundle;
mod command;
mod connection;
mod error;
mod event;
mod job;
mod log;
mod path;
mod profile;
mod sandbox;
mod sse;
mod status;
mod stream;
mod workspace;

use std::path::{Path, PathBuf};

pub use agentlab_protocol::command::Frame as CommandFrame;
pub use bundle::digest;
pub use command::{Command, CommandInput, CommandOutput};
pub use error::ClientError;
pub use log::LogPage;
pub use sandbox::SandboxChange;
pub use sse::{Frame, Parser, SseError};
pub use stream::Stream;

/// Where a daemon is. Cheap to clone; holds no connection.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// A daemon behind a Unix socket. Nothing is opened before the first call.
    #[must_use]
    pub fn unix(path: impl Into<PathBuf>) -> Self {
        Self { socket: path.into() }
    }

    /// The socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
