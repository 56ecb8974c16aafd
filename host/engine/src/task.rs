//! Work that a hypervisor goes on with after it has answered: written down the moment it has a name, and awaited by the
//! next process before it does anything else with that machine.
//!
//! ```text
//!   intent of a step ─► call ─► TaskLedger::begun ─► open task of the sandbox ─► the step's own record closes it
//!                                                        │ killed
//!                                next process ◄──────────┘ waits for that very task, then looks, then goes on
//! ```

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use agentlab_api::{SandboxId, chain};
use agentlab_backend::{BegunTask, TaskEnd, TaskId, TaskLedger};
use agentlab_store::{Intent, StoreError, Write};
use async_trait::async_trait;
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::journal::Point;
use crate::shared::Shared;

/// The word of the journal. A sandbox has one task at a time, because its driver makes one call at a time.
const WORD: &str = "Task";
/// Longest single wait for a task; then it is asked for anew, so that one question that hangs is not the end.
const PATIENCE: Duration = Duration::from_secs(60);

/// Writes tasks of sandboxes down. Others, of volumes and of machines without a record, are repeated safely.
pub(crate) struct Ledger {
    shared: Weak<Shared>,
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ledger")
    }
}

impl Ledger {
    pub(crate) fn of(shared: &Arc<Shared>) -> Arc<Self> {
        Arc::new(Self {
            shared: Arc::downgrade(shared),
        })
    }
}

#[async_trait]
impl TaskLedger for Ledger {
    async fn begun(&self, task: BegunTask) {
        let Some(shared) = self.shared.upgrade() else {
            return;
        };
        let Some(sandbox) = shared.sandbox_of(task.vmid) else {
            return;
        };
        let open = Write::Intent(Intent {
            sandbox,
            step: WORD.to_owned(),
            undo: false,
            detail: json!({"vmid": task.vmid, "action": task.action, "task": task.id.as_str()}),
        });
        if let Err(error) = shared.journal.commit(Point::TaskBegun, vec![open]).await {
            tracing::error!(%sandbox, task = %task.id, error = %chain(&error), "task could not be recorded");
        }
    }
}

/// Closes the task of a sandbox, if there is one: whatever began it has been recorded to its end.
pub(crate) fn over(sandbox: SandboxId) -> Write {
    Write::Fact {
        sandbox,
        step: WORD.to_owned(),
        undo: false,
    }
}

/// The task that an earlier process was at when it ended.
pub(crate) async fn open(shared: &Shared, sandbox: SandboxId) -> Result<Option<TaskId>, StoreError> {
    let intents = shared.store.open_intents(sandbox).await?;
    let task = intents.iter().find(|intent| intent.step == WORD);
    let name = task.and_then(|intent| intent.detail["task"].as_str());
    Ok(name.and_then(|name| name.parse().ok()))
}

/// Waits for a task's end. An answer that does not come concludes nothing, and is asked for again; for no longer
/// than the step itself may take, since the step finds out for itself.
pub(crate) async fn finish(shared: &Shared, task: &TaskId) -> Option<TaskEnd> {
    let until = Instant::now() + shared.settings.provisioning_timeout;
    while Instant::now() < until {
        match shared.backend.await_task(task, PATIENCE).await {
            Ok(Some(end)) => return Some(end),
            Ok(None) => {}
            Err(error) => {
                tracing::debug!(%task, error = %chain(&error), "task did not answer");
                sleep(shared.settings.teardown_retry_first).await;
            }
        }
    }
    None
}
