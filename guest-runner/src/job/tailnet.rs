//! Lets the machine join the operator's tailnet, where its profile says so and its template has Tailscale.
//!
//! The key comes in a file of the tmpfs that root alone reads, and is gone before the agent begins.

use std::time::Duration;

use agentlab_protocol::message::TailnetLogin;

use super::Layout;
use super::process::{self, Run};
use crate::secrets::SecretDir;

/// Longer than any control server takes that answers at all.
const DEADLINE: Duration = Duration::from_secs(60);
const KEY: &str = "tailscale-key";

/// Joins; the error is for people. A machine that has not joined is a machine all the same.
pub(super) async fn join(login: &TailnetLogin, secrets: &SecretDir, layout: &Layout) -> Result<(), String> {
    let key = secrets
        .write(KEY, login.authkey.expose().trim().as_bytes())
        .map_err(|error| error.to_string())?;
    let joined = match std::os::unix::fs::chown(&key, Some(0), Some(0)) {
        Ok(()) => up(login, &key, layout).await,
        Err(error) => Err(error.to_string()),
    };
    let removed = std::fs::remove_file(&key).map_err(|error| format!("removing its key: {error}"));
    joined.and(removed)
}

async fn up(login: &TailnetLogin, key: &std::path::Path, layout: &Layout) -> Result<(), String> {
    let mut command = process::command("tailscale", &layout.user, &layout.work);
    // It is root's: nothing of the agent's home is for it.
    command.env("HOME", "/").args([
        "up".to_owned(),
        format!("--auth-key=file:{}", key.display()),
        format!("--hostname={}", login.hostname),
        // What the tailnet says of names and routes is not for a sandbox.
        "--accept-dns=false".to_owned(),
        "--accept-routes=false".to_owned(),
        "--timeout=45s".to_owned(),
    ]);
    if !login.tags.is_empty() {
        command.arg(format!("--advertise-tags={}", login.tags.join(",")));
    }
    command.args(&login.extra_args);
    let run = Run {
        what: "tailscale up".to_owned(),
        command,
        deadline: DEADLINE,
    };
    run.success().await.map(drop).map_err(|error| error.to_string())
}
