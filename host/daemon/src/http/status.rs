//! `GET /v1/status`.

use agentlab_api::StatusView;
use axum::Json as JsonAnswer;
use axum::extract::State;

use super::Edge;
use super::problem::Refusal;

pub(super) async fn show(State(edge): State<Edge>) -> Result<JsonAnswer<StatusView>, Refusal> {
    Ok(JsonAnswer(edge.engine.status().await?))
}
