//! A byte stream that survives the other side being replaced: HTTP/2 over a serial line.
//!
//! ```text
//!   hyper ◄──► FramedStream ─┐                      ┌─ FramedStream ◄──► hyper
//!                            ├─ frames on one line ─┤
//!          (guest: connect) ─┘                      └─ Acceptor (host): one stream for each SYN
//! ```
//! The rules on the line are section 3 of docs/protocol.md; frames themselves are `agentlab_protocol::frame`.

mod accept;
mod connect;
mod line;
mod stream;
mod wakers;

pub use accept::{Acceptor, accept};
pub use connect::connect;
pub use stream::FramedStream;
