//! What a job asks of the host. The link answers it over the wire; tests answer it with a recording.

use std::future::Future;
use std::path::Path;

use agentlab_protocol::message::{ArtifactName, ArtifactRole, Heartbeat, HeartbeatAnswer, LogBatch, Report};

use crate::link::{Link, LinkError};

/// The host as a job sees it. Every call repeats by itself while the host is away; its error is final.
/// A job runs on one thread and spawns nothing: no future need be `Send`.
pub trait HostLink: Clone {
    /// One heartbeat.
    fn heartbeat(&self, beat: Heartbeat) -> impl Future<Output = Result<HeartbeatAnswer, LinkError>>;
    /// Returns once the host has the batch.
    fn logs(&self, batch: &LogBatch) -> impl Future<Output = Result<(), LinkError>>;
    /// Writes the job's bundle to `into` and returns its SHA-256 in lower-case hexadecimal.
    fn repository(
        &self,
        into: &mut tokio::fs::File,
        limit: u64,
    ) -> impl Future<Output = Result<String, LinkError>>;
    /// Streams one file up.
    fn put_artifact(
        &self,
        name: &ArtifactName,
        role: ArtifactRole,
        file: &Path,
        size: u64,
        sha256: &str,
    ) -> impl Future<Output = Result<(), LinkError>>;
    /// Hands the report over.
    fn report(&self, report: &Report) -> impl Future<Output = Result<(), LinkError>>;
}

impl HostLink for Link {
    async fn heartbeat(&self, beat: Heartbeat) -> Result<HeartbeatAnswer, LinkError> {
        Self::heartbeat(self, beat).await
    }

    async fn logs(&self, batch: &LogBatch) -> Result<(), LinkError> {
        Self::logs(self, batch).await
    }

    async fn repository(&self, into: &mut tokio::fs::File, limit: u64) -> Result<String, LinkError> {
        Self::repository(self, into, limit).await
    }

    async fn put_artifact(
        &self,
        name: &ArtifactName,
        role: ArtifactRole,
        file: &Path,
        size: u64,
        sha256: &str,
    ) -> Result<(), LinkError> {
        Self::put_artifact(self, name, role, file, size, sha256).await
    }

    async fn report(&self, report: &Report) -> Result<(), LinkError> {
        Self::report(self, report).await
    }
}
