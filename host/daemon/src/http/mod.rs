//! The control API. Handlers parse, call the engine, answer: they decide nothing.
//!
//! ```text
//!   unix socket ──► caller known? ──► route of agentlab_api::ROUTES ──► may the caller? ──► handler ──► Engine
//!                                              └─ none ──► problem+json
//! ```

mod artifact;
mod bundle;
mod command;
mod event;
mod follow;
mod job;
mod log;
mod network;
pub(crate) mod problem;
mod profile;
pub(crate) mod request;
mod sandbox;
mod status;
mod workspace;

use std::sync::Arc;

use agentlab_api::{ErrorCode, Method, Permission, ROUTES, Route};
use agentlab_engine::Engine;
use axum::Router;
use axum::extract::Request;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{MethodRouter, get, post};
use tokio_util::sync::CancellationToken;

use self::problem::Refusal;
use crate::guest::Commands;

/// What every handler is given.
#[derive(Debug, Clone)]
pub(crate) struct Edge {
    /// Everything that decides.
    pub(crate) engine: Arc<Engine>,
    /// What operators run in guests.
    pub(crate) commands: Arc<Commands>,
    /// Streams end when this is cancelled.
    pub(crate) stopping: CancellationToken,
}

/// Who asks, as the kernel told when the connection was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Caller {
    /// User id.
    pub(crate) uid: u32,
}

impl Caller {
    /// Whoever could open the socket (root, the daemon's own user, the socket's group) may do everything.
    fn may(self, _permission: Permission) -> bool {
        true
    }
}

type Handler = fn() -> MethodRouter<Edge>;

/// What answers which route of the table.
const HANDLERS: &[(Method, &str, Handler)] = &[
    (Method::Get, "/v1/status", || get(status::show)),
    (Method::Get, "/v1/events", || get(event::all)),
    (Method::Get, "/v1/profiles", || get(profile::list)),
    (Method::Get, "/v1/profiles/{name}", || get(profile::show)),
    (Method::Post, "/v1/bundles", || post(bundle::upload)),
    (Method::Get, "/v1/jobs", || get(job::list)),
    (Method::Post, "/v1/jobs", || post(job::create)),
    (Method::Post, "/v1/jobs/prune", || post(job::prune)),
    (Method::Get, "/v1/jobs/{job}", || get(job::show)),
    (Method::Post, "/v1/jobs/{job}/cancel", || post(job::cancel)),
    (Method::Get, "/v1/jobs/{job}/events", || get(event::of_job)),
    (Method::Get, "/v1/jobs/{job}/logs", || get(log::of_job)),
    (Method::Get, "/v1/jobs/{job}/artifacts", || get(artifact::list)),
    (Method::Get, "/v1/jobs/{job}/artifacts/{*name}", || {
        get(artifact::download)
    }),
    (Method::Post, "/v1/network", || post(network::order)),
    (Method::Get, "/v1/sandboxes", || get(sandbox::list)),
    (Method::Post, "/v1/sandboxes", || post(sandbox::create)),
    (Method::Post, "/v1/sandboxes/prune", || post(sandbox::prune)),
    (Method::Get, "/v1/sandboxes/{sandbox}", || get(sandbox::show)),
    (Method::Get, "/v1/sandboxes/{sandbox}/events", || {
        get(event::of_sandbox)
    }),
    (Method::Get, "/v1/sandboxes/{sandbox}/console", || {
        get(sandbox::console)
    }),
    (Method::Post, "/v1/sandboxes/{sandbox}/destroy", || {
        post(sandbox::destroy)
    }),
    (Method::Post, "/v1/sandboxes/{sandbox}/start", || {
        post(sandbox::start)
    }),
    (Method::Post, "/v1/sandboxes/{sandbox}/stop", || {
        post(sandbox::stop)
    }),
    (Method::Post, "/v1/sandboxes/{sandbox}/pause", || {
        post(sandbox::pause)
    }),
    (Method::Post, "/v1/sandboxes/{sandbox}/resume", || {
        post(sandbox::resume)
    }),
    (Method::Post, "/v1/sandboxes/{sandbox}/lease/renew", || {
        post(sandbox::renew)
    }),
    (Method::Post, "/v1/sandboxes/{sandbox}/commands", || {
        post(command::create)
    }),
    (Method::Post, "/v1/commands/{command}/stream", || {
        post(command::stream)
    }),
    (Method::Get, "/v1/workspaces", || get(workspace::list)),
    (Method::Post, "/v1/workspaces", || post(workspace::create)),
    (Method::Get, "/v1/workspaces/{workspace}", || get(workspace::show)),
    (Method::Get, "/v1/workspaces/{workspace}/check", || {
        get(workspace::check)
    }),
    (Method::Post, "/v1/workspaces/{workspace}/adopt", || {
        post(workspace::adopt)
    }),
    (Method::Post, "/v1/workspaces/{workspace}/delete", || {
        post(workspace::delete)
    }),
    (Method::Post, "/v1/workspaces/{workspace}/resize", || {
        post(workspace::resize)
    }),
    (Method::Post, "/v1/workspaces/{workspace}/attach", || {
        post(workspace::attach)
    }),
    (Method::Post, "/v1/workspaces/{workspace}/detach", || {
        post(workspace::detach)
    }),
    (Method::Post, "/v1/workspaces/{workspace}/snapshots", || {
        post(workspace::snapshot)
    }),
    (
        Method::Post,
        "/v1/workspaces/{workspace}/snapshots/{snapshot}/restore",
        || post(workspace::restore),
    ),
    (
        Method::Post,
        "/v1/workspaces/{workspace}/snapshots/{snapshot}/delete",
        || post(workspace::forget_snapshot),
    ),
    (Method::Post, "/v1/workspaces/{workspace}/rebind", || {
        post(workspace::rebind)
    }),
    (Method::Post, "/v1/workspaces/{workspace}/fork", || {
        post(workspace::fork)
    }),
    (Method::Post, "/v1/workspaces/{workspace}/move", || {
        post(workspace::move_to)
    }),
];

