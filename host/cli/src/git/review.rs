//! What a job changed, held against what its operator has: never against what its guest says it began with.
//!
//! ```text
//!   work.bundle ──► scratch repository ──► git diff <what HEAD and the work share>..<the work> ──► gate
//! ```
//!
//! The operator's repository lends its objects and is not written to.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::apply::{self, Work};
use super::gate::{self, Change, Listing, Mode, Risk, Texts};
use super::{Git, GitError, Result, Scratch};

/// Larger files are not searched for what their names do not say.
const LARGEST_TEXT: u64 = 1 << 20;

/// One changed file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct FileChange {
    /// `added`, `modified`, `deleted` or `type_changed`.
    pub(crate) change: &'static str,
    pub(crate) path: String,
    /// Lines, absent for binary files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) added: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) removed: Option<u64>,
}

/// Everything there is to look at. Paths and text are the guest's.
#[derive(Debug)]
pub(crate) struct Review {
    pub(crate) commit: String,
    /// The last commit that both sides have; absent when they share none.
    pub(crate) base: Option<String>,
    pub(crate) files: Vec<FileChange>,
    pub(crate) risks: Vec<Risk>,
    pub(crate) patch: String,
}

/// Looks at a job's work.
pub(crate) async fn review(repository: &Path, work: &Work<'_>) -> Result<Review> {
    let git = Git::in_dir(repository);
    apply::check_repository(&git).await?;
    let scratch = Scratch::borrowing_from(&git).await?;
    let (name, commit) = apply::head(&scratch, work).await?;
    apply::unpack(&scratch, work, &name, &format!("refs/agentlab/{}", work.job)).await?;
    inspect(&git, &scratch, &commit).await
}

/// The same of work that the scratch repository has already.
pub(crate) async fn inspect(git: &Git, scratch: &Scratch, commit: &str) -> Result<Review> {
    let own = scratch.git();
    let base = shared_base(git, &own, commit).await?;
    let from = match &base {
        Some(base) => base.clone(),
        None => own.run(&["mktree"]).await?.trim().to_owned(),
    };
    let range = [from.as_str(), commit];
    let sides = parse_raw(&diff(&own, &["--raw", "-z", "--no-abbrev"], range).await?);
    let counts = parse_counts(&diff(&own, &["--numstat", "-z"], range).await?);
    let patch = diff(&own, &["--patch"], range).await?;
    let tree = own
        .run(&["ls-tree", "-r", "-z", "--name-only", "--full-tree", commit])
        .await?;
    let tree: Vec<String> = tree.split_terminator('\0').map(str::to_owned).collect();
    let mut texts = BTreeMap::new();
    for side in sides.iter().filter(|side| gate::wants_text(&side.change)) {
        let text = Texts {
            old: text(&own, side.change.old, &side.old_object).await?,
            new: text(&own, side.change.new, &side.new_object).await?,
        };
        texts.insert(side.change.path.clone(), text);
    }
    let changes: Vec<Change> = sides.iter().map(|side| side.change.clone()).collect();
    let risks = gate::risks(&Listing {
        changes: &changes,
        tree: &tree,
        texts: &texts,
        patch: &patch,
    });
    let files = changes
        .into_iter()
        .map(|change| {
            let (added, removed) = counts.get(&change.path).copied().unwrap_or_default();
            FileChange {
                change: word(&change),
                path: change.path,
                added,
                removed,
            }
        })
        .collect();
    Ok(Review {
        commit: commit.to_owned(),
        base,
        files,
        risks,
        patch,
    })
}

