//! Makes events and alarms of what somebody else does to the packet policy.

use std::sync::Arc;

use crate::event;
use crate::journal::Point;
use crate::port::Disturbance;
use crate::sandbox::perform::chain;
use crate::shared::Shared;

const BROKEN: &str = "The packet policy does not stand";
/// Differences named in one event; a flushed table is hundreds.
const NAMED: usize = 5;

/// Runs until the engine stops.
pub(crate) async fn run(shared: Arc<Shared>) {
    loop {
        let disturbance = tokio::select! {
            () = shared.stop.cancelled() => return,
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
        Disturbance::Broken(reason) => {
            let text = format!("{BROKEN}: {reason}");
            let standing = shared.alarms();
            if standing.contains(&text) {
                return None;
            }
            shared.clear(BROKEN);
            shared.raise(&text);
            Some(text)
        }
        Disturbance::Whole => {
            shared.clear(BROKEN);
            Some("The packet policy stands again".to_owned())
        }
    }
}
