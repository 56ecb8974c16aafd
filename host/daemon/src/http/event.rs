//! `GET …/events`: what happened, as a page or as a stream.

use std::sync::Arc;

use agentlab_api::{Event, JobId, JobView};
use agentlab_engine::Engine;
use agentlab_store::EventFilter;
use axum::Json as JsonAnswer;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::Edge;
use super::follow::{self, Item, Source};
use super::problem::Refusal;
use super::request::{Named, Params};

const PAGE: u32 = 1000;
const STREAM_BATCH: u32 = 256;

/// Query of an event list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EventQuery {
    /// Only events numbered above this.
    after: Option<u64>,
    /// At most this many, and never more than a thousand. A stream has no limit.
    limit: Option<u32>,
}

/// A page of events.
#[derive(Debug, Serialize)]
struct EventPage {
    events: Vec<Event>,
    /// Pass as `after` for what comes next.
    next: u64,
}

pub(super) async fn all(
    State(edge): State<Edge>,
    headers: HeaderMap,
    Params(query): Params<EventQuery>,
) -> Result<Response, Refusal> {
    answer(&edge, &headers, query, EventFilter::default()).await
}

pub(super) async fn of_job(
    State(edge): State<Edge>,
    Named(id): Named<JobId>,
    headers: HeaderMap,
    Params(query): Params<EventQuery>,
) -> Result<Response, Refusal> {
    edge.engine.job(&id).await?;
    answer(
        &edge,
        &headers,
        query,
        EventFilter {
            job: Some(id),
            sandbox: None,
        },
    )
    .await
}

pub(super) async fn of_sandbox(
    State(edge): State<Edge>,
    Named(selector): Named<String>,
    headers: HeaderMap,
    Params(query): Params<EventQuery>,
) -> Result<Response, Refusal> {
    let sandbox = edge.engine.sandbox(&selector).await?;
    answer(
        &edge,
        &headers,
        query,
        EventFilter {
            sandbox: Some(sandbox.id),
            job: None,
        },
    )
    .await
}

async fn answer(
    edge: &Edge,
    headers: &HeaderMap,
    query: EventQuery,
    filter: EventFilter,
) -> Result<Response, Refusal> {
    let after = follow::resume_after(headers, query.after)?;
    if follow::wanted(headers) {
        let source = Events {
            engine: Arc::clone(&edge.engine),
            filter,
            newest: edge.engine.store().watch_events(),
        };
        return Ok(follow::follow(source, after, edge.stopping.clone()));
    }
    let limit = query.limit.unwrap_or(PAGE).clamp(1, PAGE);
    let events = edge.engine.store().events(&filter, after, limit).await?;
    let next = events.last().map_or(after, |event| event.seq);
    Ok(JsonAnswer(EventPage { events, next }).into_response())
}

struct Events {
    engine: Arc<Engine>,
    filter: EventFilter,
    newest: watch::Receiver<u64>,
}

impl Source for Events {
    async fn after(&mut self, id: u64) -> Result<Vec<Item>, Refusal> {
        let events = self.engine.store().events(&self.filter, id, STREAM_BATCH).await?;
        Ok(events
            .into_iter()
            .map(|event| Item {
                id: event.seq,
                kind: event.kind.to_string(),
                data: serde_json::to_string(&event).unwrap_or_default(),
            })
            .collect())
    }

    /// A job's story ends when its sandbox is gone, has failed and left nothing but its record, or stays on purpose.
    async fn ended(&mut self) -> Result<Option<JobView>, Refusal> {
        // Marked as seen before anything is read, this being the first look of a round: what comes meanwhile wakes us.
        self.newest.borrow_and_update();
        let Some(id) = &self.filter.job else {
            return Ok(None);
        };
        let job = self.engine.job(id).await?;
        if !job.state.is_final() {
            return Ok(None);
        }
        let settled = match job.sandbox {
            Some(sandbox) => self.engine.is_at_rest(sandbox).await?,
            None => true,
        };
        Ok(settled.then_some(job))
    }

    async fn changed(&mut self) -> bool {
        self.newest.changed().await.is_ok()
    }
}
