//! `/v1/profiles`.

use agentlab_api::{ErrorCode, Problem, Profile, ProfileList};
use axum::Json as JsonAnswer;
use axum::extract::State;

use super::Edge;
use super::problem::Refusal;
use super::request::Named;

pub(super) async fn list(State(edge): State<Edge>) -> JsonAnswer<ProfileList> {
    JsonAnswer(ProfileList {
        profiles: edge.engine.tunable().profiles.clone(),
    })
}

pub(super) async fn show(
    State(edge): State<Edge>,
    Named(name): Named<String>,
) -> Result<JsonAnswer<Profile>, Refusal> {
    edge.engine.profile(&name).map(JsonAnswer).map_err(|unknown| {
        // Here the name is the thing asked for, not a field of a body.
        let mut problem = Problem::new(ErrorCode::NotFound, unknown.detail);
        problem.hint = unknown.hint;
        problem.into()
    })
}
