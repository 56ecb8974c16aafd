//! Changes of a bundle, each checked as a reader would, so that nothing is written that cannot be read.

use agentlab_api::{is_environment_name, is_ssh_key_name};
use agentlab_protocol::secret::SecretText;

use crate::bundle::{self, Git, Tailscale};
use crate::{Bundle, SecretsError};

fn value(what: impl Into<String>, reason: &'static str) -> SecretsError {
    SecretsError::Value {
        what: what.into(),
        reason,
    }
}

/// One line, without the line end of the file it came from.
fn line(what: &str, text: &SecretText) -> Result<SecretText, SecretsError> {
    let trimmed = text.expose().trim();
    if trimmed.is_empty() {
        return Err(value(what, "is empty"));
    }
    if trimmed.chars().any(char::is_control) {
        return Err(value(what, "holds a line end or another control character"));
    }
    Ok(SecretText::new(trimmed.to_owned()))
}

impl Bundle {
    /// Sets a variable of the agents' environment. A line end at the end of the value is a file's, and left out.
    ///
    /// # Errors
    /// A shell could not export it.
    pub fn set_env(&mut self, name: &str, text: &SecretText) -> Result<String, SecretsError> {
        let shown = format!("env.{}", name.escape_debug().take(80).collect::<String>());
        if !is_environment_name(name) {
            return Err(value(
                shown,
                "is no name that a shell can export: letters, digits and underscores only",
            ));
        }
        let text = text.expose();
        let text = text
            .strip_suffix('\n')
            .map_or(text, |text| text.strip_suffix('\r').unwrap_or(text));
        if text.is_empty() {
            return Err(value(shown, "would be empty"));
        }
        if text.contains('\0') {
            return Err(value(shown, "holds a NUL character"));
        }
        self.env.insert(name.to_owned(), SecretText::new(text.to_owned()));
        Ok(shown)
    }

    /// Sets what is given of git's, and leaves the rest as it is.
    ///
    /// # Errors
    /// git or ssh could not use it.
    pub fn set_git(&mut self, given: &Git) -> Result<Vec<String>, SecretsError> {
        let mut names = Vec::new();
        if let Some(username) = &given.username {
            self.git.username = Some(line("git.username", username)?);
            names.push("git.username".to_owned());
        }
        if let Some(token) = &given.token {
            self.git.token = Some(line("git.token", token)?);
            names.push("git.token".to_owned());
        }
        if let Some(key) = &given.ssh_private_key {
            bundle::private_key(key).map_err(|reason| value("git.ssh_private_key", reason))?;
            self.git.ssh_private_key = Some(key.clone());
            names.push("git.ssh_private_key".to_owned());
        }
        if let Some(hosts) = &given.known_hosts {
            if hosts.expose().trim().is_empty() {
                return Err(value("git.known_hosts", "is empty"));
            }
            self.git.known_hosts = Some(hosts.clone());
            names.push("git.known_hosts".to_owned());
        }
        if self.git.ssh_private_key.is_some() && self.git.known_hosts.is_none() {
            let reason = "is missing: without it, a sandbox would show the key to whoever answers first";
            return Err(value("git.known_hosts", reason));
        }
        Ok(names)
    }

    /// Sets the settings of Claude Code.
    ///
    /// # Errors
    /// They are no JSON object.
    pub fn set_claude(&mut self, text: &SecretText) -> Result<String, SecretsError> {
        let settings = bundle::settings(text).map_err(|reason| value("claude.settings", reason))?;
        self.claude = Some(settings);
        Ok("claude".to_owned())
    }

    /// Adds a public key, or replaces the one of that name.
    ///
    /// # Errors
    /// It is no public key.
    pub fn add_ssh_key(&mut self, name: &str, text: &str) -> Result<String, SecretsError> {
        let shown = format!("ssh.keys.{}", name.escape_debug().take(80).collect::<String>());
        if !is_ssh_key_name(name) {
            return Err(value(shown, "is no name: letters, digits and `_-.@`"));
        }
        let text = text.trim();
        if text.chars().any(char::is_control) && !text.contains("PRIVATE KEY") {
            return Err(value(shown, "is more than one line"));
        }
        let key = bundle::public_key(["", text, ""]).map_err(|reason| value(shown.clone(), reason))?;
        self.ssh_keys.insert(name.to_owned(), key);
        Ok(shown)
    }

    /// Takes away what has this name, as in [`Bundle::listing`]; a name of several takes all of them.
    ///
    /// # Errors
    /// There is no such thing.
    pub fn remove(&mut self, name: &str) -> Result<Vec<String>, SecretsError> {
        let before: Vec<String> = self.names();
        match name {
            "env" => self.env.clear(),
            "git" => self.git = Git::default(),
            "git.token" => (self.git.token, self.git.username) = (None, None),
            "git.ssh_private_key" => {
                (
                    self.git.ssh_private_key,
                    self.git.ssh_public_key,
                    self.git.known_hosts,
                ) = (None, None, None);
            }
            "claude" => self.claude = None,
            "ssh.keys" => self.ssh_keys.clear(),
            "tailscale" => self.tailscale = Tailscale::default(),
            "artifact" => self.artifact = (None, None),
            _ => {
                if let Some(name) = name.strip_prefix("env.") {
                    self.env.remove(name);
                } else if let Some(name) = name.strip_prefix("ssh.keys.") {
                    self.ssh_keys.remove(name);
                }
            }
        }
        let after = self.names();
        let gone: Vec<String> = before.into_iter().filter(|name| !after.contains(name)).collect();
        if gone.is_empty() {
            let shown: String = name.escape_debug().take(80).collect();
            return Err(value(shown, "is not in the bundle"));
        }
        Ok(gone)
    }

    fn names(&self) -> Vec<String> {
        let keys = self.ssh_keys.keys().map(|name| format!("ssh.keys.{name}"));
        let lists = [
            ("tailscale.tags", &self.tailscale.tags),
            ("tailscale.extra_args", &self.tailscale.extra_args),
        ];
        let lists = lists
            .into_iter()
            .filter(|(_, list)| !list.is_empty())
            .map(|(name, _)| name.to_owned());
        self.values()
            .into_iter()
            .map(|(name, ..)| name)
            .chain(keys)
            .chain(lists)
            .collect()
    }

    /// Sets what is given of Tailscale's, and leaves the rest as it is.
    ///
    /// # Errors
    /// It is no single line.
    pub fn set_tailscale(&mut self, given: &Tailscale) -> Result<Vec<String>, SecretsError> {
        let mut names = Vec::new();
        let own = &mut self.tailscale;
        let fields = [
            ("tailscale.authkey", &given.authkey, &mut own.authkey),
            (
                "tailscale.admin_api_key",
                &given.admin_api_key,
                &mut own.admin_api_key,
            ),
            ("tailscale.tailnet", &given.tailnet, &mut own.tailnet),
            (
                "tailscale.hostname_template",
                &given.hostname_template,
                &mut own.hostname_template,
            ),
        ];
        for (name, given, own) in fields {
            if let Some(text) = given {
                *own = Some(line(name, text)?);
                names.push(name.to_owned());
            }
        }
        let lists = [
            ("tailscale.tags", &given.tags, &mut own.tags),
            ("tailscale.extra_args", &given.extra_args, &mut own.extra_args),
        ];
        for (name, given, own) in lists {
            if given
                .iter()
                .any(|item| item.trim().is_empty() || item.chars().any(char::is_control))
            {
                return Err(value(
                    name,
                    "has an item that is empty or holds a control character",
                ));
            }
            if !given.is_empty() {
                own.clone_from(given);
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }
}
