//! Secrets on the host: what a bundle holds, how it lies on the disk, and what a profile may see of it.
//!
//! ```text
//!   /etc/agentlab/keys/age.key            identities, the first one is written to
//!        │
//!        ▼ age (X25519)                   sops: the data key by age, values by AES-256-GCM, all of it under a MAC
//!   /etc/agentlab/secrets/default.age     ci.sops.yaml
//!        │
//!        ▼ Vault::open                    decrypted when it is asked for, never kept
//!   Bundle ── scoped(profile's names) ──► Scoped: environment, git, settings, public keys
//! ```
//!
//! Nothing is cached: a bundle that was changed is seen by the next reader, and between two readers no plaintext lies
//! in memory. A write replaces a file whole or not at all, and what is about to be written is decrypted again first.
//! No error, no listing and no `Debug` here holds a value.

mod audit;
mod bundle;
mod change;
mod emit;
mod error;
mod file;
mod identity;
mod read;
mod rotate;
mod scope;
mod seal;
mod sops;
mod tree;
mod vault;

pub use bundle::{Bundle, Git, Listed, SshKey, Tailscale};
pub use error::{Fault, SecretsError};
pub use identity::{Identities, Recipient};
pub use rotate::{Left, Rotated};
pub use scope::Scoped;
pub use tree::Place;
pub use vault::{Edit, Form, Opened, Vault};

/// Reads a bundle's text as a fuzz target does: whether it is refused or not, nothing may panic.
///
/// # Errors
/// It is no bundle.
pub fn parse_bundle(text: &[u8], label: &str) -> Result<Bundle, SecretsError> {
    Bundle::parse(text, label)
}

#[cfg(test)]
mod tests;
