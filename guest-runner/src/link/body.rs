//! What a request carries: nothing, some bytes, or a file that is never in memory as a whole.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use hyper::body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncSeekExt as _, ReadBuf};

const CHUNK_BYTES: u64 = 64 * 1024;

/// Where a body that failed by itself leaves its reason: HTTP/2 has none.
pub(crate) type Failure = Arc<Mutex<Option<io::Error>>>;

#[derive(Debug)]
pub(crate) enum RequestBody {
    Bytes(Option<Bytes>),
    File(FileBody),
    /// As it is made; ends with its senders.
    Stream(tokio::sync::mpsc::Receiver<Bytes>),
}

#[derive(Debug)]
pub(crate) struct FileBody {
    file: tokio::fs::File,
    left: u64,
    chunk: BytesMut,
    failure: Failure,
}

impl FileBody {
    /// The bytes of a file from `offset` to `size`, exactly; fewer are a failure, more are left alone.
    pub(crate) async fn open(path: &Path, (offset, size): (u64, u64), failure: Failure) -> io::Result<Self> {
        let mut file = tokio::fs::File::open(path).await?;
        if offset > 0 {
            file.seek(io::SeekFrom::Start(offset)).await?;
        }
        Ok(Self {
            file,
            left: size.saturating_sub(offset),
            chunk: BytesMut::new(),
            failure,
        })
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        // A chunk of at most 64 KiB fits every usize.
        let wanted = usize::try_from(self.left.min(CHUNK_BYTES)).unwrap_or(1);
        self.chunk.resize(wanted, 0);
        let mut buffer = ReadBuf::new(&mut self.chunk);
        let read = ready!(Pin::new(&mut self.file).poll_read(cx, &mut buffer));
        let count = buffer.filled().len();
        let result = read.and_then(|()| {
            if count == 0 {
                Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "file became shorter",
                ))
            } else {
                Ok(())
            }
        });
        Poll::Ready(Some(result.map(|()| {
            self.left = self.left.saturating_sub(u64::try_from(count).unwrap_or(u64::MAX));
            self.chunk.split_to(count).freeze()
        })))
    }
}

impl hyper::body::Body for RequestBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match self.get_mut() {
            Self::Bytes(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(pieces) => pieces
                .poll_recv(cx)
                .map(|piece| piece.map(|bytes| Ok(Frame::data(bytes)))),
            Self::File(file) => match ready!(file.poll_chunk(cx)) {
                None => Poll::Ready(None),
                Some(Ok(chunk)) => Poll::Ready(Some(Ok(Frame::data(chunk)))),
                Some(Err(error)) => {
                    let kind = error.kind();
                    *file.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    Poll::Ready(Some(Err(kind.into())))
                }
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Bytes(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Self::File(file) => file.left == 0,
            Self::Stream(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(match self {
            Self::Bytes(bytes) => bytes
                .as_ref()
                .map_or(0, |bytes| u64::try_from(bytes.len()).unwrap_or(u64::MAX)),
            Self::File(file) => file.left,
            Self::Stream(_) => return SizeHint::default(),
        })
    }
}
