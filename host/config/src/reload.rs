//! Which keys a running daemon can take over, and which need a restart.

use crate::Config;

impl Config {
    /// This configuration with everything of another that may change while a daemon runs.
    #[must_use]
    pub fn with_reloadable_of(&self, other: Self) -> Self {
        Self {
            artifact_max_bytes: other.artifact_max_bytes,
            max_sandboxes: other.max_sandboxes,
            max_queued_jobs: other.max_queued_jobs,
            retention: other.retention,
            log_level: other.log_level,
            ..self.clone()
        }
    }

    /// Keys whose values differ in another configuration and may not change while a daemon runs.
    #[must_use]
    pub fn fixed_differences(&self, other: &Self) -> Vec<&'static str> {
        macro_rules! differing {
            ($($key:literal: $($field:ident).+),* $(,)?) => {
                [$(($key, self.$($field).+ != other.$($field).+)),*]
            };
        }
        let compared = differing![
            "profiles_dir": profiles_dir,
            "secrets_dir": secrets_dir,
            "secrets_bundle": secrets_bundle,
            "ssh_public_key": ssh_public_key,
            "ssh_public_key_path": ssh_public_key_path,
            "secrets_age_key_path": secrets_age_key_path,
            "data_dir": data_dir,
            "run_dir": run_dir,
            "socket_path": socket_path,
            "db_path": db_path,
            "artifact_dir": artifact_dir,
            "template_dir": template_dir,
            "backend": backend,
            "bridge": bridge,
            "bridge_address": bridge_address,
            "uplink": uplink,
            "bootstrap_listen": bootstrap_listen,
            "artifact_listen": artifact_listen,
            "provisioning_timeout": provisioning_timeout,
            "boot_timeout": boot_timeout,
            "agent_stuck_after": agent_stuck_after,
            "bootstrap_token_ttl": bootstrap_token_ttl,
            "artifact_disk_floor_bytes": artifact_disk_floor_bytes,
            "bundle_max_bytes": bundle_max_bytes,
            "log_max_bytes": log_max_bytes,
            "vmid_first": vmid_first,
            "vmid_last": vmid_last,
            "template_vmid": template_vmid,
            "heartbeat_seconds": heartbeat,
            "heartbeat_silence_seconds": heartbeat_silence,
            "reconcile_interval": reconcile_interval,
            "idle_stop_enabled": idle_stop,
            "kill_grace_seconds": kill_grace,
            "proxmox_api_url": proxmox.url,
            "proxmox_api_token": proxmox.token,
            "proxmox_tls_fingerprint": proxmox.trust,
            "proxmox_node": proxmox.node,
            "proxmox_pool": proxmox.pool,
            "proxmox_storage": proxmox.storage,
            "proxmox_clone_mode": proxmox.clone_mode,
            "proxmox_command_timeout": proxmox.task_timeout,
            "proxmox_calls_per_node": proxmox.calls_per_node,
            "proxmox_clones_per_storage": proxmox.clones_per_storage,
            "proxmox_volume_vmid": proxmox.volume_vmid,
            "snippets_dir": proxmox.snippets,
            "qemu.binary": qemu.binary,
            "qemu.accelerator": qemu.accelerator,
            "qemu.tb_size_mb": qemu.tb_size_mb,
            "qemu.concurrent_starts": qemu.concurrent_starts,
            "qemu.uid_first": qemu.uid_first,
            "qemu.uid_count": qemu.uid_count,
            "qemu.vsock_dir": qemu.vsock_dir,
            "dns.enabled": dns.enabled,
            "dns.upstreams": dns.upstreams,
        ];
        compared
            .into_iter()
            .filter_map(|(key, differs)| differs.then_some(key))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use crate::parse_config;

