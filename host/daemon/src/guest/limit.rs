//! How much one guest may have open at once, so that none can starve the others or the host.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};

use agentlab_api::SandboxId;
use agentlab_engine::GuestOrigin;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::GuestEdge;
use super::answer::Refused;

/// Requests in flight per origin: more than the streams a runner may use on two connections.
const REQUESTS: usize = 40;
/// Connections per origin: two are used, the rest is for those that a reconnecting runner left.
const CONNECTIONS: usize = 12;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Counted {
    Requests(Place),
    Connections(Place),
}

/// A [`GuestOrigin`] as a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Place {
    Address(Ipv4Addr),
    Channel(SandboxId),
    Vsock(SandboxId),
}

impl From<GuestOrigin> for Place {
    fn from(origin: GuestOrigin) -> Self {
        match origin {
            GuestOrigin::Address(address) => Self::Address(address),
            GuestOrigin::Channel(sandbox) => Self::Channel(sandbox),
            GuestOrigin::Vsock(sandbox) => Self::Vsock(sandbox),
        }
    }
}

/// What is open now, per guest. A guest with nothing open takes no room.
#[derive(Debug, Default)]
pub(crate) struct Limits {
    open: Mutex<HashMap<Counted, usize>>,
}

/// One thing open. Given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    limits: Arc<Limits>,
    counted: Counted,
}

impl Limits {
    /// A place for one more connection of a guest.
    pub(crate) fn connection(self: &Arc<Self>, origin: GuestOrigin) -> Option<Permit> {
        self.take(Counted::Connections(origin.into()), CONNECTIONS)
    }

    fn request(self: &Arc<Self>, origin: GuestOrigin) -> Option<Permit> {
        self.take(Counted::Requests(origin.into()), REQUESTS)
    }

    fn take(self: &Arc<Self>, counted: Counted, most: usize) -> Option<Permit> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(counted).or_insert(0);
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Permit {
            limits: Arc::clone(self),
            counted,
        })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut open = self.limits.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.counted) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.counted);
            }
        }
    }
}

/// Lets a request in, or tells the guest to come back later.
pub(super) async fn admit(State(edge): State<GuestEdge>, request: Request, next: Next) -> Response {
    let Some(origin) = request.extensions().get::<GuestOrigin>().copied() else {
        return Refused::unauthorized().into_response();
    };
    match edge.limits.request(origin) {
        Some(permit) => {
            let response = next.run(request).await;
            drop(permit);
            response
        }
        None => Refused::new(StatusCode::TOO_MANY_REQUESTS, "too many requests at once").into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_guest_at_its_limit_does_not_touch_another() {
        let limits = Arc::new(Limits::default());
        let [greedy, modest] = [2, 3].map(|last| GuestOrigin::Address(Ipv4Addr::new(10, 77, 0, last)));
        let held: Vec<Permit> = std::iter::from_fn(|| limits.connection(greedy)).collect();
        assert_eq!(held.len(), CONNECTIONS);
        assert!(limits.connection(modest).is_some());
        assert!(limits.request(greedy).is_some());
        drop(held);
        assert!(limits.connection(greedy).is_some());
        assert!(limits.open.lock().unwrap().is_empty());
    }
}
