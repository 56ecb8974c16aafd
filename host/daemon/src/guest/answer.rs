//! What a guest is told: a status, and text for people where it does no harm.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use agentlab_api::chain;
use agentlab_engine::{GuestOrigin, GuestRefusal, GuestSession};
use agentlab_protocol::message::OFFSET_HEADER;
use agentlab_protocol::session::decode_secret;
use agentlab_store::StoreError;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt as _;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use super::GuestEdge;
use crate::http::request::{MAX_JSON_BYTES, parse};

const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// A refusal on its way to a guest.
#[derive(Debug)]
pub(super) struct Refused {
    status: StatusCode,
    text: String,
    /// The only byte that an upload goes on from.
    offset: Option<u64>,
}

impl Refused {
    pub(super) fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self {
            status,
            text: text.into(),
            offset: None,
        }
    }

    fn elsewhere(offset: u64) -> Self {
        let text = format!("it goes on from byte {offset} only");
        Self {
            offset: Some(offset),
            ..Self::new(StatusCode::RANGE_NOT_SATISFIABLE, text)
        }
    }

    /// Wrong token, wrong place, too late: the same status and the same empty body.
    pub(super) fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, String::new())
    }
}

impl From<GuestRefusal> for Refused {
    fn from(refusal: GuestRefusal) -> Self {
        match refusal {
            GuestRefusal::Unauthorized => Self::unauthorized(),
            GuestRefusal::Conflict(text) => Self::new(StatusCode::CONFLICT, text),
            GuestRefusal::TooLarge(text) => Self::new(StatusCode::PAYLOAD_TOO_LARGE, text),
            GuestRefusal::Offset(offset) => Self::elsewhere(offset),
            GuestRefusal::NotFound => Self::new(StatusCode::NOT_FOUND, "nothing to fetch"),
            GuestRefusal::Unavailable(text) => Self::new(StatusCode::SERVICE_UNAVAILABLE, text),
        }
    }
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::TooLarge { .. } => Self::new(StatusCode::PAYLOAD_TOO_LARGE, error.to_string()),
            StoreError::Mismatch { .. } | StoreError::Name(_) => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string())
            }
            StoreError::Conflict(text) => Self::new(StatusCode::CONFLICT, text),
            StoreError::Offset { kept, .. } => Self::elsewhere(kept),
            error if error.is_disk_full() => {
                tracing::warn!(error = %chain(&error), "A guest's upload is refused");
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "the host's disk is full")
            }
            StoreError::DiskFloor { .. }
            | StoreError::Database { .. }
            | StoreError::Unusable { .. }
            | StoreError::Migration { .. }
            | StoreError::Corrupt { .. }
            | StoreError::File { .. }
            | StoreError::Closed => {
                tracing::error!(error = %chain(&error), "The store failed under a guest's request");
                // Paths and SQLite's words are none of a guest's business.
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "the host could not store it")
            }
        }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let mut response = (self.status, self.text).into_response();
        if let Some(offset) = self.offset {
            response.headers_mut().insert(OFFSET_HEADER, offset.into());
        }
        response
    }
}

pub(super) async fn no_such_route() -> Refused {
    Refused::new(StatusCode::NOT_FOUND, "no such route here")
}

/// A panic in a handler ends one request of one guest.
pub(super) async fn catch_panic(request: Request, next: Next) -> Response {
    AssertUnwindSafe(next.run(request))
        .catch_unwind()
        .await
        .unwrap_or_else(|_| {
            tracing::error!("A guest handler panicked");
            Refused::new(StatusCode::INTERNAL_SERVER_ERROR, "").into_response()
        })
}

/// Where the request came from, as the connection's acceptor put it there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin(pub(super) GuestOrigin);

impl<S: Send + Sync> FromRequestParts<S> for Origin {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Refused> {
        parts
            .extensions
            .get::<GuestOrigin>()
            .copied()
            .map(Self)
            .ok_or_else(Refused::unauthorized)
    }
}

