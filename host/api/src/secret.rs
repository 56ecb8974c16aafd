//! Names of secrets, as a profile writes those that its sandboxes may see. Never a value.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// One secret of a bundle, or all of a kind.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum SecretName {
    /// `env` or `env.NAME`: environment of the agent.
    Environment(Option<String>),
    /// `git`: token, user name, SSH key and known hosts.
    Git,
    /// `git.token`, with its user name.
    GitToken,
    /// `git.ssh_private_key`, with its known hosts.
    GitSshKey,
    /// `claude`: settings of Claude Code.
    Claude,
    /// `ssh.keys` or `ssh.keys.NAME`: public keys that may log in.
    SshKeys(Option<String>),
    /// `tailscale`: the machine joins the operator's tailnet.
    Tailscale,
}

/// Why a name is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SecretNameError {
    /// No such key in a bundle.
    #[error(
        "`{0}` names no secret: expected env, env.NAME, git, git.token, git.ssh_private_key, claude, ssh.keys, ssh.keys.NAME or tailscale"
    )]
    Unknown(String),
    /// A key that bundles have and sandboxes do not get.
    #[error("`{0}` is kept in bundles and not given to sandboxes by this build")]
    Kept(String),
}

/// Whether a shell can export it.
#[must_use]
pub fn is_environment_name(name: &str) -> bool {
    name.len() <= 256
        && !name.starts_with(|first: char| first.is_ascii_digit())
        && !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// First word of a line of `authorized_keys` without options: the types of keys that OpenSSH writes.
pub const SSH_KEY_TYPES: &[&str] = &[
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
];

/// Whether a key may be called so.
#[must_use]
pub fn is_ssh_key_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_-.@".contains(&byte))
}

impl FromStr for SecretName {
    type Err = SecretNameError;

    fn from_str(text: &str) -> Result<Self, SecretNameError> {
        let shown = || text.escape_debug().take(80).collect();
        Ok(match text {
            "env" => Self::Environment(None),
            "git" => Self::Git,
            "git.token" => Self::GitToken,
            "git.ssh_private_key" => Self::GitSshKey,
            "claude" | "claude.settings" => Self::Claude,
            "ssh.keys" => Self::SshKeys(None),
            "tailscale" | "tailscale.authkey" => Self::Tailscale,
            _ if text == "artifact" => return Err(SecretNameError::Kept(shown())),
            _ if text.starts_with("tailscale.") || text.starts_with("artifact.") => {
                return Err(SecretNameError::Kept(shown()));
            }
            _ => {
                if let Some(name) = text.strip_prefix("env.").filter(|name| is_environment_name(name)) {
                    Self::Environment(Some(name.to_owned()))
                } else if let Some(name) = text
                    .strip_prefix("ssh.keys.")
                    .filter(|name| is_ssh_key_name(name))
                {
                    Self::SshKeys(Some(name.to_owned()))
                } else {
                    return Err(SecretNameError::Unknown(shown()));
                }
            }
        })
    }
}

impl fmt::Display for SecretName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Environment(Some(name)) => write!(f, "env.{name}"),
            Self::SshKeys(Some(name)) => write!(f, "ssh.keys.{name}"),
            Self::Environment(None) => f.pad("env"),
            Self::Git => f.pad("git"),
            Self::GitToken => f.pad("git.token"),
            Self::GitSshKey => f.pad("git.ssh_private_key"),
            Self::Claude => f.pad("claude"),
            Self::SshKeys(None) => f.pad("ssh.keys"),
            Self::Tailscale => f.pad("tailscale"),
        }
    }
}

impl TryFrom<String> for SecretName {
    type Error = SecretNameError;

    fn try_from(text: String) -> Result<Self, SecretNameError> {
        text.parse()
    }
}

impl From<SecretName> for String {
    fn from(name: SecretName) -> Self {
        name.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_written_as_it_was_read_and_nothing_else_is_a_name() {
        for text in [
            "env",
            "env.A_1",
            "git",
            "git.token",
            "git.ssh_private_key",
            "claude",
            "ssh.keys",
            "ssh.keys.me@home",
            "tailscale",
        ] {
            assert_eq!(text.parse::<SecretName>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "env.",
            "env.1A",
            "env.A-B",
            "env.*",
            "*",
            "all",
            "git.tokn",
            "ssh.keys.",
            "ENV",
            "env.A B",
        ] {
            assert!(
                matches!(text.parse::<SecretName>(), Err(SecretNameError::Unknown(_))),
                "{text}"
            );
        }
        assert!(matches!(
            "tailscale.admin_api_key".parse::<SecretName>(),
            Err(SecretNameError::Kept(_))
        ));
    }
}
