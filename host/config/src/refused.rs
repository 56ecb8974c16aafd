//! Keys that are refused in words of their own: host mounts, which no profile may ask for, and keys that documents of
//! AgentLab describe but this build does not enforce. Ignoring one of those would promise what nobody keeps.

use crate::yaml::{Node, Place};

/// Profile keys described elsewhere and not enforced here, each with what to do instead.
const PROFILE: &[(&str, &str)] = &[
    ("type", "every sandbox is a VM; leave it out"),
    (
        "image",
        "container images are not supported; name a `template_vmid`",
    ),
    (
        "repo",
        "the repository is always cloned to the runner's own directory",
    ),
    ("network.allowlist", "destinations are listed in `network.allow`"),
    ("network.allow_domains", "names are listed in `network.allow`"),
    ("network.allow_cidrs", "networks are listed in `network.allow`"),
    (
        "network.tailscale",
        "sandboxes do not join a tailnet in this build",
    ),
    (
        "resources.cpu_over_commit",
        "processor time is bounded by `resources.cpu_limit_percent`",
    ),
    (
        "resources.mem_over_commit",
        "memory is not over-committed by this build",
    ),
    ("resources.allow_burst", "there is no resource pool in this build"),
    ("storage.scsihw", "the disk controller is the back end's choice"),
    (
        "storage.storage",
        "disks are where the back end keeps its sandboxes",
    ),
    ("artifacts.upload", "what a job made is always uploaded"),
    (
        "artifacts.endpoint",
        "the guest is told where to upload by its host",
    ),
    (
        "artifacts.ttl_minutes",
        "what a job left is kept for whole days: `artifacts.retention_days`",
    ),
    (
        "artifacts.retention_minutes",
        "what a job left is kept for whole days: `artifacts.retention_days`",
    ),
    (
        "artifacts.retention_hours",
        "what a job left is kept for whole days: `artifacts.retention_days`",
    ),
];

/// The same for `config.yaml`.
const CONFIG: &[(&str, &str)] = &[
    (
        "log_dir",
        "the daemon logs to standard error, which systemd keeps in the journal",
    ),
    (
        "control_listen",
        "the control API is served on the Unix socket only",
    ),
    (
        "control_auth_token",
        "the control API is served on the Unix socket only",
    ),
    (
        "control_allow_cidrs",
        "the control API is served on the Unix socket only",
    ),
    (
        "authorized_keys_path",
        "signed tokens are not supported by this build",
    ),
    ("cli_path", "the daemon runs no CLI"),
    ("artifact_upload_url", "the guest is told `artifact_listen`"),
    (
        "artifact_token_ttl_minutes",
        "uploads are authorised by the guest's session",
    ),
    (
        "bootstrap_rate_limit_qps",
        "request rates are not limited by this build",
    ),
    (
        "bootstrap_rate_limit_burst",
        "request rates are not limited by this build",
    ),
    (
        "artifact_rate_limit_qps",
        "request rates are not limited by this build",
    ),
    (
        "artifact_rate_limit_burst",
        "request rates are not limited by this build",
    ),
    ("metrics_listen", "metrics are not served by this build"),
    (
        "secrets_sops_path",
        "files of sops are read without it; leave it out",
    ),
    (
        "proxmox_api_shell_fallback",
        "everything goes over the API; `backend: shell` does without it",
    ),
    (
        "orphan_grace_period",
        "a machine is destroyed only when its stamp proves that it is ours",
    ),
    (
        "claude_skill_bundle_name",
        "skill bundles are not installed by this build",
    ),
    (
        "claude_skill_bundle_version",
        "skill bundles are not installed by this build",
    ),
    ("offline", "the daemon itself never calls out"),
    ("trust_agent_subnet", "the agent subnet is never trusted"),
];

/// Faults of one profile's tree.
pub(crate) fn in_profile(root: &Node) -> Vec<(Place, String)> {
    let mut faults = unenforced(root, PROFILE);
    root.walk_keys("", &mut |path, key, place| {
        if is_host_mount(key) {
            faults.push((
                place,
                format!("`{path}`: host bind mounts are not allowed; a sandbox sees no file of its host"),
            ));
        }
    });
    faults
}

/// Faults of `config.yaml`'s tree.
pub(crate) fn in_config(root: &Node) -> Vec<(Place, String)> {
    unenforced(root, CONFIG)
}

fn unenforced(root: &Node, table: &[(&str, &str)]) -> Vec<(Place, String)> {
    let mut faults = Vec::new();
    root.walk_keys("", &mut |path, _, place| {
        if let Some((_, instead)) = table.iter().find(|(refused, _)| *refused == path) {
            faults.push((
                place,
                format!("key `{path}` is not enforced by this build, so it is refused: {instead}"),
            ));
        }
    });
    faults
}

/// Whether a key asks for a piece of the host's file system, under any of the names tools give to that.
fn is_host_mount(key: &str) -> bool {
    const NAMES: &[&str] = &[
        "bind_mount",
        "bind_mounts",
        "binds",
        "host_mount",
        "host_mounts",
        "host_path",
        "host_paths",
        "mount_points",
        "mountpoints",
        "mounts",
        "virtio_fs",
        "virtiofs",
        "virtiofsd",
        "9p",
    ];
    let key = key.to_lowercase().replace('-', "_");
    let has = |part: &str| key.contains(part);
    NAMES.contains(&key.as_str())
        || (has("host") && (has("mount") || has("path") || has("bind")))
        || (has("bind") && has("mount"))
}

#[cfg(test)]
pub(crate) fn profile_keys() -> impl Iterator<Item = &'static str> {
    PROFILE.iter().map(|(key, _)| *key)
}
