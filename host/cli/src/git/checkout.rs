//! The work into the checkout itself, where the operator asks for it: only forward, only into a checkout in which nothing
//! is changed, and without running anything of either side.
//!
//! git writes the files from a scratch repository, so that no filter, hook or file system monitor is known, and with the
//! repository's own index, so that the repository knows its files afterwards.

use std::path::PathBuf;

use super::{Git, GitError, Result, Scratch};

/// What stands in the directory now.
#[derive(Debug)]
pub(crate) struct Checkout {
    top: PathBuf,
    index: String,
    head: String,
}

impl Checkout {
    /// Of the repository a directory is in: one with files, whose HEAD is a commit, and in which nothing is changed.
    pub(crate) async fn clean(git: &Git, scratch: &Scratch) -> Result<Self> {
        let top = git.try_run(&["rev-parse", "--show-toplevel"]).await?;
        if !top.success {
            return Err(GitError::unfit(
                "The repository has no checkout to merge into",
                "leave out `--merge`; `--branch` makes a branch",
            ));
        }
        let top = PathBuf::from(top.stdout.trim_end_matches('\n'));
        let index = git
            .run(&["rev-parse", "--path-format=absolute", "--git-path", "index"])
            .await?;
        let head = git.run(&["rev-parse", "--verify", "HEAD^{commit}"]).await?;
        let checkout = Self {
            top,
            index: index.trim_end_matches('\n').to_owned(),
            head: head.trim().to_owned(),
        };
        let arguments = [
            "diff-index",
            "--name-only",
            "--ignore-submodules",
            &checkout.head,
            "--",
        ];
        // What a filter made of a file may count as a change: then nothing is merged, and nothing is lost.
        let looking = checkout.git(scratch);
        let _ = looking.try_run(&["update-index", "-q", "--refresh"]).await?;
        let changed = looking.run(&arguments).await?;
        if let Some(first) = changed.lines().next() {
            return Err(GitError::unfit(
                format!(
                    "{} has changes that are not committed, such as {first}",
                    checkout.top.display()
                ),
                "commit or stash them, or leave out `--merge`",
            ));
        }
        Ok(checkout)
    }

    /// Files and branch to `commit`, or neither.
    pub(crate) async fn advance(&self, git: &Git, scratch: &Scratch, commit: &str) -> Result<()> {
        let own = scratch.git();
        let forward = ["merge-base", "--is-ancestor", &self.head, commit];
        if !own.try_run(&forward).await?.success {
            return Err(GitError::unfit(
                "The work does not continue what is checked out",
                "check out the commit the job began with, or merge by hand",
            ));
        }
        let files = self.git(scratch);
        // Refuses before it writes: what is not tracked and would be overwritten stays.
        files.run(&["read-tree", "-m", "-u", &self.head, commit]).await?;
        let moved = git
            .run(&[
                "update-ref",
                "-m",
                "agentlab job apply",
                "HEAD",
                commit,
                &self.head,
            ])
            .await;
        if let Err(error) = moved {
            files.run(&["read-tree", "-m", "-u", commit, &self.head]).await?;
            return Err(error);
        }
        Ok(())
    }

    fn git(&self, scratch: &Scratch) -> Git {
        Git::in_dir(&self.top)
            .env("GIT_DIR", scratch.path())
            .env("GIT_WORK_TREE", &self.top)
            .env("GIT_INDEX_FILE", &self.index)
            // The index is to be written.
            .env("GIT_OPTIONAL_LOCKS", "1")
    }
}
