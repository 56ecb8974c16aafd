//! `config.yaml` and the profiles: strict readers.
//!
//! A key that does nothing is worse than an error, so every key is enforced or refused, and whatever is wrong is
//! named with file, line, column and, for a misspelt key, the nearest one that exists.
//!
//! ```text
//!   text ──► yaml.rs: tree with places ──► refused.rs: host mounts, keys this build does not enforce
//!                │                              │
//!                └──► typed value ──────────────┴──► config.rs / profile.rs: ranges, defaults, contradictions
//! ```

mod check;
mod config;
mod error;
mod file;
mod idle;
#[cfg(test)]
mod keys;
mod login;
mod network;
mod profile;
mod proxmox;
mod raw;
mod refused;
mod reload;
mod resources;
mod span;
mod yaml;

pub use config::{
    Accelerator, BackendKind, BridgeAddress, Config, DnsConfig, LogLevel, QemuConfig, load_config,
    parse_config,
};
pub use error::{ConfigError, Fault};
pub use idle::{IdleStop, Share};
pub use profile::{LoadedProfile, load_profile_files, load_profiles, parse_profiles};
pub use proxmox::{CloneMode, ProxmoxConfig, SnippetPlace, TlsTrust, TokenSource};

/// A value that was read, and what an operator should know about how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded<T> {
    /// The value, defaults filled in.
    pub value: T,
    /// What is accepted and should still be changed; one sentence each.
    pub warnings: Vec<String>,
}