/// A guest whose session is good at its origin. Taken before the body is looked at.
#[derive(Debug)]
pub(super) struct Guest(pub(super) GuestSession);

impl FromRequestParts<GuestEdge> for Guest {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, edge: &GuestEdge) -> Result<Self, Refused> {
        let Origin(origin) = Origin::from_request_parts(parts, edge).await?;
        let session = parts
            .headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .and_then(|(_, text)| decode_secret(text))
            .ok_or_else(Refused::unauthorized)?;
        Ok(Self(edge.engine.authenticate(origin, &session).await?))
    }
}

/// A message. The text of a refusal never repeats what it held: it may have been a token.
#[derive(Debug)]
pub(super) struct Message<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Message<T> {
    type Rejection = Refused;

    async fn from_request(request: Request, _state: &S) -> Result<Self, Refused> {
        let body = Limited::new(request.into_body(), MAX_JSON_BYTES).collect();
        let bytes = in_time(BODY_TIMEOUT, body).await?.map_err(|error| {
            if error.is::<LengthLimitError>() {
                Refused::new(StatusCode::PAYLOAD_TOO_LARGE, "the message is too long")
            } else {
                Refused::new(StatusCode::BAD_REQUEST, "the message broke off")
            }
        })?;
        parse(&bytes.to_bytes()).map(Self).map_err(|refusal| {
            let field = refusal
                .0
                .errors
                .first()
                .map_or("", |field| field.pointer.as_str());
            Refused::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                format!("not the message of this route {field}"),
            )
        })
    }
}

/// Bounds a wait for a guest.
pub(super) async fn in_time<T>(limit: Duration, wait: impl Future<Output = T>) -> Result<T, Refused> {
    tokio::time::timeout(limit, wait)
        .await
        .map_err(|_| Refused::new(StatusCode::REQUEST_TIMEOUT, "nothing came for too long"))
}

#[cfg(test)]
mod tests {
    use agentlab_protocol::message::Heartbeat;
    use axum::body::{Body, Bytes};
    use futures_util::{StreamExt as _, stream};

    use super::*;

    async fn refusal(body: Body) -> Refused {
        let request = Request::new(body);
        Message::<Heartbeat>::from_request(request, &())
            .await
            .unwrap_err()
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_sends_a_byte_now_and_then_is_not_waited_for() {
        let begun = tokio::time::Instant::now();
        let drops = stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            Some((Ok::<_, std::io::Error>(Bytes::from_static(b" ")), ()))
        });
        let refused = refusal(Body::from_stream(drops)).await;
        assert_eq!(refused.status, StatusCode::REQUEST_TIMEOUT);
        assert_eq!(begun.elapsed(), BODY_TIMEOUT);
        let silent = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
        assert_eq!(refusal(silent).await.status, StatusCode::REQUEST_TIMEOUT);
    }

    #[tokio::test]
    async fn a_message_without_end_is_cut_off_at_its_bound_and_no_refusal_repeats_what_was_sent() {
        let endless = stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from_static(&[b'x'; 4096])));
        let refused = refusal(Body::from_stream(endless)).await;
        assert_eq!(refused.status, StatusCode::PAYLOAD_TOO_LARGE);
        let broken = stream::iter([Err::<Bytes, _>(std::io::Error::other("gone"))]).boxed();
        assert_eq!(
            refusal(Body::from_stream(broken)).await.status,
            StatusCode::BAD_REQUEST
        );
        for body in [
            r#"{"phase": "s3cr3t"}"#,
            r#"{"phase": "agent", "s3cr3t": 1}"#,
            "s3cr3t",
            "",
        ] {
            let refused = refusal(Body::from(body)).await;
            assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY);
            assert!(
                !refused.text.contains("s3cr3t") || body.contains("\"s3cr3t\":"),
                "{}",
                refused.text
            );
        }
    }
}
