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
pub fn vm_tier() -> bool {
    runs("the vm tier", missing())
}

/// Whether tests that mount file systems of their own can run here. As [`vm_tier`].
///
/// # Panics
/// In CI, when something is missing.
#[must_use]
pub fn root_tier() -> bool {
    runs("tests that need root", not_root())
}

#[expect(clippy::print_stderr, reason = "a skip must be seen")]
fn runs(tier: &str, missing: Option<Missing>) -> bool {
    match missing {
        None => true,
        Some(Missing(what)) => {
            assert!(
                std::env::var_os("CI").is_none_or(|ci| ci != "true"),
                "CI must not skip {tier}: {what}"
            );
            eprintln!("SKIP: {tier}: {what}");
            false
        }
    }
}

fn not_root() -> Option<Missing> {
    let is_root = rustix::process::geteuid().is_root();
    (!is_root).then(|| Missing("not root".into()))
}

fn missing() -> Option<Missing> {
    if let Some(missing) = not_root() {
        return Some(missing);
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
