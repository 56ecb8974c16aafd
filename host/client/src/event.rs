//! What happened, page by page or as it happens.

use agentlab_api::{Event, JobId};
use serde::Deserialize;

use crate::connection::Call;
use crate::error::Result;
use crate::path::encode;
use crate::{Client, Stream};

#[derive(Deserialize)]
struct EventPage {
    events: Vec<Event>,
    next: u64,
}

impl Client {
    /// Events of a job and its sandbox so far.
    ///
    /// # Errors
    /// See [`crate::ClientError`].
    pub async fn job_events(&self, id: &JobId) -> Result<Vec<Event>> {
        self.events(&format!("/v1/jobs/{id}/events")).await
    }

    /// Events of a job and its sandbox, from the first and as they happen, until the job is over.
    ///
    /// # Errors
    /// See [`crate::ClientError`].
    pub async fn follow_job_events(&self, id: &JobId, after: Option<u64>) -> Result<Stream<Event>> {
        Stream::open(self, format!("/v1/jobs/{id}/events"), after).await
    }

    /// Events of a sandbox so far.
    ///
    /// # Errors
    /// See [`crate::ClientError`].
    pub async fn sandbox_events(&self, selector: &str) -> Result<Vec<Event>> {
        self.events(&format!("/v1/sandboxes/{}/events", encode(selector, false)))
            .await
    }

    /// Events of a sandbox, from the first and as they happen.
    ///
    /// # Errors
    /// See [`crate::ClientError`].
    pub async fn follow_sandbox_events(&self, selector: &str, after: Option<u64>) -> Result<Stream<Event>> {
        Stream::open(
            self,
            format!("/v1/sandboxes/{}/events", encode(selector, false)),
            after,
        )
        .await
    }

    async fn events(&self, path: &str) -> Result<Vec<Event>> {
        let mut all = Vec::new();
        let mut after = 0;
        loop {
            let page: EventPage = self.call(Call::get(format!("{path}?after={after}"))).await?;
            if page.events.is_empty() || page.next <= after {
                return Ok(all);
            }
            all.extend(page.events);
            after = page.next;
        }
    }
}
