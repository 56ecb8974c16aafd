//! Refusals on the wire: `application/problem+json` (RFC 9457), whatever went wrong.

use std::any::Any;

use agentlab_api::{ErrorCode, Problem, chain};
use agentlab_store::StoreError;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt as _;

/// A problem that is on its way out.
#[derive(Debug)]
pub(crate) struct Refusal(pub(crate) Box<Problem>);

impl Refusal {
    pub(crate) fn new(code: ErrorCode, detail: impl Into<String>) -> Self {
        Self(Box::new(Problem::new(code, detail)))
    }
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self(Box::new(problem))
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        let detail = chain(&error);
        let code = error.code();
        if code == ErrorCode::Internal {
            tracing::error!(error = %detail, "The store failed under a request");
        }
        Self::new(code, detail)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self.0).unwrap_or_default();
        let kind = HeaderValue::from_static("application/problem+json");
        (status, [(header::CONTENT_TYPE, kind)], body).into_response()
    }
}

/// No route of that path.
pub(super) async fn no_such_route(request: Request) -> Refusal {
    let path = request.uri().path();
    let detail = format!("There is no route {} {path}", request.method());
    // What a client makes of an empty name.
    let hint = if path.ends_with('/') || path.contains("//") {
        "a name or id in it is empty"
    } else {
        "all routes begin with /v1/"
    };
    Problem::new(ErrorCode::NoSuchRoute, detail)
        .with_hint(hint)
        .into()
}

/// A route of that path, with another method.
pub(super) async fn method_not_allowed(request: Request) -> Refusal {
    let detail = format!("{} does not take {}", request.uri().path(), request.method());
    let mut problem =
        Problem::new(ErrorCode::NoSuchRoute, detail).with_hint("the `allow` header lists what it takes");
    problem.status = StatusCode::METHOD_NOT_ALLOWED.as_u16();
    problem.into()
}

/// A panic in a handler is that request's problem and nobody else's.
pub(super) async fn catch_panic(request: Request, next: Next) -> Response {
    let what = format!("{} {}", request.method(), request.uri().path());
    match std::panic::AssertUnwindSafe(next.run(request))
        .catch_unwind()
        .await
    {
        Ok(response) => response,
        Err(panic) => {
            tracing::error!(request = %what, panic = %panic_words(&*panic), "A handler panicked");
            Refusal::new(
                ErrorCode::Internal,
                "The daemon has a defect here; its log says more",
            )
            .into_response()
        }
    }
}

fn panic_words(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no words")
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::Body;
    use axum::middleware;
    use axum::routing::get;
    use tower::ServiceExt as _;

    use super::*;

    #[tokio::test]
    async fn a_panicking_handler_is_answered_and_the_next_request_too() {
        let router = Router::new()
            .route(
                "/",
                get(async || -> &'static str { panic!("a defect with a secret in it") }),
            )
            .layer(middleware::from_fn(catch_panic));
        for _ in 0..2 {
            let request = Request::builder().uri("/").body(Body::empty()).unwrap();
            let response = router.clone().oneshot(request).await.unwrap();
            assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
            let body = axum::body::to_bytes(response.into_body(), 10_000).await.unwrap();
            let problem: Problem = serde_json::from_slice(&body).unwrap();
            assert_eq!(problem.code, ErrorCode::Internal);
            assert!(!problem.detail.contains("secret"), "{problem:?}");
        }
    }
}
