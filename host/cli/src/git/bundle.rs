//! A local repository on its way into a VM: one commit with its whole history, and nothing else of the repository.
//!
//! The bundle is packed in a scratch repository that borrows the objects, under a branch made there, so that neither
//! hooks nor settings of the repository take part, and no other branch, stash or remote of it leaves this machine.

use std::path::{Path, PathBuf};

use super::{Git, GitError, Result, Scratch};

/// Branch in the bundle when the start is no branch of that repository.
const DETACHED: &str = "agentlab";

/// A packed repository; its file is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Bundled {
    _scratch: Scratch,
    file_path: PathBuf,
    /// Where it came from, for people.
    pub(crate) label: String,
    /// What the guest checks out; `None` for the bundle's HEAD.
    pub(crate) reference: Option<String>,
    /// What is not in it and might have been meant to be.
    pub(crate) warnings: Vec<String>,
}

impl Bundled {
    pub(crate) fn path(&self) -> &Path {
        &self.file_path
    }
}

/// Where a job starts.
struct Start {
    commit: String,
    branch: String,
    /// Full name and object of a tag that was asked for.
    tag: Option<(String, String)>,
    reference: Option<String>,
}

/// Packs `reference`, or HEAD, of the repository a directory is in.
pub(crate) async fn create(directory: &Path, reference: Option<&str>) -> Result<Bundled> {
    let git = Git::in_dir(directory);
    let label = label(&git, directory).await?;
    let start = start(&git, reference, &label).await?;
    let mut warnings = Vec::new();
    let scratch = Scratch::borrowing_from(&git).await?;
    let own = scratch.git();
    let branch = format!("refs/heads/{}", start.branch);
    own.run(&["update-ref", &branch, &start.commit]).await?;
    own.run(&["symbolic-ref", "HEAD", &branch]).await?;
    if reference.is_none() && uncommitted(&git, &scratch).await? {
        warnings.push(format!(
            "{label} has changes that are not committed; they are not part of the job"
        ));
    }
    let file_path = PathBuf::from(scratch.file("repository.bundle"));
    let mut arguments = vec![
        "bundle".into(),
        "create".into(),
        "--quiet".into(),
        file_path.clone().into_os_string(),
        "HEAD".into(),
        branch.into(),
    ];
    if let Some((name, object)) = &start.tag {
        own.run(&["update-ref", name, object]).await?;
        arguments.push(name.into());
    }
    own.run::<std::ffi::OsString>(&arguments).await?;
    Ok(Bundled {
        _scratch: scratch,
        file_path,
        label,
        reference: start.reference,
        warnings,
    })
}

/// Where the repository of a directory was cloned from.
pub(crate) async fn origin(directory: &Path) -> Result<String> {
    let git = Git::in_dir(directory);
    let ran = git
        .try_run(&["config", "--local", "--get", "remote.origin.url"])
        .await?;
    let url = ran.stdout.trim_end_matches('\n');
    if ran.success && !url.is_empty() {
        return Ok(url.to_owned());
    }
    Err(GitError::unfit(
        format!(
            "The repository of {} has no remote `origin` to push to",
            directory.display()
        ),
        "`git remote add origin URL` there, or give the URL as --repo",
    ))
}

/// The work tree's top, or the directory of a bare repository; refuses what cannot be packed whole.
async fn label(git: &Git, directory: &Path) -> Result<String> {
    let ran = git
        .try_run(&["rev-parse", "--is-bare-repository", "--is-shallow-repository"])
        .await?;
    let shown = directory.display();
    if !ran.success {
        return Err(git.unusable(&ran, "give the directory of a repository, or a URL"));
    }
    let mut answers = ran.stdout.lines();
    let (bare, shallow) = (answers.next() == Some("true"), answers.next() == Some("true"));
    if shallow {
        return Err(GitError::unfit(
            format!("{shown} is a shallow clone: its history is not whole"),
            "`git fetch --unshallow` there, or give the URL it was cloned from",
        ));
    }
    let question = if bare {
        "--absolute-git-dir"
    } else {
        "--show-toplevel"
    };
    Ok(git
        .run(&["rev-parse", question])
        .await?
        .trim_end_matches('\n')
        .to_owned())
}

