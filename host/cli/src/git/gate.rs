//! The exit gate: what of an agent's work would run, or change what runs, on the machine of whoever takes it.
//!
//! Pure: a listing of what changed goes in, a list of risks comes out. It knows names and settings, not intentions: a
//! changed `Makefile` may be just what was asked for. What it must not do is stay silent about one.
//!
//! A file that only lost its content, or is gone, runs nothing and is no risk.

mod names;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;

/// Why a file is on the list. Ordered by how little it takes for it to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RiskKind {
    /// git itself, or a tool that installs itself into git, runs it.
    Hook,
    /// Settings that git reads.
    GitConfig,
    /// Names programs that git runs on checkout, diff or merge, once they are configured.
    Attributes,
    /// Code from elsewhere comes in.
    Submodule,
    /// Leads out of the repository.
    Link,
    /// Looks like another name, or is another file on some file systems.
    Name,
    /// A coding agent obeys it when it is started here.
    Agent,
    /// An editor runs or obeys it when the directory is opened.
    Editor,
    /// A shell runs it when the directory is entered.
    Environment,
    /// Runs with the rights of the project's automation.
    Pipeline,
    /// Runs when the project is built or tested.
    Build,
    /// Runs when packages are installed, or says from where.
    Package,
    /// Says which foreign code is built.
    Lockfile,
    /// Text that shows as something else than what a compiler reads.
    HiddenText,
}

impl RiskKind {
    /// When it would take effect, for people.
    pub(crate) fn meaning(self) -> &'static str {
        match self {
            Self::Hook => "runs with git",
            Self::GitConfig => "configures git",
            Self::Attributes => "names programs for git to run",
            Self::Submodule => "brings in code from elsewhere",
            Self::Link => "leads out of the repository",
            Self::Name => "is not what its name looks like",
            Self::Agent => "is obeyed by coding agents",
            Self::Editor => "is obeyed by editors",
            Self::Environment => "runs when a shell enters the directory",
            Self::Pipeline => "runs in the project's automation",
            Self::Build => "runs when the project is built or tested",
            Self::Package => "runs when packages are installed",
            Self::Lockfile => "says which foreign code is built",
            Self::HiddenText => "holds text that shows as something else",
        }
    }
}

impl fmt::Display for RiskKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.meaning())
    }
}

/// One reason to look before taking the work. The path, and what the detail quotes, are the guest's words.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Risk {
    pub(crate) kind: RiskKind,
    pub(crate) path: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) detail: String,
}

/// What git calls a file's mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    File,
    Executable,
    Link,
    Submodule,
}

impl Mode {
    /// Of six octal digits; `None` for no file.
    pub(crate) fn parse(digits: &str) -> Option<Self> {
        match digits {
            "000000" => None,
            "100755" => Some(Self::Executable),
            "120000" => Some(Self::Link),
            "160000" => Some(Self::Submodule),
            _ => Some(Self::File),
        }
    }
}

/// One changed path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) path: String,
    pub(crate) old: Option<Mode>,
    pub(crate) new: Option<Mode>,
}

/// Everything that is looked at.
#[derive(Debug)]
pub(crate) struct Listing<'a> {
    pub(crate) changes: &'a [Change],
    /// Every path of the work, changed or not.
    pub(crate) tree: &'a [String],
    /// Text before and after, of the paths for which [`wants_text`] says so.
    pub(crate) texts: &'a BTreeMap<String, Texts>,
    /// The whole difference as a patch.
    pub(crate) patch: &'a str,
}

/// A file before and after; absent where there is none, or it is no text.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Texts {
    pub(crate) old: Option<String>,
    pub(crate) new: Option<String>,
}

/// Whether the name alone does not say enough.
pub(crate) fn wants_text(change: &Change) -> bool {
    change.new == Some(Mode::Link)
        || matches!(
            base(&change.path).to_ascii_lowercase().as_str(),
            ".gitattributes"
                | ".gitmodules"
                | "package.json"
                | "composer.json"
                | "cargo.toml"
                | "pyproject.toml"
        )
}

