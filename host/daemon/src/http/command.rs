//! `/v1/sandboxes/{sandbox}/commands` and `/v1/commands`: what an operator runs in a guest.

use agentlab_api::{CommandRequest, CommandView, ErrorCode, Problem};
use axum::Json as JsonAnswer;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, Version, header};
use axum::response::{IntoResponse as _, Response};
use futures_util::StreamExt as _;

use super::Edge;
use super::problem::Refusal;
use super::request::{Json, Named};

/// 201 once the guest stands by.
pub(super) async fn create(
    State(edge): State<Edge>,
    Named(selector): Named<String>,
    Json(request): Json<CommandRequest>,
) -> Result<(StatusCode, JsonAnswer<CommandView>), Refusal> {
    let sandbox = edge.engine.command(&selector, &request).await?;
    let id = edge.commands.create(sandbox, request).await?;
    Ok((StatusCode::CREATED, JsonAnswer(CommandView { id })))
}

/// Frames both ways, from here to the command's end.
pub(super) async fn stream(
    State(edge): State<Edge>,
    Named(id): Named<String>,
    request: Request,
) -> Result<Response, Refusal> {
    if request.version() != Version::HTTP_2 {
        let problem = Problem::new(
            ErrorCode::MalformedRequest,
            "A command's stream goes both ways at once, which takes HTTP/2",
        );
        return Err(problem.into());
    }
    let followed = edge.commands.follow(&id, request.into_body());
    let (sandbox, output) = followed.ok_or_else(|| {
        Problem::new(
            ErrorCode::NotFound,
            "There is no such command, or it was followed already",
        )
    })?;
    // Somebody works there for as long as the answer lasts.
    let occupied = edge.engine.occupy(sandbox);
    let output = Body::from_stream(output.into_data_stream().inspect(move |_| {
        let _ = &occupied;
    }));
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], output).into_response())
}