async fn start(git: &Git, reference: Option<&str>, label: &str) -> Result<Start> {
    let asked = reference.unwrap_or("HEAD");
    let peeled = format!("{asked}^{{commit}}");
    let ran = git
        .try_run(&["rev-parse", "--verify", "--quiet", "--end-of-options", &peeled])
        .await?;
    let commit = ran.stdout.trim().to_owned();
    if !ran.success || commit.is_empty() {
        return Err(match reference {
            None => GitError::unfit(
                format!("{label} has no commit yet"),
                "commit something there first",
            ),
            Some(reference) => unknown_reference(git, reference, label).await?,
        });
    }
    let full = match reference {
        None => git.try_run(&["symbolic-ref", "--quiet", "HEAD"]).await?,
        Some(reference) => {
            git.try_run(&["rev-parse", "--symbolic-full-name", "--end-of-options", reference])
                .await?
        }
    };
    // Older versions of git print the separator back.
    let full = full
        .stdout
        .lines()
        .find(|line| line.starts_with("refs/"))
        .unwrap_or_default()
        .to_owned();
    if let Some(branch) = full.strip_prefix("refs/heads/") {
        let branch = branch.to_owned();
        return Ok(Start {
            commit,
            reference: reference.map(|_| branch.clone()),
            branch,
            tag: None,
        });
    }
    if let Some(tag) = full.strip_prefix("refs/tags/") {
        let object = git
            .run(&["rev-parse", "--verify", &full])
            .await?
            .trim()
            .to_owned();
        let reference = Some(tag.to_owned());
        return Ok(Start {
            commit,
            branch: DETACHED.to_owned(),
            tag: Some((full.clone(), object)),
            reference,
        });
    }
    Ok(Start {
        reference: reference.map(|_| commit.clone()),
        commit,
        branch: DETACHED.to_owned(),
        tag: None,
    })
}

async fn unknown_reference(git: &Git, reference: &str, label: &str) -> Result<GitError> {
    let names = git
        .run(&[
            "for-each-ref",
            "--format=%(refname:short)",
            "refs/heads",
            "refs/tags",
        ])
        .await?;
    let nearest = names
        .lines()
        .map(|name| (strsim::jaro_winkler(name, reference), name))
        .filter(|(score, _)| *score >= 0.8)
        .max_by(|left, right| left.0.total_cmp(&right.0));
    let hint = match nearest {
        Some((_, name)) => format!("did you mean `{name}`?"),
        None => format!("`git -C {label} branch --list` and `git -C {label} tag` show what there is"),
    };
    let message = format!("{label} has no branch, tag or commit `{reference}`");
    Ok(GitError::Unfit {
        message,
        hint: Some(hint),
    })
}

/// Whether the work tree holds what HEAD does not. Asked of the scratch repository, with the other's index: no filter
/// and no other program that the repository names is known there. A filtered file may count as changed; what follows is
/// only a warning.
async fn uncommitted(git: &Git, scratch: &Scratch) -> Result<bool> {
    let top = git.try_run(&["rev-parse", "--show-toplevel"]).await?;
    if !top.success {
        // Bare: nothing can be changed there.
        return Ok(false);
    }
    let mut found = Vec::new();
    for name in ["index", "info/exclude"] {
        let path = git
            .run(&["rev-parse", "--path-format=absolute", "--git-path", name])
            .await?;
        found.push(path.trim_end_matches('\n').to_owned());
    }
    let [index, exclude] = found.as_slice() else {
        return Ok(false);
    };
    let top = Path::new(top.stdout.trim_end_matches('\n'));
    let looking = Git::in_dir(top)
        .env("GIT_DIR", scratch.path())
        .env("GIT_WORK_TREE", top)
        .env("GIT_INDEX_FILE", index);
    let exclude = format!("core.excludesFile={exclude}");
    let ran = looking
        .try_run(&["-c", &exclude, "status", "--porcelain", "--ignore-submodules=all"])
        .await?;
    Ok(ran.success && !ran.stdout.is_empty())
}
