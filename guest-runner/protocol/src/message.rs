//! Message bodies (JSON) and the guest routes. The host believes nothing in them: sizes are capped by the
//! HTTP edge, names go through [`ArtifactName`], and every request after redemption carries the session.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::agent::AgentMode;
use crate::secret::SecretText;
use crate::workspace::{WorkspaceNews, WorkspaceOrder};

/// The protocol this crate speaks.
pub const VERSION: u16 = 1;

/// `POST`: [`RedeemRequest`] to [`RedeemAnswer`]. Bootstrap port and every channel.
pub const REDEEM_PATH: &str = "/guest/v1/redeem";
/// `POST`, empty body, session required: the answer arrived, the token may die. 204.
pub const ACKNOWLEDGE_PATH: &str = "/guest/v1/acknowledge";
/// `POST`: [`Heartbeat`] to [`HeartbeatAnswer`], session required.
pub const HEARTBEAT_PATH: &str = "/guest/v1/heartbeat";
/// `POST`: [`LogBatch`], session required. 204.
pub const LOGS_PATH: &str = "/guest/v1/logs";
/// `GET`: the uploaded `git bundle` of the job, session required. Artifact port and every channel.
pub const REPOSITORY_PATH: &str = "/guest/v1/repository";
/// `PUT` below this prefix: one artifact, session required. Artifact port and every channel. 201. `HEAD`: how much is
/// there of it, in [`OFFSET_HEADER`]. 200.
pub const ARTIFACTS_PREFIX: &str = "/guest/v1/artifacts/";
/// `POST`: [`Report`], session required. 202.
pub const REPORT_PATH: &str = "/guest/v1/report";
/// Header of an artifact upload: lower-case hexadecimal SHA-256 of the whole file.
pub const SHA256_HEADER: &str = "x-agentlab-sha256";
/// Header of an artifact upload: an [`ArtifactRole`] word.
pub const ROLE_HEADER: &str = "x-agentlab-role";
/// Header of an artifact upload: the byte of the file that its body begins with, decimal; 0 when absent. In an answer
/// to `HEAD`, and in a refusal with 416, the only byte that the upload can go on from.
pub const OFFSET_HEADER: &str = "x-agentlab-offset";
/// What is smaller is sent whole each time, and no part of it is kept.
pub const RESUMABLE_BYTES: u64 = 1 << 20;

/// First message of a guest.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RedeemRequest {
    /// VMID of the seed.
    pub vmid: u32,
    /// Token of the seed, base64url without padding.
    pub token: SecretText,
    /// 32 random bytes of the runner's own, base64url without padding. Repeating a request with the same key
    /// gives the same answer until it is acknowledged; another key revokes everything.
    pub runner_key: SecretText,
    /// Version of the runner.
    pub runner_version: String,
}

/// What a redeemed token is worth.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RedeemAnswer {
    /// What every later request carries as `authorization: Bearer …`: base64url without padding of the 32 bytes
    /// that [`crate::session::derive`] gives the host. The guest cannot derive it.
    pub session: SecretText,
    /// What to do: a job, or hold the sandbox for an operator.
    pub order: Order,
    /// Git credentials.
    #[serde(default)]
    pub git: Option<GitCredentials>,
    /// Environment of the agent.
    #[serde(default)]
    pub environment: BTreeMap<String, SecretText>,
    /// Settings of Claude Code, a JSON object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claude_settings: Option<SecretText>,
    /// Public keys that may log in as the agent user.
    #[serde(default)]
    pub authorized_keys: Vec<String>,
    /// The operator's tailnet, where the profile lets the machine join it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tailnet: Option<TailnetLogin>,
    /// Bounds.
    pub limits: Limits,
    /// Seconds between heartbeats.
    pub heartbeat_seconds: u32,
    /// The disk for `/work`; the template's own disk when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace: Option<WorkspaceOrder>,
}

/// What the guest is for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Order {
    /// Run one job and report.
    Job(Box<JobOrder>),
    /// Heartbeats only, until told otherwise.
    Hold,
}

