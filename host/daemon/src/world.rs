//! What the daemon works on. The one place where the real ones are picked.

use std::fmt;
use std::sync::Arc;

use agentlab_backend::Backend;
use agentlab_backend::qemu::{AcceleratorChoice, Qemu, QemuOptions};
use agentlab_config::{Accelerator, BackendKind, Config};
use agentlab_engine::port::Network;
use agentlab_engine::{Clock, SystemClock};

use crate::error::StartError;
use crate::network::EnforcedNetwork;

/// A hypervisor, a packet policy and a clock.
#[derive(Clone)]
pub struct World {
    /// Makes VMs.
    pub backend: Arc<dyn Backend>,
    /// Decides what their packets may do. Its bridge stands, and has its address.
    pub network: Arc<dyn Network>,
    /// The wall clock.
    pub clock: Arc<dyn Clock>,
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World").finish_non_exhaustive()
    }
}

impl World {
    /// This host's, as the configuration names it.
    pub(crate) async fn of_host(config: &Config) -> Result<Self, StartError> {
        let backend = async {
            match config.backend {
                BackendKind::Qemu => qemu(config).await,
            }
        };
        let (backend, network) = tokio::join!(backend, EnforcedNetwork::start(config));
        Ok(Self {
            backend: backend?,
            network: Arc::new(network?),
            clock: Arc::new(SystemClock),
        })
    }
}

/// Machines are kept on disk, below the data directory: their overlays grow.
async fn qemu(config: &Config) -> Result<Arc<dyn Backend>, StartError> {
    let mut options = QemuOptions::new(config.data_dir.join("qemu"), &config.template_dir);
    options.qemu_binary = Some(config.qemu.binary.clone());
    options.uid_range = (
        config.qemu.uid_first,
        config.qemu.uid_first.saturating_add(config.qemu.uid_count - 1),
    );
    options.accelerator = match config.qemu.accelerator {
        Accelerator::Auto => AcceleratorChoice::Auto,
        Accelerator::Kvm => AcceleratorChoice::Kvm,
        Accelerator::Tcg => AcceleratorChoice::Tcg,
    };
    options.concurrent_starts = Some(config.qemu.concurrent_starts);
    options.tb_size_mb = config.qemu.tb_size_mb;
    let qemu = Qemu::open(options)
        .await
        .map_err(|source| StartError::Backend { kind: "qemu", source })?;
    Ok(Arc::new(qemu))
}
