//! Hears from the kernel that links come, change and go.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use netlink_sys::{Socket, SocketAddr};
use rustix::net::sockopt;

use super::attributes::{Attributes, Messages};
use super::error::EnforceError;

const NETLINK_ROUTE: isize = 0;
/// `RTNLGRP_LINK`, as a bit.
const LINKS: u32 = 1;
const NEW_LINK: u16 = 16;
const DEL_LINK: u16 = 17;
/// Size of `ifinfomsg`.
const LINK_HEADER: usize = 16;
const NAME: u16 = 3;
const CONTROLLER: u16 = 10;
/// Enough for the events of a thousand links.
const BUFFER: usize = 4 << 20;

/// A link that something happened to. What is said of it may be over already: it tells where to look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkHint {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Index of the bridge it hangs on, or whatever else controls it.
    pub controller: Option<u32>,
}

/// What the kernel told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkNews {
    /// In this order.
    Hints(Vec<LinkHint>),
    /// More than could be kept: everything must be looked at.
    Lost,
}

/// A socket that hears about all links of the network namespace it was opened in. Its descriptor is readable when there
/// is news.
#[derive(Debug)]
pub struct LinkWatch {
    socket: Socket,
}

impl LinkWatch {
    /// Needs no privilege.
    pub fn open() -> Result<Self, EnforceError> {
        let failed = |source| EnforceError::Netfilter {
            action: "listening for links",
            source,
        };
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(failed)?;
        socket.bind(&SocketAddr::new(0, LINKS)).map_err(failed)?;
        socket.set_non_blocking(true).map_err(failed)?;
        if let Err(error) = sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER) {
            tracing::debug!(%error, "the link watch keeps its default buffer");
        }
        Ok(Self { socket })
    }

    /// Everything that was told since the last call; does not wait.
    ///
    /// # Errors
    /// The socket is broken.
    pub fn news(&mut self) -> io::Result<LinkNews> {
        let mut hints = Vec::new();
        loop {
            let mut buffer = Vec::with_capacity(1 << 16);
            match self.socket.recv(&mut buffer, 0) {
                Ok(_) => hints.extend(Messages(&buffer).filter_map(|message| {
                    matches!(message.kind, NEW_LINK | DEL_LINK)
                        .then(|| hint(message.payload))
                        .flatten()
                })),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(LinkNews::Hints(hints)),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(LinkNews::Lost),
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsFd for LinkWatch {
    #[expect(unsafe_code, reason = "netlink-sys lends its descriptor as a number only")]
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the socket keeps its descriptor open as long as it lives, and the borrow does not outlive it.
        unsafe { BorrowedFd::borrow_raw(self.socket.as_raw_fd()) }
    }
}

fn hint(payload: &[u8]) -> Option<LinkHint> {
    let number = |bytes: Option<&[u8]>| Some(u32::from_ne_bytes(*bytes?.first_chunk()?));
    let attributes = Attributes(payload.get(LINK_HEADER..)?);
    Some(LinkHint {
        index: number(payload.get(4..8))?,
        name: attributes.find(NAME)?.text(),
        controller: attributes
            .find(CONTROLLER)
            .and_then(|attribute| number(Some(attribute.value))),
    })
}
