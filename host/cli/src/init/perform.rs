//! Steps done, one after the other. The secret of a token goes from PVE's answer into config.yaml and nowhere else.

use std::path::Path;

use agentlab_protocol::secret::SecretText;
use serde::Deserialize;

use super::file::{self, EditError};
use super::programs::{ProgramError, Programs};
use super::step::{Step, TokenName};

/// Why a step was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StepError {
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error("{path} could not be written: {source}")]
    File {
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{path}, {source}")]
    Edit {
        path: String,
        #[source]
        source: EditError,
    },
    /// Its answer is not shown: the secret may be in it.
    #[error("PVE made token {0} and did not say its secret in a form that is known here")]
    NoSecret(String),
}

/// Does one step.
pub(crate) async fn perform(step: &Step, programs: &Programs, config: &Path) -> Result<(), StepError> {
    match step {
        Step::MakeToken(token) => {
            let argv = step.argv().unwrap_or_default();
            let answer = SecretText::new(programs.done(&argv).await?);
            let secret = secret_of(&answer, token).ok_or_else(|| StepError::NoSecret(token.full()))?;
            write_keys(config, [("proxmox_api_token", secret.expose())])
        }
        Step::SetKeys(keys) => write_keys(config, keys.iter().map(|(key, value)| (*key, value.as_str()))),
        Step::AddPool(_)
        | Step::AddRole(_)
        | Step::SetRole(_)
        | Step::AddUser(_)
        | Step::DropToken(_)
        | Step::MarkToken(_)
        | Step::SeparateToken(_)
        | Step::Grant { .. } => {
            let argv = step.argv().unwrap_or_default();
            programs.done(&argv).await?;
            Ok(())
        }
    }
}

/// `user@realm!id=secret`.
fn secret_of(answer: &SecretText, token: &TokenName) -> Option<SecretText> {
    #[derive(Deserialize)]
    struct Answer {
        value: SecretText,
    }
    let answer: Answer = serde_json::from_str(answer.expose().trim()).ok()?;
    let secret = answer.value.expose();
    let is_plain = !secret.is_empty()
        && secret
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    is_plain.then(|| SecretText::new(format!("{}={secret}", token.full())))
}

fn write_keys<'a>(path: &Path, keys: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<(), StepError> {
    let shown = || path.display().to_string();
    let failed = |source| StepError::File {
        path: shown(),
        source,
    };
    let mut text = SecretText::new(file::read(path).map_err(failed)?);
    for (key, value) in keys {
        let edited = file::set(text.expose(), key, value).map_err(|source| StepError::Edit {
            path: shown(),
            source,
        })?;
        text = SecretText::new(edited);
    }
    file::write(path, text.expose()).map_err(failed)
}
