//! `/v1/workspaces`. A selector is a UUID or a name.

use agentlab_api::{
    WorkspaceAdopt, WorkspaceAttach, WorkspaceCheck, WorkspaceFork, WorkspaceList, WorkspaceMove,
    WorkspaceRebind, WorkspaceRequest, WorkspaceResize, WorkspaceSnapshotRequest, WorkspaceState,
    WorkspaceView,
};
use axum::Json as JsonAnswer;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;

use super::Edge;
use super::problem::Refusal;
use super::request::{Json, Named};

type Answer = Result<(StatusCode, JsonAnswer<WorkspaceView>), Refusal>;

/// 202 while its volume is being worked on, which goes on without the caller.
fn answer(view: WorkspaceView) -> (StatusCode, JsonAnswer<WorkspaceView>) {
    let status = match view.state {
        WorkspaceState::Detached | WorkspaceState::Attached => StatusCode::OK,
        WorkspaceState::Creating | WorkspaceState::Busy | WorkspaceState::Deleting => StatusCode::ACCEPTED,
    };
    (status, JsonAnswer(view))
}

pub(super) async fn list(State(edge): State<Edge>) -> Result<JsonAnswer<WorkspaceList>, Refusal> {
    Ok(JsonAnswer(edge.engine.workspaces().await?))
}

pub(super) async fn create(
    State(edge): State<Edge>,
    Json(request): Json<WorkspaceRequest>,
) -> Result<impl IntoResponse, Refusal> {
    let view = edge.engine.create_workspace(request).await?;
    let location = format!("/v1/workspaces/{}", view.id);
    let (status, body) = answer(view);
    let status = if status == StatusCode::OK {
        StatusCode::CREATED
    } else {
        status
    };
    Ok((status, [(header::LOCATION, location)], body))
}

pub(super) async fn show(
    State(edge): State<Edge>,
    Named(selector): Named<String>,
) -> Result<JsonAnswer<WorkspaceView>, Refusal> {
    Ok(JsonAnswer(edge.engine.workspace(&selector).await?))
}

pub(super) async fn check(
    State(edge): State<Edge>,
    Named(selector): Named<String>,
) -> Result<JsonAnswer<WorkspaceCheck>, Refusal> {
    Ok(JsonAnswer(edge.engine.check_workspaces(&selector).await?))
}

pub(super) async fn adopt(
    State(edge): State<Edge>,
    Named(name): Named<String>,
    Json(request): Json<WorkspaceAdopt>,
) -> Answer {
    Ok(answer(edge.engine.adopt_workspace(&name, request).await?))
}

pub(super) async fn delete(State(edge): State<Edge>, Named(selector): Named<String>) -> Answer {
    Ok(answer(edge.engine.delete_workspace(&selector).await?))
}

pub(super) async fn resize(
    State(edge): State<Edge>,
    Named(selector): Named<String>,
    Json(request): Json<WorkspaceResize>,
) -> Answer {
    Ok(answer(
        edge.engine.resize_workspace(&selector, request.size_gb).await?,
    ))
}

pub(super) async fn attach(
    State(edge): State<Edge>,
    Named(selector): Named<String>,
    Json(request): Json<WorkspaceAttach>,
) -> Answer {
    Ok(answer(
        edge.engine.attach_workspace(&selector, &request.sandbox).await?,
    ))
}

pub(super) async fn detach(State(edge): State<Edge>, Named(selector): Named<String>) -> Answer {
    Ok(answer(edge.engine.detach_workspace(&selector).await?))
}

pub(super) async fn snapshot(
    State(edge): State<Edge>,
    Named(selector): Named<String>,
    Json(request): Json<WorkspaceSnapshotRequest>,
) -> Answer {
    Ok(answer(
        edge.engine.snapshot_workspace(&selector, request.name).await?,
    ))
}

pub(super) async fn restore(
    State(edge): State<Edge>,
    Path((selector, snapshot)): Path<(String, String)>,
) -> Answer {
    Ok(answer(edge.engine.restore_workspace(&selector, snapshot).await?))
}

pub(super) async fn forget_snapshot(
    State(edge): State<Edge>,
    Path((selector, snapshot)): Path<(String, String)>,
) -> Answer {
    Ok(answer(edge.engine.forget_snapshot(&selector, snapshot).await?))
}

pub(super) async fn fork(
    State(edge): State<Edge>,
    Named(selector): Named<String>,
    Json(request): Json<WorkspaceFork>,
) -> Answer {
    Ok(answer(edge.engine.fork_workspace(&selector, request).await?))
}

pub(super) async fn move_to(
    State(edge): State<Edge>,
    Named(selector): Named<String>,
    Json(request): Json<WorkspaceMove>,
) -> Answer {
    Ok(answer(
        edge.engine.move_workspace(&selector, request.storage).await?,
    ))
}

/// 202: the new sandbox is made and the workspace handed over without the caller.
pub(super) async fn rebind(
    State(edge): State<Edge>,
    Named(selector): Named<String>,
    Json(request): Json<WorkspaceRebind>,
) -> Answer {
    let view = edge.engine.rebind_workspace(&selector, request).await?;
    Ok((StatusCode::ACCEPTED, JsonAnswer(view)))
}
