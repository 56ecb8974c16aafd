//! Verbs of `agentlab secrets` that take values, and where they take them from: files, standard input or a prompt.

use std::path::{Path, PathBuf};

use agentlab_protocol::secret::SecretText;
use agentlab_secrets::{Git, Tailscale};
use clap::Args;

use crate::error::CommandError;
use crate::secret_input::{self, Source};
use crate::terminal::escape;

/// `secrets set-env`.
#[derive(Debug, Args)]
pub(super) struct SetEnv {
    /// Name of the variable
    #[arg(long, required_unless_present = "from_file", conflicts_with = "from_file")]
    name: Option<String>,
    /// File with its value, one line end at its end not counted; `-` is standard input
    #[arg(long, value_name = "FILE", conflicts_with = "from_file")]
    value_file: Option<PathBuf>,
    /// File of NAME=VALUE lines, as they stand; `-` is standard input
    #[arg(long, value_name = "FILE")]
    from_file: Option<PathBuf>,
    #[arg(long, hide = true)]
    value: Option<String>,
}

/// `secrets set-git`.
#[derive(Debug, Args)]
pub(super) struct SetGit {
    /// User name that goes with the token
    #[arg(long, value_name = "NAME")]
    username: Option<String>,
    /// File with the token; `-` is standard input
    #[arg(long, value_name = "FILE", alias = "git-token-file")]
    token_file: Option<PathBuf>,
    /// File with an OpenSSH private key without passphrase
    #[arg(long, value_name = "FILE")]
    ssh_key_file: Option<PathBuf>,
    /// Hosts that key may be shown to, as `ssh-keyscan` prints them
    #[arg(long, value_name = "FILE")]
    known_hosts_file: Option<PathBuf>,
    #[arg(long, hide = true)]
    git_token: Option<String>,
}

/// `secrets add-ssh-key`.
#[derive(Debug, Args)]
pub(super) struct AddSshKey {
    /// Name to know it by
    #[arg(long)]
    pub(super) name: String,
    /// Its .pub file; `-` is standard input
    #[arg(long, value_name = "FILE")]
    key_file: PathBuf,
}

/// `secrets set-tailscale`.
#[derive(Debug, Args)]
pub(super) struct SetTailscale {
    /// File with an auth key; `-` is standard input
    #[arg(long, value_name = "FILE")]
    authkey_file: Option<PathBuf>,
    /// File with a key of the admin API; `-` is standard input
    #[arg(long, value_name = "FILE")]
    admin_api_key_file: Option<PathBuf>,
    /// Which tailnet
    #[arg(long)]
    tailnet: Option<String>,
    /// Name of a node
    #[arg(long, value_name = "TEMPLATE")]
    hostname_template: Option<String>,
    /// Tag of a node; may be repeated
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// More for `tailscale up`; may be repeated
    #[arg(long = "extra-arg", value_name = "ARG", allow_hyphen_values = true)]
    extra_args: Vec<String>,
    #[arg(long, hide = true)]
    authkey: Option<String>,
    #[arg(long, hide = true)]
    admin_api_key: Option<String>,
}

impl SetEnv {
    /// Names and values, in the order they were given.
    pub(super) fn pairs(&self) -> Result<Vec<(String, SecretText)>, CommandError> {
        not_in_arguments(&[("--value", "--value-file", self.value.as_ref())])?;
        if let Some(path) = &self.from_file {
            let text = secret_input::read(&Source::of(Some(path)), "the file of variables")?;
            return secret_input::pairs(&text);
        }
        let name = self.name.clone().unwrap_or_default();
        let source = Source::of(self.value_file.as_deref());
        let value = secret_input::read(&source, &format!("value of {}", escape(&name)))?;
        Ok(vec![(name, value)])
    }
}

impl SetGit {
    pub(super) fn read(&self) -> Result<Git, CommandError> {
        not_in_arguments(&[("--git-token", "--token-file", self.git_token.as_ref())])?;
        let nothing =
            self.username.is_none() && self.ssh_key_file.is_none() && self.known_hosts_file.is_none();
        let token = if self.token_file.is_some() || nothing {
            Some(secret_input::read(
                &Source::of(self.token_file.as_deref()),
                "git token",
            )?)
        } else {
            None
        };
        Ok(Git {
            username: self.username.clone().map(SecretText::new),
            token,
            ssh_private_key: file(self.ssh_key_file.as_deref(), "the private key")?,
            known_hosts: file(self.known_hosts_file.as_deref(), "the known hosts")?,
            ..Git::default()
        })
    }
}

impl AddSshKey {
    pub(super) fn key(&self) -> Result<SecretText, CommandError> {
        secret_input::read(&Source::of(Some(&self.key_file)), "the public key")
    }
}

impl SetTailscale {
    pub(super) fn read(&self) -> Result<Tailscale, CommandError> {
        not_in_arguments(&[
            ("--authkey", "--authkey-file", self.authkey.as_ref()),
            (
                "--admin-api-key",
                "--admin-api-key-file",
                self.admin_api_key.as_ref(),
            ),
        ])?;
        Ok(Tailscale {
            authkey: file(self.authkey_file.as_deref(), "the auth key")?,
            admin_api_key: file(self.admin_api_key_file.as_deref(), "the key of the admin API")?,
            tailnet: self.tailnet.clone().map(SecretText::new),
            hostname_template: self.hostname_template.clone().map(SecretText::new),
            tags: self.tags.clone(),
            extra_args: self.extra_args.clone(),
        })
    }
}

fn file(path: Option<&Path>, what: &str) -> Result<Option<SecretText>, CommandError> {
    path.map(|path| secret_input::read(&Source::of(Some(path)), what))
        .transpose()
}

/// People have such lines from elsewhere; the value has been seen by then, which is what they are told.
fn not_in_arguments(given: &[(&str, &str, Option<&String>)]) -> Result<(), CommandError> {
    match given.iter().find(|(_, _, value)| value.is_some()) {
        None => Ok(()),
        Some((flag, instead, _)) => Err(CommandError::usage(format!(
            "{flag} takes no value: what is on a command line, every user of this host can read"
        ))
        .with_hint(format!(
            "use {instead} FILE, {instead} - for standard input, or a prompt; and replace the value, your shell keeps it"
        ))),
    }
}
