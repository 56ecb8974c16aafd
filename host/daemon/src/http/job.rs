//! `/v1/jobs`.

use agentlab_api::{ErrorCode, JobId, JobList, JobPruneRequest, JobPruneView, JobRequest, JobView};
use axum::Json as JsonAnswer;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use super::Edge;
use super::problem::Refusal;
use super::request::{Json, Named, Params};

const LONGEST_KEY: usize = 200;

/// Query of the list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct JobQuery {
    /// `next_cursor` of the page before.
    cursor: Option<String>,
    /// Jobs per page.
    limit: Option<u32>,
}

/// An empty object.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

pub(super) async fn list(
    State(edge): State<Edge>,
    Params(query): Params<JobQuery>,
) -> Result<JsonAnswer<JobList>, Refusal> {
    Ok(JsonAnswer(edge.engine.jobs(query.cursor, query.limit).await?))
}

/// 202: the work goes on when the connection is long gone.
pub(super) async fn create(
    State(edge): State<Edge>,
    headers: HeaderMap,
    Json(request): Json<JobRequest>,
) -> Result<Response, Refusal> {
    let job = edge
        .engine
        .create_job(request, idempotency_key(&headers)?)
        .await?;
    let location = format!("/v1/jobs/{}", job.id);
    Ok((
        StatusCode::ACCEPTED,
        [(header::LOCATION, location)],
        JsonAnswer(job),
    )
        .into_response())
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    let Some(value) = headers.get("idempotency-key") else {
        return Ok(None);
    };
    match value.to_str() {
        Ok(key) if !key.trim().is_empty() && key.len() <= LONGEST_KEY => Ok(Some(key.to_owned())),
        Ok(_) | Err(_) => Err(Refusal::new(
            ErrorCode::InvalidValue,
            format!("`Idempotency-Key` is 1 to {LONGEST_KEY} printable ASCII characters"),
        )),
    }
}

pub(super) async fn show(
    State(edge): State<Edge>,
    Named(id): Named<JobId>,
) -> Result<JsonAnswer<JobView>, Refusal> {
    Ok(JsonAnswer(edge.engine.job(&id).await?))
}

pub(super) async fn prune(
    State(edge): State<Edge>,
    Json(request): Json<JobPruneRequest>,
) -> Result<JsonAnswer<JobPruneView>, Refusal> {
    Ok(JsonAnswer(edge.engine.prune_jobs(request).await?))
}

/// 202 while the guest is still being told, 200 when the job is final.
pub(super) async fn cancel(
    State(edge): State<Edge>,
    Named(id): Named<JobId>,
    Json(Nothing {}): Json<Nothing>,
) -> Result<(StatusCode, JsonAnswer<JobView>), Refusal> {
    let job = edge.engine.cancel_job(&id).await?;
    let status = if job.state.is_final() {
        StatusCode::OK
    } else {
        StatusCode::ACCEPTED
    };
    Ok((status, JsonAnswer(job)))
}
