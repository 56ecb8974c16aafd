//! Hears from the kernel that somebody was at the packet policy or at the links: ours included, so what is heard says
//! only that it is time to look.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// `RTNLGRP_LINK`, as a bit.
const LINKS: u32 = 1;
/// `NFNLGRP_NFTABLES`, the seventh group, as a bit.
const TABLES: u32 = 1 << 6;
const PIECE: usize = 8192;
const PIECES: usize = 1000;

/// Notifications of the network namespace that this was opened in.
#[derive(Debug)]
pub(crate) struct Ears {
    tables: AsyncFd<OwnedFd>,
    links: AsyncFd<OwnedFd>,
}

/// Without a protocol: routes and links.
#[expect(
    deprecated,
    reason = "unsound only for types that give away or replace their descriptor; OwnedFd keeps it"
)]
fn listen(protocol: Option<Protocol>, groups: u32) -> io::Result<AsyncFd<OwnedFd>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
    bind(&socket, &SocketAddrNetlink::new(0, groups))?;
    AsyncFd::new(socket)
}

impl Ears {
    /// Needs CAP_NET_ADMIN.
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self {
            tables: listen(Some(NETFILTER), TABLES)?,
            links: listen(None, LINKS)?,
        })
    }

    /// Waits until there is something to look at.
    pub(crate) async fn heard(&self) -> io::Result<()> {
        tokio::select! {
            heard = self.tables.readable() => heard.map(drop),
            heard = self.links.readable() => heard.map(drop),
        }
    }

    /// Forgets what was heard so far: a look that begins now sees its result.
    pub(crate) fn forget(&self) {
        for socket in [&self.tables, &self.links] {
            let mut piece = [0u8; PIECE];
            // Bounded, for a host whose rules never rest: what is left is heard again.
            for _ in 0..PIECES {
                let read = socket.try_io(Interest::READABLE, |socket| {
                    match recv(socket, &mut piece[..], RecvFlags::empty()) {
                        // Overrun: there is the more to look at, and nothing else is wrong.
                        Ok(_) | Err(Errno::INTR | Errno::NOBUFS) => Ok(()),
                        Err(error) => Err(error.into()),
                    }
                });
                if read.is_err() {
                    break;
                }
            }
        }
    }
}
