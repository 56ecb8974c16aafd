//! The host's side: one stream after the other on the same line.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite};

use crate::line::{Connection, Ended, Role, Shared};
use crate::stream::FramedStream;
use crate::wakers::Waiter;

/// Yields a stream for every connection a guest opens on a line.
///
/// Keep calling [`Acceptor::next`], also while a stream is being served (it cannot be replaced unseen otherwise, and
/// answers to unknown connections are written by it), or at least as soon as the stream has ended. A guest may open
/// connections as fast as it likes: serve one at a time.
pub struct Acceptor<T: AsyncRead + AsyncWrite + Unpin> {
    shared: Arc<Shared<T>>,
    /// Connection whose acknowledgement is on its way.
    answering: Option<u32>,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Acceptor<T> {
    /// Takes a line over; reads nothing yet.
    #[must_use]
    pub fn new(inner: T) -> Self {
        Self {
            shared: Arc::new(Shared::new(inner, Role::Host)),
            answering: None,
        }
    }

    /// The next connection; the one before fails with `ConnectionReset` from then on. `None` when the line has
    /// ended. Cancel safe.
    ///
    /// # Errors
    /// The line failed.
    pub async fn next(&mut self) -> io::Result<Option<FramedStream<T>>> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<FramedStream<T>>>> {
        let mut line = self.shared.lock();
        self.shared.wakers.register(Waiter::Acceptor, cx.waker());
        let mut context = self.shared.context();
        line.pull(&mut context);
        if let Some(id) = line.pending.take() {
            line.standing = Some(Connection::new(id, true));
            line.acknowledge = Some(id);
            self.answering = Some(id);
        }
        // Handed out only when its acknowledgement is out: nobody else would write the rest of it.
        if line.poll_flush(&mut context).is_ready()
            && let Some(id) = self.answering.take()
        {
            return Poll::Ready(Ok(Some(FramedStream {
                shared: Arc::clone(&self.shared),
                id,
            })));
        }
        match line.ended {
            Some(Ended::Eof) => Poll::Ready(Ok(None)),
            Some(Ended::Failed(kind)) => Poll::Ready(Err(kind.into())),
            None => Poll::Pending,
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> fmt::Debug for Acceptor<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acceptor").finish_non_exhaustive()
    }
}

/// The first connection of a line, for a caller that wants no second one.
///
/// # Errors
/// The line failed, or ended before a guest connected.
pub async fn accept<T: AsyncRead + AsyncWrite + Unpin>(inner: T) -> io::Result<FramedStream<T>> {
    Acceptor::new(inner)
        .next()
        .await?
        .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}
