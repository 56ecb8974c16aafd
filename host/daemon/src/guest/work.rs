//! Redemption, heartbeats, logs and the report.

use agentlab_protocol::message::{Heartbeat, HeartbeatAnswer, LogBatch, RedeemAnswer, RedeemRequest, Report};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::GuestEdge;
use super::answer::{Guest, Message, Origin, Refused};

pub(super) async fn redeem(
    State(edge): State<GuestEdge>,
    Origin(origin): Origin,
    Message(request): Message<RedeemRequest>,
) -> Result<Json<RedeemAnswer>, Refused> {
    Ok(Json(edge.engine.redeem(origin, request).await?))
}

pub(super) async fn acknowledge(
    State(edge): State<GuestEdge>,
    Guest(session): Guest,
) -> Result<StatusCode, Refused> {
    edge.engine.acknowledge(&session).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn heartbeat(
    State(edge): State<GuestEdge>,
    Guest(session): Guest,
    Message(beat): Message<Heartbeat>,
) -> Result<Json<HeartbeatAnswer>, Refused> {
    Ok(Json(edge.engine.heartbeat(&session, beat).await?))
}

pub(super) async fn logs(
    State(edge): State<GuestEdge>,
    Guest(session): Guest,
    Message(batch): Message<LogBatch>,
) -> Result<StatusCode, Refused> {
    edge.engine.guest_logs(&session, batch).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// 202: teardown is the driver's, not this request's.
pub(super) async fn report(
    State(edge): State<GuestEdge>,
    Guest(session): Guest,
    Message(report): Message<Report>,
) -> Result<StatusCode, Refused> {
    edge.engine.report(&session, report).await?;
    Ok(StatusCode::ACCEPTED)
}
