//! A daemon whose thousand machines are in memory.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;

use agentlab_backend::fake::Fake;
use agentlab_backend::{Machine, Power, Stamp};
use agentlab_config::{BridgeAddress, Config, load_config};
use agentlab_engine::SystemClock;
use agentlab_store::{Store, StoreOptions};
use agentlabd::{Log, World};
use anyhow::Result;

use crate::no_network::NoNetwork;
use crate::rows;

/// Tells this program to be that daemon.
pub(crate) const FLAG: &str = "--serve-a-thousand";

/// Serves until it is killed.
pub(crate) fn serve(directory: &Path) -> Result<()> {
    let mut config = load_config(&directory.join("config.yaml"))?.value;
    config.bridge_address = BridgeAddress {
        address: Ipv4Addr::LOCALHOST,
        prefix: 8,
    };
    for listen in [&mut config.bootstrap_listen, &mut config.artifact_listen] {
        listen.set_ip(Ipv4Addr::LOCALHOST);
        listen.set_port(0);
    }
    let _log = Log::to_stderr(config.log_level);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let world = World {
            backend: Arc::new(machines(&config).await?),
            network: Arc::new(NoNetwork),
            clock: Arc::new(SystemClock),
        };
        agentlabd::run(&config, Some(world), std::future::pending()).await?;
        Ok(())
    })
}

/// One for every living record.
async fn machines(config: &Config) -> Result<Fake> {
    let store = Store::open(StoreOptions {
        database_path: config.db_path.clone(),
        files_dir: config.data_dir.clone(),
        disk_floor_bytes: 0,
    })
    .await?;
    // Its serial lines would be memory that no real daemon holds.
    let fake = Fake::new().without_serial();
    for record in store.sandboxes(false).await? {
        fake.plant(Machine {
            vmid: record.vmid,
            name: record.name,
            power: Power::Running,
            stamp: Some(Stamp {
                sandbox: record.id,
                nonce: rows::nonce(record.vmid),
            }),
        });
    }
    store.close().await;
    Ok(fake)
}
