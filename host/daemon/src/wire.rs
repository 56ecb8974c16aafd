//! What the daemon works on. The one place where the real ones are picked.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use agentlab_backend::proxmox::{self, ApiToken, ProxmoxSettings, Trust};
use agentlab_backend::qemu::{AcceleratorChoice, Qemu, QemuOptions};
use agentlab_backend::shell::{self, ShellSettings};
use agentlab_backend::{Backend, CloneMode, PveOptions};
use agentlab_config::{Accelerator, BackendKind, Config, TlsTrust, TokenSource};
use agentlab_engine::port::Network;
use agentlab_engine::{Clock, SystemClock};
use agentlab_protocol::secret::SecretText;

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
                BackendKind::Proxmox => proxmox(config),
                BackendKind::Shell => Ok(shell::connect(ShellSettings::new(pve(config)))),
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

/// A server that does not answer is no reason not to start: sandboxes may run there.
fn proxmox(config: &Config) -> Result<Arc<dyn Backend>, StartError> {
    proxmox::connect(proxmox_settings(config)?).map_err(|source| StartError::Backend {
        kind: "proxmox",
        source,
    })
}

/// What the file says of a server and of who we are there. A token in a file of its own is read here.
pub(crate) fn proxmox_settings(config: &Config) -> Result<ProxmoxSettings, StartError> {
    let wrong = |key: &'static str| move |reason: String| StartError::Proxmox { key, reason };
    let url = config.proxmox.url.parse().map_err(wrong("proxmox_api_url"))?;
    let token = match &config.proxmox.token {
        Some(TokenSource::Text(text)) => ApiToken::try_from(text).map_err(wrong("proxmox_api_token"))?,
        Some(TokenSource::File(path)) => {
            let text = SecretText::new(read(path)?);
            ApiToken::try_from(&text).map_err(wrong("proxmox_api_token_path"))?
        }
        None => return Err(wrong("proxmox_api_token")("it is missing".to_owned())),
    };
    let trust = match &config.proxmox.trust {
        TlsTrust::System => Trust::SystemRoots,
        TlsTrust::CaFile(path) => Trust::CaPem(read(path)?),
        TlsTrust::Fingerprint(text) => {
            Trust::Fingerprint(text.parse().map_err(wrong("proxmox_tls_fingerprint"))?)
        }
        TlsTrust::Unverified => Trust::ThisHost,
    };
    Ok(ProxmoxSettings::new(url, token, trust, pve(config)))
}

fn pve(config: &Config) -> PveOptions {
    let told = &config.proxmox;
    let mut options = PveOptions::new((config.vmid_first, config.vmid_last), &config.bridge);
    options.node.clone_from(&told.node);
    options.storage.clone_from(&told.storage);
    options.pool.clone_from(&told.pool);
    options.clone = match told.clone_mode {
        agentlab_config::CloneMode::Auto => CloneMode::Auto,
        agentlab_config::CloneMode::Linked => CloneMode::Linked,
        agentlab_config::CloneMode::Full => CloneMode::Full,
    };
    options.volume_owner = told.volume_vmid;
    options.task_patience = told.task_timeout;
    options.clone_patience = options.clone_patience.max(told.task_timeout);
    options
}

fn read(path: &Path) -> Result<String, StartError> {
    std::fs::read_to_string(path).map_err(|source| StartError::File {
        action: "Reading",
        path: path.to_owned(),
        source,
    })
}