/// One job.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobOrder {
    /// The host's id of it.
    pub job: String,
    /// Where the code comes from.
    pub repository: Repository,
    /// Branch, tag or commit; the source's HEAD when absent.
    #[serde(default)]
    pub reference: Option<String>,
    /// What the agent is told.
    pub task: String,
    /// Which agent, a word of [`crate::agent::AgentKind`].
    pub agent: String,
    /// What it may do without asking.
    #[serde(default, skip_serializing_if = "AgentMode::is_dangerous")]
    pub mode: AgentMode,
    /// Program and arguments of the agent `command`; empty for the others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub agent_command: Vec<String>,
    /// Further arguments of an agent that is a preset; empty for the others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub agent_args: Vec<String>,
    /// How long the agent may run before it is sent TERM.
    pub deadline_seconds: u32,
    /// How long after TERM it is sent KILL.
    pub kill_grace_seconds: u32,
    /// Run the agent in bubblewrap.
    pub inner_sandbox: bool,
    /// In the stricter one: of the disk it sees its own work and what programs need.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hardened: bool,
    /// Appended to the bubblewrap command line.
    #[serde(default)]
    pub inner_sandbox_args: Vec<String>,
    /// Where the commits of an agent that ended well go besides the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub push: Option<PushOrder>,
}

/// A branch of the repository's origin. Never forced, and never the origin's default branch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PushOrder {
    /// The origin: `https:` or `ssh:`.
    pub url: String,
    /// Name of the branch, without `refs/heads/`.
    pub branch: String,
}

/// What came of a [`PushOrder`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case", deny_unknown_fields)]
pub enum PushResult {
    /// The branch is at this commit.
    Pushed {
        /// Its id.
        commit: String,
    },
    /// The agent made no commit.
    NothingToPush,
    /// It was not done.
    Refused {
        /// Why, in the words of git and of the origin, redacted.
        reason: String,
    },
}

/// Where the code comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Repository {
    /// `git clone` of this.
    Url {
        /// As the operator wrote it.
        url: String,
    },
    /// `GET` [`REPOSITORY_PATH`], then clone that file.
    Bundle {
        /// SHA-256 the file must have.
        sha256: String,
    },
}

/// For `git` in the guest.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GitCredentials {
    /// User name that goes with the token.
    pub username: String,
    /// Token.
    #[serde(default)]
    pub token: Option<SecretText>,
    /// Private key in OpenSSH's form.
    #[serde(default)]
    pub ssh_private_key: Option<SecretText>,
    /// Known hosts for it.
    #[serde(default)]
    pub known_hosts: Option<String>,
}

/// For `tailscale up`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TailnetLogin {
    /// Lets one machine join.
    pub authkey: SecretText,
    /// What the machine is called there.
    pub hostname: String,
    /// What it is there.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Further arguments.
    #[serde(default)]
    pub extra_args: Vec<String>,
}

/// Bounds the guest keeps by itself; the host enforces them again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Largest single artifact in bytes.
    pub max_file_bytes: u64,
    /// All artifacts together in bytes.
    pub max_total_bytes: u64,
    /// Number of artifacts.
    pub max_files: u32,
    /// All log text together in bytes.
    pub max_log_bytes: u64,
}

/// What the guest is busy with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Redeemed, nothing begun.
    Idle,
    /// Fetching the repository.
    Repository,
    /// The agent runs.
    Agent,
    /// Commits, diff and files are being collected.
    Collect,
    /// The commits go to the repository's origin.
    Push,
    /// Files are being uploaded.
    Upload,
    /// The report is on its way.
    Report,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Idle => "idle",
            Self::Repository => "repository",
            Self::Agent => "agent",
            Self::Collect => "collect",
            Self::Push => "push",
            Self::Upload => "upload",
            Self::Report => "report",
        })
    }
}

/// How the guest's machine is. A guest's word: worth an event, never a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Vitals {
    /// Average of a minute, in hundredths.
    pub load_hundredths: u32,
    /// Memory there is.
    pub memory_total_bytes: u64,
    /// Memory that can still be had.
    pub memory_available_bytes: u64,
    /// Size of the disk that is worked on.
    pub disk_total_bytes: u64,
    /// What is free of it.
    pub disk_free_bytes: u64,
    /// Processes that the kernel has killed for want of memory, since it began.
    pub oom_kills: u64,
    /// Processes there are.
    pub processes: u32,
    /// How long the agent has neither printed anything nor used the processor.
    pub quiet_seconds: u32,
}

