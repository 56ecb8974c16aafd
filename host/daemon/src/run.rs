//! From start to stop, as a service manager sees it.

use std::future::Future;
use std::os::unix::net::UnixListener;

use agentlab_config::Config;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;

use crate::{Daemon, Reload, StartError, World, notify};

/// What a process gives its daemon besides a configuration. Nothing by default.
#[derive(Debug, Default)]
pub struct Surroundings {
    /// The host's own when absent; tests bring one.
    pub world: Option<World>,
    /// The control socket, when a service manager has bound it.
    pub control: Option<UnixListener>,
    /// What SIGHUP reads again; without, SIGHUP is left alone.
    pub reload: Option<Reload>,
}

/// Runs a daemon until `stop` is ready. Returns after a graceful stop of at most about 5 s; VMs go on running.
///
/// # Errors
/// It could not start.
pub async fn run(
    config: &Config,
    world: Option<World>,
    stop: impl Future<Output = ()>,
) -> Result<(), StartError> {
    let surroundings = Surroundings {
        world,
        ..Surroundings::default()
    };
    run_in(config, surroundings, stop).await
}

/// The same, with more than a world.
///
/// # Errors
/// It could not start.
pub async fn run_in(
    config: &Config,
    surroundings: Surroundings,
    stop: impl Future<Output = ()>,
) -> Result<(), StartError> {
    let Surroundings {
        world,
        control,
        reload,
    } = surroundings;
    let mut stop = std::pin::pin!(stop);
    let begun = std::time::Instant::now();
    // From the first moment: one that comes while starting would end us.
    let mut hang_ups = match &reload {
        Some(_) => Some(signal(SignalKind::hangup()).map_err(StartError::Signals)?),
        None => None,
    };
    let daemon = tokio::select! {
        started = Daemon::start_on(config, world, control) => started?,
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
    notify::ready();
    let mut attending = JoinSet::new();
    attending.spawn(notify::attend(daemon.engine()));
    let reloads = async {
        let mut standing = config.clone();
        while let (Some(reload), Some(())) = (&reload, next(&mut hang_ups).await) {
            tracing::info!(config = %reload.config_path.display(), "Reloading");
            notify::reloading();
            reload.apply(&daemon.engine(), &mut standing).await;
            notify::reloaded(&daemon.engine()).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = stop.as_mut() => {}
        () = reloads => {}
    }
    notify::stopping();
    tracing::info!("Stopping; sandboxes go on running");
    attending.shutdown().await;
    daemon.stop().await;
    tracing::info!("Stopped");
    Ok(())
}

async fn next(signals: &mut Option<Signal>) -> Option<()> {
    match signals {
        Some(signals) => signals.recv().await,
        None => None,
    }
}
