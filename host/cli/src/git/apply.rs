//! A guest's commits on their way into the operator's repository.
//!
//! ```text
//!   work.bundle ──► scratch repository (ours, borrows objects) ──► git fetch with fsckObjects ──► refs/agentlab/<job>
//! ```
//!
//! Two steps, because git before 2.46 does not check objects that come straight out of a bundle. Nothing is checked
//! out, so no attribute, filter, hook or file of the guest's takes effect.

use std::ffi::OsString;
use std::path::Path;

use agentlab_api::JobId;

use super::checkout::Checkout;
use super::gate::Risk;
use super::review::{self, Review};
use super::{Git, GitError, Ran, Result, Scratch};

/// What is to be fetched.
#[derive(Debug)]
pub(crate) struct Work<'a> {
    pub(crate) job: &'a JobId,
    /// The bundle, already held against its hash.
    pub(crate) bundle: &'a Path,
    /// The commit the job's record says the work ends in.
    pub(crate) expected: Option<&'a str>,
    /// Branch to make.
    pub(crate) branch: Option<&'a str>,
    /// Take out what the exit gate finds.
    pub(crate) strict: bool,
    /// Also bring the checkout to it.
    pub(crate) merge: bool,
}

/// What was fetched.
#[derive(Debug)]
pub(crate) struct Fetched {
    /// `refs/agentlab/<job>`.
    pub(crate) reference: String,
    pub(crate) commit: String,
    /// What the exit gate found; with `strict` it is in none of the files any more.
    pub(crate) risks: Vec<Risk>,
    /// Short hash and subject of every commit that HEAD does not have, newest first. The guest's own words.
    pub(crate) subjects: Vec<String>,
}

/// Fetches the work into `refs/agentlab/<job>`. The same work again changes nothing.
pub(crate) async fn fetch(repository: &Path, work: &Work<'_>) -> Result<Fetched> {
    let git = Git::in_dir(repository);
    check_repository(&git).await?;
    if let Some(branch) = work.branch {
        check_branch(&git, branch).await?;
    }
    let scratch = Scratch::borrowing_from(&git).await?;
    let checkout = if work.merge {
        Some(Checkout::clean(&git, &scratch).await?)
    } else {
        None
    };
    let (name, commit) = head(&scratch, work).await?;
    let reference = format!("refs/agentlab/{}", work.job);
    unpack(&scratch, work, &name, &reference).await?;
    let seen = review::inspect(&git, &scratch, &commit).await?;
    let commit = if work.strict {
        stripped(&git, &scratch, &seen, &reference).await?
    } else {
        commit
    };
    if let Some(risk) = seen.risks.first().filter(|_| work.merge && !work.strict) {
        return Err(GitError::unfit(
            format!("`{}` {}; nothing was merged", risk.path.escape_debug(), risk.kind),
            "`--strict` takes such files out; `agentlab job review` names them all, and without `--merge` you look first",
        ));
    }
    bring(&git, &scratch, &reference, &commit).await?;
    if let Some(branch) = work.branch {
        // The empty old value makes git refuse when the branch appeared meanwhile.
        let nothing = "0".repeat(commit.len());
        git.run(&["update-ref", &format!("refs/heads/{branch}"), &commit, &nothing])
            .await?;
    }
    let subjects = subjects(&git, &reference).await?;
    if let Some(checkout) = checkout {
        checkout.advance(&git, &scratch, &commit).await?;
    }
    Ok(Fetched {
        reference,
        commit,
        risks: seen.risks,
        subjects,
    })
}

/// The work without what would run here, as a commit that the reference leads to from then on.
async fn stripped(git: &Git, scratch: &Scratch, seen: &Review, reference: &str) -> Result<String> {
    let stripped = review::strip(scratch, seen).await?;
    let left = review::inspect(git, scratch, &stripped).await?.risks;
    if let Some(risk) = left.first() {
        return Err(GitError::unfit(
            format!(
                "`{}` could not be taken out of the work",
                risk.path.escape_debug()
            ),
            "take single patches by hand: `agentlab job artifacts`",
        ));
    }
    scratch.git().run(&["update-ref", reference, &stripped]).await?;
    Ok(stripped)
}

/// Fetches the reference into the repository, and looks whether it leads to the commit there.
async fn bring(git: &Git, scratch: &Scratch, reference: &str, commit: &str) -> Result<()> {
    let refspec: OsString = format!("+{reference}:{reference}").into();
    let mut arguments: Vec<OsString> = [
        "fetch",
        "--quiet",
        "--no-tags",
        "--no-auto-maintenance",
        "--no-write-fetch-head",
        "--no-recurse-submodules",
    ]
    .map(OsString::from)
    .to_vec();
    arguments.extend([scratch.path().into(), refspec]);
    let ran = git.try_run(&arguments).await?;
    if !ran.success {
        return Err(refused(git, &arguments, &ran));
    }
    let arrived = git
        .run(&["rev-parse", "--verify", &format!("{reference}^{{commit}}")])
        .await?
        .trim()
        .to_owned();
    if arrived != commit {
        return Err(GitError::unfit(
            format!("{reference} is {arrived} and not {commit}"),
            "do not use it; try again",
        ));
    }
    Ok(())
}

