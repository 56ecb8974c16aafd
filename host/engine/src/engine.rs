//! The facade: what the daemon's two edges call.

use std::sync::Arc;

use agentlab_api::{
    ArtifactView, ErrorCode, JobId, JobList, JobRequest, JobView, Problem, Profile, SandboxList, SandboxView,
    StatusView,
};
use agentlab_store::{Incoming, Store};

use crate::settings::{Parts, Settings};

/// Everything of a running daemon that decides. Used as `Arc<Engine>`.
#[derive(Debug)]
pub struct Engine {
    settings: Settings,
    parts: Parts,
}

/// Why the engine cannot run.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The settings contradict themselves.
    #[error("The settings cannot be used: {0}")]
    Settings(String),
    /// The records cannot be read.
    #[error("The records cannot be read")]
    Store(#[from] agentlab_store::StoreError),
    /// The hypervisor refused to say what runs.
    #[error("The back end cannot take up what an earlier process left running")]
    Backend(#[from] agentlab_backend::BackendError),
}

fn absent() -> Problem {
    Problem::new(ErrorCode::Internal, "Not there yet")
}

#[expect(
    missing_docs,
    clippy::missing_errors_doc,
    clippy::unused_async,
    reason = "signatures first"
)]
impl Engine {
    pub async fn start(settings: Settings, parts: Parts) -> Result<Arc<Self>, StartError> {
        Ok(Arc::new(Self { settings, parts }))
    }
    pub async fn shutdown(&self) {
        let _ = &self.settings;
    }
    pub async fn create_job(
        &self,
        _request: JobRequest,
        _idempotency_key: Option<String>,
    ) -> Result<JobView, Problem> {
        Err(absent())
    }
    pub async fn job(&self, _id: &JobId) -> Result<JobView, Problem> {
        Err(absent())
    }
    pub async fn jobs(&self, _cursor: Option<String>, _limit: Option<u32>) -> Result<JobList, Problem> {
        Err(absent())
    }
    pub async fn cancel_job(&self, _id: &JobId) -> Result<JobView, Problem> {
        Err(absent())
    }
    pub async fn job_artifacts(&self, _id: &JobId) -> Result<Vec<ArtifactView>, Problem> {
        Err(absent())
    }
    pub async fn open_artifact(
        &self,
        _id: &JobId,
        _name: &str,
    ) -> Result<(ArtifactView, tokio::fs::File), Problem> {
        Err(absent())
    }
    pub async fn sandboxes(&self, _include_destroyed: bool) -> Result<SandboxList, Problem> {
        Err(absent())
    }
    pub async fn sandbox(&self, _selector: &str) -> Result<SandboxView, Problem> {
        Err(absent())
    }
    pub async fn destroy_sandbox(&self, _selector: &str, _force: bool) -> Result<SandboxView, Problem> {
        Err(absent())
    }
    pub async fn console(&self, _selector: &str, _max_bytes: usize) -> Result<Vec<u8>, Problem> {
        Err(absent())
    }
    pub fn profiles(&self) -> &[Profile] {
        &self.parts.profiles
    }
    pub async fn status(&self) -> Result<StatusView, Problem> {
        Err(absent())
    }
    pub fn store(&self) -> &Store {
        &self.parts.store
    }
    pub async fn receive_bundle(&self) -> Result<Incoming, Problem> {
        Err(absent())
    }
}
