//! One connection on a line, as a byte stream.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, MutexGuard};
use std::task::{Context, Poll, Waker, ready};

use agentlab_protocol::frame::FrameKind;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::line::{Ended, Line, Shared};
use crate::wakers::Waiter;

/// A connection on a framed line. Written bytes are on their way only after a flush. Shutdown ends the writing
/// direction and leaves the line open. When the guest begins anew, reads and writes of the old stream fail with
/// `ConnectionReset`. Dropping it tells the other side, at the line's next opportunity.
pub struct FramedStream<T: AsyncRead + AsyncWrite + Unpin> {
    pub(crate) shared: Arc<Shared<T>>,
    pub(crate) id: u32,
}

impl<T: AsyncRead + AsyncWrite + Unpin> FramedStream<T> {
    /// The number both sides know this connection by: for logs.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The line, if this connection is the one that stands. Registers nothing otherwise: the slots belong to its
    /// successor by then.
    fn line(&self, waiter: Waiter, waker: &Waker) -> io::Result<MutexGuard<'_, Line<T>>> {
        let line = self.shared.lock();
        if line
            .standing
            .as_ref()
            .is_none_or(|standing| standing.id != self.id)
        {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        self.shared.wakers.register(waiter, waker);
        Ok(line)
    }

    /// As [`FramedStream::line`], for writing.
    fn writable(&self, waker: &Waker) -> io::Result<MutexGuard<'_, Line<T>>> {
        let line = self.line(Waiter::Writer, waker)?;
        let standing = line.standing.as_ref();
        if standing.is_some_and(|standing| standing.reset) {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        match line.ended {
            Some(Ended::Failed(kind)) => Err(kind.into()),
            Some(Ended::Eof) => Err(io::ErrorKind::BrokenPipe.into()),
            None => Ok(line),
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for FramedStream<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut line = self.line(Waiter::Reader, cx.waker())?;
        let mut context = self.shared.context();
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if line
            .standing
            .as_mut()
            .is_some_and(|standing| standing.read(buffer))
        {
            return Poll::Ready(Ok(()));
        }
        line.pull(&mut context);
        // Acknowledgements must not wait for somebody to write; a failure of this is in `ended`.
        let _ = line.poll_drain(&mut context);
        let ended = line.ended;
        let Some(standing) = line.standing.as_mut().filter(|standing| standing.id == self.id) else {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        };
        if standing.read(buffer) || standing.fin_received {
            return Poll::Ready(Ok(()));
        }
        match ended {
            _ if standing.reset => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            Some(Ended::Eof) => Poll::Ready(Ok(())),
            Some(Ended::Failed(kind)) => Poll::Ready(Err(kind.into())),
            None => Poll::Pending,
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for FramedStream<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut line = self.writable(cx.waker())?;
        if line.standing.as_ref().is_some_and(|standing| standing.fin_sent) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let mut context = self.shared.context();
        // One frame at a time: what the line does not take is not accepted either.
        ready!(line.poll_drain(&mut context))?;
        let taken = line.queue(FrameKind::Data, self.id, bytes);
        match line.poll_drain(&mut context) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(taken)),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut line = self.writable(cx.waker())?;
        line.poll_flush(&mut self.shared.context())
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut line = self.writable(cx.waker())?;
        let mut context = self.shared.context();
        ready!(line.poll_drain(&mut context))?;
        if let Some(standing) = line.standing.as_mut().filter(|standing| !standing.fin_sent) {
            standing.fin_sent = true;
            line.queue(FrameKind::Fin, self.id, b"");
        }
        line.poll_flush(&mut context)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Drop for FramedStream<T> {
    fn drop(&mut self) {
        let mut line = self.shared.lock();
        if let Some(standing) = line.standing.take_if(|standing| standing.id == self.id) {
            if !(standing.reset || standing.fin_sent && standing.fin_received) {
                line.disown(self.id);
            }
            // A guest has nobody else to write it; an acceptor continues where this stops.
            let _ = line.poll_drain(&mut self.shared.context());
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> fmt::Debug for FramedStream<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FramedStream")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}
