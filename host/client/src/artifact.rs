//! Files a job left.

use std::path::PathBuf;

use agentlab_api::{ArtifactView, JobId, chain};
use http_body_util::BodyExt;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncWrite, AsyncWriteExt};

use crate::connection::Call;
use crate::error::Result;
use crate::path::encode;
use crate::{Client, ClientError};

#[derive(Deserialize)]
struct ArtifactList {
    artifacts: Vec<ArtifactView>,
}

impl Client {
    /// What a job left so far.
    ///
    /// # Errors
    /// See [`crate::ClientError`].
    pub async fn artifacts(&self, id: &JobId) -> Result<Vec<ArtifactView>> {
        Ok(self
            .call::<ArtifactList>(Call::get(format!("/v1/jobs/{id}/artifacts")))
            .await?
            .artifacts)
    }

    /// Streams one artifact into `to` and holds what arrived against the hash the daemon recorded. On an error `to`
    /// has been given bytes that must not be used.
    ///
    /// # Errors
    /// See [`crate::ClientError`]; [`ClientError::Mismatch`] when the bytes are not those recorded.
    pub async fn download(
        &self,
        id: &JobId,
        artifact: &ArtifactView,
        to: &mut (impl AsyncWrite + Unpin),
    ) -> Result<()> {
        let target = format!("/v1/jobs/{id}/artifacts/{}", encode(&artifact.name, true));
        let mut answer = self.send(Call::get(target)).await?;
        let unwritten = |source| ClientError::File {
            action: "Writing",
            path: PathBuf::from(&artifact.name),
            source,
        };
        let mut hash = Sha256::new();
        while let Some(frame) = answer.body.frame().await {
            let frame = frame.map_err(|error| {
                ClientError::Protocol(format!(
                    "`{}` of {id} broke off: {}",
                    artifact.name,
                    chain(&error)
                ))
            })?;
            if let Some(data) = frame.data_ref() {
                hash.update(data);
                to.write_all(data).await.map_err(unwritten)?;
            }
        }
        to.flush().await.map_err(unwritten)?;
        let actual = hex::encode(hash.finalize());
        if actual == artifact.sha256 {
            Ok(())
        } else {
            let what = format!("`{}` of {id}", artifact.name);
            Err(ClientError::Mismatch {
                what,
                recorded: artifact.sha256.clone(),
                actual,
            })
        }
    }
}
