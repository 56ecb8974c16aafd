//! The guest's side: knock until somebody opens.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use agentlab_protocol::frame::FrameKind;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::MissedTickBehavior;

use crate::line::{Connection, Ended, Line, Role, Shared};
use crate::stream::FramedStream;
use crate::wakers::Waiter;

const REPEAT: Duration = Duration::from_millis(250);

/// Opens a new connection on a line, whatever lies on it. Waits as long as nobody answers: give it a deadline.
///
/// # Errors
/// The line failed or ended, or the kernel has no random bytes.
pub async fn connect<T: AsyncRead + AsyncWrite + Unpin>(inner: T) -> io::Result<FramedStream<T>> {
    let mut number = [0u8; 4];
    getrandom::fill(&mut number).map_err(io::Error::other)?;
    let id = u32::from_be_bytes(number);
    let shared = Arc::new(Shared::new(inner, Role::Guest));
    shared.lock().standing = Some(Connection::new(id, false));
    let stream = FramedStream { shared, id };

    let mut repeat = tokio::time::interval(REPEAT);
    repeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            answered = poll_fn(|cx| poll_established(&stream, cx)) => return answered.map(|()| stream),
            _ = repeat.tick() => {
                let mut line = stream.shared.lock();
                // A SYN that is still on its way need not be followed by another.
                if line.is_drained() {
                    line.queue(FrameKind::Syn, id, b"");
                }
            }
        }
    }
}

fn poll_established<T: AsyncRead + AsyncWrite + Unpin>(
    stream: &FramedStream<T>,
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    let mut line = stream.shared.lock();
    stream.shared.wakers.register(Waiter::Reader, cx.waker());
    let mut context = stream.shared.context();
    if let Poll::Ready(Err(error)) = line.poll_flush(&mut context) {
        return Poll::Ready(Err(error));
    }
    line.pull(&mut context);
    match line.ended {
        _ if is_established(&line) => Poll::Ready(Ok(())),
        Some(Ended::Eof) => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
        Some(Ended::Failed(kind)) => Poll::Ready(Err(kind.into())),
        None => Poll::Pending,
    }
}

fn is_established<T>(line: &Line<T>) -> bool {
    line.standing
        .as_ref()
        .is_some_and(|standing| standing.established)
}