/// All risks, the most immediate first.
pub(crate) fn risks(listing: &Listing<'_>) -> Vec<Risk> {
    let mut found = BTreeSet::new();
    for change in listing.changes {
        let Some(mode) = change.new else { continue };
        let texts = listing.texts.get(&change.path);
        let mut risk = |kind, detail: String| {
            found.insert(Risk {
                kind,
                path: change.path.clone(),
                detail,
            });
        };
        match mode {
            Mode::Link => {
                let target = texts.and_then(|texts| texts.new.as_deref());
                if let Some(detail) = link(&change.path, target) {
                    risk(RiskKind::Link, detail);
                }
            }
            Mode::Submodule => risk(RiskKind::Submodule, "a commit of another repository".to_owned()),
            Mode::File | Mode::Executable => {}
        }
        if let Some(kind) = names::kind(&change.path) {
            let detail = if change.old.is_none() { "new" } else { "" };
            risk(kind, detail.to_owned());
        }
        if let Some(texts) = texts.filter(|_| mode != Mode::Link) {
            for (kind, detail) in contents(&change.path, texts) {
                risk(kind, detail);
            }
        }
        if let Some(detail) = odd_name(&change.path) {
            risk(RiskKind::Name, detail);
        }
    }
    found.extend(collisions(listing));
    found.extend(hidden_text(listing.patch));
    found.into_iter().collect()
}

fn base(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Where a link leads, when that is not inside.
fn link(path: &str, target: Option<&str>) -> Option<String> {
    let Some(target) = target else {
        return Some("to a place that could not be read".to_owned());
    };
    let shown: String = target.chars().take(200).collect();
    if target.starts_with('/') || target.contains('\\') {
        return Some(format!("to {shown}"));
    }
    let mut depth = path.matches('/').count();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." if depth == 0 => return Some(format!("to {shown}")),
            ".." => depth -= 1,
            part if part.eq_ignore_ascii_case(".git") => {
                return Some(format!("into git's directory, {shown}"));
            }
            _ => depth += 1,
        }
    }
    None
}

/// What the text of a file says that its name does not.
fn contents(path: &str, texts: &Texts) -> Vec<(RiskKind, String)> {
    let new = texts.new.as_deref().unwrap_or_default();
    let old = texts.old.as_deref().unwrap_or_default();
    let added = |wanted: &dyn Fn(&str) -> bool| -> Vec<String> {
        let before: BTreeSet<&str> = old.lines().map(str::trim).collect();
        new.lines()
            .map(str::trim)
            .filter(|line| wanted(line) && !before.contains(line))
            .map(|line| line.chars().take(200).collect())
            .collect()
    };
    let of = |kind: RiskKind, lines: Vec<String>| lines.into_iter().map(|line| (kind, line)).collect();
    match base(path).to_ascii_lowercase().as_str() {
        ".gitattributes" => {
            let names_program = |line: &str| {
                !line.starts_with('#')
                    && line.split_whitespace().skip(1).any(|word| {
                        ["filter=", "diff=", "merge="]
                            .iter()
                            .any(|name| word.starts_with(name))
                    })
            };
            of(RiskKind::Attributes, added(&names_program))
        }
        ".gitmodules" => of(
            RiskKind::Submodule,
            added(&|line| {
                ["url", "path", "update", "branch"]
                    .iter()
                    .any(|key| assigns(line, key))
            }),
        ),
        "package.json" | "composer.json" => scripts(old, new)
            .into_iter()
            .map(|line| (RiskKind::Package, line))
            .collect(),
        "cargo.toml" => of(
            RiskKind::Build,
            added(&|line| {
                assigns(line, "build") || assigns(line, "proc-macro") || line.starts_with("[patch")
            }),
        ),
        "pyproject.toml" => of(
            RiskKind::Build,
            added(&|line| {
                ["requires", "build-backend", "backend-path"]
                    .iter()
                    .any(|key| assigns(line, key))
            }),
        ),
        _ => Vec::new(),
    }
}

