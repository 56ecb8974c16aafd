//! What stands on one line: at most one connection, frames on their way out, and for a host the SYN nobody has
//! accepted yet. Whoever polls does the work for all: reads frames, hands them out, writes what is queued.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use agentlab_protocol::frame::{Decoder, FLUSH_BYTES, FrameKind, MAX_PAYLOAD, encode};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::wakers::Wakers;

/// Reads of the line within one poll, so that a flood of garbage cannot hold an executor thread.
const READS_PER_POLL: usize = 64;
const READ_BYTES: usize = 8 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Guest,
    Host,
}

/// Why nothing more can happen on this line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    Eof,
    Failed(io::ErrorKind),
}

/// The connection that stands.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) id: u32,
    /// Guest: the host has acknowledged it.
    pub(crate) established: bool,
    /// Received and not yet read; the first `consumed` bytes are read.
    received: Vec<u8>,
    consumed: usize,
    pub(crate) fin_received: bool,
    pub(crate) fin_sent: bool,
    /// The other side does not have it any more.
    pub(crate) reset: bool,
}

impl Connection {
    pub(crate) fn new(id: u32, established: bool) -> Self {
        Self {
            id,
            established,
            received: Vec::new(),
            consumed: 0,
            fin_received: false,
            fin_sent: false,
            reset: false,
        }
    }

    fn unread(&self) -> &[u8] {
        self.received.get(self.consumed..).unwrap_or_default()
    }

    fn store(&mut self, payload: &[u8]) {
        self.received.drain(..self.consumed);
        self.consumed = 0;
        self.received.extend_from_slice(payload);
    }

    /// Moves received bytes into `buffer`; returns whether there were any.
    pub(crate) fn read(&mut self, buffer: &mut ReadBuf<'_>) -> bool {
        let count = self.unread().len().min(buffer.remaining());
        buffer.put_slice(self.unread().get(..count).unwrap_or_default());
        self.consumed += count;
        if self.unread().is_empty() {
            self.received.clear();
            self.consumed = 0;
        }
        count > 0
    }
}

pub(crate) struct Line<T> {
    pub(crate) inner: T,
    role: Role,
    decoder: Decoder,
    /// Bytes on their way out; the first `written` of them are out.
    out: Vec<u8>,
    written: usize,
    pub(crate) standing: Option<Connection>,
    /// Host: a SYN to be accepted.
    pub(crate) pending: Option<u32>,
    /// Connections to acknowledge and to reset, before any more data goes out.
    pub(crate) acknowledge: Option<u32>,
    pub(crate) reset: Option<u32>,
    /// Told to go away already: once for each number is enough.
    last_reset: Option<u32>,
    pub(crate) ended: Option<Ended>,
    wakers: Arc<Wakers>,
}

/// One line and those who wait for it.
pub(crate) struct Shared<T> {
    line: Mutex<Line<T>>,
    pub(crate) wakers: Arc<Wakers>,
    /// Wakes all of `wakers`.
    waker: Waker,
}

