//! Files a job leaves: what they are called, what they are for, and how they are uploaded.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::git_name::is_git_directory;

/// Header of an artifact upload: lower-case hexadecimal SHA-256 of the whole file.
pub const SHA256_HEADER: &str = "x-agentlab-sha256";
/// Header of an artifact upload: an [`ArtifactRole`] word.
pub const ROLE_HEADER: &str = "x-agentlab-role";
/// Header of an artifact upload: the byte of the file that its body begins with, decimal; 0 when absent. In an answer
/// to `HEAD`, and in a refusal with 416, the only byte that the upload can go on from.
pub const OFFSET_HEADER: &str = "x-agentlab-offset";
/// What is smaller is sent whole each time, and no part of it is kept.
pub const RESUMABLE_BYTES: u64 = 1 << 20;

/// What an artifact is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ArtifactRole {
    /// `work.bundle`: the agent's commits.
    Bundle,
    /// `work.patch`: the same as a `git format-patch --stdout` mailbox.
    Patch,
    /// `uncommitted.diff`.
    Diff,
    /// `agent.log`.
    Log,
    /// `report.json`.
    Report,
    /// `files/…`: from the agent's artifacts directory.
    File,
}

impl ArtifactRole {
    /// The word in [`ROLE_HEADER`].
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bundle => "bundle",
            Self::Patch => "patch",
            Self::Diff => "diff",
            Self::Log => "log",
            Self::Report => "report",
            Self::File => "file",
        }
    }
}

impl FromStr for ArtifactRole {
    type Err = ArtifactNameError;

    fn from_str(word: &str) -> Result<Self, ArtifactNameError> {
        [
            Self::Bundle,
            Self::Patch,
            Self::Diff,
            Self::Log,
            Self::Report,
            Self::File,
        ]
        .into_iter()
        .find(|role| role.as_str() == word)
        .ok_or_else(|| ArtifactNameError::Role(word.escape_debug().take(80).collect()))
    }
}

/// File of the commits as a bundle.
pub const BUNDLE_NAME: &str = "work.bundle";
/// File of the commits as patches.
pub const PATCH_NAME: &str = "work.patch";
/// File of the uncommitted changes.
pub const DIFF_NAME: &str = "uncommitted.diff";
/// File of everything printed.
pub const LOG_NAME: &str = "agent.log";
/// File of the report.
pub const REPORT_NAME: &str = "report.json";
/// Directory of the agent's own files.
pub const FILES_DIR: &str = "files/";

/// Most parts of an artifact's name: every one but the last is a directory that the host makes.
const MAX_COMPONENTS: usize = 16;

/// Why a name is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArtifactNameError {
    /// Length.
    #[error("Artifact name is empty or longer than 512 bytes")]
    Length,
    /// Parts.
    #[error("Artifact name has more than {MAX_COMPONENTS} parts")]
    Depth,
    /// Absolute, `..`, `.`, empty component, control character or backslash.
    #[error("Artifact name `{0}` is not a plain relative path")]
    Shape(String),
    /// A part of it is git's directory, whose settings name programs that git runs for whoever stands there.
    #[error("Artifact name `{0}` lies in what git would take for its own directory")]
    Git(String),
    /// Unknown role word.
    #[error("`{0}` is not an artifact role")]
    Role(String),
}

/// A relative path that can only stay below the directory it is joined to: components separated by `/`, none of
/// them empty, `.` or `..`, no control character, no backslash, at most 512 bytes and 16 components. And none
/// that git would take for its own directory, on whatever file system: a `.git` in a directory of an operator's is a
/// program in waiting.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ArtifactName(String);

impl ArtifactName {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ArtifactName {
    type Err = ArtifactNameError;

    fn from_str(text: &str) -> Result<Self, ArtifactNameError> {
        if text.is_empty() || text.len() > 512 {
            return Err(ArtifactNameError::Length);
        }
        let shape = || ArtifactNameError::Shape(text.escape_debug().take(80).collect());
        if text.chars().any(|c| c.is_control() || c == '\\') {
            return Err(shape());
        }
        if text
            .split('/')
            .any(|part| part.is_empty() || part == "." || part == ".." || part.len() > 255)
        {
            return Err(shape());
        }
        if text.split('/').count() > MAX_COMPONENTS {
            return Err(ArtifactNameError::Depth);
        }
        if text.split('/').any(is_git_directory) {
            return Err(ArtifactNameError::Git(text.escape_debug().take(80).collect()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for ArtifactName {
    type Error = ArtifactNameError;

    fn try_from(text: String) -> Result<Self, ArtifactNameError> {
        text.parse()
    }
}

impl From<ArtifactName> for String {
    fn from(name: ArtifactName) -> Self {
        name.0
    }
}

impl fmt::Display for ArtifactName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_artifact_name_cannot_leave_its_directory() {
        for text in [
            "",
            "/etc/passwd",
            "..",
            "a/../b",
            "a//b",
            "./a",
            "a/",
            "a\\b",
            "a\nb",
            "a/\u{7f}",
        ] {
            assert!(text.parse::<ArtifactName>().is_err(), "{text:?}");
        }
        assert!("x".repeat(513).parse::<ArtifactName>().is_err());
        for text in ["report.json", "files/out/..x", "files/a b", "files/\u{e9}"] {
            assert!(text.parse::<ArtifactName>().is_ok(), "{text:?}");
        }
    }

    #[test]
    fn an_artifact_name_makes_few_directories() {
        let name = |parts: usize| vec!["a"; parts].join("/").parse::<ArtifactName>();
        assert!(name(16).is_ok());
        assert_eq!(name(17), Err(ArtifactNameError::Depth));
    }

    #[test]
    fn an_artifact_name_has_no_part_that_git_would_obey() {
        for text in [
            ".git",
            "files/.git/config",
            "files/.GIT/config",
            "files/x/.git",
            "files/.git. ./config",
            "files/git~1/config",
            "files/.git::$INDEX_ALLOCATION/config",
            "files/.g\u{200c}it/config",
        ] {
            let error = text.parse::<ArtifactName>().unwrap_err();
            assert!(matches!(error, ArtifactNameError::Git(_)), "{text:?}: {error}");
        }
        for text in [
            "files/.gitignore",
            "files/git",
            "files/x.git/y",
            "files/.github/z",
        ] {
            assert!(text.parse::<ArtifactName>().is_ok(), "{text:?}");
        }
    }
}
