//! The operator's SSH key, that every sandbox lets in.

use std::path::Path;

use agentlab_api::SSH_KEY_TYPES;

use crate::check::Check;
use crate::{Config, ConfigError, Fault, file};

/// Said of everything else. What stands there is not repeated: it may be the private half.
pub(crate) const NO_KEY: &str =
    "is not a public key in OpenSSH's form: one line such as `ssh-ed25519 AAAA… name`";

/// One line with a kind, its base64, and perhaps a name; no options, which would say what may be run.
pub(crate) fn is_public_key(text: &str) -> bool {
    let line = text.trim();
    let mut words = line.split(' ');
    let kind = words.next().is_some_and(|kind| SSH_KEY_TYPES.contains(&kind));
    let base64 = |c: char| c.is_ascii_alphanumeric() || "+/=".contains(c);
    let blob = words
        .next()
        .is_some_and(|blob| blob.starts_with("AAAA") && blob.chars().all(base64));
    kind && blob && !line.chars().any(char::is_control)
}

/// Names what cannot stand of the two keys of the configuration.
pub(crate) fn check(key: Option<&str>, path: Option<&Path>, check: &mut Check<'_>) {
    if key.is_some_and(|key| !is_public_key(key)) {
        check.fault(&["ssh_public_key"], NO_KEY);
    }
    let Some(path) = path else { return };
    if key.is_some() {
        check.fault(
            &["ssh_public_key_path"],
            "stands beside `ssh_public_key`: keep one of them",
        );
    } else if !path.is_absolute() {
        check.fault(&["ssh_public_key_path"], "must be an absolute path");
    }
}

impl Config {
    /// Keys that may log in to every sandbox as the agent: `ssh_public_key`, or what `ssh_public_key_path` holds.
    ///
    /// # Errors
    /// The file cannot be read, or holds no key.
    pub fn operator_keys(&self) -> Result<Vec<String>, ConfigError> {
        if let Some(key) = &self.ssh_public_key {
            return Ok(vec![key.trim().to_owned()]);
        }
        let Some(path) = &self.ssh_public_key_path else {
            return Ok(Vec::new());
        };
        let (text, _) = file::read(path, "SSH public key")?;
        let keys: Vec<String> = text
            .lines()
            .map(|line| line.trim().to_owned())
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .collect();
        if keys.is_empty() || !keys.iter().all(|key| is_public_key(key)) {
            let label = path.display().to_string();
            return Err(ConfigError::Invalid(vec![Fault::new(
                &label,
                Default::default(),
                NO_KEY,
            )]));
        }
        Ok(keys)
    }
}

#[cfg(test)]
mod tests {
    use crate::parse_config;

    #[test]
    fn a_key_is_taken_and_its_private_half_is_refused_and_never_echoed() {
        let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHx me@here";
        let config = |text: &str| parse_config(text, "c.yaml");
        let one = config(&format!("ssh_public_key: \"{key}\"\n")).unwrap().value;
        assert_eq!(one.operator_keys().unwrap(), [key]);
        assert!(config("").unwrap().value.operator_keys().unwrap().is_empty());
        for text in [
            "ssh_public_key: \"-----BEGIN OPENSSH PRIVATE KEY-----\"\n".to_owned(),
            format!("ssh_public_key: 'command=\"id\" {key}'\n"),
            format!("ssh_public_key: \"{key}\"\nssh_public_key_path: /x\n"),
            "ssh_public_key_path: id.pub\n".to_owned(),
        ] {
            let said = config(&text).unwrap_err().to_string();
            assert!(
                said.contains("ssh_public_key") && !said.contains("BEGIN"),
                "{said}"
            );
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("id.pub");
        let of_file = config(&format!("ssh_public_key_path: {}\n", path.display()))
            .unwrap()
            .value;
        assert!(of_file.operator_keys().is_err(), "there is no file");
        std::fs::write(&path, format!("# mine\n{key}\n")).unwrap();
        assert_eq!(of_file.operator_keys().unwrap(), [key]);
        std::fs::write(&path, "-----BEGIN OPENSSH PRIVATE KEY-----\n").unwrap();
        let said = of_file.operator_keys().unwrap_err().to_string();
        assert!(
            said.contains("not a public key") && !said.contains("BEGIN"),
            "{said}"
        );
    }
}
