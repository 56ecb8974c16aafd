//! The way to a node.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use agentlab_api::Vmid;
use async_trait::async_trait;
use serde_json::Value;

use super::change::{Change, Read};
use super::refusal::Refusal;
use crate::TaskId;

/// What became of a change when it was answered.
#[derive(Debug)]
pub(crate) enum Begun {
    /// It is done; the `data` of the answer.
    Done(Value),
    /// A worker goes on with it.
    Task(TaskId),
}

/// A file to bring to a storage of a node.
#[derive(Debug, Clone)]
pub(crate) struct Upload {
    pub(crate) storage: String,
    /// What it is called there.
    pub(crate) file: String,
    /// Where it lies here.
    pub(crate) from: PathBuf,
    pub(crate) sha256: String,
}

/// How a task ended.
pub(crate) type Ended = Result<(), Refusal>;

/// Asks and changes. Implemented by the REST API and by the shell.
#[async_trait]
pub(crate) trait Wire: fmt::Debug + Send + Sync + 'static {
    /// `proxmox` or `shell`.
    fn kind(&self) -> &'static str;

    /// Which node machines are made on, as soon as that is known: it answers questions about the cluster as well, and
    /// both count as calls to it.
    fn at_home(&self, _node: &str) {}

    /// The `data` of an answer.
    async fn read(&self, read: &Read) -> Result<Value, Refusal>;

    /// Asks for a change on a node. Returns when PVE has answered, or, where it does not hand out its task, when that has
    /// ended.
    async fn begin(&self, node: &str, change: &Change, patience: Duration) -> Result<Begun, Refusal>;

    /// Waits for the end of a task, whoever began it, and says how it ended. A refusal of the call itself says nothing
    /// about the task.
    async fn follow(&self, task: &TaskId, patience: Duration) -> Result<Ended, Refusal>;

    /// Whether a disk has to be uploaded before a node can import it.
    fn uploads(&self) -> bool;

    /// Uploads a file as content `import`; the task that takes it in, where there is one.
    async fn upload(&self, node: &str, upload: &Upload) -> Result<Option<TaskId>, Refusal>;

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
