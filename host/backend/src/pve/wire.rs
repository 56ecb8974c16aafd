//! The way to a node.

use std::fmt;
use std::time::Duration;

use agentlab_api::Vmid;
use async_trait::async_trait;
use serde_json::Value;

use super::change::{Change, Read};
use super::refusal::Refusal;

/// Asks and changes. Implemented by the REST API and by the shell.
#[async_trait]
pub(crate) trait Wire: fmt::Debug + Send + Sync + 'static {
    /// `proxmox` or `shell`.
    fn kind(&self) -> &'static str;

    /// The `data` of an answer.
    async fn read(&self, read: &Read) -> Result<Value, Refusal>;

    /// Makes a change on a node and waits until it is done: a task of PVE has ended then. The `data` of the answer where
    /// there was no task.
    async fn change(&self, node: &str, change: &Change, patience: Duration) -> Result<Value, Refusal>;

    /// Asks the agent in a guest whether it is there.
    async fn ping(&self, node: &str, vmid: Vmid) -> Result<(), Refusal>;

    /// Executes a program in a guest and waits for its end; what the agent says of it then.
    async fn execute(
        &self,
        node: &str,
        vmid: Vmid,
        program: &[String],
        patience: Duration,
    ) -> Result<Value, Refusal>;
}
