//! `/v1/sandboxes`. A selector is a UUID, a VMID or a name.

use agentlab_api::{LeaseRequest, PruneRequest, PruneView, SandboxRequest, SandboxView};
use agentlab_engine::sandbox::machine::Request;
use agentlab_store::SandboxPage;
use axum::Json as JsonAnswer;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde::Deserialize;

use super::Edge;
use super::job::Nothing;
use super::problem::Refusal;
use super::request::{Json, Named, Params};

const CONSOLE_BYTES: usize = 64 << 10;
const MAX_CONSOLE_BYTES: usize = 1 << 20;

/// Query of the list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SandboxQuery {
    /// List destroyed ones too.
    #[serde(default)]
    include_destroyed: bool,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
    /// Sandboxes per page; a thousand at most, and by default.
    limit: Option<u32>,
}

/// Body of a destroy request.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DestroyRequest {
    /// Also one that is held.
    #[serde(default)]
    force: bool,
}

/// Query of a console.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ConsoleQuery {
    /// How much of its end; at most a MiB.
    max_bytes: Option<usize>,
}

/// A [`SandboxList`](agentlab_api::SandboxList), put together from sandboxes that are JSON already.
pub(super) async fn list(
    State(edge): State<Edge>,
    Params(query): Params<SandboxQuery>,
) -> Result<impl IntoResponse, Refusal> {
    let page = edge
        .engine
        .sandboxes(query.include_destroyed, query.cursor, query.limit);
    let SandboxPage { mut sandboxes, next } = page.await?;
    sandboxes.insert_str(0, r#"{"sandboxes":"#);
    if let Some(cursor) = next {
        sandboxes.push_str(&format!(r#","next_cursor":"{cursor}""#));
    }
    if let Some(trouble) = edge.engine.backend_trouble() {
        let trouble = serde_json::json!(trouble);
        sandboxes.push_str(&format!(r#","backend_trouble":{trouble}"#));
    }
    sandboxes.push('}');
    Ok(([(header::CONTENT_TYPE, "application/json")], sandboxes))
}

/// 202: it is made without the caller; the events say how far it is.
pub(super) async fn create(
    State(edge): State<Edge>,
    Json(request): Json<SandboxRequest>,
) -> Result<impl IntoResponse, Refusal> {
    let sandbox = edge.engine.create_sandbox(request).await?;
    let location = format!("/v1/sandboxes/{}", sandbox.id);
    Ok((
        StatusCode::ACCEPTED,
        [(header::LOCATION, location)],
        JsonAnswer(sandbox),
    ))
}

pub(super) async fn show(
    State(edge): State<Edge>,
    Named(selector): Named<String>,
) -> Result<JsonAnswer<SandboxView>, Refusal> {
    Ok(JsonAnswer(edge.engine.sandbox(&selector).await?))
}

/// 202: teardown goes on until nothing is left; the events say how far it is.
pub(super) async fn destroy(
    State(edge): State<Edge>,
    Named(selector): Named<String>,
    Json(request): Json<DestroyRequest>,
) -> Result<(StatusCode, JsonAnswer<SandboxView>), Refusal> {
    let sandbox = edge.engine.destroy_sandbox(&selector, request.force).await?;
    Ok((StatusCode::ACCEPTED, JsonAnswer(sandbox)))
}

type Changed = Result<(StatusCode, JsonAnswer<SandboxView>), Refusal>;

/// 202: the change is recorded and goes on without the caller.
async fn change(edge: &Edge, selector: &str, request: Request) -> Changed {
    let sandbox = edge.engine.change_sandbox(selector, request).await?;
    Ok((StatusCode::ACCEPTED, JsonAnswer(sandbox)))
}

pub(super) async fn start(
    State(edge): State<Edge>,
    Named(selector): Named<String>,
    Json(Nothing {}): Json<Nothing>,
) -> Changed {
    change(&edge, &selector, Request::Start).await
}

pub(super) async fn stop(
    State(edge): State<Edge>,
    Named(selector): Named<String>,
    Json(Nothing {}): Json<Nothing>,
) -> Changed {
    change(&edge, &selector, Request::Stop).await
}

pub(super) async fn pause(
    State(edge): State<Edge>,
    Named(selector): Named<String>,
    Json(Nothing {}): Json<Nothing>,
) -> Changed {
    change(&edge, &selector, Request::Suspend).await
}

pub(super) async fn resume(
    State(edge): State<Edge>,
    Named(selector): Named<String>,
    Json(Nothing {}): Json<Nothing>,
) -> Changed {
    change(&edge, &selector, Request::Resume).await
}

/// 200: it is renewed when this is answered.
pub(super) async fn renew(
    State(edge): State<Edge>,
    Named(selector): Named<String>,
    Json(request): Json<LeaseRequest>,
) -> Result<JsonAnswer<SandboxView>, Refusal> {
    let renewed = edge.engine.renew_lease(&selector, request.ttl_minutes).await?;
    Ok(JsonAnswer(renewed))
}

/// 202, or 200 when nothing was to go: teardown goes on without the caller.
pub(super) async fn prune(
    State(edge): State<Edge>,
    Json(request): Json<PruneRequest>,
) -> Result<(StatusCode, JsonAnswer<PruneView>), Refusal> {
    let pruned = edge.engine.prune_sandboxes(&request).await?;
    let status = if pruned.dry_run || pruned.count == 0 {
        StatusCode::OK
    } else {
        StatusCode::ACCEPTED
    };
    Ok((status, JsonAnswer(pruned)))
}

/// Bytes a guest chose, as they are: whoever shows them must escape control characters.
pub(super) async fn console(
    State(edge): State<Edge>,
    Named(selector): Named<String>,
    Params(query): Params<ConsoleQuery>,
) -> Result<impl IntoResponse, Refusal> {
    let max_bytes = query.max_bytes.unwrap_or(CONSOLE_BYTES).min(MAX_CONSOLE_BYTES);
    let bytes = edge.engine.console(&selector, max_bytes).await?;
    Ok((
        [
            (header::CONTENT_TYPE, "text/plain"),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        ],
        bytes,
    ))
}
