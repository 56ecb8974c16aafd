//! Judgement: what a sandbox or a job does next. No socket, no SQL, no netlink of its own.
//!
//! ```text
//!   daemon/http ──► Engine ──► sandbox/machine.rs (pure) ──► sandbox/driver.rs (one task per sandbox)
//!   guest edge ───►   │                                          │ performs effects through the ports
//!                     └── store (journal first) ◄────────────────┤
//!                                   Backend · Network · GuestDoor ┘
//! ```

#![expect(
    clippy::result_large_err,
    reason = "a problem is the answer to a caller, made at most once per request"
)]

mod condition;
mod engine;
mod event;
mod exposed;
mod glimpse;
mod guest;
mod idle;
mod job;
mod journal;
mod lease;
mod operator;
pub mod port;
mod push;
mod queue;
mod reconcile;
mod recover;
mod report;
mod request;
mod retention;
mod room;
pub mod sandbox;
mod secrets;
mod settings;
mod shared;
mod status;
mod task;
mod upload;
mod view;
mod vigil;
mod workspace;
mod workspace_adopt;
mod workspace_check;
mod workspace_free;
mod workspace_rebind;
mod workspace_snapshot;
mod workspace_task;

pub use engine::{Engine, StartError};
pub use guest::{GuestOrigin, GuestRefusal, GuestSession};
pub use idle::Occupied;
pub use journal::Point;
#[cfg(feature = "observer")]
pub use journal::observe;
#[cfg(any(test, feature = "observer"))]
pub use journal::{Moment, Observer};
pub use secrets::{Delivery, Secrets, SecretsUnavailable};
pub use settings::{Clock, IdleRules, Parts, Settings, SystemClock, Tunable};
pub use status::Summary;
pub use upload::{Announced, Arrived, Upload};

#[cfg(test)]
mod tests;
