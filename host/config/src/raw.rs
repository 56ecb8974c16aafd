//! `config.yaml` as it is written, and how it becomes a [`Config`].

use std::path::PathBuf;
use std::time::Duration;

use agentlab_api::Vmid;
use agentlab_protocol::secret::SecretText;
use serde::Deserialize;

use crate::check::Check;
use crate::login;
use crate::network::{NetworkPart, RawDns};
use crate::span::Span;
use crate::{Accelerator, CloneMode, Config, IdleStop, LogLevel, ProxmoxConfig, QemuConfig};

/// As it stands in the file.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Raw {
    pub(crate) profiles_dir: Option<PathBuf>,
    pub(crate) data_dir: Option<PathBuf>,
    pub(crate) run_dir: Option<PathBuf>,
    pub(crate) socket_path: Option<PathBuf>,
    pub(crate) db_path: Option<PathBuf>,
    pub(crate) artifact_dir: Option<PathBuf>,
    pub(crate) template_dir: Option<PathBuf>,
    pub(crate) backend: Option<String>,
    pub(crate) bridge: Option<String>,
    pub(crate) bridge_address: Option<String>,
    pub(crate) agent_subnet: Option<String>,
    pub(crate) uplink: Option<String>,
    pub(crate) bootstrap_listen: Option<String>,
    pub(crate) artifact_listen: Option<String>,
    pub(crate) controller_url: Option<String>,
    pub(crate) provisioning_timeout: Option<Span>,
    pub(crate) boot_timeout: Option<Span>,
    pub(crate) agent_stuck_after: Option<Span>,
    pub(crate) bootstrap_token_ttl: Option<Span>,
    pub(crate) artifact_max_bytes: Option<u64>,
    pub(crate) artifact_disk_floor_bytes: Option<u64>,
    pub(crate) bundle_max_bytes: Option<u64>,
    pub(crate) log_max_bytes: Option<u64>,
    pub(crate) max_sandboxes: Option<u32>,
    pub(crate) max_queued_jobs: Option<u32>,
    pub(crate) retention_days: Option<u32>,
    pub(crate) vmid_first: Option<Vmid>,
    pub(crate) vmid_last: Option<Vmid>,
    pub(crate) template_vmid: Option<Vmid>,
    pub(crate) heartbeat_seconds: Option<u32>,
    pub(crate) heartbeat_silence_seconds: Option<u32>,
    pub(crate) reconcile_interval: Option<Span>,
    pub(crate) idle_stop_enabled: Option<bool>,
    pub(crate) idle_stop_interval: Option<Span>,
    pub(crate) idle_stop_minutes_default: Option<u32>,
    pub(crate) idle_stop_cpu_threshold: Option<f64>,
    pub(crate) kill_grace_seconds: Option<u32>,
    pub(crate) log_level: Option<LogLevel>,
    pub(crate) ssh_public_key: Option<String>,
    pub(crate) ssh_public_key_path: Option<PathBuf>,
    pub(crate) secrets_dir: Option<PathBuf>,
    pub(crate) secrets_bundle: Option<String>,
    pub(crate) secrets_age_key_path: Option<PathBuf>,
    pub(crate) qemu: RawQemu,
    pub(crate) dns: RawDns,
    pub(crate) proxmox_backend: Option<String>,
    pub(crate) proxmox_api_url: Option<String>,
    pub(crate) proxmox_api_token: Option<SecretText>,
    pub(crate) proxmox_api_token_path: Option<PathBuf>,
    pub(crate) proxmox_tls_ca_path: Option<String>,
    pub(crate) proxmox_tls_fingerprint: Option<String>,
    pub(crate) proxmox_tls_insecure: Option<bool>,
    pub(crate) proxmox_node: Option<String>,
    pub(crate) proxmox_pool: Option<String>,
    pub(crate) proxmox_storage: Option<String>,
    pub(crate) proxmox_clone_mode: Option<CloneMode>,
    pub(crate) proxmox_command_timeout: Option<Span>,
    pub(crate) proxmox_calls_per_node: Option<u32>,
    pub(crate) proxmox_clones_per_storage: Option<u32>,
    pub(crate) proxmox_volume_vmid: Option<Vmid>,
    pub(crate) snippets_dir: Option<PathBuf>,
    pub(crate) snippet_storage: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawQemu {
    pub(crate) binary: Option<PathBuf>,
    pub(crate) accelerator: Accelerator,
    pub(crate) tb_size_mb: Option<u32>,
    pub(crate) concurrent_starts: Option<u32>,
    pub(crate) uid_first: Option<u32>,
    pub(crate) uid_count: Option<u32>,
    pub(crate) vsock_dir: Option<PathBuf>,
}

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

