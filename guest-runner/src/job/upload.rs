//! Hands over what was collected, within the job's bounds, and says what was left out.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agentlab_protocol::message::{
    ArtifactName, ArtifactRole, FILES_DIR, LOG_NAME, Limits, Report, ReportedArtifact,
};

use super::collect::Made;
use super::files::{OpenFile, Tree};
use super::host::HostLink;
use crate::link::LinkError;
use crate::redact::Needles;

/// Room kept for `report.json`.
const REPORT_RESERVE: u64 = 256 * 1024;
/// Entries of the list of what was left out; the rest is counted.
const MAX_LEFT_OUT: usize = 200;
/// The host takes messages of 1 MiB.
const MAX_REPORT_MESSAGE: usize = 900 * 1024;

/// Uploads one by one and keeps the books.
#[derive(Debug)]
pub(crate) struct Upload<'a, H> {
    host: &'a H,
    limits: Limits,
    needles: Arc<Needles>,
    /// Where a file without its secrets may stand for a moment.
    redacted: PathBuf,
    bytes_left: u64,
    files_left: u32,
    pub(crate) uploaded: Vec<ReportedArtifact>,
    pub(crate) left_out: Vec<String>,
    /// The host cannot be had at all: nothing more is tried.
    pub(crate) broken: Option<String>,
}

impl<'a, H: HostLink> Upload<'a, H> {
    /// `log_bytes` are kept for the log, which goes last. `spool` is the runner's own directory.
    pub(crate) fn new(
        host: &'a H,
        limits: Limits,
        log_bytes: u64,
        (needles, spool): (Arc<Needles>, &Path),
    ) -> Self {
        Self {
            host,
            limits,
            needles,
            redacted: spool.join("redacted"),
            bytes_left: limits.max_total_bytes.saturating_sub(log_bytes + REPORT_RESERVE),
            files_left: limits.max_files.saturating_sub(2),
            uploaded: Vec::new(),
            left_out: Vec::new(),
            broken: None,
        }
    }

    /// A file git made.
    pub(crate) async fn made(&mut self, made: Made) {
        let name = match made.name.parse::<ArtifactName>() {
            Ok(name) => name,
            Err(error) => return self.left_out.push(format!("{}: {error}", made.name)),
        };
        if self.fits(&name, made.role, made.size) {
            self.put(name, made.role, &made.path, made.size, made.sha256)
                .await;
        }
    }

    /// Everything in a directory of the agent's, text without its secrets.
    pub(crate) async fn tree(&mut self, tree: io::Result<Tree>) {
        let tree = match tree {
            Ok(tree) => tree,
            Err(error) => return self.left_out.push(format!("{FILES_DIR}: {error}")),
        };
        let listing = tree.list();
        self.left_out.extend(listing.left_out);
        let count = listing.names.len();
        for (index, name) in listing.names.into_iter().enumerate() {
            if self.files_left == 0 {
                let rest = count - index;
                let limit = self.limits.max_files;
                self.left_out.push(format!(
                    "{name} and all after it, {rest} files: more than {limit} artifacts"
                ));
                return;
            }
            if self.needles.redact(name.as_str()) != name.as_str() {
                self.left_out.push(format!("{name}: its name holds a secret"));
                continue;
            }
            match tree.open_file(&name) {
                Ok(file) if self.fits(&name, ArtifactRole::File, file.size) => {
                    let (needles, into) = (Arc::clone(&self.needles), self.redacted.clone());
                    let cleaned = tokio::task::spawn_blocking(move || {
                        let mut file = file;
                        let cleaned = file.without_secrets(&needles, &into);
                        cleaned.map(|cleaned| cleaned.unwrap_or(file))
                    });
                    match cleaned.await.map_err(io::Error::other).flatten() {
                        Ok(file) => self.file(name, ArtifactRole::File, file).await,
                        Err(error) => self.left_out.push(format!("{name}: {error}")),
                    }
                }
                Ok(_) => {}
                Err(reason) => self
                    .left_out
                    .push(format!("{}: {reason}", name.as_str().escape_debug())),
            }
        }
    }

