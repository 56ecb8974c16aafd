//! The exit gate: what of an agent's work would run, or change what runs, on the machine of whoever takes it.
//!
//! Pure: a listing of what changed goes in, a list of risks comes out. It knows names and settings, not intentions: a
//! changed `Makefile` may be just what was asked for. What it must not do is stay silent about one.
//!
//! A file that only lost its content, or is gone, runs nothing and is no risk.

mod hidden;
mod manifest;
mod names;
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;

use crate::terminal::is_invisible;

/// Longer ones no program can open.
const LONGEST_PATH: usize = 4096;

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
    /// A shell or another tool runs it when it is begun there.
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
            Self::Environment => "runs when a shell or a tool is started there",
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

impl Change {
    /// Whether a file, a link or a submodule takes the place of one of the others.
    pub(crate) fn changes_type(&self) -> bool {
        let is_file = |mode| matches!(mode, Mode::File | Mode::Executable);
        self.old
            .zip(self.new)
            .is_some_and(|(old, new)| old != new && !(is_file(old) && is_file(new)))
    }
}

/// Everything that is looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Listing<'a> {
    pub(crate) changes: &'a [Change],
    /// Every path of the work, changed or not.
    pub(crate) tree: &'a [String],
    /// The links among them.
    pub(crate) links: &'a [String],
    /// Text before and after, of the paths for which [`wants_text`] says so.
    pub(crate) texts: &'a BTreeMap<String, Texts>,
    /// The difference as a patch.
    pub(crate) patch: &'a str,
    /// Whether that is only its beginning.
    pub(crate) is_cut: bool,
}

/// A file before and after; absent where there is none, or it is no text.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Texts {
    pub(crate) old: Option<String>,
    pub(crate) new: Option<String>,
}

/// Whether the name alone does not say enough.
pub(crate) fn wants_text(change: &Change) -> bool {
    let name = base(&change.path).to_ascii_lowercase();
    change.new == Some(Mode::Link)
        || matches!(name.as_str(), ".gitattributes" | ".gitmodules")
        || manifest::known(&name).is_some()
}

/// All risks, the most immediate first.
pub(crate) fn risks(listing: &Listing<'_>) -> Vec<Risk> {
    let mut found = BTreeSet::new();
    let links: BTreeSet<String> = listing.links.iter().map(|path| names::fold(path)).collect();
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
                if let Some(detail) = tree::link(&change.path, target, &links) {
                    risk(RiskKind::Link, detail);
                }
            }
            Mode::Submodule => risk(RiskKind::Submodule, "a commit of another repository".to_owned()),
            Mode::File | Mode::Executable => {
                for (kind, detail) in contents(&change.path, texts) {
                    risk(kind, detail);
                }
            }
        }
        if let Some(kind) = names::kind(&change.path) {
            let detail = if change.old.is_none() { "new" } else { "" };
            risk(kind, detail.to_owned());
        }
        if let Some(detail) = odd_name(&change.path) {
            risk(RiskKind::Name, detail.to_owned());
        }
    }
    found.extend(tree::collisions(listing));
    found.extend(tree::repositories(listing));
    found.extend(hidden::risks(listing.patch, listing.is_cut, listing.changes));
    found.into_iter().collect()
}

fn base(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// What the text of a file says that its name does not.
fn contents(path: &str, texts: Option<&Texts>) -> Vec<(RiskKind, String)> {
    let name = base(path).to_ascii_lowercase();
    let manifest = manifest::known(&name);
    let new = texts.and_then(|texts| texts.new.as_deref());
    let old = texts.and_then(|texts| texts.old.as_deref()).unwrap_or_default();
    match (manifest, new) {
        (Some(manifest), Some(new)) => manifest.risks(old, new),
        (Some(manifest), None) => vec![(
            manifest.otherwise,
            "it is too large, so it was not looked at".to_owned(),
        )],
        (None, new) => {
            let new = new.unwrap_or_default();
            match name.as_str() {
                ".gitattributes" => added(RiskKind::Attributes, old, new, names_program),
                ".gitmodules" => added(RiskKind::Submodule, old, new, sets_submodule),
                _ => Vec::new(),
            }
        }
    }
}

/// Lines of a certain kind that were not there before.
fn added(kind: RiskKind, old: &str, new: &str, wanted: fn(&str) -> bool) -> Vec<(RiskKind, String)> {
    let before: BTreeSet<&str> = old.lines().map(str::trim).collect();
    new.lines()
        .map(str::trim)
        .filter(|line| wanted(line) && !before.contains(line))
        .map(|line| (kind, line.chars().take(200).collect()))
        .collect()
}

fn names_program(line: &str) -> bool {
    let is_one = |word: &str| {
        ["filter=", "diff=", "merge="]
            .iter()
            .any(|name| word.starts_with(name))
    };
    !line.starts_with('#') && line.split_whitespace().skip(1).any(is_one)
}

fn sets_submodule(line: &str) -> bool {
    let line = line.to_ascii_lowercase();
    ["url", "path", "update", "branch"].iter().any(|key| {
        line.strip_prefix(key)
            .is_some_and(|rest| rest.trim_start().starts_with('='))
    })
}

/// What is wrong with a name that shows as another one, or that some system cannot hold.
fn odd_name(path: &str) -> Option<&'static str> {
    if path.contains(|c: char| c.is_control() || c == '\u{fffd}' || is_invisible(c)) {
        return Some("characters that nobody sees");
    }
    if path.len() >= LONGEST_PATH {
        return Some("longer than names can be");
    }
    path.split('/').find_map(names::odd)
}

#[cfg(test)]
#[path = "gate/tests.rs"]
mod tests;
