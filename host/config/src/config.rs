//! `config.yaml`.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::time::Duration;

use agentlab_api::{Profile, Vmid};
use serde::Deserialize;

use crate::check::Check;
use crate::raw::Raw;
use crate::yaml::{Place, Read};
use crate::{ConfigError, Fault, IdleStop, Loaded, LoadedProfile, ProxmoxConfig, file, refused, yaml};

/// Everything the daemon is told, defaults filled in and checked against each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `*.yaml` and `*.yml` in here are the profiles.
    pub profiles_dir: PathBuf,
    /// Bundles of secrets.
    pub secrets_dir: PathBuf,
    /// The bundle of profiles that name none.
    pub secrets_bundle: String,
    /// age identities that open the bundles.
    pub secrets_age_key_path: PathBuf,
    /// What must survive a reboot; the next paths are derived from it.
    pub data_dir: PathBuf,
    /// What need not survive a reboot.
    pub run_dir: PathBuf,
    /// Control API.
    pub socket_path: PathBuf,
    /// SQLite file.
    pub db_path: PathBuf,
    /// Files jobs left.
    pub artifact_dir: PathBuf,
    /// Template images.
    pub template_dir: PathBuf,
    /// Hypervisor.
    pub backend: BackendKind,
    /// Name of the agent bridge.
    pub bridge: String,
    /// The host's own address on it; the agent subnet follows from it.
    pub bridge_address: BridgeAddress,
    /// Interface towards the Internet; `network.mode: nat` cannot be enforced without one.
    pub uplink: Option<String>,
    /// Where guests redeem their tokens; on the bridge address.
    pub bootstrap_listen: SocketAddrV4,
    /// Where guests fetch and upload files; on the bridge address.
    pub artifact_listen: SocketAddrV4,
    /// How long a step that makes a VM may take, before its guest begins.
    pub provisioning_timeout: Duration,
    /// From power-on until the runner has redeemed its token.
    pub boot_timeout: Duration,
    /// How long an agent may neither print nor compute before an event says so.
    pub agent_stuck_after: Duration,
    /// How long a bootstrap token is good.
    pub bootstrap_token_ttl: Duration,
    /// Largest single artifact in bytes, whatever a profile says.
    pub artifact_max_bytes: u64,
    /// Uploads stop when fewer bytes than this are free.
    pub artifact_disk_floor_bytes: u64,
    /// Largest uploaded repository bundle in bytes.
    pub bundle_max_bytes: u64,
    /// Output kept per job in bytes.
    pub log_max_bytes: u64,
    /// Sandboxes that may exist at once.
    pub max_sandboxes: usize,
    /// Jobs that may wait for a place among them.
    pub max_queued_jobs: usize,
    /// How long records and files of jobs and sandboxes are kept after their end.
    pub retention: Duration,
    /// First VMID given to a sandbox.
    pub vmid_first: Vmid,
    /// Last VMID given to a sandbox.
    pub vmid_last: Vmid,
    /// VMID of the default template, which no sandbox may get.
    pub template_vmid: Vmid,
    /// Time between two heartbeats of a guest.
    pub heartbeat: Duration,
    /// A guest silent for so long has lost its job.
    pub heartbeat_silence: Duration,
    /// How often records and hypervisor are compared.
    pub reconcile_interval: Duration,
    /// When sandboxes that nobody uses are stopped; never when absent.
    pub idle_stop: Option<IdleStop>,
    /// Time an agent has between TERM and KILL.
    pub kill_grace: Duration,
    /// What is logged.
    pub log_level: LogLevel,
    /// Key that every sandbox lets in; [`Config::operator_keys`] reads it or the file.
    pub ssh_public_key: Option<String>,
    /// File with such keys.
    pub ssh_public_key_path: Option<PathBuf>,
    /// The embedded QEMU back end.
    pub qemu: QemuConfig,
    /// The sandboxes' resolver.
    pub dns: DnsConfig,
    /// Proxmox VE.
    pub proxmox: ProxmoxConfig,
}

/// Which hypervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendKind {
    /// QEMU, driven by the daemon itself.
    Qemu,
    /// Proxmox VE over its REST API.
    Proxmox,
    /// Proxmox VE over `qm`, `pvesh` and `pvesm`.
    Shell,
}

/// An address with the length of its prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BridgeAddress {
    /// The host's address.
    pub address: Ipv4Addr,
    /// Bits of the subnet, 8 to 28.
    pub prefix: u8,
}

impl BridgeAddress {
    /// First address of the subnet.
    #[must_use]
    pub fn network(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.address.to_bits() & self.mask())
    }

    /// Last address of the subnet.
    #[must_use]
    pub fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.address.to_bits() | !self.mask())
    }

    fn mask(self) -> u32 {
        u32::MAX << (32 - u32::from(self.prefix))
    }
}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// What failed.
    Error,
    /// And what an operator should look at.
    Warn,
    /// And every change of state.
    Info,
    /// And every decision.
    Debug,
    /// And everything.
    Trace,
}

