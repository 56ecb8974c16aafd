//! Sandboxes. A selector is a UUID, a VMID or a name.

use agentlab_api::{SandboxList, SandboxRequest, SandboxView};
use http_body_util::BodyExt;

use crate::connection::{Call, chain};
use crate::error::Result;
use crate::path::{encode, page_query};
use crate::{Client, ClientError};

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
