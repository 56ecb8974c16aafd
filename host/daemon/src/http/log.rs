//! `GET /v1/jobs/{job}/logs`: what agent and runner printed, as a page or as a stream.

use std::sync::Arc;

use agentlab_api::{JobId, JobView, LogRecord};
use agentlab_engine::Engine;
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

const PAGE: usize = 1000;
const STREAM_BATCH: usize = 256;

/// Query of a log.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LogQuery {
    /// Only records after this offset, which an earlier record carried.
    after: Option<u64>,
    /// At most this many, and never more than a thousand. A stream has no limit.
    limit: Option<usize>,
}

/// A page of records. Empty at the end of what there is so far.
#[derive(Debug, Serialize)]
struct LogPage {
    records: Vec<LogRecord>,
    /// Pass as `after` for what comes next.
    next: u64,
}

pub(super) async fn of_job(
    State(edge): State<Edge>,
    Named(id): Named<JobId>,
    headers: HeaderMap,
    Params(query): Params<LogQuery>,
) -> Result<Response, Refusal> {
    edge.engine.job(&id).await?;
    let after = follow::resume_after(&headers, query.after)?;
    if follow::wanted(&headers) {
        let store = edge.engine.store();
        let source = Log {
            appended: store.files().watch_logs(),
            newest_event: store.watch_events(),
            engine: Arc::clone(&edge.engine),
            job: id,
        };
        return Ok(follow::follow(source, after, edge.stopping.clone()));
    }
    let limit = query.limit.unwrap_or(PAGE).clamp(1, PAGE);
    let records = edge.engine.store().files().read_log(&id, after, limit).await?;
    let next = records.last().map_or(after, |record| record.offset);
    Ok(JsonAnswer(LogPage { records, next }).into_response())
}

struct Log {
    engine: Arc<Engine>,
    job: JobId,
    appended: watch::Receiver<u64>,
    /// The end of a job is an event, not an append.
    newest_event: watch::Receiver<u64>,
}

impl Source for Log {
    async fn after(&mut self, id: u64) -> Result<Vec<Item>, Refusal> {
        let records = self
            .engine
            .store()
            .files()
            .read_log(&self.job, id, STREAM_BATCH)
            .await?;
        Ok(records
            .into_iter()
            .map(|record| Item {
                id: record.offset,
                kind: "log".to_owned(),
                data: serde_json::to_string(&record).unwrap_or_default(),
            })
            .collect())
    }

    async fn ended(&mut self) -> Result<Option<JobView>, Refusal> {
        // Marked as seen before anything is read, this being the first look of a round.
        self.appended.borrow_and_update();
        self.newest_event.borrow_and_update();
        let job = self.engine.job(&self.job).await?;
        Ok(job.state.is_final().then_some(job))
    }

    async fn changed(&mut self) -> bool {
        tokio::select! {
            changed = self.appended.changed() => changed.is_ok(),
            changed = self.newest_event.changed() => changed.is_ok(),
        }
    }
}
