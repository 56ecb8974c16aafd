//! Brings the code into `/work/repo`, and notes the commit the agent starts from.
//!
//! A URL is cloned; a bundle comes through the link, is checked against the order, and is cloned from its file. Only
//! the protocols a repository may really come by are allowed, and submodules are fetched where the order says so.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agentlab_protocol::message::{JobOrder, Repository};

use super::git::Git;
use super::host::HostLink;
use super::process::{AgentUser, ProcessError};
use super::{JobLog, Layout};
use crate::link::LinkError;
use crate::secrets::GitAccess;

/// A clone slower than this is not waited for; the host's own deadline is usually shorter.
const CLONE_DEADLINE: Duration = Duration::from_secs(60 * 60);
const SHORT: Duration = Duration::from_secs(60);
/// Largest bundle that is taken: the disk of a guest is not larger.
const MAX_BUNDLE_BYTES: u64 = 64 * 1024 * 1024 * 1024;
/// The branch of an agent that did not start on one.
const BRANCH: &str = "agentlab";

/// Why there is no repository.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RepositoryError {
    #[error("The bundle did not come: {0}")]
    Download(#[from] LinkError),
    #[error("The bundle is not the one of the order: SHA-256 is {found}, must be {ordered}")]
    Checksum { found: String, ordered: String },
    #[error("{0}")]
    Git(#[from] ProcessError),
    #[error("`{0}` is no branch, tag or commit of the repository{1}")]
    Reference(String, String),
    #[error("{path} could not be prepared: {source}")]
    Directory { path: PathBuf, source: std::io::Error },
}

/// Clones, checks out, and returns the commit that is checked out: `None` when the repository has none yet.
pub(crate) async fn prepare<H: HostLink>(
    order: &JobOrder,
    layout: &Layout,
    access: &GitAccess,
    host: &H,
    log: &JobLog,
) -> Result<Option<String>, RepositoryError> {
    let git = Git::of_agent(&layout.user, &access.environment);
    configure(&git, layout, access).await?;
    let (source, protocols) = match &order.repository {
        Repository::Url { url } => {
            log.runner(&format!("Cloning {url}"));
            (url.clone(), layout.clone_protocols)
        }
        Repository::Bundle { sha256 } => {
            let path = download(layout, host, sha256).await?;
            log.runner("Cloning the uploaded bundle");
            // A local file, for this one command: nothing in it can name another.
            (path.display().to_string(), "file")
        }
    };
    let repo = layout.repo();
    let clone = git.clone().env("GIT_ALLOW_PROTOCOL", protocols);
    let target = repo.display().to_string();
    // A server that sends nothing for a minute is given up; a slow one is not.
    let arguments = [
        "-c",
        "http.lowSpeedLimit=1",
        "-c",
        "http.lowSpeedTime=60",
        "clone",
        "--quiet",
        "--no-checkout",
        "--no-recurse-submodules",
        "--template=",
        "--",
        &source,
        &target,
    ];
    clone
        .run(&layout.work, &arguments, CLONE_DEADLINE)
        .success()
        .await?;
    checkout(&clone, &repo, order.reference.as_deref()).await?;
    if order.submodules {
        submodules(&git, &repo, (layout, log)).await?;
    }
    let head = git
        .run(&repo, &["rev-parse", "--verify", "--quiet", "HEAD"], SHORT)
        .success()
        .await;
    match head {
        Ok(commit) => {
            log.runner(&format!("The agent starts from commit {commit}"));
            Ok(Some(commit))
        }
        // An empty repository is a fine place to start.
        Err(ProcessError::Failed { .. }) if order.reference.is_none() => {
            log.runner("The repository has no commit yet");
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// Credentials into the agent's own configuration, and an identity where the template gave none.
pub(super) async fn configure(
    git: &Git<'_>,
    layout: &Layout,
    access: &GitAccess,
) -> Result<(), RepositoryError> {
    for (key, value) in &access.config {
        git.run(&layout.work, &["config", "--global", key, value], SHORT)
            .success()
            .await?;
    }
    for (key, value) in [
        ("user.name", "AgentLab agent"),
        ("user.email", "agent@agentlab.invalid"),
    ] {
        let present = git
            .run(&layout.work, &["config", "--global", "--get", key], SHORT)
            .success()
            .await;
        if matches!(present, Err(ProcessError::Failed { .. })) {
            git.run(&layout.work, &["config", "--global", key, value], SHORT)
                .success()
                .await?;
        }
    }
    Ok(())
}

async fn download<H: HostLink>(layout: &Layout, host: &H, ordered: &str) -> Result<PathBuf, RepositoryError> {
    let path = layout.spool.join("repository.bundle");
    let failed = |source| RepositoryError::Directory {
        path: path.clone(),
        source,
    };
    let mut file = tokio::fs::File::create(&path).await.map_err(failed)?;
    let found = host.repository(&mut file, MAX_BUNDLE_BYTES).await?;
    if !found.eq_ignore_ascii_case(ordered) {
        return Err(RepositoryError::Checksum {
            found,
            ordered: ordered.to_owned(),
        });
    }
    // It stays: `origin` of the clone names it, and `git fetch` there should not fail.
    file.set_permissions(std::fs::Permissions::from_mode(0o444))
        .await
        .map_err(failed)?;
    Ok(path)
}

async fn checkout(git: &Git<'_>, repo: &Path, reference: Option<&str>) -> Result<(), RepositoryError> {
    let Some(reference) = reference else {
        let head = git
            .run(repo, &["rev-parse", "--verify", "--quiet", "HEAD"], SHORT)
            .success()
            .await;
        if head.is_ok() {
            git.run(repo, &["checkout", "--quiet"], CLONE_DEADLINE)
                .success()
                .await?;
        }
        return Ok(());
    };
    let unknown = |words: &str| {
        let words = if words.is_empty() {
            String::new()
        } else {
            format!(": {words}")
        };
        RepositoryError::Reference(reference.to_owned(), words)
    };
    let plain = reference
        .bytes()
        .all(|byte| byte.is_ascii_graphic() && !b"~^:?*[\\".contains(&byte));
    if !plain || reference.is_empty() || reference.starts_with(['-', '+', '@']) {
        return Err(unknown("it is not written like one"));
    }
    let name = reference.strip_prefix("refs/heads/").unwrap_or(reference);
    let branch = format!("refs/remotes/origin/{name}");
    if resolve(git, repo, &branch).await.is_some() {
        let arguments = ["checkout", "--quiet", "-B", name, "--track", &branch, "--"];
        git.run(repo, &arguments, CLONE_DEADLINE).success().await?;
        return Ok(());
    }
    let tag = format!(
        "refs/tags/{}",
        reference.strip_prefix("refs/tags/").unwrap_or(reference)
    );
    let mut commit = resolve(git, repo, &tag).await;
    if commit.is_none() && reference.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        commit = resolve(git, repo, reference).await;
    }
    if commit.is_none() {
        // Neither branch nor tag nor a commit below one: a server may still have it (a pull request's head).
        let fetch = git.run(
            repo,
            &["fetch", "--quiet", "--no-tags", "origin", reference],
            CLONE_DEADLINE,
        );
        match fetch.success().await {
            Ok(_) => commit = resolve(git, repo, "FETCH_HEAD").await,
            Err(ProcessError::Failed { words, .. }) => return Err(unknown(&words)),
            Err(error) => return Err(error.into()),
        }
    }
    let commit = commit.ok_or_else(|| unknown(""))?;
    let arguments = ["checkout", "--quiet", "--no-track", "-B", BRANCH, &commit, "--"];
    git.run(repo, &arguments, CLONE_DEADLINE).success().await?;
    Ok(())
}

/// Fetches what `.gitmodules` names, over the network alone: a path would name a file of this machine. git itself refuses
/// an address that is an option, and a command to update with.
async fn submodules(
    git: &Git<'_>,
    repo: &Path,
    (layout, log): (&Layout, &JobLog),
) -> Result<(), RepositoryError> {
    if !repo.join(".gitmodules").exists() {
        return Ok(());
    }
    log.runner("Fetching submodules");
    let git = git.clone().env("GIT_ALLOW_PROTOCOL", layout.clone_protocols);
    let arguments = [
        "-c",
        "init.templateDir=",
        "-c",
        "http.lowSpeedLimit=1",
        "-c",
        "http.lowSpeedTime=60",
        "submodule",
        "--quiet",
        "update",
        "--init",
        "--recursive",
    ];
    git.run(repo, &arguments, CLONE_DEADLINE).success().await?;
    Ok(())
}

async fn resolve(git: &Git<'_>, repo: &Path, name: &str) -> Option<String> {
    let commit = format!("{name}^{{commit}}");
    git.run(repo, &["rev-parse", "--verify", "--quiet", &commit], SHORT)
        .success()
        .await
        .ok()
}

/// Makes the directories of a job: the agent's own where it works, root's around them.
pub(crate) fn prepare_directories(layout: &Layout) -> Result<(), RepositoryError> {
    make(&layout.work, 0o755, None)?;
    make(&layout.repo(), 0o755, Some(&layout.user))?;
    make(&layout.artifacts(), 0o755, Some(&layout.user))?;
    if !layout.user.home.exists() {
        make(&layout.user.home, 0o750, Some(&layout.user))?;
    }
    Ok(())
}

/// The runner's own directory: what is below can be reached by name but not listed.
pub(crate) fn prepare_spool(spool: &Path) -> Result<(), RepositoryError> {
    if let Err(source) = std::fs::remove_dir_all(spool)
        && source.kind() != std::io::ErrorKind::NotFound
    {
        return Err(RepositoryError::Directory {
            path: spool.to_owned(),
            source,
        });
    }
    make(spool, 0o711, None)
}

/// Makes one directory, or takes it as it is, with this mode and owner.
pub(crate) fn make(path: &Path, mode: u32, owner: Option<&AgentUser>) -> Result<(), RepositoryError> {
    let attempt = || {
        std::fs::create_dir_all(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
        if let Some(user) = owner {
            std::os::unix::fs::chown(path, Some(user.uid), Some(user.gid))?;
        }
        Ok(())
    };
    attempt().map_err(|source| RepositoryError::Directory {
        path: path.to_owned(),
        source,
    })
}