/// Takes what the gate found out of the work: one more commit, in which those paths are as the operator has them. The
/// commits before stay what they are. Returns the new commit, or the same one when there is nothing to take out.
pub(crate) async fn strip(scratch: &Scratch, review: &Review) -> Result<String> {
    let own = scratch.git();
    let mut paths: Vec<&str> = review.risks.iter().map(|risk| risk.path.as_str()).collect();
    paths.dedup();
    paths.sort_unstable();
    paths.dedup();
    if paths.is_empty() {
        return Ok(review.commit.clone());
    }
    // Removing an entry takes a work tree, even if nothing in it is looked at: an empty one.
    let empty = scratch.path().join("empty");
    std::fs::create_dir_all(&empty).map_err(|source| GitError::File {
        action: "Making a temporary directory",
        source,
    })?;
    let own = own.env("GIT_DIR", scratch.path()).env("GIT_WORK_TREE", empty);
    own.run(&["read-tree", &review.commit]).await?;
    for path in &paths {
        let literal = format!(":(literal,top){path}");
        let entry = match &review.base {
            Some(base) => {
                own.run(&["ls-tree", "-z", "--full-tree", base, "--", &literal])
                    .await?
            }
            None => String::new(),
        };
        match entry.split_once('\t') {
            Some((about, _)) => {
                let mut words = about.split(' ');
                let (mode, object) = (words.next().unwrap_or_default(), words.nth(1).unwrap_or_default());
                let info = format!("{mode},{object},{path}");
                own.run(&["update-index", "--add", "--replace", "--cacheinfo", &info])
                    .await?;
            }
            None => {
                own.run(&["update-index", "--force-remove", "--", path]).await?;
            }
        }
    }
    let tree = own.run(&["write-tree"]).await?;
    let message = format!(
        "Take out what would run here\n\nThe exit gate found {} paths in the work of an agent that would run, or change \
         what runs, on the machine of whoever takes it:\n\n{}",
        paths.len(),
        paths.join("\n")
    );
    let commit = own
        .clone()
        .env("GIT_AUTHOR_NAME", "AgentLab")
        .env("GIT_AUTHOR_EMAIL", "gate@agentlab.invalid")
        .env("GIT_COMMITTER_NAME", "AgentLab")
        .env("GIT_COMMITTER_EMAIL", "gate@agentlab.invalid")
        .run(&["commit-tree", tree.trim(), "-p", &review.commit, "-m", &message])
        .await?;
    Ok(commit.trim().to_owned())
}

/// The newest commit that the operator's HEAD and the work share. The scratch repository has both.
async fn shared_base(git: &Git, own: &Git, commit: &str) -> Result<Option<String>> {
    let head = git
        .try_run(&["rev-parse", "--verify", "--quiet", "HEAD^{commit}"])
        .await?;
    if !head.success {
        return Ok(None);
    }
    let found = own.try_run(&["merge-base", head.stdout.trim(), commit]).await?;
    Ok(found
        .success
        .then(|| found.stdout.trim().to_owned())
        .filter(|base| !base.is_empty()))
}

async fn diff(own: &Git, form: &[&str], range: [&str; 2]) -> Result<String> {
    let mut arguments = vec![
        "-c",
        "core.quotePath=false",
        "diff",
        "--no-ext-diff",
        "--no-textconv",
        "--no-color",
        "--no-renames",
        "--ignore-submodules=none",
        "--src-prefix=a/",
        "--dst-prefix=b/",
    ];
    arguments.extend(form);
    arguments.extend(range);
    arguments.push("--");
    own.run(&arguments).await
}

struct Side {
    change: Change,
    old_object: String,
    new_object: String,
}

/// `:<mode> <mode> <object> <object> <letter>\0<path>\0`, again and again.
fn parse_raw(text: &str) -> Vec<Side> {
    let mut parts = text.split_terminator('\0');
    let mut sides = Vec::new();
    while let (Some(about), Some(path)) = (parts.next(), parts.next()) {
        let words: Vec<&str> = about.trim_start_matches(':').split(' ').collect();
        if let [old, new, old_object, new_object, _] = words[..] {
            sides.push(Side {
                change: Change {
                    path: path.to_owned(),
                    old: Mode::parse(old),
                    new: Mode::parse(new),
                },
                old_object: old_object.to_owned(),
                new_object: new_object.to_owned(),
            });
        }
    }
    sides
}

/// `<added>\t<removed>\t<path>\0`, with `-` for binary files.
fn parse_counts(text: &str) -> BTreeMap<String, (Option<u64>, Option<u64>)> {
    text.split_terminator('\0')
        .filter_map(|line| {
            let mut parts = line.splitn(3, '\t');
            let (added, removed, path) = (parts.next()?, parts.next()?, parts.next()?);
            Some((path.to_owned(), (added.parse().ok(), removed.parse().ok())))
        })
        .collect()
}

/// A small file's text. A submodule has none here.
async fn text(own: &Git, mode: Option<Mode>, object: &str) -> Result<Option<String>> {
    if mode.is_none() || mode == Some(Mode::Submodule) {
        return Ok(None);
    }
    let size = own.run(&["cat-file", "-s", object]).await?;
    if size.trim().parse::<u64>().is_ok_and(|size| size > LARGEST_TEXT) {
        return Ok(None);
    }
    own.run(&["cat-file", "blob", object]).await.map(Some)
}

fn word(change: &Change) -> &'static str {
    match (change.old, change.new) {
        (None, _) => "added",
        (_, None) => "deleted",
        (Some(Mode::Link | Mode::Submodule), Some(Mode::File | Mode::Executable))
        | (Some(Mode::File | Mode::Executable), Some(Mode::Link | Mode::Submodule)) => "type_changed",
        (Some(_), Some(_)) => "modified",
    }
}
