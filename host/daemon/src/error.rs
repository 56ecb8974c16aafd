//! Why the daemon does not start.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Failure before the daemon serves. Nothing is running then.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Two daemons on one socket or one directory.
    #[error("Another agentlabd (pid {pid}) holds {}; stop it first, or give this one a socket_path and data_dir of its own", .guarded.display())]
    AnotherDaemon {
        /// What it holds.
        guarded: PathBuf,
        /// Who it is.
        pid: String,
    },
    /// Two daemons on one set of sandboxes.
    #[error("The records name sandboxes of another machine ({living}), where they may run, and this daemon would end them; if \
             that machine is gone for good, or this one has got another machine-id, remove {} and start again", .path.display())]
    AnotherMachine {
        /// How many.
        living: usize,
        /// What says whose they are.
        path: PathBuf,
    },
    /// Something else is where the socket belongs.
    #[error("{} is {reason}; remove it, or set socket_path to another place", .path.display())]
    SocketTaken {
        /// Where.
        path: PathBuf,
        /// What is there.
        reason: &'static str,
    },
    /// A file or directory.
    #[error("{action} {} failed", .path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A key file is not what it must be. It is never overwritten: sessions and pins of running sandboxes hang on it.
    #[error("Key file {} {reason}", .path.display())]
    Key {
        /// Which.
        path: PathBuf,
        /// What is the matter, and what to do.
        reason: String,
    },
    /// A guest listener.
    #[error("Guests cannot be served on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The handler of a signal.
    #[error("Signals cannot be handled")]
    Signals(#[source] std::io::Error),
    /// Profiles.
    #[error("The profiles cannot be used")]
    Profiles(#[source] agentlab_config::ConfigError),
    /// The operator's SSH key.
    #[error("The SSH key for sandboxes cannot be used")]
    Login(#[source] agentlab_config::ConfigError),
    /// The packet policy.
    #[error("The packet policy cannot be enforced, and without it no sandbox may run: {0}")]
    Network(String),
    /// The hypervisor.
    #[error("The {kind} back end cannot be used")]
    Backend {
        /// Which.
        kind: &'static str,
        /// Why.
        #[source]
        source: agentlab_backend::BackendError,
    },
    /// What the configuration says of a Proxmox VE.
    #[error("`{key}` cannot be used: {reason}")]
    Proxmox {
        /// Of which key.
        key: &'static str,
        /// Why. Never holds the token.
        reason: String,
    },
    /// Records and files.
    #[error("The store cannot be opened")]
    Store(#[from] agentlab_store::StoreError),
    /// The engine.
    #[error("The engine cannot start")]
    Engine(#[from] agentlab_engine::StartError),
}

impl StartError {
    /// What to do next, where that stands neither in the message nor in that of its cause.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::File { path, source, .. } => file_hint(path, source.kind()),
            Self::Listen { address, source } => listen_hint(*address, source.kind()),
            Self::Profiles(error) | Self::Login(error) => error.hint(),
            Self::AnotherDaemon { .. }
            | Self::AnotherMachine { .. }
            | Self::SocketTaken { .. }
            | Self::Key { .. }
            | Self::Signals(_)
            | Self::Network(_)
            | Self::Backend { .. }
            | Self::Proxmox { .. }
            | Self::Store(_)
            | Self::Engine(_) => None,
        }
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the system's other refusals say themselves what is the matter"
)]
fn file_hint(path: &Path, kind: ErrorKind) -> Option<String> {
    let path = path.display();
    match kind {
        ErrorKind::PermissionDenied => Some(format!(
            "start agentlabd as root or as the owner of {path}, or set data_dir and run_dir to directories of its own"
        )),
        ErrorKind::ReadOnlyFilesystem => Some(format!(
            "mount what {path} lies on for writing, or set data_dir and run_dir to another place"
        )),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Some(format!(
            "free space where {path} lies, or set data_dir to another place"
        )),
        ErrorKind::AlreadyExists | ErrorKind::NotADirectory => Some(format!(
            "{path} must be a directory: move what is there away, or set data_dir and run_dir to another place"
        )),
        _ => None,
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the system's other refusals say themselves what is the matter"
)]
fn listen_hint(address: SocketAddr, kind: ErrorKind) -> Option<String> {
    match kind {
        ErrorKind::AddrInUse => Some(format!(
            "`ss -ltnp 'sport = :{}'` shows who listens there; stop that, or set bootstrap_listen or artifact_listen \
             to another port",
            address.port()
        )),
        ErrorKind::AddrNotAvailable => Some(format!(
            "bootstrap_listen and artifact_listen must be on this host: set them to the address of bridge_address, or \
             give {} to an interface",
            address.ip()
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Error;

    use super::*;

    #[test]
    fn what_the_system_refuses_comes_with_the_key_that_names_another_place() {
        let file = |kind| StartError::File {
            action: "Making",
            path: PathBuf::from("/data"),
            source: Error::from(kind),
        };
        for kind in [
            ErrorKind::PermissionDenied,
            ErrorKind::ReadOnlyFilesystem,
            ErrorKind::StorageFull,
            ErrorKind::AlreadyExists,
        ] {
            let hint = file(kind).hint().unwrap();
            assert!(hint.contains("/data") && hint.contains("data_dir"), "{hint}");
        }
        assert_eq!(file(ErrorKind::TimedOut).hint(), None);
        let taken = StartError::Listen {
            address: "10.77.0.1:8844".parse().unwrap(),
            source: Error::from(ErrorKind::AddrInUse),
        };
        let hint = taken.hint().unwrap();
        assert!(
            hint.contains(":8844") && hint.contains("bootstrap_listen"),
            "{hint}"
        );
    }
}
