//! The daemon as the one writer of the policy: the lock it holds, and the orders it takes from operators.

use std::path::Path;
use std::time::{Duration, Instant};

use agentlab_api::chain;
use agentlab_config::Config;
use agentlab_netpolicy::{
    Done, EnforceError, Enforcer, LOCK_DIRECTORY, NotTheWriter, Order, STATE_DIRECTORY, StoredPorts,
    WriterLock,
};

use crate::error::StartError;

/// How long an `agentlab-net` at work is waited for, and how often it is looked for.
const TURN: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(100);

/// Takes the lock, where there is a place for it: without one, `agentlab net` does not know that a daemon is up.
pub(super) async fn lock(config: &Config) -> Result<Option<WriterLock>, StartError> {
    let deadline = Instant::now() + TURN;
    loop {
        match WriterLock::take(Path::new(LOCK_DIRECTORY), Some(&config.socket_path)) {
            Ok(lock) => return Ok(Some(lock)),
            Err(NotTheWriter::Taken { .. }) if Instant::now() < deadline => tokio::time::sleep(LOOK).await,
            Err(error @ NotTheWriter::Taken { .. }) => return Err(StartError::Network(error.to_string())),
            Err(error @ NotTheWriter::File { .. }) => {
                tracing::warn!(error = %chain(&error), "`agentlab net` cannot tell that the daemon is up");
                return Ok(None);
            }
        }
    }
}

/// Binds what operators bound before.
pub(super) fn restore(enforcer: &mut Enforcer) {
    if let Err(error) = enforcer.restore(&stored()) {
        tracing::warn!(error = %chain(&error), "Operators' bindings are not restored");
    }
}

/// Notes the bridge, which may have been made anew: a policy that is flushed while no daemon runs is put back on a bridge
/// of ours only.
pub(super) fn note_bridge(lock: Option<&mut WriterLock>, enforcer: &Enforcer) {
    let Some(lock) = lock else { return };
    let noted = enforcer
        .bridge_link()
        .map_err(|error| chain(&error))
        .and_then(|bridge| lock.note_bridge(bridge).map_err(|error| chain(&error)));
    if let Err(error) = noted {
        tracing::warn!(%error, "The bridge is not noted as ours");
    }
}

pub(super) fn obey(enforcer: &mut Enforcer, order: &Order) -> Result<Done, EnforceError> {
    enforcer.obey(order, &stored())
}

fn stored() -> StoredPorts {
    StoredPorts::new(Path::new(STATE_DIRECTORY))
}
