//! What a test can make go wrong, and the record of what was asked.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use agentlab_api::Vmid;
use tokio::sync::Semaphore;

use crate::BackendError;

/// Every call of the back end traits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each is the trait method of the same name")]
pub enum Call {
    Info,
    Adopt,
    Templates,
    CloneTemplate,
    Configure,
    PowerOn,
    PowerOff,
    Suspend,
    Resume,
    Inspect,
    List,
    Destroy,
    Stopped,
    Usage,
    Loads,
    AwaitTask,
    PlaceSeed,
    RemoveSeed,
    HasSeed,
    OpenChannel,
    Console,
    CreateVolume,
    AttachVolume,
    DetachVolume,
    GrowVolume,
    DestroyVolume,
    TakeVolumeSnapshot,
    RollBackVolume,
    DeleteVolumeSnapshot,
    CopyVolume,
    MoveVolume,
}

/// One call, in the order they arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Logged {
    /// Which.
    pub call: Call,
    /// Of which machine, where there is one.
    pub vmid: Option<Vmid>,
}

/// A call that hangs. Dropping this lets go of it too, so that a failing test does not hang.
#[derive(Debug)]
pub struct Hang {
    pub(super) reached: Arc<Semaphore>,
    pub(super) released: Arc<Semaphore>,
}

impl Hang {
    /// Waits until a call hangs here.
    pub async fn reached(&self) {
        if let Ok(permit) = self.reached.acquire().await {
            drop(permit);
        }
    }

    /// Lets the call go on as if nothing had happened.
    pub fn release(&self) {
        self.released.close();
    }
}

impl Drop for Hang {
    fn drop(&mut self) {
        self.release();
    }
}

#[derive(Debug)]
pub(super) enum Fault {
    /// The call fails and has no effect.
    Before(BackendError),
    /// The call takes effect and its answer is lost.
    After(BackendError),
    /// The call does not end until released; then it takes effect.
    Hang {
        reached: Arc<Semaphore>,
        released: Arc<Semaphore>,
    },
}

#[derive(Debug, Default)]
struct Plan {
    next: HashMap<Call, VecDeque<Fault>>,
    delay: HashMap<Call, Duration>,
    delay_all: Option<Duration>,
    unreachable: Option<String>,
    log: Vec<Logged>,
}

/// Faults to come and calls that came.
#[derive(Debug, Default)]
pub(super) struct Faults(Mutex<Plan>);

impl Faults {
    fn plan(&self) -> std::sync::MutexGuard<'_, Plan> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(&self, call: Call, fault: Fault) {
        self.plan().next.entry(call).or_default().push_back(fault);
    }

    pub(super) fn delay(&self, call: Option<Call>, delay: Duration) {
        let mut plan = self.plan();
        match call {
            Some(call) => drop(plan.delay.insert(call, delay)),
            None => plan.delay_all = Some(delay),
        }
    }

    pub(super) fn set_unreachable(&self, reason: Option<String>) {
        self.plan().unreachable = reason;
    }

    pub(super) fn log(&self) -> Vec<Logged> {
        self.plan().log.clone()
    }

    pub(super) fn forget_log(&self) {
        self.plan().log.clear();
    }

    /// Logs the call, waits as planned, and returns the error that must replace its answer once it took effect.
    pub(super) async fn enter(
        &self,
        call: Call,
        vmid: Option<Vmid>,
    ) -> Result<Option<BackendError>, BackendError> {
        let (fault, delay, unreachable) = {
            let mut plan = self.plan();
            plan.log.push(Logged { call, vmid });
            let delay = plan.delay.get(&call).copied().or(plan.delay_all);
            let fault = plan.next.get_mut(&call).and_then(VecDeque::pop_front);
            (fault, delay, plan.unreachable.clone())
        };
        if let Some(delay) = delay {
            tokio::time::sleep(delay).await;
        }
        if let Some(reason) = unreachable {
            return Err(BackendError::Unreachable {
                backend: super::KIND,
                action: "any call",
                reason,
            });
        }
        match fault {
            None => Ok(None),
            Some(Fault::Before(error)) => Err(error),
            Some(Fault::After(error)) => Ok(Some(error)),
            Some(Fault::Hang { reached, released }) => {
                reached.add_permits(1);
                // Never granted: it returns when the semaphore is closed, which is the release.
                drop(released.acquire().await);
                Ok(None)
            }
        }
    }
}
