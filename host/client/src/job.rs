//! Jobs.

use agentlab_api::{JobId, JobList, JobPruneRequest, JobPruneView, JobRequest, JobView};
use http::{HeaderName, HeaderValue};

use crate::connection::Call;
use crate::error::Result;
use crate::path::page_query;
use crate::{Client, ClientError};

impl Client {
    /// Asks for a job. With the same key again, the daemon answers with the job it made the first time.
    ///
    /// # Errors
    /// See [`crate::ClientError`].
    pub async fn create_job(&self, request: &JobRequest, idempotency_key: Option<&str>) -> Result<JobView> {
        let mut call = Call::post("/v1/jobs", request)?;
        if let Some(key) = idempotency_key {
            let value = HeaderValue::from_str(key).map_err(|_| {
                ClientError::Protocol("An idempotency key is printable ASCII without line ends".to_owned())
            })?;
            call = call.header(HeaderName::from_static("idempotency-key"), value);
        }
        self.call(call).await
    }

    /// One job.
    ///
    /// # Errors
    /// See [`crate::ClientError`].
    pub async fn job(&self, id: &JobId) -> Result<JobView> {
        self.call(Call::get(format!("/v1/jobs/{id}"))).await
    }

    /// One page of jobs, newest first.
    ///
    /// # Errors
    /// See [`crate::ClientError`].
    pub async fn jobs(&self, cursor: Option<&str>, limit: Option<u32>) -> Result<JobList> {
        let query = page_query(None, cursor, limit);
        self.call(Call::get(format!("/v1/jobs{query}"))).await
    }

    /// Lets go of jobs that were kept for long enough, or says which those are.
    ///
    /// # Errors
    /// See [`crate::ClientError`].
    pub async fn prune_jobs(&self, request: JobPruneRequest) -> Result<JobPruneView> {
        self.call(Call::post("/v1/jobs/prune".to_owned(), &request)?)
            .await
    }

    /// Asks for a job's end. A job that ended already is answered as it is.
    ///
    /// # Errors
    /// See [`crate::ClientError`].
    pub async fn cancel_job(&self, id: &JobId) -> Result<JobView> {
        self.call(Call::post(
            format!("/v1/jobs/{id}/cancel"),
            &serde_json::json!({}),
        )?)
        .await
    }
}
