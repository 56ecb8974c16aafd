//! Where the built programs and the template image are.

use std::path::{Path, PathBuf};
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
pub fn runner_path() -> PathBuf {
    target_dir().join("guest/agent-runner")
}

#[expect(
    clippy::expect_used,
    reason = "cargo runs tests from its own target directory"
)]
fn target_dir() -> PathBuf {
    let profile = binaries_dir();
    let target = profile.parent().expect("a profile lies in a target directory");
    target.to_owned()
}

static STORE: OnceLock<Result<PathBuf, String>> = OnceLock::new();

/// A template store with the `demo` image of the current runner in it, built at the first call. Later test runs find it
/// in the target directory and build nothing.
///
/// # Errors
/// The build failed; its own words are in the error.
pub fn template_store() -> Result<PathBuf> {
    STORE
        .get_or_init(|| {
            template_image("demo", &[])
                .map(|_| store_dir())
                .map_err(|error| format!("{error:#}"))
        })
        .clone()
        .map_err(anyhow::Error::msg)
}

fn store_dir() -> PathBuf {
    target_dir().join("templates")
}

/// An image of a recipe, its name or path, in that store, with the current runner in it: its directory. One that is as it
/// would be built is left alone.
///
/// # Errors
/// As [`template_store`].
pub fn template_image(recipe: &str, arguments: &[&str]) -> Result<PathBuf> {
    template_image_in(&store_dir(), recipe, arguments)
}

/// The same in a store of the caller's.
///
/// # Errors
/// As [`template_store`].
pub fn template_image_in(store: &Path, recipe: &str, arguments: &[&str]) -> Result<PathBuf> {
    let runner = runner_path();
    ensure!(
        runner.exists(),
        "{} does not exist: packaging/build-runner makes it",
        runner.display()
    );
    let output = Command::new(binaries_dir().join("agentlab-template"))
        .args(["--json", "build", recipe])
        .args(arguments)
        .arg("--store")
        .arg(store)
        .arg("--runner")
        .arg(&runner)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("agentlab-template: cargo build --workspace --bins makes it")?
        .wait_with_output()?;
    ensure!(
        output.status.success(),
        "agentlab-template build {recipe} ended with {}",
        output.status
    );
    let built: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let dir = built["dir"].as_str().context("no directory was named")?;
    Ok(dir.into())
}
