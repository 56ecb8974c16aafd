//! What the contract tier is made of: the daemon as a process of its own whose hypervisor, packet policy and guests are
//! in its memory, and the command beside it. No root, no VM, no network, milliseconds.
//!
//! ```text
//!   test ──► agentlab (real) ──► socket ──► agentlabd-fake: agentlabd's own library
//!     │                                        └─► agentlab_backend::fake ──► serial line ─┬─► Script (the task says what)
//!     └── plays a hostile guest itself ◄──────── unix socket, seed first ─────────────────┘
//! ```
//! What only the shipped `agentlabd` can show (its flags, its reading of `config.yaml`) is shown with it.

mod gate;
mod guest;
mod lab;
mod script;
mod world;

pub use gate::Gate;
pub use guest::{Answer, Guest, Line, Message};
pub use lab::{Lab, Running, run};
pub use world::{Guests, Played, Visitors};