    /// Every key of the file, with a value that is not its default, and whether it needs a restart.
    const KEYS: &str = "
profiles_dir: /x1                        restart
secrets_dir: /x9                         restart
secrets_bundle: other                    restart
ssh_public_key: ssh-ed25519 AAAAx        restart
ssh_public_key_path: /x11                restart
secrets_age_key_path: /x10               restart
data_dir: /x2                            restart
run_dir: /x3                             restart
socket_path: /x4                         restart
db_path: /x5                             restart
artifact_dir: /x6                        restart
template_dir: /x7                        restart
bridge: br7                              restart
bridge_address: 10.78.0.1/16             restart
uplink: eth7                             restart
bootstrap_listen: 10.77.0.1:9844         restart
artifact_listen: 10.77.0.1:9846          restart
provisioning_timeout: 7m                 restart
boot_timeout: 7m                         restart
agent_stuck_after: 7m                    restart
bootstrap_token_ttl: 7m                  restart
artifact_max_bytes: 7
artifact_disk_floor_bytes: 7             restart
bundle_max_bytes: 7                      restart
log_max_bytes: 7                         restart
max_sandboxes: 7
max_queued_jobs: 7
retention_days: 7
vmid_first: 1007                         restart
vmid_last: 8007                          restart
template_vmid: 9007                      restart
heartbeat_seconds: 7                     restart
heartbeat_silence_seconds: 77            restart
reconcile_interval: 7s                   restart
idle_stop_enabled: false                 restart
idle_stop_interval: 7s                   restart
idle_stop_minutes_default: 7             restart
idle_stop_cpu_threshold: 0.7             restart
kill_grace_seconds: 7                    restart
log_level: warn
backend: shell                           restart
proxmox_backend: shell                   restart
proxmox_api_token: a@b!c=d               restart
qemu: {binary: /x8}                      restart
qemu: {accelerator: tcg}                 restart
qemu: {tb_size_mb: 77}                   restart
qemu: {concurrent_starts: 7}             restart
qemu: {uid_first: 1900000007}            restart
qemu: {uid_count: 77}                    restart
qemu: {vsock_dir: /x9}                   restart
dns: {enabled: false}                    restart
dns: {upstreams: [192.0.2.7]}            restart
";

    #[test]
    fn every_key_either_changes_at_once_or_is_named_as_needing_a_restart() {
        let parse = |text: &str| parse_config(text, "c.yaml").unwrap().value;
        let standing = parse("");
        for line in KEYS.lines().filter(|line| !line.is_empty()) {
            let (text, restart) = match line.strip_suffix("restart") {
                Some(text) => (text.trim_end(), true),
                None => (line, false),
            };
            let changed = parse(text);
            assert_ne!(changed, standing, "{text} is the default");
            let named = !standing.fixed_differences(&changed).is_empty();
            let taken = standing.with_reloadable_of(changed) != standing;
            assert_eq!((named, taken), (restart, !restart), "{text}");
        }
    }

    #[test]
    fn the_list_above_is_complete() {
        // They only repeat what others say.
        let alone = ["agent_subnet", "controller_url"];
        for key in crate::keys::of::<crate::raw::Raw>() {
            let listed = KEYS.lines().any(|line| line.starts_with(&format!("{key}:")));
            // Those need others beside them, and have a test of their own.
            let elsewhere = key.starts_with("proxmox_") || key.starts_with("snippet");
            assert!(listed || elsewhere || alone.contains(key), "{key}");
        }
        for key in crate::keys::of::<crate::raw::RawQemu>() {
            assert!(KEYS.contains(&format!("{{{key}: ")), "qemu.{key}");
        }
        for key in crate::keys::of::<crate::network::RawDns>() {
            assert!(KEYS.contains(&format!("dns: {{{key}: ")), "dns.{key}");
        }
    }

    #[test]
    fn what_did_not_change_is_not_named() {
        let config = parse_config("", "c.yaml").unwrap().value;
        assert_eq!(config.fixed_differences(&config), Vec::<&str>::new());
    }
}
