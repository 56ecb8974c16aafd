//! What a tier needs. A missing requirement prints SKIP on a developer's machine and fails in CI.

use std::path::Path;

/// Why a tier cannot run here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing(pub String);

/// Whether tests with real VMs can run here: root, QEMU, tun.
///
/// Returns false after printing `SKIP`, and panics instead when `CI=true`.
///
/// # Panics
/// In CI, when something is missing.
#[must_use]
#[expect(clippy::print_stderr, reason = "a skip must be seen")]
pub fn vm_tier() -> bool {
    match missing() {
        None => true,
        Some(Missing(what)) => {
            assert!(
                std::env::var_os("CI").is_none_or(|ci| ci != "true"),
                "CI must not skip the vm tier: {what}"
            );
            eprintln!("SKIP: vm tier: {what}");
            false
        }
    }
}

fn missing() -> Option<Missing> {
    if !rustix::process::geteuid().is_root() {
        return Some(Missing("not root".into()));
    }
    for path in [
        "/dev/net/tun",
        "/usr/bin/qemu-system-x86_64",
        "/usr/bin/qemu-img",
        "/usr/bin/mmdebstrap",
    ] {
        if !Path::new(path).exists() {
            return Some(Missing(format!("{path} does not exist")));
        }
    }
    None
}
