//! What can be told only from all paths of the work together: names that are one somewhere, links that lead out by way of
//! others, and repositories that lie in it.

use std::collections::{BTreeMap, BTreeSet};

use super::{Listing, Risk, RiskKind, names};

/// As many other spellings of a name are told.
const MOST_SPELLINGS: usize = 3;

/// Paths, directories included, that are one on some file system, where at least one is changed.
pub(super) fn collisions(listing: &Listing<'_>) -> Vec<Risk> {
    let changed = changed(listing);
    // Folded name to the spellings there are; the changed path that has the spelling, if any.
    let mut spellings: BTreeMap<String, BTreeMap<&str, Option<&str>>> = BTreeMap::new();
    for path in listing.tree {
        for part in ways(path) {
            let owner = spellings
                .entry(names::fold(part))
                .or_default()
                .entry(part)
                .or_default();
            if changed.contains(path.as_str()) {
                *owner = Some(path);
            }
        }
    }
    let mut found = Vec::new();
    for same in spellings.values().filter(|same| same.len() > 1) {
        for (part, path) in same {
            let Some(path) = path else { continue };
            let others: Vec<&str> = same
                .keys()
                .filter(|other| *other != part)
                .take(MOST_SPELLINGS)
                .copied()
                .collect();
            found.push(Risk {
                kind: RiskKind::Name,
                path: (*path).to_owned(),
                detail: format!("the same as {} on some file systems", others.join(", ")),
            });
        }
    }
    found
}

/// Changed files below a directory that git would take for a repository, with settings and hooks of its own.
pub(super) fn repositories(listing: &Listing<'_>) -> Vec<Risk> {
    let folded: BTreeSet<String> = listing
        .tree
        .iter()
        .flat_map(|path| ways(path))
        .map(names::fold)
        .collect();
    let is_repository = |directory: &str| {
        let directory = names::fold(directory);
        ["head", "objects", "refs"]
            .iter()
            .all(|name| folded.contains(&format!("{directory}/{name}")))
    };
    changed(listing)
        .into_iter()
        .filter_map(|path| {
            let directories = path.match_indices('/').map(|(at, _)| &path[..at]);
            let repository = directories
                .into_iter()
                .find(|directory| is_repository(directory))?;
            Some(Risk {
                kind: RiskKind::GitConfig,
                path: path.to_owned(),
                detail: format!("{repository} is a repository of its own"),
            })
        })
        .collect()
}

/// Where a link leads, when that is not inside.
pub(super) fn link(path: &str, target: Option<&str>, links: &BTreeSet<String>) -> Option<String> {
    let Some(target) = target else {
        return Some("to a place that could not be read".to_owned());
    };
    let shown: String = target.chars().take(200).collect();
    if target.starts_with('/') || target.contains('\\') {
        return Some(format!("to {shown}"));
    }
    let mut at: Vec<&str> = path.split('/').collect();
    at.pop();
    let mut parts = target.split('/').peekable();
    while let Some(part) = parts.next() {
        match part {
            "" | "." => {}
            ".." => {
                if at.pop().is_none() {
                    return Some(format!("to {shown}"));
                }
            }
            part if names::is_git(part) => return Some(format!("into git's directory, {shown}")),
            part => {
                at.push(part);
                // Where that leads is where the rest begins, and not where its name stands.
                let here = at.join("/");
                if parts.peek().is_some() && links.contains(&names::fold(&here)) {
                    return Some(format!("to {shown}, by way of the link {here}"));
                }
            }
        }
    }
    None
}

fn changed<'a>(listing: &Listing<'a>) -> BTreeSet<&'a str> {
    listing
        .changes
        .iter()
        .filter(|change| change.new.is_some())
        .map(|change| change.path.as_str())
        .collect()
}

/// The directories above a path, and the path.
fn ways(path: &str) -> impl Iterator<Item = &str> {
    let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
    ends.map(|end| &path[..end])
}