impl LogLevel {
    /// The word in the file.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// What executes the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// KVM where a probe VM really runs under it, else TCG.
    #[default]
    Auto,
    /// KVM; the daemon refuses to start without.
    Kvm,
    /// Translation, everywhere and slower.
    Tcg,
}

/// `dns:`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsConfig {
    /// Whether the daemon runs a resolver on the bridge address. Without, port 53 there is the operator's, and
    /// `network.mode: allowlist` cannot be enforced.
    pub enabled: bool,
    /// Whom it asks; those of the host's `/etc/resolv.conf` when there are none.
    pub upstreams: Vec<SocketAddr>,
}

/// `qemu:`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QemuConfig {
    /// The program.
    pub binary: PathBuf,
    /// What executes the guest.
    pub accelerator: Accelerator,
    /// Translation buffer per VM under TCG, in MiB.
    pub tb_size_mb: u32,
    /// VMs that may be starting at once.
    pub concurrent_starts: usize,
    /// First of the user ids VMs run under, one each.
    pub uid_first: u32,
    /// Number of them.
    pub uid_count: u32,
    /// Where vhost-user vsock devices listen, one for each VMID; the kernel's vhost-vsock is used without.
    pub vsock_dir: Option<PathBuf>,
}

/// Reads `config.yaml`. The file holds secrets, or may tomorrow: it is refused when others can read it or its group
/// can change it.
///
/// # Errors
/// The file is missing, open to others, or not what it should be.
pub fn load_config(path: &Path) -> Result<Loaded<Config>, ConfigError> {
    let (text, mut warnings) = file::read_private(path, "Configuration file")?;
    let mut loaded = parse_config(&text, &path.display().to_string())?;
    warnings.append(&mut loaded.warnings);
    Ok(Loaded {
        value: loaded.value,
        warnings,
    })
}

/// Reads the text of a `config.yaml`; `label` stands for its path in messages. An empty text gives the defaults.
///
/// # Errors
/// The text is not what it should be.
pub fn parse_config(text: &str, label: &str) -> Result<Loaded<Config>, ConfigError> {
    let Read {
        mut documents,
        mut faults,
    } = yaml::documents::<Raw>(text, label, refused::in_config)?;
    if let Some(second) = documents.get(1) {
        let place = second.root.place;
        let message = "a configuration file holds one document; this is the second";
        faults.push(Fault::new(label, place, message));
        return Err(ConfigError::Invalid(faults));
    }
    let (raw, root) = match documents.pop() {
        Some(document) => (document.value, Some(document.root)),
        None => (Raw::default(), None),
    };
    let mut check = Check {
        label,
        root: root.as_ref(),
        faults,
        warnings: Vec::new(),
    };
    let config = raw.into_config(&mut check);
    if check.faults.is_empty() {
        Ok(Loaded {
            value: config,
            warnings: check.warnings,
        })
    } else {
        Err(ConfigError::Invalid(yaml::sorted(check.faults)))
    }
}

impl Config {
    /// Reads the profiles of `profiles_dir` and holds them against this configuration: a bridge of another name is
    /// refused, and `artifact_max_bytes` bounds what a profile allows.
    ///
    /// # Errors
    /// As [`crate::load_profiles`], and for a profile that contradicts this configuration.
    pub fn load_profiles(&self) -> Result<Vec<Profile>, ConfigError> {
        let loaded = crate::load_profiles(&self.profiles_dir)?;
        let faults: Vec<Fault> = loaded
            .iter()
            .filter_map(|profile| self.contradiction(profile))
            .collect();
        if !faults.is_empty() {
            return Err(ConfigError::Invalid(faults));
        }
        Ok(loaded
            .into_iter()
            .map(|LoadedProfile { mut profile, .. }| {
                let rules = &mut profile.artifacts;
                rules.max_file_bytes = rules.max_file_bytes.min(self.artifact_max_bytes);
                profile
            })
            .collect())
    }

    fn contradiction(&self, loaded: &LoadedProfile) -> Option<Fault> {
        let profile = &loaded.profile;
        let other_bridge = profile
            .network
            .bridge
            .as_ref()
            .filter(|bridge| **bridge != self.bridge);
        let reason = match other_bridge {
            Some(bridge) => format!(
                "wants bridge `{bridge}`, and sandboxes are only ever put on `{}`; leave `network.bridge` out",
                self.bridge
            ),
            None => crate::resources::unenforced(&profile.resources, self.backend)?,
        };
        let message = format!("profile `{}` {reason}", profile.name);
        let place = Place {
            line: loaded.line,
            column: loaded.column,
        };
        Some(Fault::new(&loaded.file, place, &message))
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
