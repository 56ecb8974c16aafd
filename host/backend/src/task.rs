//! Work that a hypervisor goes on with after it has answered.
//!
//! ```text
//!   call ──► hypervisor: "task X begun" ──► TaskLedger::begun(X) ──► followed to its end ──► the call returns
//!                                                 │ written down
//!   next process ─────────────────────────────────┴──► Tasks::await_task(X) ──► the same call again, on a world at rest
//! ```
//! A process that dies meanwhile has lost nothing but its place: the next one waits for that very task and then looks,
//! instead of meeting a machine half made and guessing whose it will be.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use agentlab_api::Vmid;
use async_trait::async_trait;

use crate::Result;

/// Longest name of a task that is taken; Proxmox's are below 200 characters.
const LONGEST: usize = 512;

/// A task, by the name its hypervisor gave it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TaskId(String);

impl TaskId {
    /// The name, as it can be stored and parsed again.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TaskId {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let fits = (1..=LONGEST).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        if fits {
            return Ok(Self(text.to_owned()));
        }
        let shown: String = text.escape_debug().take(120).collect();
        Err(format!("`{shown}` is no name of a task"))
    }
}

/// A task that has just begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BegunTask {
    /// The machine it works on; for a volume, the number that owns it.
    pub vmid: Vmid,
    /// What was asked for, in a word or two.
    pub action: &'static str,
    /// Its name.
    pub id: TaskId,
}

/// How a task ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskEnd {
    /// Well, or with warnings.
    Done,
    /// With this, in the hypervisor's words.
    Failed {
        /// The error and the end of its log.
        reason: String,
    },
    /// The hypervisor does not know it, or not any more. What it did must be looked for.
    Forgotten,
}

/// Writes tasks down.
#[async_trait]
pub trait TaskLedger: fmt::Debug + Send + Sync {
    /// Told as soon as the hypervisor has named the task, by the call that asked for it, which goes on when this returns.
    /// The task runs whatever becomes of the record.
    async fn begun(&self, task: BegunTask);
}

/// Tasks. A back end that is done when it has answered has none, and tells of none.
#[async_trait]
pub trait Tasks: Send + Sync {
    /// Names the ledger for every task from here on; a later one takes its place.
    fn keep_ledger(&self, _ledger: Arc<dyn TaskLedger>) {}

    /// Waits until a task has ended, whichever process began it. `None` when it still runs after all patience. That it is
    /// done says nothing about whose the result is: call again what began it, or look.
    async fn await_task(&self, _task: &TaskId, _patience: Duration) -> Result<Option<TaskEnd>> {
        Ok(Some(TaskEnd::Forgotten))
    }
}

#[cfg(test)]
mod tests {
    use super::TaskId;

    #[test]
    fn a_task_is_named_by_what_can_stand_in_a_record_and_nothing_else() {
        let upid = "UPID:pve8:00001433:000A5657:6B008793:qmclone:9000:agentlab@pve!lp:";
        assert_eq!(upid.parse::<TaskId>().unwrap().as_str(), upid);
        for text in ["", "a b", "a\nb", "é", &"x".repeat(513)] {
            assert!(text.parse::<TaskId>().is_err(), "{text:?}");
        }
    }
}
