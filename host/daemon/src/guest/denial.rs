//! What the packet policy refused this guest lately, for an agent that would otherwise only see its connections fail.

use agentlab_engine::port::Denied;
use axum::Json;
use axum::extract::State;
use serde::Serialize;

use super::GuestEdge;
use super::answer::{Guest, Refused};

pub(super) const PATH: &str = "/guest/v1/denials";

/// Latest first.
#[derive(Debug, Serialize)]
pub(super) struct DenialList {
    denials: Vec<Denied>,
}

pub(super) async fn list(
    State(edge): State<GuestEdge>,
    Guest(session): Guest,
) -> Result<Json<DenialList>, Refused> {
    Ok(Json(DenialList {
        denials: edge.engine.denials(&session).await?,
    }))
}
