//! Sandboxes. A selector is a UUID, a VMID or a name.

use agentlab_api::{LeaseRequest, PruneRequest, PruneView, SandboxList, SandboxRequest, SandboxView, chain};
use http_body_util::BodyExt;

use crate::connection::Call;
use crate::error::Result;
use crate::path::{encode, page_query};
use crate::{Client, ClientError};

/// What a sandbox can be asked to become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SandboxChange {
    /// Powered on again.
    Start,
    /// Powered off, disk kept.
    Stop,
    /// Frozen in memory.
    Pause,
    /// Running on.
    Resume,
}

impl SandboxChange {
    fn word(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Pause => "pause",
            Self::Resume => "resume",
        }
    }
}

impl Client {
    /// One page of sandboxes, newest first.
    ///
    /// # Errors
    /// See [`crate::ClientError`].
    pub async fn sandboxes(
        &self,
        include_destroyed: bool,
        cursor: Option<&str>,
        limit: Option<u32>,
    ) -> Result<SandboxList> {
        let all = include_destroyed.then(|| "include_destroyed=true".to_owned());
        let query = page_query(all, cursor, limit);
        self.call(Call::get(format!("/v1/sandboxes{query}"))).await
    }

    /// Asks for a sandbox without a job; answered at once, made by the daemon.
    ///
    /// # Errors
    /// See [`crate::ClientError`].
    pub async fn create_sandbox(&self, request: &SandboxRequest) -> Result<SandboxView> {
        self.call(Call::post("/v1/sandboxes", request)?).await
    }

    /// One sandbox.
    ///
    /// # Errors
    /// See [`crate::ClientError`].
    pub async fn sandbox(&self, selector: &str) -> Result<SandboxView> {
        self.call(Call::get(format!("/v1/sandboxes/{}", encode(selector, false))))
            .await
    }

    /// Asks for a sandbox's end; answered at once, done by the daemon. Repeating it is fine.
    ///
    /// # Errors
    /// See [`crate::ClientError`].
    pub async fn destroy_sandbox(&self, selector: &str, force: bool) -> Result<SandboxView> {
        let target = format!("/v1/sandboxes/{}/destroy", encode(selector, false));
        self.call(Call::post(target, &serde_json::json!({ "force": force }))?)
            .await
    }

    /// Asks for a change; answered once it is recorded, done by the daemon. Repeating it is fine.
    ///
    /// # Errors
    /// See [`crate::ClientError`].
    pub async fn change_sandbox(&self, selector: &str, change: SandboxChange) -> Result<SandboxView> {
        let target = format!("/v1/sandboxes/{}/{}", encode(selector, false), change.word());
        self.call(Call::post(target, &serde_json::json!({}))?).await
    }

    /// Lets a sandbox live so many minutes from now on.
    ///
    /// # Errors
    /// See [`crate::ClientError`].
    pub async fn renew_lease(&self, selector: &str, ttl_minutes: u32) -> Result<SandboxView> {
        let target = format!("/v1/sandboxes/{}/lease/renew", encode(selector, false));
        self.call(Call::post(target, &LeaseRequest { ttl_minutes })?)
            .await
    }

    /// Asks for the end of what its lease has ended, and of what is stopped.
    ///
    /// # Errors
    /// See [`crate::ClientError`].
    pub async fn prune_sandboxes(&self, request: &PruneRequest) -> Result<PruneView> {
        self.call(Call::post("/v1/sandboxes/prune", request)?).await
    }

    /// The end of a VM's serial console, as the guest wrote it: escape it before printing.
    ///
    /// # Errors
    /// See [`crate::ClientError`].
    pub async fn console(&self, selector: &str) -> Result<Vec<u8>> {
        let answer = self
            .send(Call::get(format!(
                "/v1/sandboxes/{}/console",
                encode(selector, false)
            )))
            .await?;
        let collected = answer.body.collect().await;
        let collected = collected
            .map_err(|error| ClientError::Protocol(format!("The console broke off: {}", chain(&error))))?;
        Ok(collected.to_bytes().to_vec())
    }
}
