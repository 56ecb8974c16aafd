//! Sockets in a machine's directory. QEMU gets them listening, as descriptors; we reach them by path, also after a
//! restart. The path goes through the directory's descriptor: a socket's path may have 107 bytes only, and
//! directories are as long as operators like.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::net::Shutdown;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

use super::process::Identity;

/// Between two tries at a socket whose line is full; nothing tells when it no longer is.
pub(super) const LINE_FULL: Duration = Duration::from_millis(50);

fn through(dir: &File, name: &str) -> String {
    format!("/proc/self/fd/{}/{name}", dir.as_raw_fd())
}

/// A listening socket in `dir`, in place of whatever an earlier QEMU left there.
pub(super) fn listen(dir: &Path, name: &str) -> io::Result<OwnedFd> {
    match std::fs::remove_file(dir.join(name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let dir = File::open(dir)?;
    UnixListener::bind(through(&dir, name)).map(OwnedFd::from)
}

/// Connects to a socket in `dir`. While QEMU accepts nobody, because it is frozen or still busy with the last one,
/// this waits: the caller sets the deadline.
pub(super) async fn connect(dir: &Path, name: &str) -> io::Result<UnixStream> {
    let dir = File::open(dir)?;
    loop {
        match UnixStream::connect(through(&dir, name)).await {
            // QEMU lets only one more wait in line.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => tokio::time::sleep(LINE_FULL).await,
            other => return other,
        }
    }
}

/// Connects to a socket in `dir`, or fails.
pub(super) fn connect_now(dir: &Path, name: &str) -> io::Result<std::os::unix::net::UnixStream> {
    let dir = File::open(dir)?;
    std::os::unix::net::UnixStream::connect(through(&dir, name))
}

/// The one open connection to a machine's channel. QEMU serves one at a time: a second opener would wait for ever
/// behind the first, so opening cuts whoever was there.
#[derive(Debug, Default)]
pub(super) struct Line(Mutex<Option<Held>>);

#[derive(Debug)]
struct Held {
    second: OwnedFd,
    /// The QEMU at the other end.
    of: Identity,
}

impl Drop for Held {
    fn drop(&mut self) {
        // Not connected any more: then there is nothing to cut.
        rustix::net::shutdown(&self.second, Shutdown::Both).ok();
    }
}

impl Line {
    fn held(&self) -> MutexGuard<'_, Option<Held>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the open connection; its opener reads end of file.
    pub(super) fn cut(&self) {
        *self.held() = None;
    }

    /// The same, unless it leads to another QEMU already.
    pub(super) fn cut_from(&self, ended: &Identity) {
        self.held().take_if(|held| held.of == *ended);
    }

    /// Takes the line over.
    pub(super) fn take(&self, stream: UnixStream, of: Identity) -> io::Result<ChannelStream> {
        let second = rustix::io::fcntl_dupfd_cloexec(&stream, 3)?;
        *self.held() = Some(Held { second, of });
        Ok(ChannelStream { stream })
    }
}

/// The opener's end. Dropping it hangs up, although the line keeps a descriptor of its own.
#[derive(Debug)]
pub(super) struct ChannelStream {
    stream: UnixStream,
}

impl Drop for ChannelStream {
    fn drop(&mut self) {
        rustix::net::shutdown(&self.stream, Shutdown::Both).ok();
    }
}

impl AsyncRead for ChannelStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for ChannelStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
