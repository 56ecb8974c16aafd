//! Artifacts as programs before this one kept them: `artifacts/<job>/<name>`. Moved to their hashes at the first start,
//! job by job; a start that is cut short is finished by the next one.

use std::sync::Arc;

use agentlab_api::JobId;

use super::beneath::{self, Place};
use super::{ARTIFACTS, Files, Kind, blocking};
use crate::{ArtifactRecord, StoreError};

impl Files {
    /// Jobs of which there are files under their names.
    pub(crate) async fn jobs_by_name(&self) -> Result<Vec<JobId>, StoreError> {
        let names = self.names_in(vec![ARTIFACTS.to_owned()]).await?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// Moves the recorded files of a job to where their bytes are looked for now, and removes the others.
    pub(crate) async fn move_to_hashes(
        &self,
        job: JobId,
        recorded: Vec<ArtifactRecord>,
    ) -> Result<(), StoreError> {
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            for artifact in recorded {
                let from = Place::new(&[ARTIFACTS, job.as_str()], &artifact.name)?;
                from.rename(&shared.root, &Kind::Artifact.place(&artifact.sha256)?)
                    .map_err(|error| StoreError::file("Moving", &from.path(&shared.root_path), error))?;
            }
            let directory = [ARTIFACTS, job.as_str()];
            beneath::clear(&shared.root, &directory).map_err(|error| {
                StoreError::file("Removing", &shared.root_path.join(directory.join("/")), error)
            })
        })
        .await
    }
}
