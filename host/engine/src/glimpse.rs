//! What was last seen of the hypervisor. One task asks at a time, everybody reads, and nobody waits long.
//!
//! ```text
//!   request ─► begin a look, unless one is under way ─► it ends in time: what is there now
//!                                                   └─► it does not:     what was there last, and that it is late
//! ```

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agentlab_api::Vmid;
use agentlab_backend::{BackendError, BackendInfo, Template};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use crate::shared::{Shared, lock};

/// A look that takes longer has failed; the next request begins another.
const GIVEN_UP: Duration = Duration::from_secs(60);

/// One look.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) info: BackendInfo,
    pub(crate) templates: Vec<Template>,
    /// Every VMID that is given away, ours or not.
    pub(crate) occupied: HashSet<Vmid>,
}

/// What a request is told.
#[derive(Debug, Clone)]
pub(crate) enum Glimpse {
    /// Asked after the request came.
    Now(Arc<Seen>),
    /// The hypervisor answered that, or did not answer in a whole minute.
    Failed(Arc<BackendError>),
    /// It has not answered yet; this is how it was, if it ever did.
    Late(Option<Arc<Seen>>),
}

/// The looks of one engine.
#[derive(Debug, Default)]
pub(crate) struct Glimpses {
    asking: Mutex<Asking>,
    ended: watch::Sender<Ended>,
}

#[derive(Debug, Default)]
struct Asking {
    /// Looks begun so far.
    begun: u64,
    under_way: Option<Instant>,
    last: Option<Arc<Seen>>,
}

#[derive(Debug, Default)]
struct Ended {
    /// Looks ended so far; only one is ever under way.
    looks: u64,
    outcome: Option<Result<Arc<Seen>, Arc<BackendError>>>,
}

impl Glimpses {
    /// As it was when it last answered.
    pub(crate) fn last(&self) -> Option<Arc<Seen>> {
        lock(&self.asking).last.clone()
    }

    fn end(&self, outcome: Result<Seen, BackendError>) {
        let outcome = outcome.map(Arc::new).map_err(Arc::new);
        let mut asking = lock(&self.asking);
        asking.under_way = None;
        if let Ok(seen) = &outcome {
            asking.last = Some(seen.clone());
        }
        drop(asking);
        self.ended.send_modify(|ended| {
            ended.looks += 1;
            ended.outcome = Some(outcome);
        });
    }
}

/// Looks at the hypervisor, for as long as `patience` lasts. When it has been silent for longer already, not at all.
pub(crate) async fn look(shared: &Arc<Shared>, patience: Duration) -> Glimpse {
    let glimpses = &shared.glimpses;
    let wanted = {
        let asking = lock(&glimpses.asking);
        if asking.under_way.is_some_and(|since| since.elapsed() >= patience) {
            return Glimpse::Late(asking.last.clone());
        }
        asking.begun + 1
    };
    let waited = async {
        let mut ended = glimpses.ended.subscribe();
        loop {
            let before = ended.borrow_and_update().looks;
            begin(shared);
            let now = ended.wait_for(|ended| ended.looks > before).await.ok()?;
            // One that was under way when we came may have missed what was there when we came.
            if now.looks >= wanted {
                return now.outcome.clone();
            }
        }
    };
    match timeout(patience, waited).await {
        Ok(Some(Ok(seen))) => Glimpse::Now(seen),
        Ok(Some(Err(error))) => Glimpse::Failed(error),
        Ok(None) | Err(_) => Glimpse::Late(glimpses.last()),
    }
}

fn begin(shared: &Arc<Shared>) {
    let mut asking = lock(&shared.glimpses.asking);
    if asking.under_way.is_some() {
        return;
    }
    asking.begun += 1;
    asking.under_way = Some(Instant::now());
    drop(asking);
    let task = shared.clone();
    shared.tasks.spawn(async move {
        tokio::select! {
            () = task.stop.cancelled() => {}
            outcome = ask(&task) => task.glimpses.end(outcome),
        }
    });
}

async fn ask(shared: &Shared) -> Result<Seen, BackendError> {
    let backend = &shared.backend;
    let all = async {
        let (info, templates, machines) =
            tokio::try_join!(backend.info(), backend.templates(), backend.list())?;
        Ok(Seen {
            info,
            templates,
            occupied: machines.into_iter().map(|machine| machine.vmid).collect(),
        })
    };
    timeout(GIVEN_UP, all).await.unwrap_or_else(|_| {
        Err(BackendError::Unreachable {
            backend: "hypervisor",
            action: "looking at it",
            reason: format!("no answer within {} s", GIVEN_UP.as_secs()),
        })
    })
}
