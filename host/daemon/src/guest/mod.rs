//! The guest edge: what a sandbox may say to its host (docs/protocol.md). Everything here faces hostile root.
//!
//! ```text
//!   TLS on the bridge, 8844 ──► Origin::Address ──┐                        ┌─► redeem (no session yet)
//!   TLS on the bridge, 8846 ──► Origin::Address ──┼─► rate ─► size ─► who? ┴─► everything else: session of this origin
//!   serial port of that VM  ──► Origin::Channel ──┤
//!   vsock device of that VM ──► Origin::Vsock ────┘
//! ```
//! Who speaks follows from the cable or socket, never from the message.

mod answer;
mod artifact;
mod command;
mod denial;
mod door;
mod limit;
mod listener;
mod vsock;
mod work;

use std::sync::Arc;

use agentlab_engine::Engine;
use agentlab_protocol::command::{COMMANDS_PATH, COMMANDS_PREFIX};
use agentlab_protocol::message::{
    ACKNOWLEDGE_PATH, ARTIFACTS_PREFIX, HEARTBEAT_PATH, LOGS_PATH, REDEEM_PATH, REPORT_PATH, REPOSITORY_PATH,
};
use axum::Router;
use axum::middleware;
use axum::routing::{get, post, put};

pub(crate) use command::Commands;
pub(crate) use door::SerialDoor;
pub(crate) use limit::Limits;
pub(crate) use listener::{GuestListener, Guests};
pub(crate) use vsock::VsockGuests;

/// What guest handlers are given.
#[derive(Debug, Clone)]
pub(crate) struct GuestEdge {
    /// Everything that decides.
    pub(crate) engine: Arc<Engine>,
    /// How much one guest may ask at once.
    pub(crate) limits: Arc<Limits>,
    /// What operators run in guests.
    pub(crate) commands: Arc<Commands>,
}

/// Which routes a listener has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Routes {
    /// Port 8844.
    Bootstrap,
    /// Port 8846.
    Artifacts,
    /// A channel of the VM's own.
    All,
}

/// The router of a listener.
pub(crate) fn router(edge: GuestEdge, routes: Routes) -> Router {
    let mut router = Router::new();
    if routes != Routes::Artifacts {
        router = router
            .route(REDEEM_PATH, post(work::redeem))
            .route(ACKNOWLEDGE_PATH, post(work::acknowledge))
            .route(HEARTBEAT_PATH, post(work::heartbeat))
            .route(LOGS_PATH, post(work::logs))
            .route(COMMANDS_PATH, get(command::listen))
            .route(&format!("{COMMANDS_PREFIX}{{id}}"), post(command::open))
            .route(denial::PATH, get(denial::list))
            .route(REPORT_PATH, post(work::report));
    }
    if routes != Routes::Bootstrap {
        router = router.route(REPOSITORY_PATH, get(artifact::repository)).route(
            &format!("{ARTIFACTS_PREFIX}{{*name}}"),
            put(artifact::receive).head(artifact::kept),
        );
    }
    router
        .fallback(answer::no_such_route)
        .method_not_allowed_fallback(answer::no_such_route)
        .layer(middleware::from_fn_with_state(edge.clone(), limit::admit))
        .layer(middleware::from_fn(answer::catch_panic))
        .with_state(edge)
}
