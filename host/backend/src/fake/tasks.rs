//! Tasks, for a hypervisor that is to go on after it has answered. The effect is there before the task has a name, as it
//! is when a process dies with the name on its lips.

use std::sync::Arc;
use std::time::Duration;

use agentlab_api::Vmid;
use async_trait::async_trait;

use super::{Call, Fake};
use crate::{BegunTask, Result, TaskEnd, TaskId, TaskLedger, Tasks};

/// What was begun, and who wants to know.
#[derive(Debug, Default)]
pub(super) struct Begun {
    hands_out: bool,
    count: u32,
    ledger: Option<Arc<dyn TaskLedger>>,
    awaited: Vec<TaskId>,
}

/// Calls behind which there is a task, with what it is called.
const TASKS: &[(Call, &str)] = &[
    (Call::CloneTemplate, "clone"),
    (Call::PowerOn, "start"),
    (Call::PowerOff, "stop"),
    (Call::Destroy, "destroy"),
];

impl Fake {
    /// Gives what makes, starts, stops and destroys machines the name of a task from here on.
    pub fn hand_out_tasks(&self) {
        self.world().begun.hands_out = true;
    }

    /// Tasks that somebody has waited for, in that order.
    pub fn awaited_tasks(&self) -> Vec<TaskId> {
        self.world().begun.awaited.clone()
    }

    /// Tells of the task behind a call that has taken effect.
    pub(super) async fn tell_task(&self, call: Call, vmid: Vmid) {
        let Some((_, action)) = TASKS.iter().find(|(known, _)| *known == call) else {
            return;
        };
        let told = {
            let begun = &mut self.world().begun;
            begun.count += 1;
            let id = format!("fake:{}:{action}:{vmid}", begun.count).parse();
            begun.ledger.clone().filter(|_| begun.hands_out).zip(id.ok())
        };
        if let Some((ledger, id)) = told {
            ledger.begun(BegunTask { vmid, action, id }).await;
        }
    }
}

#[async_trait]
impl Tasks for Fake {
    fn keep_ledger(&self, ledger: Arc<dyn TaskLedger>) {
        self.world().begun.ledger = Some(ledger);
    }

    async fn await_task(&self, task: &TaskId, _patience: Duration) -> Result<Option<TaskEnd>> {
        self.perform(Call::AwaitTask, None, || {
            self.world().begun.awaited.push(task.clone());
            Ok(Some(TaskEnd::Done))
        })
        .await
    }
}