fn handler(route: &Route) -> Option<MethodRouter<Edge>> {
    HANDLERS
        .iter()
        .find(|(method, path, _)| *method == route.method && *path == route.path)
        .map(|(_, _, make)| make())
}

/// All routes of the table, each behind its permission.
pub(crate) fn router(edge: Edge) -> Router {
    let mut router = Router::new();
    for route in ROUTES {
        if let Some(handler) = handler(route) {
            let permission = route.permission;
            let guard = middleware::from_fn(move |request, next| authorise(permission, request, next));
            router = router.route(route.path, handler.route_layer(guard));
        }
    }
    router
        .fallback(problem::no_such_route)
        .method_not_allowed_fallback(problem::method_not_allowed)
        .layer(middleware::from_fn(observe))
        .layer(middleware::from_fn(problem::catch_panic))
        .with_state(edge)
}

async fn authorise(permission: Permission, request: Request, next: Next) -> Response {
    match request.extensions().get::<Caller>() {
        Some(caller) if caller.may(permission) => next.run(request).await,
        Some(caller) => {
            let detail = format!("User {} may not {permission:?}", caller.uid);
            Refusal::new(ErrorCode::Forbidden, detail).into_response()
        }
        None => Refusal::new(ErrorCode::Unauthenticated, "The caller is not known").into_response(),
    }
}

async fn observe(request: Request, next: Next) -> Response {
    let begun = std::time::Instant::now();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let caller = request.extensions().get::<Caller>().map(|caller| caller.uid);
    let response = next.run(request).await;
    let milliseconds = begun.elapsed().as_millis();
    tracing::debug!(%method, path, caller, status = response.status().as_u16(), milliseconds, "Answered");
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_of_the_table_has_a_handler() {
        for route in ROUTES {
            assert!(handler(route).is_some(), "{route:?} has no handler");
        }
    }

    #[test]
    fn every_handler_has_a_route_in_the_table() {
        for (method, path, _) in HANDLERS {
            assert!(
                ROUTES
                    .iter()
                    .any(|route| route.method == *method && route.path == *path),
                "{method:?} {path}"
            );
        }
        assert_eq!(HANDLERS.len(), ROUTES.len());
    }
}
