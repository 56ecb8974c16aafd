//! What the daemon works on. The one place where the real ones are picked.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use agentlab_backend::proxmox::{self, ApiToken, ProxmoxSettings, Trust};
use agentlab_backend::qemu::{AcceleratorChoice, Qemu, QemuOptions};
use agentlab_backend::shell::{self, ShellSettings};
use agentlab_backend::{Backend, CloneMode, PveOptions, SnippetStore};
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
        let (backend, network) = tokio::join!(backend(config), EnforcedNetwork::start(config));
        Ok(Self {
            backend: backend?,
            network: Arc::new(network?),
            clock: Arc::new(SystemClock),
        })
    }
}

/// The hypervisor that the configuration names.
///
/// # Errors
/// A setting cannot be used, or QEMU not be found.
pub async fn backend(config: &Config) -> Result<Arc<dyn Backend>, StartError> {
    match config.backend {
        BackendKind::Qemu => qemu(config).await,
        BackendKind::Proxmox => proxmox(config),
        BackendKind::Shell => Ok(shell::connect(ShellSettings::new(pve(config)))),
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
    options.vsock_dir.clone_from(&config.qemu.vsock_dir);
    options.vsock_port = config.bootstrap_listen.port();
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
    options.calls_per_node = told.calls_per_node;
    options.clones_per_storage = told.clones_per_storage;
    options.volume_owner = told.volume_vmid;
    options.snippets = told.snippets.as_ref().map(|place| SnippetStore {
        dir: place.dir.clone(),
        storage: place.storage.clone(),
    });
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

#[cfg(test)]
mod tests {
    use agentlab_config::parse_config;

    use super::*;

    fn config(text: &str) -> Config {
        parse_config(text, "config.yaml").unwrap().value
    }

    const TOKEN: &str = "proxmox_api_token: agentlab@pve!daemon=0d08f8bc-0a12\n";

    #[test]
    fn a_node_that_does_not_answer_yet_is_no_reason_not_to_start() {
        let dir = tempfile::tempdir().unwrap();
        let token = dir.path().join("token");
        std::fs::write(&token, "agentlab@pve!daemon=0d08f8bc-0a12\n").unwrap();
        for text in [
            format!("{TOKEN}proxmox_tls_fingerprint: {}", "AB".repeat(32)),
            format!("{TOKEN}proxmox_tls_insecure: true\nproxmox_api_url: https://127.0.0.1:1"),
            format!(
                "backend: proxmox\nproxmox_tls_insecure: true\nproxmox_api_token_path: {}",
                token.display()
            ),
        ] {
            assert!(proxmox(&config(&text)).is_ok(), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_used_is_named_by_its_key_and_the_token_is_not_shown() {
        let trusted = "proxmox_tls_insecure: true\n";
        for (text, key) in [
            (
                format!("{trusted}proxmox_api_token: a@b!c=d hush"),
                "proxmox_api_token",
            ),
            (
                format!("{TOKEN}{trusted}proxmox_api_url: https://localhost:8006/x"),
                "proxmox_api_url",
            ),
            (
                format!("{TOKEN}proxmox_tls_ca_path: /no/such/ca.pem"),
                "/no/such/ca.pem",
            ),
        ] {
            let Err(error) = proxmox(&config(&text)) else {
                panic!("{text} was accepted");
            };
            let words = error.to_string();
            assert!(words.contains(key) && !words.contains("hush"), "{words}");
        }
    }

    #[test]
    fn what_the_file_says_of_a_node_reaches_the_back_end() {
        let told = pve(&config(&format!(
            "{TOKEN}proxmox_node: pve1\nproxmox_pool: agentlab\nproxmox_storage: fast\nproxmox_clone_mode: full\n\
             proxmox_volume_vmid: 777\nproxmox_calls_per_node: 5\nproxmox_clones_per_storage: 1\nsnippet_storage: local\n\
             proxmox_command_timeout: 30m\nbridge: vmbr7\nvmid_first: 2000\nvmid_last: 2999"
        )));
        assert_eq!(told.node.as_deref(), Some("pve1"));
        assert_eq!(
            (told.pool.as_deref(), told.storage.as_deref()),
            (Some("agentlab"), Some("fast"))
        );
        assert_eq!(told.clone, CloneMode::Full);
        assert_eq!(told.volume_owner.map(u32::from), Some(777));
        assert_eq!((told.calls_per_node, told.clones_per_storage), (5, 1));
        assert_eq!(
            told.snippets.map(|snippets| snippets.storage).as_deref(),
            Some("local")
        );
        assert_eq!(
            (told.task_patience, told.clone_patience),
            (
                std::time::Duration::from_secs(1800),
                std::time::Duration::from_secs(1800)
            )
        );
        assert_eq!(
            (
                told.bridge.as_str(),
                u32::from(told.vmids.0),
                u32::from(told.vmids.1)
            ),
            ("vmbr7", 2000, 2999)
        );
    }
}
