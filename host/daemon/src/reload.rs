//! Reading the configuration again. What can change does, all of it or nothing; what cannot is named.

use std::path::PathBuf;

use agentlab_api::chain;
use agentlab_config::{Config, load_config};
use agentlab_engine::{Engine, Tunable};

use crate::log::Log;

const KEPT: &str = "The configuration was not reloaded";
const WAITING: &str = "Changed, and in force only after a restart";

/// What a reload needs besides the engine.
#[derive(Debug)]
pub struct Reload {
    /// Read again.
    pub config_path: PathBuf,
    /// Its level may change.
    pub log: Log,
}

impl Reload {
    /// Takes over what may change. A file that is wrong changes nothing; log and status say so.
    pub(crate) async fn apply(&self, engine: &Engine, standing: &mut Config) {
        let (path, old) = (self.config_path.clone(), standing.clone());
        let read = tokio::task::spawn_blocking(move || read(&path, &old));
        let outcome = read.await.unwrap_or_else(|error| Err(chain(&error)));
        engine.clear_alarm(KEPT);
        let fresh = match outcome {
            Ok(fresh) => fresh,
            Err(reason) => {
                tracing::error!(%reason, "The configuration was not reloaded; the old one stands");
                engine.raise_alarm(&format!("{KEPT}, the old one stands: {}", one_line(&reason)));
                return;
            }
        };
        engine.clear_alarm(WAITING);
        for warning in &fresh.warnings {
            tracing::warn!("{warning}");
        }
        if !fresh.fixed.is_empty() {
            let keys = fresh.fixed.join(", ");
            tracing::warn!(keys, "Changed, and in force only after a restart");
            engine.raise_alarm(&format!("{WAITING}: {keys}"));
        }
        self.log.set_level(fresh.config.log_level);
        tracing::info!(profiles = fresh.tunable.profiles.len(), "Configuration reloaded");
        engine.tune(fresh.tunable);
        *standing = fresh.config;
    }
}

/// What a reload has read.
struct Fresh {
    /// The standing one with everything in it that may change.
    config: Config,
    tunable: Tunable,
    /// Keys that differ and need a restart.
    fixed: Vec<&'static str>,
    warnings: Vec<String>,
}

fn read(path: &std::path::Path, standing: &Config) -> Result<Fresh, String> {
    let loaded = load_config(path).map_err(|error| chain(&error))?;
    let fixed = standing.fixed_differences(&loaded.value);
    let config = standing.with_reloadable_of(loaded.value);
    let room = usize::try_from(config.qemu.uid_count).unwrap_or(usize::MAX);
    if config.max_sandboxes >= room {
        return Err(format!(
            "`max_sandboxes` is {}, and the running daemon has only {room} user ids: they need one each and one for the \
             probe; restart it",
            config.max_sandboxes
        ));
    }
    let profiles = config.load_profiles().map_err(|error| chain(&error))?;
    Ok(Fresh {
        tunable: tunable(&config, profiles),
        config,
        fixed,
        warnings: loaded.warnings,
    })
}

/// What the engine is told of a configuration, at the start and again.
pub(crate) fn tunable(config: &Config, profiles: Vec<agentlab_api::Profile>) -> Tunable {
    Tunable {
        profiles,
        max_sandboxes: config.max_sandboxes,
        max_queued_jobs: config.max_queued_jobs,
        retention: config.retention,
    }
}

fn one_line(text: &str) -> String {
    text.lines().collect::<Vec<_>>().join("; ")
}
