//! Runs `git` so that nothing in a repository can make it run something else: no hooks, no file system monitor, no
//! filters, no credential or ssh program, no configuration of user or system, no transport but local files.
//!
//! Files of a work tree are only looked at from a scratch repository: which program an attribute stands for is a
//! repository's setting, and ours has none. And git itself refuses a repository that belongs to somebody else.

pub(crate) mod apply;
pub(crate) mod bundle;
mod checkout;
pub(crate) mod gate;
pub(crate) mod review;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

/// Settings that stand above the repository's own.
const SETTINGS: &[&str] = &[
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.untrackedCache=false",
    "core.attributesFile=/dev/null",
    "core.excludesFile=/dev/null",
    "core.alternateRefsCommand=true",
    "core.sshCommand=false",
    "core.gitProxy=false",
    "core.askPass=false",
    "core.editor=false",
    "core.protectHFS=true",
    "core.protectNTFS=true",
    "core.pager=cat",
    "credential.helper=",
    "diff.external=",
    "gc.auto=0",
    "maintenance.auto=false",
    "gpg.program=false",
    "log.showSignature=false",
    "fetch.fsckObjects=true",
    "transfer.fsckObjects=true",
    "fetch.recurseSubmodules=false",
    "fetch.writeCommitGraph=false",
    "submodule.recurse=false",
    "protocol.allow=never",
    "protocol.file.allow=always",
];

/// Why a repository could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GitError {
    /// No `git` here.
    #[error("`git` could not be run")]
    Missing(#[source] std::io::Error),
    /// git said no.
    #[error("`git {action}` failed in {dir}: {words}")]
    Failed {
        action: String,
        dir: String,
        words: String,
    },
    /// A temporary file or directory.
    #[error("{action} failed")]
    File {
        action: &'static str,
        #[source]
        source: std::io::Error,
    },
    /// The repository is not what is needed.
    #[error("{message}")]
    Unfit { message: String, hint: Option<String> },
}

impl GitError {
    pub(crate) fn unfit(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Unfit {
            message: message.into(),
            hint: Some(hint.into()),
        }
    }

    /// What to do next.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Missing(_) => Some("install git".to_owned()),
            Self::Unfit { hint, .. } => hint.clone(),
            Self::Failed { .. } | Self::File { .. } => None,
        }
    }
}

type Result<T> = std::result::Result<T, GitError>;

/// git in one directory.
#[derive(Debug, Clone)]
pub(crate) struct Git {
    dir: PathBuf,
    environment: Vec<(&'static str, OsString)>,
}

/// What git printed.
#[derive(Debug, Default)]
pub(crate) struct Ran {
    pub(crate) success: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            success: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        }
    }
}

fn file(action: &'static str) -> impl Fn(std::io::Error) -> GitError {
    move |source| GitError::File { action, source }
}