/// The directory must be in a repository that git trusts.
pub(super) async fn check_repository(git: &Git) -> Result<()> {
    let ran = git.try_run(&["rev-parse", "--git-dir"]).await?;
    if ran.success {
        return Ok(());
    }
    Err(git.unusable(&ran, "name one with `--repo`"))
}

async fn check_branch(git: &Git, branch: &str) -> Result<()> {
    let full = format!("refs/heads/{branch}");
    if branch.starts_with('-') || !git.try_run(&["check-ref-format", &full]).await?.success {
        return Err(GitError::unfit(
            format!("`{branch}` is not a name for a branch"),
            "`git help check-ref-format` says why",
        ));
    }
    if git
        .try_run(&["show-ref", "--verify", "--quiet", &full])
        .await?
        .success
    {
        return Err(GitError::unfit(
            format!("Branch `{branch}` exists already"),
            "give another name; it is not changed",
        ));
    }
    Ok(())
}

/// Name and commit of the bundle's one head that is the work.
pub(super) async fn head(scratch: &Scratch, work: &Work<'_>) -> Result<(String, String)> {
    let listed = scratch
        .git()
        .run(&["bundle".as_ref(), "list-heads".as_ref(), work.bundle.as_os_str()])
        .await?;
    let heads: Vec<(&str, &str)> = listed.lines().filter_map(|line| line.split_once(' ')).collect();
    let found = match work.expected {
        Some(expected) => heads.iter().find(|(commit, _)| *commit == expected),
        None => heads
            .iter()
            .find(|(_, name)| *name == "HEAD")
            .or_else(|| heads.first()),
    };
    let unfit = |message: String| {
        GitError::unfit(
            message,
            "its patches may still be of use: `agentlab job artifacts`",
        )
    };
    let (commit, name) = found.ok_or_else(|| match work.expected {
        Some(expected) => unfit(format!(
            "The bundle does not end in commit {expected}, as the job's record says"
        )),
        None => unfit("The bundle names no commit".to_owned()),
    })?;
    // The name becomes part of a command line; git's own rules leave nothing in it that could be an option.
    let plain = *name == "HEAD"
        || (name.starts_with("refs/") && scratch.git().try_run(&["check-ref-format", name]).await?.success);
    if !plain || !commit.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(unfit(
            "The bundle names its commit in a way git does not allow".to_owned(),
        ));
    }
    Ok(((*name).to_owned(), (*commit).to_owned()))
}

pub(super) async fn unpack(scratch: &Scratch, work: &Work<'_>, name: &str, reference: &str) -> Result<()> {
    let own = scratch.git();
    let mut arguments: Vec<OsString> = ["fetch", "--quiet", "--no-tags", "--no-write-fetch-head"]
        .map(OsString::from)
        .to_vec();
    arguments.extend([work.bundle.into(), format!("+{name}:{reference}").into()]);
    let ran = own.try_run(&arguments).await?;
    if ran.success {
        return Ok(());
    }
    if ran.stderr.contains("prerequisite") {
        return Err(GitError::unfit(
            format!(
                "The repository does not hold the commit the job started from: {}",
                ran.stderr
            ),
            "fetch that commit first, or name the right repository with `--repo`",
        ));
    }
    Err(refused(&own, &arguments, &ran))
}

/// Why a fetch failed: for what the guest made, or for something else.
fn refused(git: &Git, arguments: &[OsString], ran: &Ran) -> GitError {
    if ran.stderr.contains("fsck error") {
        return GitError::unfit(
            format!("The work holds what git refuses: {}", ran.stderr),
            "do not take it: git itself would not have made it",
        );
    }
    git.failed(arguments, ran)
}

async fn subjects(git: &Git, reference: &str) -> Result<Vec<String>> {
    let exclude = git.try_run(&["rev-parse", "--verify", "--quiet", "HEAD"]).await?;
    let mut arguments = vec![
        "log",
        "--no-show-signature",
        "--no-mailmap",
        "--format=%h %s",
        reference,
    ];
    if exclude.success {
        arguments.extend(["--not", "HEAD"]);
    }
    Ok(git
        .run(&arguments)
        .await?
        .lines()
        .map(ToOwned::to_owned)
        .collect())
}
