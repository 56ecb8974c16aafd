//! `POST /v1/network`: operators' orders to the packet policy, which has one writer while the daemon is up.

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use serde_json::Value;

use super::Edge;
use super::problem::Refusal;
use super::request::Json;

/// What the order means is the policy's own business, here and at the other end.
pub(super) async fn order(
    State(edge): State<Edge>,
    Json(order): Json<Value>,
) -> Result<impl IntoResponse, Refusal> {
    let done = edge.engine.operate_network(&order.to_string()).await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], done))
}
