//! Makes events and alarms of what somebody else does to the packet policy.

use std::sync::Arc;

use agentlab_api::{ErrorCode, Problem, chain};

use crate::engine::Engine;
use crate::event;
use crate::guest::{GuestRefusal, GuestSession};
use crate::journal::Point;
use crate::port::{Denied, Disturbance};
use crate::shared::Shared;

const BROKEN: &str = "The packet policy does not stand";
const UNRESOLVED: &str = "Names of sandboxes are not resolved";
/// Differences named in one event; a flushed table is hundreds.
const NAMED: usize = 5;

/// Runs until the engine stops.
pub(crate) async fn run(shared: Arc<Shared>) {
    loop {
        let disturbance = tokio::select! {
            () = shared.stop.cancelled() => return,
            denied = shared.network.denied() => {
                tell(&shared, &denied).await;
                continue;
            }
            disturbance = shared.network.disturbed() => disturbance,
        };
        let Some(text) = sentence(&shared, &disturbance) else {
            continue;
        };
        tracing::warn!("{text}");
        let told = shared.journal.commit(Point::Told, vec![event::host_alarm(text)]);
        if let Err(error) = told.await {
            tracing::error!(error = %chain(&error), "alarm could not be recorded");
        }
    }
}

/// A guest that is refused something is told of with its own sandbox.
async fn tell(shared: &Shared, denied: &Denied) {
    let records = match shared.store.sandboxes(false).await {
        Ok(records) => records,
        Err(error) => return tracing::error!(error = %chain(&error), "records cannot be read"),
    };
    let Some(record) = records.iter().find(|record| record.vmid == denied.vmid) else {
        return;
    };
    let told = shared
        .journal
        .commit(Point::Told, vec![event::network_denied(record, denied)]);
    if let Err(error) = told.await {
        tracing::error!(error = %chain(&error), "a refusal could not be recorded");
    }
}

impl Engine {
    /// Has the packet policy do what an operator asks for, in its own words.
    ///
    /// # Errors
    /// It refused: what it would contradict, or what the kernel said.
    pub async fn operate_network(&self, order: &str) -> Result<String, Problem> {
        let done = self.shared.network.operate(order).await;
        done.map_err(|error| Problem::new(ErrorCode::StateConflict, error.to_string()))
    }

    /// What the packet policy refused a guest lately, latest first.
    ///
    /// # Errors
    /// The guest's records cannot be read.
    pub async fn denials(&self, session: &GuestSession) -> Result<Vec<Denied>, GuestRefusal> {
        let unavailable = |error| GuestRefusal::Unavailable(chain(&error));
        let records = self.shared.store.sandboxes(false).await.map_err(unavailable)?;
        match records.iter().find(|record| record.id == session.sandbox) {
            Some(record) => Ok(self.shared.network.denials(record.vmid).await),
            None => Err(GuestRefusal::Unauthorized),
        }
    }
}

/// What is told of it, and the alarm that stands while it lasts. `None` when it was told already.
fn sentence(shared: &Shared, disturbance: &Disturbance) -> Option<String> {
    match disturbance {
        Disturbance::Repaired(found) => {
            let mut named = found.iter().take(NAMED).cloned().collect::<Vec<_>>().join("; ");
            if found.len() > NAMED {
                named.push_str(&format!("; and {} more", found.len() - NAMED));
            }
            Some(format!(
                "The packet policy was changed from outside and is repaired: {named}"
            ))
        }
        Disturbance::Broken(reason) => alarm(shared, BROKEN, reason),
        Disturbance::Unresolved(reason) => alarm(shared, UNRESOLVED, reason),
        Disturbance::Resolved => {
            shared.clear(UNRESOLVED);
            Some("Names of sandboxes are resolved again".to_owned())
        }
        Disturbance::Whole => {
            shared.clear(BROKEN);
            Some("The packet policy stands again".to_owned())
        }
    }
}

/// Raises an alarm in place of the one about the same; `None` when it stands already.
fn alarm(shared: &Shared, about: &str, reason: &str) -> Option<String> {
    let text = format!("{about}: {reason}");
    if shared.alarms().contains(&text) {
        return None;
    }
    shared.clear(about);
    shared.raise(&text);
    Some(text)
}
