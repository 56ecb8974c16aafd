//! Lists that go on: server-sent events, each with an id to resume by.
//!
//! ```text
//!   read what is stored after the last id ──► send ──► nothing left? ended ──► `end`, with the job as it is now
//!            ▲                                             │
//!            └──────────── woken by the store ◄────────────┘
//! ```

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use agentlab_api::{ErrorCode, JobView};
use axum::http::{HeaderMap, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use tokio_util::sync::CancellationToken;

use super::problem::Refusal;

const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// One thing on a stream.
#[derive(Debug)]
pub(super) struct Item {
    /// To resume after it.
    pub(super) id: u64,
    /// Name of the event.
    pub(super) kind: String,
    /// JSON in one line.
    pub(super) data: String,
}

/// Something stored that grows.
pub(super) trait Source: Send + 'static {
    /// What is stored after an id, oldest first; a part of it is enough. Empty means nothing yet.
    fn after(&mut self, id: u64) -> impl Future<Output = Result<Vec<Item>, Refusal>> + Send;

    /// The job, once nothing will be added any more.
    fn ended(&mut self) -> impl Future<Output = Result<Option<JobView>, Refusal>> + Send;

    /// Returns when there may be more than the last [`Source::after`] saw; false when there never will be.
    fn changed(&mut self) -> impl Future<Output = bool> + Send;
}

/// Whether the caller asked for a stream instead of a page.
pub(super) fn wanted(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| {
            value
                .split(',')
                .any(|kind| kind.trim().starts_with("text/event-stream"))
        })
}

/// Where to resume: `Last-Event-ID`, which a reconnecting client sends by itself, before `?after=`.
pub(super) fn resume_after(headers: &HeaderMap, after: Option<u64>) -> Result<u64, Refusal> {
    let Some(value) = headers.get("last-event-id") else {
        return Ok(after.unwrap_or(0));
    };
    value
        .to_str()
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| {
            Refusal::new(
                ErrorCode::InvalidValue,
                "`Last-Event-ID` is not a number that an earlier event carried",
            )
        })
}

/// Streams a source until it has ended, its reader has gone, or the daemon stops; then a client resumes.
pub(super) fn follow<S: Source>(source: S, after: u64, stopping: CancellationToken) -> Response {
    let follower = Follower {
        source,
        after,
        stopping,
        queue: VecDeque::new(),
        finished: false,
    };
    let events = stream::unfold(follower, |mut follower| async move {
        let event = follower.next().await?;
        Some((Ok::<_, Infallible>(event), follower))
    });
    Sse::new(events)
        .keep_alive(KeepAlive::new().interval(KEEP_ALIVE).text("keep-alive"))
        .into_response()
}

struct Follower<S> {
    source: S,
    after: u64,
    stopping: CancellationToken,
    queue: VecDeque<Item>,
    finished: bool,
}

impl<S: Source> Follower<S> {
    async fn next(&mut self) -> Option<Event> {
        if self.finished {
            return None;
        }
        loop {
            if let Some(item) = self.queue.pop_front() {
                self.after = item.id;
                return Some(
                    Event::default()
                        .id(item.id.to_string())
                        .event(item.kind)
                        .data(item.data),
                );
            }
            match self.fill().await {
                Ok(None) if !self.queue.is_empty() => {}
                Ok(None) => {
                    let stopping = self.stopping.clone();
                    tokio::select! {
                        () = stopping.cancelled() => return None,
                        more = self.source.changed() => if !more { return None },
                    }
                }
                Ok(Some(job)) => {
                    self.finished = true;
                    let data = serde_json::to_string(&job).unwrap_or_default();
                    return Some(Event::default().event("end").data(data));
                }
                Err(Refusal(problem)) => {
                    self.finished = true;
                    let data = serde_json::to_string(&problem).unwrap_or_default();
                    return Some(Event::default().event("error").data(data));
                }
            }
        }
    }

    /// Fills the queue; the job when nothing is left and nothing will come.
    async fn fill(&mut self) -> Result<Option<JobView>, Refusal> {
        // Asked before reading: what was added before the end is then read for certain.
        let ended = self.source.ended().await?;
        self.queue.extend(self.source.after(self.after).await?);
        Ok(ended.filter(|_| self.queue.is_empty()))
    }
}
