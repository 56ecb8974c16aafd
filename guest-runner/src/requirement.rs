//! What a test may need that a developer's account does not have.

use std::io::Write as _;

/// Prints `SKIP` and tells so without root. In CI that is a failure: a test that did not run proves nothing.
pub(crate) fn skipped_without_root() -> bool {
    if rustix::process::geteuid().is_root() {
        return false;
    }
    let in_ci = std::env::var_os("CI").is_some_and(|value| value == "true");
    assert!(!in_ci, "in CI this must run, but it needs root");
    let _ = writeln!(std::io::stderr(), "SKIP: it needs root");
    true
}
