//! Judgement: what a sandbox or a job does next. No socket, no SQL, no netlink of its own.
//!
//! ```text
//!   daemon/http ──► Engine ──► sandbox/machine.rs (pure) ──► sandbox/driver.rs (one task per sandbox)
//!   guest edge ───►   │                                          │ performs effects through the ports
//!                     └── store (journal first) ◄────────────────┤
//!                                   Backend · Network · GuestDoor ┘
//! ```

pub mod port;