impl<T> Shared<T> {
    pub(crate) fn new(inner: T, role: Role) -> Self {
        let wakers = Arc::new(Wakers::default());
        let line = Line {
            inner,
            role,
            decoder: Decoder::new(),
            out: Vec::new(),
            written: 0,
            standing: None,
            pending: None,
            acknowledge: None,
            reset: None,
            last_reset: None,
            ended: None,
            wakers: Arc::clone(&wakers),
        };
        Self {
            line: Mutex::new(line),
            waker: Waker::from(Arc::clone(&wakers)),
            wakers,
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Line<T>> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The context to poll the line with.
    pub(crate) fn context(&self) -> Context<'_> {
        Context::from_waker(&self.waker)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Line<T> {
    /// Reads and hands out frames until the line has no more, or a reader must first make room. Failures of the line
    /// are in `ended` afterwards.
    pub(crate) fn pull(&mut self, context: &mut Context<'_>) {
        for _ in 0..READS_PER_POLL {
            loop {
                if self
                    .standing
                    .as_ref()
                    .is_some_and(|standing| standing.unread().len() >= MAX_PAYLOAD)
                {
                    return;
                }
                if !self.dispatch_one() {
                    break;
                }
            }
            if self.ended.is_some() {
                return;
            }
            let mut scratch = [std::mem::MaybeUninit::<u8>::uninit(); READ_BYTES];
            let room = self.decoder.room().min(READ_BYTES);
            let mut buffer = ReadBuf::uninit(scratch.get_mut(..room).unwrap_or_default());
            match Pin::new(&mut self.inner).poll_read(context, &mut buffer) {
                Poll::Pending => return,
                Poll::Ready(Ok(())) if buffer.filled().is_empty() => self.end(Ended::Eof),
                Poll::Ready(Ok(())) => {
                    self.decoder.push(buffer.filled());
                }
                Poll::Ready(Err(error)) => self.end(Ended::Failed(error.kind())),
            }
        }
        // More may be there: come back, but let others run first.
        context.waker().wake_by_ref();
    }

    /// Writes what is queued; `Ready` once nothing is.
    pub(crate) fn poll_drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            while let Some(rest) = self.out.get(self.written..).filter(|rest| !rest.is_empty()) {
                match ready!(Pin::new(&mut self.inner).poll_write(context, rest)) {
                    Ok(0) => return Poll::Ready(Err(self.failed(io::ErrorKind::WriteZero))),
                    Ok(count) => self.written += count,
                    Err(error) => return Poll::Ready(Err(self.failed(error.kind()))),
                }
            }
            self.out.clear();
            self.written = 0;
            if !self.queue_control() {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// As [`Line::poll_drain`], then the line's own flush.
    pub(crate) fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(context))?;
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn failed(&mut self, kind: io::ErrorKind) -> io::Error {
        self.end(Ended::Failed(kind));
        kind.into()
    }
}

impl<T> Line<T> {
    /// Appends a frame; only to be called when [`Line::poll_drain`] was `Ready`, which bounds what is queued.
    pub(crate) fn queue(&mut self, kind: FrameKind, id: u32, payload: &[u8]) -> usize {
        if matches!(kind, FrameKind::Syn | FrameKind::Ack) {
            self.out.resize(self.out.len() + FLUSH_BYTES, 0);
        }
        encode(kind, id, payload, &mut self.out)
    }

    pub(crate) fn is_drained(&self) -> bool {
        self.written == self.out.len()
    }

    fn queue_control(&mut self) -> bool {
        let (acknowledge, reset) = (self.acknowledge.take(), self.reset.take());
        if let Some(id) = acknowledge {
            self.queue(FrameKind::Ack, id, b"");
        }
        if let Some(id) = reset {
            self.queue(FrameKind::Reset, id, b"");
        }
        acknowledge.is_some() || reset.is_some()
    }

    /// Tells the other side, once, that a connection is not known here.
    pub(crate) fn disown(&mut self, id: u32) {
        if self.last_reset != Some(id) {
            self.last_reset = Some(id);
            self.reset = Some(id);
            self.wakers.wake_all();
        }
    }

    fn end(&mut self, ended: Ended) {
        self.ended.get_or_insert(ended);
        self.wakers.wake_all();
    }

    /// Takes one frame out of the decoder and does what it says; `false` when there is none.
    fn dispatch_one(&mut self) -> bool {
        let Some(frame) = self.decoder.take_frame() else {
            return false;
        };
        let (kind, id) = (frame.kind, frame.connection);
        let standing = self.standing.as_mut().filter(|standing| standing.id == id);
        match (kind, standing) {
            (FrameKind::Syn, standing) => match (self.role, standing) {
                (Role::Guest, _) => {}
                (Role::Host, Some(_)) => self.acknowledge = Some(id),
                (Role::Host, None) => {
                    // Whatever stood is gone: its guest has begun anew.
                    self.standing = None;
                    self.pending = Some(id);
                }
            },
            (FrameKind::Ack, Some(standing)) if self.role == Role::Guest => standing.established = true,
            (FrameKind::Data, Some(standing)) if standing.established && !standing.fin_received => {
                standing.store(frame.payload);
            }
            (FrameKind::Fin, Some(standing)) if standing.established => standing.fin_received = true,
            (FrameKind::Reset, Some(standing)) if standing.established => standing.reset = true,
            (FrameKind::Data | FrameKind::Fin, None)
                if self.role == Role::Host && self.pending != Some(id) =>
            {
                self.disown(id);
            }
            // Stale, or nonsense from a hostile peer: as if it had not been sent.
            (FrameKind::Ack | FrameKind::Data | FrameKind::Fin | FrameKind::Reset, _) => return true,
        }
        self.wakers.wake_all();
        true
    }
}
