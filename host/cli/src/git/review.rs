//! What a job changed, held against what its operator has: never against what its guest says it began with.
//!
//! ```text
//!   work.bundle ──► scratch repository ──► git diff <what HEAD and the work share>..<the work> ──► gate
//! ```
//!
//! The operator's repository lends its objects and is not written to.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Serialize;

use super::apply::{self, Work};
use super::gate::{self, Change, Listing, Mode, Risk, Texts};
use super::{Git, GitError, Result, Scratch};

/// Larger files are not searched for what their names do not say.
const LARGEST_TEXT: u64 = 1 << 20;
/// And not more files than this: each takes two programs.
const MOST_TEXTS: usize = 1000;
/// Larger files count as binary ones.
const LARGEST_COMPARED: &str = "core.bigFileThreshold=16m";
/// A larger difference is shown and searched in part.
const LARGEST_PATCH: u64 = 256 << 20;
/// A work whose names take more is not looked at: a few objects can stand for any number of paths.
const MOST_NAMES: u64 = 256 << 20;

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
    /// Whether there is more of it.
    pub(crate) is_cut: bool,
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
    let sides = parse_raw(&names(&own, &difference(&["--raw", "-z", "--no-abbrev"], range)).await?);
    let counts = parse_counts(&names(&own, &difference(&["--numstat", "-z"], range)).await?);
    let (patch, is_cut) = own
        .run_within(&difference(&["--patch"], range), LARGEST_PATCH)
        .await?;
    let entries = entries(&own, commit).await?;
    let links = entries
        .iter()
        .filter(|entry| Mode::parse(&entry.mode) == Some(Mode::Link))
        .map(|entry| entry.path.clone())
        .collect::<Vec<_>>();
    let tree: Vec<String> = entries.into_iter().map(|entry| entry.path).collect();
    let texts = texts(&own, &sides).await?;
    let changes: Vec<Change> = sides.into_iter().map(|side| side.change).collect();
    let risks = gate::risks(&Listing {
        changes: &changes,
        tree: &tree,
        links: &links,
        texts: &texts,
        patch: &patch,
        is_cut,
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
        is_cut,
    })
}

/// Takes what the gate found out of the work: one more commit, in which those paths are as the operator has them. The
/// commits before stay what they are. Returns the new commit, or the same one when there is nothing to take out.
pub(crate) async fn strip(scratch: &Scratch, review: &Review) -> Result<String> {
    let own = scratch.git();
    let paths: BTreeSet<&str> = review.risks.iter().map(|risk| risk.path.as_str()).collect();
    if paths.is_empty() {
        return Ok(review.commit.clone());
    }
    let mut before = BTreeMap::new();
    if let Some(base) = &review.base {
        for entry in entries(&own, base).await? {
            before.insert(entry.path.clone(), entry);
        }
    }
    let mut index = Vec::new();
    for path in &paths {
        match before.get(*path) {
            Some(Entry { mode, object, .. }) => index.extend(format!("{mode} {object}\t{path}\0").bytes()),
            None => index.extend(format!("0 {}\t{path}\0", "0".repeat(review.commit.len())).bytes()),
        }
    }
    // Names that no file system may be given can be taken out of an index all the same.
    let unprotected = ["-c", "core.protectHFS=false", "-c", "core.protectNTFS=false"];
    own.run(&[&unprotected[..], &["read-tree", &review.commit]].concat())
        .await?;
    let update = [&unprotected[..], &["update-index", "-z", "--index-info"]].concat();
    own.feed(&update, &index).await?;
    let tree = own.run(&["write-tree"]).await?;
    let listed: Vec<String> = paths.iter().map(|path| path.escape_debug().to_string()).collect();
    let message = format!(
        "Take out what would run here\n\nThe exit gate found {} paths in the work of an agent that would run, or change \
         what runs, on the machine of whoever takes it:\n\n{}\n",
        listed.len(),
        listed.join("\n")
    );
    let commit = own
        .clone()
        .env("GIT_AUTHOR_NAME", "AgentLab")
        .env("GIT_AUTHOR_EMAIL", "gate@agentlab.invalid")
        .env("GIT_COMMITTER_NAME", "AgentLab")
        .env("GIT_COMMITTER_EMAIL", "gate@agentlab.invalid")
        .feed(
            &["commit-tree", tree.trim(), "-p", &review.commit, "-F", "-"],
            message.as_bytes(),
        )
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

fn difference<'a>(form: &[&'a str], range: [&'a str; 2]) -> Vec<&'a str> {
    let mut arguments = vec![
        "-c",
        "core.quotePath=false",
        "-c",
        LARGEST_COMPARED,
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
    arguments
}

/// A listing that must be whole.
async fn names(own: &Git, arguments: &[&str]) -> Result<String> {
    let (listed, is_cut) = own.run_within(arguments, MOST_NAMES).await?;
    if is_cut {
        return Err(GitError::unfit(
            "The work has more files than can be looked at",
            "do not take it; `agentlab job logs` may say how it came to that",
        ));
    }
    Ok(listed)
}

/// One file of a commit.
struct Entry {
    mode: String,
    object: String,
    path: String,
}

async fn entries(own: &Git, commit: &str) -> Result<Vec<Entry>> {
    let listed = names(own, &["ls-tree", "-r", "-z", "--full-tree", commit]).await?;
    let entry = |line: &str| {
        let (about, path) = line.split_once('\t')?;
        let mut words = about.split(' ');
        Some(Entry {
            mode: words.next()?.to_owned(),
            object: words.nth(1)?.to_owned(),
            path: path.to_owned(),
        })
    };
    Ok(listed.split_terminator('\0').filter_map(entry).collect())
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

/// What the gate wants to read of the changed files.
async fn texts(own: &Git, sides: &[Side]) -> Result<BTreeMap<String, Texts>> {
    let mut texts = BTreeMap::new();
    for side in sides
        .iter()
        .filter(|side| gate::wants_text(&side.change))
        .take(MOST_TEXTS)
    {
        let text = Texts {
            old: text(own, side.change.old, &side.old_object).await?,
            new: text(own, side.change.new, &side.new_object).await?,
        };
        texts.insert(side.change.path.clone(), text);
    }
    Ok(texts)
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
        (Some(_), Some(_)) if change.changes_type() => "type_changed",
        (Some(_), Some(_)) => "modified",
    }
}