impl Raw {
    pub(crate) fn into_config(self, check: &mut Check<'_>) -> Config {
        let network = NetworkPart::of(&self, check);
        let idle_stop = IdleStop::of(&self, check);
        let limits = LimitsPart::of(&self, check);
        let kind = crate::proxmox::backend(&self, check);
        let proxmox = ProxmoxConfig::of(&self, kind, check);
        let data_dir = check.path("data_dir", self.data_dir, || "/var/lib/agentlab".into());
        let run_dir = check.path("run_dir", self.run_dir, || "/run/agentlab".into());
        let (heartbeat, silence) = heartbeats(self.heartbeat_seconds, self.heartbeat_silence_seconds, check);
        let grace = check.number(&["kill_grace_seconds"], self.kill_grace_seconds, 10, (1, 600));
        login::check(
            self.ssh_public_key.as_deref(),
            self.ssh_public_key_path.as_deref(),
            check,
        );
        let secrets_bundle = self.secrets_bundle.unwrap_or_else(|| "default".to_owned());
        if !crate::profile::is_bundle_name(&secrets_bundle) {
            check.fault(&["secrets_bundle"], crate::profile::NO_BUNDLE_NAME);
        }
        Config {
            secrets_dir: check.path("secrets_dir", self.secrets_dir, || "/etc/agentlab/secrets".into()),
            secrets_bundle,
            secrets_age_key_path: check.path("secrets_age_key_path", self.secrets_age_key_path, || {
                "/etc/agentlab/keys/age.key".into()
            }),
            profiles_dir: check.path("profiles_dir", self.profiles_dir, || {
                "/etc/agentlab/profiles".into()
            }),
            socket_path: check.path("socket_path", self.socket_path, || run_dir.join("agentlabd.sock")),
            db_path: check.path("db_path", self.db_path, || data_dir.join("agentlab.db")),
            artifact_dir: check.path("artifact_dir", self.artifact_dir, || data_dir.join("artifacts")),
            template_dir: check.path("template_dir", self.template_dir, || data_dir.join("templates")),
            data_dir,
            run_dir,
            backend: kind,
            proxmox,
            bridge: network.bridge,
            bridge_address: network.address,
            uplink: network.uplink,
            bootstrap_listen: network.bootstrap,
            artifact_listen: network.artifacts,
            provisioning_timeout: check.duration(
                "provisioning_timeout",
                self.provisioning_timeout,
                600,
                (5, 86_400),
            ),
            boot_timeout: check.duration("boot_timeout", self.boot_timeout, 300, (5, 86_400)),
            agent_stuck_after: check.duration("agent_stuck_after", self.agent_stuck_after, 600, (5, 86_400)),
            bootstrap_token_ttl: check.duration(
                "bootstrap_token_ttl",
                self.bootstrap_token_ttl,
                600,
                (10, 86_400),
            ),
            artifact_max_bytes: limits.artifact,
            artifact_disk_floor_bytes: limits.disk_floor,
            bundle_max_bytes: limits.bundle,
            log_max_bytes: limits.log,
            max_sandboxes: usize::try_from(limits.sandboxes).unwrap_or(usize::MAX),
            max_queued_jobs: usize::try_from(limits.queued_jobs).unwrap_or(usize::MAX),
            retention: Duration::from_secs(u64::from(limits.retention_days) * 24 * 3600),
            vmid_first: limits.vmid_first,
            vmid_last: limits.vmid_last,
            template_vmid: limits.template_vmid,
            heartbeat: Duration::from_secs(u64::from(heartbeat)),
            heartbeat_silence: Duration::from_secs(u64::from(silence)),
            reconcile_interval: check.duration("reconcile_interval", self.reconcile_interval, 30, (1, 3600)),
            idle_stop,
            kill_grace: Duration::from_secs(u64::from(grace)),
            log_level: self.log_level.unwrap_or(LogLevel::Info),
            ssh_public_key: self.ssh_public_key,
            ssh_public_key_path: self.ssh_public_key_path,
            qemu: self.qemu.into_config(limits.sandboxes, check),
            dns: self.dns.into_config(network.address.address, check),
        }
    }
}

