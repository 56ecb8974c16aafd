//! Files as they come, break off, stay and go.

mod artifact;
mod log;
mod partial;
mod unrecorded;

use std::sync::atomic::Ordering;

use sha2::{Digest as _, Sha256};
use tokio::io::AsyncReadExt as _;

use super::*;

const HELLO_SHA256: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

struct Lab {
    directory: tempfile::TempDir,
    files: Files,
    job: JobId,
    /// Number of the next log record.
    next: AtomicU64,
}

fn lab() -> Lab {
    let directory = tempfile::tempdir().unwrap();
    let files = Files::open(directory.path(), 0).unwrap();
    Lab {
        directory,
        files,
        job: "job_0123456789ab".parse().unwrap(),
        next: AtomicU64::new(0),
    }
}

impl Lab {
    async fn receive(&self, bytes: &[u8], announced: Option<&str>) -> Result<Received, StoreError> {
        let hold = self.files.hold(&sum(bytes))?;
        let mut incoming = self.files.receive_artifact(&hold, 1 << 20).await?;
        incoming.write(bytes).await?;
        let received = incoming.finish(announced).await?;
        hold.recorded();
        Ok(received)
    }

    async fn content(&self, sha256: &str) -> Option<Vec<u8>> {
        let (mut file, size) = self.files.open_artifact(sha256).await.unwrap()?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).await.unwrap();
        assert_eq!(length(&bytes), size);
        Some(bytes)
    }

    fn stored_path(&self, sha256: &str) -> PathBuf {
        let artifacts = self.directory.path().join(ARTIFACTS);
        artifacts.join(&sha256[..2]).join(sha256)
    }

    fn left_in(&self, directory: &str) -> usize {
        std::fs::read_dir(self.directory.path().join(directory))
            .unwrap()
            .count()
    }
}

fn sum(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap()
}