/// Why a job failed, as far as its guest can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureCause {
    /// The repository did not come.
    Clone,
    /// The agent ended with another status than 0.
    AgentExit,
    /// The kernel killed processes for want of memory meanwhile.
    Oom,
    /// The disk is full.
    DiskFull,
    /// What was ordered could not be enforced, so nothing was begun.
    Policy,
    /// The workspace cannot be used, so nothing was begun.
    Workspace,
    /// The origin did not take the commits.
    Push,
    /// The runner was killed under the agent.
    Lost,
}

/// Sent every `heartbeat_seconds`, and at once when the phase changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Heartbeat {
    /// Busy with.
    pub phase: Phase,
    /// One line for people.
    #[serde(default)]
    pub message: String,
    /// How its machine is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vitals: Option<Vitals>,
    /// How the workspace is, in the first beat since that changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace: Option<WorkspaceNews>,
}

/// Answer to a heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HeartbeatAnswer {
    /// End the agent (TERM, then KILL), collect, upload and report `cancelled`.
    #[serde(default)]
    pub cancel: bool,
    /// The sandbox is about to lose its power: end everything that uses the workspace, unmount it, and say so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub release_workspace: bool,
}

/// Stream of a log piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Standard output of the agent.
    Stdout,
    /// Standard error of the agent.
    Stderr,
    /// The runner itself.
    Runner,
}

/// One piece of output, redacted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogPiece {
    /// From.
    pub stream: Stream,
    /// Text, valid UTF-8 (others replaced by U+FFFD), line ends kept.
    pub text: String,
}

/// Pieces in order. `first` makes repeating harmless: the host drops pieces it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogBatch {
    /// Number of the first piece; the first of a session is 0.
    pub first: u64,
    /// The pieces.
    pub pieces: Vec<LogPiece>,
}

/// How the job ended in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReportStatus {
    /// The agent ended with status 0.
    Completed,
    /// It did not, or could not be begun.
    Failed,
    /// It outlived its deadline.
    Timeout,
    /// The host asked for it.
    Cancelled,
}

/// Final message, also uploaded as `report.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// 1.
    pub version: u16,
    /// The host's id of the job.
    pub job: String,
    /// How it ended.
    pub status: ReportStatus,
    /// Phase it failed in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_phase: Option<Phase>,
    /// Why it failed, in one word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<FailureCause>,
    /// Why, with git's or the kernel's own words, at most 4,000 characters, redacted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Exit status of the agent; 128+n when signal n ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<u8>,
    /// Commit the agent started from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_commit: Option<String>,
    /// Commit the work ends in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_commit: Option<String>,
    /// Commits made.
    #[serde(default)]
    pub commits: u32,
    /// Uncommitted changes were left.
    #[serde(default)]
    pub uncommitted: bool,
    /// How long the agent ran.
    #[serde(default)]
    pub agent_milliseconds: u64,
    /// What came of the push that was ordered; absent when none was, or when the agent did not end well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub push: Option<PushResult>,
    /// Files uploaded before this report.
    #[serde(default)]
    pub artifacts: Vec<ReportedArtifact>,
    /// Files that were left out, each with its reason.
    #[serde(default)]
    pub left_out: Vec<String>,
    /// Level of the inner sandbox really enforced: `hardened`, `bubblewrap` or `none`.
    #[serde(default)]
    pub inner_sandbox: String,
}

/// One uploaded file as the guest saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportedArtifact {
    /// Name.
    pub name: ArtifactName,
    /// What it is for.
    pub role: ArtifactRole,
    /// Size.
    pub size_bytes: u64,
    /// SHA-256, hexadecimal.
    pub sha256: String,
}

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

/// Whether some file system makes `.git` of a name: by ignoring case, what follows a colon, dots and spaces at the end
/// or characters that nobody sees, or by its short form.
fn is_git_directory(part: &str) -> bool {
    let visible: String = part
        .chars()
        .filter(|c| {
            !matches!(c, '\u{200c}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{206a}'..='\u{206f}' | '\u{feff}')
        })
        .collect();
    let name = visible.split(':').next().unwrap_or_default();
    let name = name.trim_end_matches(['.', ' ']);
    name.eq_ignore_ascii_case(".git") || name.eq_ignore_ascii_case("git~1")
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
