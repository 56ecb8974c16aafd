//! What a person finds in a sandbox without a job: directories, secrets, git's settings and the way in by SSH.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use agentlab_protocol::message::{RedeemAnswer, TailnetLogin};

use super::git::Git;
use super::{AgentUser, Layout, repository, tailnet};
use crate::secrets::SecretDir;

/// Does all of it; the error names the first thing that failed.
///
/// # Errors
/// In words for the console.
pub async fn prepare_for_operator(answer: &RedeemAnswer, layout: &Layout) -> Result<(), String> {
    let words = |error: &dyn std::error::Error| error.to_string();
    repository::prepare_directories(layout).map_err(|error| words(&error))?;
    authorize(&answer.authorized_keys, &layout.user).map_err(|error| format!("authorized_keys: {error}"))?;
    let (uid, gid) = (layout.user.uid, layout.user.gid);
    let secrets = SecretDir::mount(&layout.run, uid, gid).map_err(|error| words(&error))?;
    secrets
        .write_environment(&answer.environment)
        .map_err(|error| words(&error))?;
    if let Some(settings) = &answer.claude_settings {
        secrets
            .write("claude-settings.json", settings.expose().as_bytes())
            .map_err(|error| words(&error))?;
    }
    let git = answer.git.as_ref().map(|git| secrets.write_git(git, None));
    let access = git
        .transpose()
        .map_err(|error| words(&error))?
        .unwrap_or_default();
    let git = Git::of_agent(&layout.user, &access.environment);
    repository::configure(&git, layout, &access)
        .await
        .map_err(|error| words(&error))?;
    match &answer.tailnet {
        Some(login) => tailnet::join(login, &secrets, layout)
            .await
            .map_err(|words| without(login, &words)),
        None => Ok(()),
    }
}

/// The console of a machine is kept and shown: what a program says of its key is not for it.
fn without(login: &TailnetLogin, words: &str) -> String {
    let words = words.replace(login.authkey.expose().trim(), "[redacted]");
    format!("the tailnet was not joined: {words}")
}

/// Lets the holders of these keys log in as the agent. What a template put there stays.
pub(crate) fn authorize(keys: &[String], user: &AgentUser) -> std::io::Result<()> {
    let plain = |key: &&String| !key.trim().is_empty() && !key.contains(['\n', '\r', '\0']);
    let keys: Vec<&String> = keys.iter().filter(plain).collect();
    if keys.is_empty() {
        return Ok(());
    }
    let directory = user.home.join(".ssh");
    let path = directory.join("authorized_keys");
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&directory)?;
    let known = std::fs::read_to_string(&path).unwrap_or_default();
    let mut known: BTreeSet<&str> = known.lines().map(str::trim).collect();
    let mut file = std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&path)?;
    for key in keys {
        if known.insert(key.trim()) {
            writeln!(file, "{}", key.trim())?;
        }
    }
    let own = |path: &Path| std::os::unix::fs::lchown(path, Some(user.uid), Some(user.gid));
    own(&directory)?;
    own(&path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_added_once_and_a_line_end_in_one_adds_nothing() {
        let home = tempfile::tempdir().unwrap();
        let seen = std::fs::metadata(home.path()).unwrap();
        let user = AgentUser {
            name: "agent".to_owned(),
            uid: std::os::unix::fs::MetadataExt::uid(&seen),
            gid: std::os::unix::fs::MetadataExt::gid(&seen),
            home: home.path().to_owned(),
            path: String::new(),
        };
        let keys = [
            "ssh-ed25519 AAAA me",
            "x\ncommand=\"y\" z",
            "ssh-ed25519 AAAA me ",
        ]
        .map(str::to_owned);
        authorize(&keys, &user).unwrap();
        authorize(&keys, &user).unwrap();
        let text = std::fs::read_to_string(home.path().join(".ssh/authorized_keys")).unwrap();
        assert_eq!(text, "ssh-ed25519 AAAA me\n");
    }
}
