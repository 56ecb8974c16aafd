//! From `config.yaml` to what the parts of the daemon are told.

use agentlab_config::Config;
use agentlab_engine::{IdleRules, Settings};
use agentlab_store::StoreOptions;

/// Shown in the status, and what templates' runners must match in major and minor.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What the engine is told. `bootstrap` and `artifacts` are set to what was really bound, `spki_sha256` to the key's.
pub(crate) fn engine(config: &Config) -> Settings {
    Settings {
        vmid_first: config.vmid_first,
        vmid_last: config.vmid_last,
        subnet: (config.bridge_address.network(), config.bridge_address.prefix),
        gateway: config.bridge_address.address,
        bootstrap: config.bootstrap_listen,
        artifacts: config.artifact_listen,
        provisioning_timeout: config.provisioning_timeout,
        boot_timeout: config.boot_timeout,
        agent_stuck_after: config.agent_stuck_after,
        token_ttl: config.bootstrap_token_ttl,
        heartbeat_interval: config.heartbeat,
        heartbeat_silence: config.heartbeat_silence,
        kill_grace: config.kill_grace,
        reconcile_interval: config.reconcile_interval,
        idle: config.idle_stop.as_ref().map(|rules| IdleRules {
            interval: rules.interval,
            window: rules.window,
            cpu_share: rules.cpu_threshold.as_f64(),
        }),
        max_sandboxes: config.max_sandboxes,
        max_queued_jobs: config.max_queued_jobs,
        retention: config.retention,
        max_log_bytes: config.log_max_bytes,
        max_bundle_bytes: config.bundle_max_bytes,
        artifact_disk_floor: config.artifact_disk_floor_bytes,
        runner_version: VERSION.to_owned(),
        daemon_version: VERSION.to_owned(),
        ..Settings::default()
    }
}

/// Where records and files are. With its default, `artifact_dir` is `artifacts/` of the data directory, where logs
/// and bundles are too; set to another place, that place holds all of them.
pub(crate) fn store(config: &Config) -> StoreOptions {
    let by_default = config.artifact_dir == config.data_dir.join("artifacts");
    let files_dir = if by_default {
        &config.data_dir
    } else {
        &config.artifact_dir
    };
    StoreOptions {
        database_path: config.db_path.clone(),
        files_dir: files_dir.clone(),
        disk_floor_bytes: config.artifact_disk_floor_bytes,
    }
}
