//! What the tests of this crate need of the machine.

/// Whether a test cannot run, since only root has networks of its own. Said, and in CI no excuse.
pub(crate) fn skipped() -> bool {
    if nix::unistd::geteuid().is_root() {
        return false;
    }
    let in_ci = std::env::var_os("CI").is_some_and(|value| value == "true");
    assert!(!in_ci, "in CI this must run, but it needs root");
    eprintln!("SKIP: it needs root");
    true
}