fn assigns(line: &str, key: &str) -> bool {
    line.strip_prefix(key)
        .is_some_and(|rest| rest.trim_start().starts_with('='))
}

/// Scripts of a package file that are new or changed.
fn scripts(old: &str, new: &str) -> Vec<String> {
    let parsed = |text: &str| -> Option<serde_json::Value> { serde_json::from_str(text).ok() };
    let Some(new) = parsed(new) else {
        return vec!["it is no valid JSON, so its scripts were not looked at".to_owned()];
    };
    let old = parsed(old).unwrap_or_default();
    let Some(scripts) = new.get("scripts").and_then(|scripts| scripts.as_object()) else {
        return Vec::new();
    };
    scripts
        .iter()
        .filter(|(name, command)| {
            old.pointer("/scripts").and_then(|old| old.get(name.as_str())) != Some(*command)
        })
        .map(|(name, command)| {
            let text = command
                .as_str()
                .map_or_else(|| command.to_string(), str::to_owned);
            format!("script `{name}`: {text}").chars().take(200).collect()
        })
        .collect()
}

/// A name that shows as another one, or that some system cannot hold.
fn odd_name(path: &str) -> Option<String> {
    let hidden = |c: char| c.is_control() || c == '\u{fffd}' || is_hidden(c);
    if path.contains(hidden) {
        return Some("characters that nobody sees".to_owned());
    }
    let odd = |part: &str| part.contains(['\\', ':']) || part.ends_with([' ', '.']) || part.starts_with('-');
    if path.split('/').any(odd) {
        return Some("a name that some systems read as another one".to_owned());
    }
    None
}

/// Characters that reorder text, or take no room in it.
fn is_hidden(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
        || matches!(c, '\u{e0000}'..='\u{e007f}')
}

/// Paths, directories included, that are one on a file system which ignores case, where at least one is changed.
fn collisions(listing: &Listing<'_>) -> Vec<Risk> {
    let changed: BTreeSet<&str> = listing
        .changes
        .iter()
        .filter(|change| change.new.is_some())
        .map(|change| change.path.as_str())
        .collect();
    // Folded name to the spellings there are; the changed path that has the spelling, if any.
    let mut spellings: BTreeMap<String, BTreeMap<&str, Option<&str>>> = BTreeMap::new();
    for path in listing.tree {
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        for end in ends {
            let part = &path[..end];
            let owner = spellings
                .entry(part.to_lowercase())
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
            let others: Vec<&str> = same.keys().filter(|other| *other != part).copied().collect();
            found.push(Risk {
                kind: RiskKind::Name,
                path: (*path).to_owned(),
                detail: format!("the same as {} where case does not count", others.join(", ")),
            });
        }
    }
    found
}

/// Files whose added lines hold characters that reorder or hide text.
fn hidden_text(patch: &str) -> Vec<Risk> {
    let (mut path, mut found) = ("", BTreeSet::new());
    let mut in_header = false;
    for line in patch.lines() {
        if line.starts_with("diff --git ") {
            in_header = true;
        } else if line.starts_with("@@") {
            in_header = false;
        } else if let Some(name) = line.strip_prefix("+++ ").filter(|_| in_header) {
            path = name.strip_prefix("b/").unwrap_or(name);
        } else if !in_header && line.starts_with('+') && line.contains(is_hidden) {
            found.insert(path);
        }
    }
    found
        .into_iter()
        .map(|path| Risk {
            kind: RiskKind::HiddenText,
            path: path.to_owned(),
            detail: "characters that reorder or hide text".to_owned(),
        })
        .collect()
}

#[cfg(test)]
#[path = "gate/tests.rs"]
mod tests;