impl Git {
    pub(crate) fn in_dir(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            environment: Vec::new(),
        }
    }

    fn env(mut self, name: &'static str, value: impl Into<OsString>) -> Self {
        self.environment.push((name, value.into()));
        self
    }

    /// Why the directory is not in a repository that can be used, from what git said of it.
    fn unusable(&self, ran: &Ran, hint: &str) -> GitError {
        let shown = self.dir.display();
        if ran.stderr.contains("dubious ownership") {
            return GitError::unfit(
                format!("{shown} is in a repository of another user, whose settings git would obey"),
                "run this as the repository's owner, or name a copy that belongs to you",
            );
        }
        GitError::unfit(
            format!("{shown} is not in a git repository: {}", ran.stderr),
            hint,
        )
    }

    /// Runs a command that must succeed and gives what it printed.
    pub(crate) async fn run<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Result<String> {
        let ran = self.try_run(arguments).await?;
        if ran.success {
            Ok(ran.stdout)
        } else {
            Err(self.failed(arguments, &ran))
        }
    }

    /// Runs a command that may fail.
    pub(crate) async fn try_run<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Result<Ran> {
        let output = self
            .command(arguments)
            .output()
            .await
            .map_err(GitError::Missing)?;
        Ok(Ran::from(output))
    }

    /// Runs a command that must succeed and gives the beginning of what it printed, and whether there was more. For
    /// what a guest decides the length of.
    pub(crate) async fn run_within<S: AsRef<OsStr>>(
        &self,
        arguments: &[S],
        most: u64,
    ) -> Result<(String, bool)> {
        let mut child = self
            .command(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(GitError::Missing)?;
        let mut printed = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            stdout
                .take(most)
                .read_to_end(&mut printed)
                .await
                .map_err(file("Reading what git prints"))?;
        }
        // What has more to say is ended when it is dropped.
        let is_cut = u64::try_from(printed.len()).is_ok_and(|length| length >= most);
        if !is_cut && !child.wait().await.map_err(GitError::Missing)?.success() {
            return Err(self.failed(arguments, &Ran::default()));
        }
        Ok((String::from_utf8_lossy(&printed).into_owned(), is_cut))
    }

    /// Runs a command that reads this, must succeed, and prints a word or two.
    pub(crate) async fn feed<S: AsRef<OsStr>>(&self, arguments: &[S], input: &[u8]) -> Result<String> {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(GitError::Missing)?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that ended before it read all says why below.
            let _ = stdin.write_all(input).await;
        }
        let output = child.wait_with_output().await.map_err(GitError::Missing)?;
        let ran = Ran::from(output);
        if ran.success {
            Ok(ran.stdout)
        } else {
            Err(self.failed(arguments, &ran))
        }
    }

    pub(crate) fn failed<S: AsRef<OsStr>>(&self, arguments: &[S], ran: &Ran) -> GitError {
        let action = arguments
            .first()
            .map(|first| first.as_ref().to_string_lossy().into_owned())
            .unwrap_or_default();
        let words = if ran.stderr.is_empty() {
            "it said nothing".to_owned()
        } else {
            ran.stderr.clone()
        };
        GitError::Failed {
            action,
            dir: self.dir.display().to_string(),
            words,
        }
    }

    fn command<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = Command::new("git");
        command.env_clear();
        // Nothing but these is inherited: GIT_DIR, GIT_CONFIG_COUNT, GIT_SSH and their like would undo the rest.
        // SUDO_UID: root may use what belongs to the one who became root.
        for name in ["PATH", "TMPDIR", "SUDO_UID"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command
            .envs([
                ("LC_ALL", "C"),
                ("GIT_CONFIG_NOSYSTEM", "1"),
                ("GIT_CONFIG_GLOBAL", "/dev/null"),
                ("GIT_ATTR_NOSYSTEM", "1"),
                ("GIT_ALLOW_PROTOCOL", "file"),
                ("GIT_NO_LAZY_FETCH", "1"),
                ("GIT_NO_REPLACE_OBJECTS", "1"),
                ("GIT_OPTIONAL_LOCKS", "0"),
                ("GIT_TERMINAL_PROMPT", "0"),
                ("GIT_PAGER", "cat"),
            ])
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .arg("-C")
            .arg(&self.dir)
            .args(SETTINGS.iter().flat_map(|setting| ["-c", setting]))
            .args(arguments);
        command
    }
}

/// A bare repository of our own that borrows the objects of another one. Its configuration is ours, so that packing
/// and unpacking can be done without reading the other's.
#[derive(Debug)]
pub(crate) struct Scratch {
    dir: tempfile::TempDir,
}

impl Scratch {
    pub(crate) async fn borrowing_from(repository: &Git) -> Result<Self> {
        let objects = repository
            .run(&["rev-parse", "--path-format=absolute", "--git-path", "objects"])
            .await?;
        let format = repository.run(&["rev-parse", "--show-object-format"]).await?;
        let dir = tempfile::Builder::new()
            .prefix("agentlab-git-")
            .tempdir()
            .map_err(file("Making a temporary directory"))?;
        let scratch = Self { dir };
        let format = format!("--object-format={}", format.trim());
        scratch
            .git()
            .run(&["init", "--quiet", "--bare", "--template=", &format, "."])
            .await?;
        let borrowed = objects.trim_end_matches('\n');
        if borrowed.contains('\n') || borrowed.starts_with('"') {
            return Err(GitError::unfit(
                "The repository's path holds a line end or begins with a quote",
                "move it",
            ));
        }
        let info = scratch.dir.path().join("objects/info");
        std::fs::create_dir_all(&info)
            .and_then(|()| std::fs::write(info.join("alternates"), format!("{borrowed}\n")))
            .map_err(file("Writing a temporary file"))?;
        Ok(scratch)
    }

    pub(crate) fn git(&self) -> Git {
        Git::in_dir(self.dir.path())
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn file(&self, name: &str) -> OsString {
        self.dir.path().join(name).into_os_string()
    }
}

#[cfg(test)]
mod tests;
