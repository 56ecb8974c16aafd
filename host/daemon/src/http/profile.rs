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
    let tunable = edge.engine.tunable();
    let profiles = &tunable.profiles;
    let found = profiles.iter().find(|profile| profile.name == name).cloned();
    found.map(JsonAnswer).ok_or_else(|| {
        let known: Vec<&str> = profiles.iter().map(|profile| profile.name.as_str()).collect();
        Problem::new(
            ErrorCode::NotFound,
            format!("There is no profile `{}`", name.escape_debug()),
        )
        .with_hint(format!("known profiles: {}", known.join(", ")))
        .into()
    })
}
