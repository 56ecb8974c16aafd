//! What a guest is given of the host's secrets: what its profile names, read when it asks, and never kept here.

use std::collections::BTreeMap;
use std::time::Duration;

use agentlab_api::{ErrorCode, Problem, Profile};
use agentlab_protocol::message::{GitCredentials, TailnetLogin};
use agentlab_protocol::secret::SecretText;
use async_trait::async_trait;
use tokio::time::timeout;

use crate::engine::Engine;
use crate::shared::Shared;

/// How long files may take that are read in less than a millisecond.
const PATIENCE: Duration = Duration::from_secs(5);

/// What one sandbox is given.
#[derive(Debug, Default)]
pub struct Delivery {
    /// For git.
    pub git: Option<GitCredentials>,
    /// Environment of the agent.
    pub environment: BTreeMap<String, SecretText>,
    /// Settings of Claude Code, JSON.
    pub claude_settings: Option<SecretText>,
    /// Public keys that may log in.
    pub authorized_keys: Vec<String>,
    /// For Tailscale; in the name, `{vmid}` and `{name}` stand for the sandbox's.
    pub tailnet: Option<TailnetLogin>,
    /// What was given, by name: for the record.
    pub names: Vec<String>,
    /// The bundle it came from, with what identifies its contents.
    pub bundle: String,
    /// Changes with every change of the bundle.
    pub fingerprint: String,
}

/// Why there is nothing to give. Holds no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct SecretsUnavailable {
    /// Which file or name, and what is wrong.
    pub reason: String,
    /// What to do.
    pub hint: Option<String>,
}

/// Bundles of secrets.
#[async_trait]
pub trait Secrets: Send + Sync {
    /// What a profile names, all of it, as it is at this moment.
    ///
    /// # Errors
    /// A bundle cannot be read, or lacks a name.
    async fn reveal(&self, profile: &Profile) -> Result<Delivery, SecretsUnavailable>;
}

impl Shared {
    /// What a guest of this profile is given. A profile that names nothing gets nothing, and no file is looked at.
    pub(crate) async fn reveal(&self, profile: &Profile) -> Result<Delivery, SecretsUnavailable> {
        if profile.secrets.is_empty() {
            return Ok(Delivery::default());
        }
        let late = |_| SecretsUnavailable {
            reason: "The secrets could not be read in time".to_owned(),
            hint: None,
        };
        timeout(PATIENCE, self.secrets.reveal(profile))
            .await
            .map_err(late)?
    }
}

impl Engine {
    /// Asked before anything is made: a job that misses a credential in an hour's time is worse than none.
    pub(crate) async fn secrets_are_there(&self, profile: &Profile) -> Result<(), Problem> {
        let Err(error) = self.shared.reveal(profile).await else {
            return Ok(());
        };
        let text = format!(
            "Profile `{}` names secrets that cannot be given: {error}",
            profile.name
        );
        let problem = Problem::new(ErrorCode::SecretsUnavailable, text);
        Err(match error.hint {
            Some(hint) => problem.with_hint(hint),
            None => problem,
        })
    }
}
