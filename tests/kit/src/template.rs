//! Where the built programs and the template image are.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};

/// The directory of the programs that `cargo build --workspace --bins` made beside this test.
///
/// # Panics
/// The test does not run from a cargo target directory.
#[must_use]
#[expect(
    clippy::expect_used,
    reason = "cargo runs tests from its own target directory"
)]
pub fn binaries_dir() -> PathBuf {
    let exe = std::env::current_exe().expect("a running test has a path");
    exe.ancestors()
        .nth(2)
        .expect("a test lies in <target>/<profile>/deps")
        .to_path_buf()
}

/// The static guest binary, as `packaging/build-runner` leaves it.
///
/// # Panics
/// As [`binaries_dir`].
#[must_use]
#[expect(
    clippy::expect_used,
    reason = "cargo runs tests from its own target directory"
)]
pub fn runner_path() -> PathBuf {
    binaries_dir()
        .parent()
        .expect("a profile lies in a target directory")
        .join("guest/agent-runner")
}

static STORE: OnceLock<Result<PathBuf, String>> = OnceLock::new();

/// A template store with the `demo` image of the current runner in it, built at the first call. Later test runs find it
/// in the target directory and build nothing.
///
/// # Errors
/// The build failed; its own words are in the error.
pub fn template_store() -> Result<PathBuf> {
    STORE
        .get_or_init(|| build().map_err(|error| format!("{error:#}")))
        .clone()
        .map_err(anyhow::Error::msg)
}

fn build() -> Result<PathBuf> {
    let runner = runner_path();
    ensure!(
        runner.exists(),
        "{} does not exist: packaging/build-runner makes it",
        runner.display()
    );
    let store = runner
        .ancestors()
        .nth(2)
        .context("target directory")?
        .join("templates");
    let status = Command::new(binaries_dir().join("agentlab-template"))
        .args(["build", "demo", "--store"])
        .arg(&store)
        .arg("--runner")
        .arg(&runner)
        .stdin(Stdio::null())
        .status()
        .context("agentlab-template: cargo build --workspace --bins makes it")?;
    ensure!(
        status.success(),
        "agentlab-template build demo ended with {status}"
    );
    Ok(store)
}