    /// The log or the report: room was kept for them.
    pub(crate) async fn kept(&mut self, name: &str, role: ArtifactRole, path: &Path) {
        let file = OpenFile::open(path).map_err(|error| error.to_string());
        match (file, name.parse::<ArtifactName>()) {
            (Ok(file), Ok(name)) => self.file(name, role, file).await,
            (Err(reason), _) => self.left_out.push(format!("{name}: {reason}")),
            (_, Err(reason)) => self.left_out.push(format!("{name}: {reason}")),
        }
    }

    async fn file(&mut self, name: ArtifactName, role: ArtifactRole, mut file: OpenFile) {
        let hashed = tokio::task::spawn_blocking(move || {
            let hash = file.sha256();
            (file, hash)
        });
        match hashed.await {
            Ok((file, Ok(sha256))) => self.put(name, role, &file.path(), file.size, sha256).await,
            Ok((_, Err(error))) => self.left_out.push(format!("{name}: {error}")),
            Err(error) => self.left_out.push(format!("{name}: {error}")),
        }
    }

    fn fits(&mut self, name: &ArtifactName, role: ArtifactRole, size: u64) -> bool {
        let Limits {
            max_file_bytes,
            max_total_bytes,
            max_files,
            ..
        } = self.limits;
        // The work itself may take all there is.
        let is_work = matches!(
            role,
            ArtifactRole::Bundle | ArtifactRole::Patch | ArtifactRole::Diff
        );
        let reason = if size > max_file_bytes && !is_work {
            format!("{size} bytes, more than {max_file_bytes} for one artifact")
        } else if size > self.bytes_left {
            format!("{size} bytes, more than what is left of {max_total_bytes} for all artifacts")
        } else if self.files_left == 0 {
            format!("more than {max_files} artifacts")
        } else {
            return true;
        };
        self.left_out.push(format!("{name}: {reason}"));
        false
    }

    async fn put(&mut self, name: ArtifactName, role: ArtifactRole, path: &Path, size: u64, sha256: String) {
        if self.broken.is_some() {
            self.left_out
                .push(format!("{name}: the host could not be reached"));
            return;
        }
        match self.host.put_artifact(&name, role, path, size, &sha256).await {
            Ok(()) => {
                if role != ArtifactRole::Log && role != ArtifactRole::Report {
                    self.bytes_left = self.bytes_left.saturating_sub(size);
                    self.files_left = self.files_left.saturating_sub(1);
                }
                self.uploaded.push(ReportedArtifact {
                    name,
                    role,
                    size_bytes: size,
                    sha256,
                });
            }
            Err(error) => {
                self.left_out.push(format!("{name}: {error}"));
                match error {
                    LinkError::Refused { .. } | LinkError::File { .. } | LinkError::TooLarge { .. } => {}
                    LinkError::Unreachable { .. } | LinkError::Unauthorized { .. } => {
                        self.broken = Some(error.to_string());
                    }
                }
            }
        }
    }
}

/// The list as it is reported: redacted by the caller, each entry and the list itself bounded.
pub(crate) fn bounded(mut left_out: Vec<String>) -> Vec<String> {
    if left_out.len() > MAX_LEFT_OUT {
        let rest = left_out.len() - MAX_LEFT_OUT;
        left_out.truncate(MAX_LEFT_OUT);
        left_out.push(format!("and {rest} more"));
    }
    for entry in &mut left_out {
        entry.truncate(entry.floor_char_boundary(500));
    }
    left_out
}

/// Shortens the lists of a report that would be too large a message: the host has the artifacts themselves, and the
/// whole list in `report.json`.
pub(crate) fn fit_message(report: &mut Report) {
    let size = |report: &Report| serde_json::to_vec(report).map_or(0, |bytes| bytes.len());
    if size(report) <= MAX_REPORT_MESSAGE {
        return;
    }
    let count = report.artifacts.len();
    while size(report) > MAX_REPORT_MESSAGE && !(report.artifacts.is_empty() && report.left_out.is_empty()) {
        report.artifacts.truncate(report.artifacts.len() / 2);
        if report.artifacts.is_empty() {
            report.left_out.truncate(report.left_out.len() / 2);
        }
    }
    let listed = report.artifacts.len();
    report.left_out.push(format!(
        "this list: only {listed} of {count} uploaded artifacts are named here"
    ));
}

/// The log's name for [`Upload::kept`].
pub(crate) const LOG: (&str, ArtifactRole) = (LOG_NAME, ArtifactRole::Log);
