//! Bundles of secrets as the engine asks for them: files, read and decrypted each time on a thread of their own.

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
    pub(crate) fn of(config: &Config) -> Self {
        Self {
            vault: Vault::new(&config.secrets_dir, &config.secrets_age_key_path),
            default: config.secrets_bundle.clone(),
        }
    }
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
