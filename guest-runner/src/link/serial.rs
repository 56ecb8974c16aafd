//! The virtio-serial port as an asynchronous byte stream.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::fs::{Mode, OFlags};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Name of the channel's port on the QEMU command line.
pub(crate) const CHANNEL_PORT: &str = "agentlab.channel";
/// udev's links; they appear only once udev has settled.
const LINK_DIR: &str = "/dev/virtio-ports";
/// The kernel's own list; it is there as soon as the port is.
const CLASS_DIR: &str = "/sys/class/virtio-ports";

/// Finds the device of a port by its name.
///
/// # Errors
/// There is none of that name.
pub(crate) fn find_port(name: &str) -> io::Result<PathBuf> {
    find_in(Path::new(LINK_DIR), Path::new(CLASS_DIR), name)
}

fn find_in(link_dir: &Path, class_dir: &Path, wanted: &str) -> io::Result<PathBuf> {
    let link = link_dir.join(wanted);
    if link.exists() {
        return Ok(link);
    }
    for entry in std::fs::read_dir(class_dir).into_iter().flatten().flatten() {
        let name = std::fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if name.trim() == wanted {
            return Ok(Path::new("/dev").join(entry.file_name()));
        }
    }
    Err(io::Error::new(
        io::ErrorKind::NotFound,
        format!("this machine has no virtio port `{wanted}`"),
    ))
}

/// An open port. The kernel lets one opener in at a time.
#[derive(Debug)]
pub(crate) struct SerialPort {
    port: AsyncFd<OwnedFd>,
}

impl SerialPort {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        Self::of(rustix::fs::open(path, flags, Mode::empty())?)
    }

    /// Of a descriptor that does not block, such as a terminal's other end.
    pub(crate) fn of(port: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            port: crate::sys_port::register(port)?,
        })
    }

    /// The descriptor itself.
    pub(crate) fn descriptor(&self) -> &OwnedFd {
        self.port.get_ref()
    }
}

impl AsyncRead for SerialPort {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.port.poll_read_ready(cx))?;
            let closed = guard.ready().is_read_closed();
            match guard.try_io(|port| Ok(rustix::io::read(port.as_fd(), buffer.initialize_unfilled())?)) {
                // Zero bytes: no host has the other end open.
                Ok(Ok(count)) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                // A hang-up stays: waiting for readiness again would spin.
                Err(_) if closed => return Poll::Ready(Ok(())),
                Err(_) => {}
            }
        }
    }
}

impl AsyncWrite for SerialPort {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.port.poll_write_ready(cx))?;
            let closed = guard.ready().is_write_closed();
            match guard.try_io(|port| Ok(rustix::io::write(port.as_fd(), bytes)?)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return Poll::Ready(result),
                Err(_) if closed => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
                Err(_) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn a_port_is_found_by_name_before_udev_has_linked_it() {
        let dir = tempfile::tempdir().unwrap();
        let (links, class) = (dir.path().join("links"), dir.path().join("class"));
        for (port, name) in [
            ("vport0p1", "org.qemu.guest_agent.0\n"),
            ("vport0p2", "agentlab.channel\n"),
        ] {
            std::fs::create_dir_all(class.join(port)).unwrap();
            std::fs::write(class.join(port).join("name"), name).unwrap();
        }
        assert_eq!(
            find_in(&links, &class, CHANNEL_PORT).unwrap(),
            Path::new("/dev/vport0p2")
        );
        assert!(
            find_in(&links, &links, CHANNEL_PORT)
                .unwrap_err()
                .to_string()
                .contains("agentlab.channel")
        );
    }

    #[tokio::test]
    async fn a_terminal_carries_bytes_both_ways_and_its_hang_up_ends_the_stream() {
        use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
        let host = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&host).unwrap();
        unlockpt(&host).unwrap();
        let name = ptsname(&host, Vec::new()).unwrap();
        let mut port = SerialPort::open(Path::new(name.to_str().unwrap())).unwrap();
        let mut mode = rustix::termios::tcgetattr(&host).unwrap();
        mode.make_raw();
        rustix::termios::tcsetattr(&host, rustix::termios::OptionalActions::Now, &mode).unwrap();

        port.write_all(b"to the host").await.unwrap();
        let mut bytes = [0; 32];
        let count = rustix::io::read(&host, &mut bytes).unwrap();
        assert_eq!(&bytes[..count], b"to the host");
        rustix::io::write(&host, b"to the guest").unwrap();
        let count = port.read(&mut bytes).await.unwrap();
        assert_eq!(&bytes[..count], b"to the guest");
        drop(host);
        // A hung-up terminal reads as an end or as EIO; what matters is that nothing waits or spins.
        let ended = port.read(&mut bytes).await;
        assert!(ended.as_ref().map_or(true, |count| *count == 0), "{ended:?}");
    }
}
