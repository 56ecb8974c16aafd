//! `POST /v1/network`: operators' orders to the packet policy, which has one writer while the daemon is up.

use agentlab_netpolicy::Order;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use serde_json::json;

use super::Edge;
use super::problem::Refusal;
use super::request::Json;

pub(super) async fn order(
    State(edge): State<Edge>,
    Json(order): Json<Order>,
) -> Result<impl IntoResponse, Refusal> {
    // The engine hands orders on in the policy's own words, which it does not know.
    let words = json!(order).to_string();
    let done = edge.engine.operate_network(&words).await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], done))
}
