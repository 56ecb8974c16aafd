//! Bundles of secrets as the engine asks for them: files, read and decrypted each time on a thread of their own.
//!
//! The age key may be given by systemd instead of lying where the configuration says: `LoadCredential=age.key:PATH`, or
//! `LoadCredentialEncrypted=`, of which only this service sees the contents.

use std::path::{Path, PathBuf};

use agentlab_api::Profile;
use agentlab_config::Config;
use agentlab_engine::{Delivery, Secrets, SecretsUnavailable};
use agentlab_secrets::{SecretsError, Vault};
use async_trait::async_trait;

/// This host's.
#[derive(Debug)]
pub(crate) struct Bundles {
    vault: Vault,
    /// Of profiles that name none.
    default: String,
}

impl Bundles {
    /// `credentials` is the directory that systemd names in `CREDENTIALS_DIRECTORY`.
    pub(crate) fn of(config: &Config, credentials: Option<&Path>) -> Self {
        Self {
            vault: Vault::new(&config.secrets_dir, &key_path(config, credentials)),
            default: config.secrets_bundle.clone(),
        }
    }
}

/// What the key is called among the credentials.
const CREDENTIAL: &str = "age.key";

/// The credential, where there is one, stands above the configured file: whoever set it up meant it.
fn key_path(config: &Config, credentials: Option<&Path>) -> PathBuf {
    credentials
        .map(|directory| directory.join(CREDENTIAL))
        .filter(|path| path.exists())
        .unwrap_or_else(|| config.secrets_age_key_path.clone())
}

#[async_trait]
impl Secrets for Bundles {
    async fn reveal(&self, profile: &Profile) -> Result<Delivery, SecretsUnavailable> {
        let name = profile.secrets_bundle.as_ref().unwrap_or(&self.default).clone();
        let (vault, names) = (self.vault.clone(), profile.secrets.clone());
        let read = tokio::task::spawn_blocking(move || {
            let opened = vault.open(&name)?;
            let scoped = opened.bundle.scoped(&names, &opened.path.display().to_string())?;
            Ok(Delivery {
                git: scoped.git,
                environment: scoped.environment,
                claude_settings: scoped.claude_settings,
                authorized_keys: scoped.authorized_keys,
                tailnet: scoped.tailnet,
                names: scoped.names,
                bundle: name,
                fingerprint: opened.fingerprint,
            })
        });
        let refused = |error: SecretsError| SecretsUnavailable {
            hint: error.hint(),
            reason: error.to_string(),
        };
        let panicked = |_| SecretsUnavailable {
            reason: "Reading the secrets failed in a way that is a defect of ours".to_owned(),
            hint: None,
        };
        read.await.map_err(panicked)?.map_err(refused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_of_systemd_stands_above_the_configured_key() {
        let dir = tempfile::tempdir().unwrap();
        let config = agentlab_config::parse_config("secrets_age_key_path: /else/where\n", "c.yaml")
            .unwrap()
            .value;
        let configured = PathBuf::from("/else/where");
        assert_eq!(key_path(&config, None), configured);
        assert_eq!(key_path(&config, Some(dir.path())), configured, "there is none");
        std::fs::write(dir.path().join("age.key"), "").unwrap();
        assert_eq!(key_path(&config, Some(dir.path())), dir.path().join("age.key"));
    }
}
