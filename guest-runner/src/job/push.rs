//! Hands the agent's commits to a branch of the repository's origin, where the host orders it.
//!
//! It happens in the git directory that the work was collected in, which knows nothing but what is written here: the
//! agent's configuration could name another program for credentials, another URL, or a hook. Nothing is ever forced,
//! and the branch that the origin calls its default is never touched: the origin is asked which one that is.

use std::time::Duration;

use agentlab_protocol::message::{PushOrder, PushResult};

use super::collect::{Store, WORK_REF, Work};
use super::git::Git;
use super::process::{Finished, Memory, ProcessError};
use super::{JobLog, Layout};
use crate::secrets::GitAccess;

/// A server that takes longer is given up; one that sends nothing for a minute already is.
const DEADLINE: Duration = Duration::from_secs(10 * 60);
/// Lines of the origin's own that are passed on.
const REMOTE_LINES: usize = 20;

/// Pushes, and says what came of it.
pub(super) async fn push(
    order: &PushOrder,
    work: &Work,
    layout: &Layout,
    access: &GitAccess,
    log: &JobLog,
) -> PushResult {
    let (Some(store), Some(head)) = (&work.store, &work.head) else {
        return PushResult::NothingToPush;
    };
    if work.commits == 0 {
        return PushResult::NothingToPush;
    }
    let origin = Origin {
        git: git(layout, store, access),
        store,
        order,
    };
    let tried = match &work.withheld {
        Some(reason) => Err(reason.clone()),
        None => origin.offer().await,
    };
    match tried {
        Ok(()) => {
            log.runner(&format!(
                "Pushed {} commits to branch {}",
                work.commits, order.branch
            ));
            PushResult::Pushed { commit: head.clone() }
        }
        Err(reason) => PushResult::Refused {
            reason: log.redact(&format!("Nothing was pushed to `{}`: {reason}", order.branch)),
        },
    }
}

/// With the credentials of the job and no other configuration at all.
fn git<'a>(layout: &'a Layout, store: &Store, access: &GitAccess) -> Git<'a> {
    let mut git = store
        .git(layout)
        .env("GIT_ALLOW_PROTOCOL", layout.clone_protocols);
    git.environment.extend(access.environment.iter().cloned());
    // An empty helper forgets those of the lines above it.
    git.settings.push("credential.helper=".to_owned());
    for (key, value) in &access.config {
        git.settings.push(format!("{key}={value}"));
    }
    for setting in ["http.lowSpeedLimit=1", "http.lowSpeedTime=60"] {
        git.settings.push(setting.to_owned());
    }
    git
}

struct Origin<'a> {
    git: Git<'a>,
    store: &'a Store,
    order: &'a PushOrder,
}

impl Origin<'_> {
    async fn run(&self, arguments: &[&str]) -> Result<(Finished, String), String> {
        let mut memory = Memory {
            bytes: Vec::new(),
            limit: 1 << 20,
        };
        let run = self.git.run(&self.store.git_dir, arguments, DEADLINE);
        let done = run.into_sink(&mut memory).await;
        let done = done.map_err(|error: ProcessError| error.to_string())?;
        Ok((done, String::from_utf8_lossy(&memory.bytes).into_owned()))
    }

    async fn offer(&self) -> Result<(), String> {
        self.take_no_default().await?;
        self.push().await
    }

    /// Refuses the branch that is everybody's, and an origin that does not say which one that is.
    async fn take_no_default(&self) -> Result<(), String> {
        let (done, said) = self
            .run(&["ls-remote", "--symref", "--", &self.order.url, "HEAD"])
            .await?;
        if !done.status.success() {
            return Err(words(&done.stderr));
        }
        match default_branch(&said) {
            Some(branch) if branch == self.order.branch => {
                Err("it is the default branch of the origin".to_owned())
            }
            Some(_) => Ok(()),
            None => Err("the origin does not say which branch is its default".to_owned()),
        }
    }

    async fn push(&self) -> Result<(), String> {
        let refspec = format!("{WORK_REF}:refs/heads/{}", self.order.branch);
        let arguments = [
            "push",
            "--porcelain",
            "--no-verify",
            "--no-follow-tags",
            "--recurse-submodules=no",
            "--",
            &self.order.url,
            &refspec,
        ];
        let (done, said) = self.run(&arguments).await?;
        if done.status.success() {
            return Ok(());
        }
        Err(refusal(&said, &done.stderr))
    }
}

/// The branch that HEAD stands for, from `ls-remote --symref`.
fn default_branch(said: &str) -> Option<&str> {
    said.lines()
        .find_map(|line| line.strip_prefix("ref: refs/heads/")?.strip_suffix("\tHEAD"))
}

/// Why, from `push --porcelain`: the line of the branch, and what the origin's own hooks say.
fn refusal(said: &str, stderr: &str) -> String {
    let line = said.lines().find_map(|line| line.strip_prefix("!\t"));
    let Some(summary) = line.and_then(|line| line.split_once('\t')) else {
        return words(stderr);
    };
    let remote: Vec<&str> = stderr
        .lines()
        .filter_map(|line| line.strip_prefix("remote: "))
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .take(REMOTE_LINES)
        .collect();
    if remote.is_empty() {
        summary.1.to_owned()
    } else {
        format!("{}: {}", summary.1, remote.join("; "))
    }
}

fn words(stderr: &str) -> String {
    let words = stderr.trim();
    if words.is_empty() {
        "git gives no reason".to_owned()
    } else {
        words.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_branch_is_what_head_stands_for() {
        let said = "ref: refs/heads/trunk/x\tHEAD\n1234\tHEAD\n";
        assert_eq!(default_branch(said), Some("trunk/x"));
        assert_eq!(default_branch("1234\tHEAD\n"), None);
        assert_eq!(default_branch(""), None);
    }

    #[test]
    fn a_refusal_is_in_the_words_of_git_and_of_the_origin() {
        let said = "To https://x\n!\trefs/heads/agentlab:refs/heads/a\t[remote rejected] (protected)\nDone\n";
        let stderr = "remote: no way        \nremote: \nerror: failed to push some refs to 'https://x'\n";
        assert_eq!(refusal(said, stderr), "[remote rejected] (protected): no way");
        assert_eq!(
            refusal("", "fatal: Authentication failed\n"),
            "fatal: Authentication failed"
        );
    }
}
