//! From start to stop, as a service manager sees it.

use std::future::Future;

use agentlab_config::Config;
use sd_notify::NotifyState;

use crate::{Daemon, StartError, World};

/// Runs a daemon until `stop` is ready. Returns after a graceful stop of at most about 5 s; VMs go on running.
///
/// # Errors
/// It could not start.
pub async fn run(
    config: &Config,
    world: Option<World>,
    stop: impl Future<Output = ()>,
) -> Result<(), StartError> {
    let mut stop = std::pin::pin!(stop);
    let begun = std::time::Instant::now();
    let daemon = tokio::select! {
        started = Daemon::start(config, world) => started?,
        () = stop.as_mut() => return Ok(()),
    };
    let milliseconds = begun.elapsed().as_millis();
    tracing::info!(
        socket = %daemon.socket_path().display(),
        bootstrap = %daemon.bootstrap_address(),
        artifacts = %daemon.artifact_address(),
        milliseconds,
        "Serving"
    );
    tell(&[NotifyState::Ready, NotifyState::Status("Serving")]);
    stop.await;
    tell(&[
        NotifyState::Stopping,
        NotifyState::Status("Stopping; sandboxes go on running"),
    ]);
    tracing::info!("Stopping; sandboxes go on running");
    daemon.stop().await;
    tracing::info!("Stopped");
    Ok(())
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "The service manager was not told");
    }
}
