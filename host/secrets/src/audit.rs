//! Who changed what, one JSON line each, beside the bundles. Names, never values.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::Serialize;

use crate::SecretsError;
use crate::file::failed;

const FILE: &str = "audit.log";

/// One change.
#[derive(Debug, Serialize)]
pub(crate) struct Change<'a> {
    /// What was done, one word.
    pub(crate) action: &'a str,
    pub(crate) bundle: &'a str,
    pub(crate) names: &'a [String],
    /// Digits of the SHA-256 of the file before, where there was one.
    pub(crate) before: Option<String>,
    /// And after.
    pub(crate) after: Option<String>,
}

#[derive(Serialize)]
struct Line<'a> {
    time: Timestamp,
    uid: u32,
    /// Who became that user, as sudo says.
    #[serde(skip_serializing_if = "Option::is_none")]
    sudo_user: Option<String>,
    #[serde(flatten)]
    change: &'a Change<'a>,
}

/// The log, open. Opened before a change, because what cannot be told must not be done.
#[derive(Debug)]
pub(crate) struct Audit {
    file: File,
    path: PathBuf,
}

impl Audit {
    pub(crate) fn open(dir: &Path) -> Result<Self, SecretsError> {
        let path = dir.join(FILE);
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed("Opening", &path))?;
        Ok(Self { file, path })
    }

    pub(crate) fn tell(&mut self, change: &Change<'_>) -> Result<(), SecretsError> {
        let line = Line {
            time: Timestamp::now(),
            uid: rustix::process::getuid().as_raw(),
            sudo_user: std::env::var("SUDO_USER").ok(),
            change,
        };
        let mut text = serde_json::to_string(&line)
            .map_err(|error| failed("Writing", &self.path)(std::io::Error::other(error)))?;
        text.push('\n');
        self.file
            .write_all(text.as_bytes())
            .and_then(|()| self.file.sync_data())
            .map_err(failed("Writing", &self.path))
    }
}
