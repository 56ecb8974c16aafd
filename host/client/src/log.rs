//! What agent and runner printed, page by page or as it happens.

use agentlab_api::{JobId, LogRecord};
use serde::{Deserialize, Serialize};

use crate::connection::Call;
use crate::error::Result;
use crate::{Client, Stream};

/// One page of a job's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPage {
    /// Pieces, in order.
    pub records: Vec<LogRecord>,
    /// Offset to go on from.
    pub next: u64,
}

impl Client {
    /// A job's log from an offset on; the page may end before the log does, so ask again until it is empty.
    ///
    /// # Errors
    /// See [`crate::ClientError`].
    pub async fn job_log(&self, id: &JobId, after: u64) -> Result<LogPage> {
        self.call(Call::get(format!("/v1/jobs/{id}/logs?after={after}")))
            .await
    }

    /// A job's log, from the first piece and as it grows, until the job is over.
    ///
    /// # Errors
    /// See [`crate::ClientError`].
    pub async fn follow_job_log(&self, id: &JobId, after: Option<u64>) -> Result<Stream<LogRecord>> {
        Stream::open(self, format!("/v1/jobs/{id}/logs"), after).await
    }
}