/// Between two signs of life, and how long none may come.
fn heartbeats(seconds: Option<u32>, silence_seconds: Option<u32>, check: &mut Check<'_>) -> (u32, u32) {
    let heartbeat = check.number(&["heartbeat_seconds"], seconds, 5, (1, 300));
    let silence = check.number(&["heartbeat_silence_seconds"], silence_seconds, 60, (3, 3600));
    if silence < heartbeat.saturating_mul(3) {
        check.fault(
            &["heartbeat_silence_seconds"],
            format!("is {silence}, less than three times `heartbeat_seconds` ({heartbeat}): one lost beat would end a job"),
        );
    }
    (heartbeat, silence)
}

struct LimitsPart {
    artifact: u64,
    disk_floor: u64,
    bundle: u64,
    log: u64,
    sandboxes: u32,
    queued_jobs: u32,
    retention_days: u32,
    vmid_first: Vmid,
    vmid_last: Vmid,
    template_vmid: Vmid,
}

impl LimitsPart {
    fn of(raw: &Raw, check: &mut Check<'_>) -> Self {
        let vmid = |given: Option<Vmid>, default: u32| {
            given
                .or_else(|| Vmid::try_from(default).ok())
                .unwrap_or(Vmid::MIN)
        };
        let vmid_first = vmid(raw.vmid_first, 1000);
        let vmid_last = vmid(raw.vmid_last, 8999);
        let template_vmid = vmid(raw.template_vmid, 9000);
        if vmid_last < vmid_first {
            check.fault(
                &["vmid_last"],
                format!("is {vmid_last}, below `vmid_first` ({vmid_first})"),
            );
        }
        if (vmid_first..=vmid_last).contains(&template_vmid) {
            let message =
                format!("is {template_vmid}, inside the sandboxes' own range {vmid_first} to {vmid_last}");
            check.fault(&["template_vmid"], message);
        }
        let sandboxes = check.number(&["max_sandboxes"], raw.max_sandboxes, 16, (1, 4096));
        let room = i64::from(vmid_last) - i64::from(vmid_first) + 1;
        if vmid_first <= vmid_last && i64::from(sandboxes) > room {
            check.fault(
                &["max_sandboxes"],
                format!("is {sandboxes}, and there are only {room} VMIDs for them"),
            );
        }
        let bytes = |check: &mut Check<'_>, key: &'static str, given, default| {
            check.number(&[key], given, default, (1, 1 << 50))
        };
        Self {
            artifact: bytes(check, "artifact_max_bytes", raw.artifact_max_bytes, 256 * MIB),
            disk_floor: bytes(
                check,
                "artifact_disk_floor_bytes",
                raw.artifact_disk_floor_bytes,
                GIB,
            ),
            bundle: bytes(check, "bundle_max_bytes", raw.bundle_max_bytes, 2 * GIB),
            log: bytes(check, "log_max_bytes", raw.log_max_bytes, 64 * MIB),
            sandboxes,
            queued_jobs: check.number(&["max_queued_jobs"], raw.max_queued_jobs, 100, (0, 10_000)),
            retention_days: check.number(&["retention_days"], raw.retention_days, 30, (1, 3650)),
            vmid_first,
            vmid_last,
            template_vmid,
        }
    }
}

impl RawQemu {
    fn into_config(self, sandboxes: u32, check: &mut Check<'_>) -> QemuConfig {
        let binary = self
            .binary
            .unwrap_or_else(|| "/usr/bin/qemu-system-x86_64".into());
        if !binary.is_absolute() {
            check.fault(&["qemu", "binary"], "must be an absolute path");
        }
        if self.vsock_dir.as_ref().is_some_and(|dir| !dir.is_absolute()) {
            check.fault(&["qemu", "vsock_dir"], "must be an absolute path");
        }
        let starts = check.number(&["qemu", "concurrent_starts"], self.concurrent_starts, 2, (1, 64));
        // 1879048192 to 2147483647 is given to nobody by systemd's and Debian's allocation.
        let uid_first = check.number(
            &["qemu", "uid_first"],
            self.uid_first,
            1_900_000_000,
            (65_536, 2_147_000_000),
        );
        let uid_count = check.number(&["qemu", "uid_count"], self.uid_count, 4096, (1, 65_536));
        // The last one is the probe's.
        if uid_count <= sandboxes {
            let message = format!(
                "is {uid_count}, and the sandboxes (`max_sandboxes` is {sandboxes}) need one each and one for the probe"
            );
            check.fault(&["qemu", "uid_count"], message);
        }
        QemuConfig {
            binary,
            accelerator: self.accelerator,
            tb_size_mb: check.number(&["qemu", "tb_size_mb"], self.tb_size_mb, 64, (16, 2048)),
            concurrent_starts: usize::try_from(starts).unwrap_or(1),
            uid_first,
            uid_count,
            vsock_dir: self.vsock_dir,
        }
    }
}
