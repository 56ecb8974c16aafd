//! Why the daemon does not start.

use std::net::SocketAddr;
use std::path::PathBuf;

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
