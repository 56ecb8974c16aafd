//! What a profile may see: the names it writes, and nothing else of a bundle.

use std::collections::BTreeMap;

use agentlab_api::SecretName;
use agentlab_protocol::message::{GitCredentials, TailnetLogin};
use agentlab_protocol::secret::SecretText;

use crate::{Bundle, SecretsError};

/// User name that the large forges take together with a token.
const TOKEN_USER: &str = "x-access-token";
/// What a machine is called in a tailnet, unless the bundle says it.
const HOSTNAME: &str = "{name}";

/// What one sandbox is given.
#[derive(Debug, Default)]
pub struct Scoped {
    /// For git.
    pub git: Option<GitCredentials>,
    /// Environment of the agent.
    pub environment: BTreeMap<String, SecretText>,
    /// Settings of Claude Code, JSON.
    pub claude_settings: Option<SecretText>,
    /// Public keys that may log in.
    pub authorized_keys: Vec<String>,
    /// For Tailscale.
    pub tailnet: Option<TailnetLogin>,
    /// What was given, one name each: for the record.
    pub names: Vec<String>,
}

impl Bundle {
    /// Takes these out.
    ///
    /// # Errors
    /// The bundle lacks one of them: a job that misses a credential in an hour's time is worse than none.
    pub fn scoped(&self, names: &[SecretName], label: &str) -> Result<Scoped, SecretsError> {
        let mut scoped = Scoped::default();
        let mut missing = Vec::new();
        for name in names {
            if !self.give(name, &mut scoped) {
                missing.push(name.to_string());
            }
        }
        if !missing.is_empty() {
            return Err(SecretsError::Missing {
                label: label.to_owned(),
                names: missing,
            });
        }
        scoped.names.sort();
        scoped.names.dedup();
        scoped.authorized_keys.sort();
        scoped.authorized_keys.dedup();
        Ok(scoped)
    }

    /// Adds what one name stands for; false when there is nothing.
    fn give(&self, name: &SecretName, scoped: &mut Scoped) -> bool {
        match name {
            SecretName::Environment(Some(name)) => {
                let value = self.env.get(name);
                if let Some(value) = value {
                    scoped.environment.insert(name.clone(), value.clone());
                    scoped.names.push(format!("env.{name}"));
                }
                value.is_some()
            }
            SecretName::Environment(None) => {
                for (name, value) in &self.env {
                    scoped.environment.insert(name.clone(), value.clone());
                    scoped.names.push(format!("env.{name}"));
                }
                !self.env.is_empty()
            }
            SecretName::Git => {
                let (token, key) = (self.give_token(scoped), self.give_ssh_key(scoped));
                token || key
            }
            SecretName::GitToken => self.give_token(scoped),
            SecretName::GitSshKey => self.give_ssh_key(scoped),
            SecretName::Claude => {
                if self.claude.is_some() {
                    scoped.claude_settings.clone_from(&self.claude);
                    scoped.names.push("claude".to_owned());
                }
                self.claude.is_some()
            }
            SecretName::SshKeys(wanted) => {
                let mut given = false;
                for (name, key) in &self.ssh_keys {
                    if wanted.as_ref().is_none_or(|wanted| wanted == name) {
                        given = true;
                        scoped.authorized_keys.push(key.line.clone());
                        scoped.names.push(format!("ssh.keys.{name}"));
                    }
                }
                given
            }
            SecretName::Tailscale => self.give_tailnet(scoped),
        }
    }

    fn give_tailnet(&self, scoped: &mut Scoped) -> bool {
        let Some(authkey) = &self.tailscale.authkey else {
            return false;
        };
        let hostname = self.tailscale.hostname_template.as_ref();
        scoped.tailnet = Some(TailnetLogin {
            authkey: authkey.clone(),
            hostname: hostname.map_or(HOSTNAME, SecretText::expose).to_owned(),
            tags: self.tailscale.tags.clone(),
            extra_args: self.tailscale.extra_args.clone(),
        });
        scoped.names.push("tailscale.authkey".to_owned());
        true
    }

    fn give_token(&self, scoped: &mut Scoped) -> bool {
        if let Some(token) = &self.git.token {
            let git = credentials(scoped);
            git.token = Some(token.clone());
            if let Some(username) = &self.git.username {
                username.expose().clone_into(&mut git.username);
            }
            scoped.names.push("git.token".to_owned());
        }
        self.git.token.is_some()
    }

    fn give_ssh_key(&self, scoped: &mut Scoped) -> bool {
        if let Some(key) = &self.git.ssh_private_key {
            let hosts = self
                .git
                .known_hosts
                .as_ref()
                .map(|hosts| hosts.expose().to_owned());
            let git = credentials(scoped);
            git.ssh_private_key = Some(key.clone());
            git.known_hosts = hosts;
            scoped.names.push("git.ssh_private_key".to_owned());
        }
        self.git.ssh_private_key.is_some()
    }
}

fn credentials(scoped: &mut Scoped) -> &mut GitCredentials {
    scoped.git.get_or_insert_with(|| GitCredentials {
        username: TOKEN_USER.to_owned(),
        token: None,
        ssh_private_key: None,
        known_hosts: None,
    })
}
