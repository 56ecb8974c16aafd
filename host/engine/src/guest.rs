//! The guest edge: what a sandbox may say, and what it is worth.

use std::net::Ipv4Addr;

use agentlab_api::{JobId, SandboxId};
use agentlab_protocol::message::{
    ArtifactName, ArtifactRole, Heartbeat, HeartbeatAnswer, LogBatch, RedeemAnswer, RedeemRequest, Report,
};
use agentlab_protocol::secret::Secret32;
use agentlab_store::{Incoming, Received};

use crate::engine::Engine;

/// Where a guest's request came from, as the host itself knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestOrigin {
    /// Peer address of a TLS connection; the packet policy lets only its owner use it.
    Address(Ipv4Addr),
    /// The very machine's serial channel.
    Channel(SandboxId),
}

/// A guest that has shown its session. Only [`Engine::authenticate`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestSession {
    /// Its sandbox.
    pub sandbox: SandboxId,
    /// The job it works on; absent when it holds still for an operator.
    pub job: Option<JobId>,
    /// Keeps others from making one.
    pub(crate) proof: (),
}

/// What a guest is told instead of yes. The edge maps it to a status and adds nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GuestRefusal {
    /// Wrong token, wrong place, too late, too often: all look the same. 401.
    #[error("unauthorized")]
    Unauthorized,
    /// It may not do this now. 409.
    #[error("{0}")]
    Conflict(String),
    /// A bound is reached. 413.
    #[error("{0}")]
    TooLarge(String),
    /// Nothing to fetch. 404.
    #[error("not found")]
    NotFound,
    /// Not now; try again. 503.
    #[error("{0}")]
    Unavailable(String),
}

fn absent<T>() -> Result<T, GuestRefusal> {
    Err(GuestRefusal::Unavailable("not there yet".to_owned()))
}

#[expect(
    missing_docs,
    clippy::missing_errors_doc,
    clippy::unused_async,
    reason = "signatures first"
)]
impl Engine {
    pub async fn redeem(
        &self,
        _origin: GuestOrigin,
        _request: RedeemRequest,
    ) -> Result<RedeemAnswer, GuestRefusal> {
        absent()
    }
    pub async fn authenticate(
        &self,
        _origin: GuestOrigin,
        _session: &Secret32,
    ) -> Result<GuestSession, GuestRefusal> {
        absent()
    }
    pub async fn acknowledge(&self, _session: &GuestSession) -> Result<(), GuestRefusal> {
        absent()
    }
    pub async fn heartbeat(
        &self,
        _session: &GuestSession,
        _beat: Heartbeat,
    ) -> Result<HeartbeatAnswer, GuestRefusal> {
        absent()
    }
    pub async fn guest_logs(&self, _session: &GuestSession, _batch: LogBatch) -> Result<(), GuestRefusal> {
        absent()
    }
    pub async fn repository(&self, _session: &GuestSession) -> Result<(tokio::fs::File, u64), GuestRefusal> {
        absent()
    }
    pub async fn receive_artifact(
        &self,
        _session: &GuestSession,
        _name: ArtifactName,
        _role: ArtifactRole,
    ) -> Result<Incoming, GuestRefusal> {
        absent()
    }
    pub async fn artifact_received(
        &self,
        _session: &GuestSession,
        _name: ArtifactName,
        _role: ArtifactRole,
        _received: Received,
    ) -> Result<(), GuestRefusal> {
        absent()
    }
    pub async fn report(&self, _session: &GuestSession, _report: Report) -> Result<(), GuestRefusal> {
        absent()
    }
}
