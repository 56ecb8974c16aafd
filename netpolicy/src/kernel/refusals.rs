//! Hears from the kernel which packets were refused, over a group of our own.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use netlink_sys::{Socket, SocketAddr};

use super::attributes::{Attributes, ERROR, Messages, put};
use super::error::EnforceError;
use super::socket::{NETLINK_NETFILTER, refusal, request};
use crate::denial::RefusedPacket;
use crate::ruleset::LOGGED_BYTES;

const LOG: u8 = 4;
const PACKET: u8 = 0;
const CONFIGURE: u8 = 1;
const COMMAND: u16 = 1;
const MODE: u16 = 2;
const THRESHOLD: u16 = 5;
const BIND: u8 = 1;
/// Lets go of a family that nobody has.
const NOTHING: u8 = 4;
const COPY_PACKET: u8 = 2;
const PAYLOAD: u16 = 9;

/// A socket that is told of refused packets in the network namespace it was opened in. Its descriptor is readable when
/// there are some. The kernel limits their rate, guest by guest.
#[derive(Debug)]
pub struct RefusalWatch {
    socket: Socket,
}

impl RefusalWatch {
    /// Becomes the one listener of a group.
    ///
    /// # Errors
    /// Somebody else listens there ([`EnforceError::GroupBusy`]), CAP_NET_ADMIN is missing, or the kernel has no NFLOG.
    pub fn open(group: u16) -> Result<Self, EnforceError> {
        let failed = |source| EnforceError::Netfilter {
            action: "listening for refusals",
            source,
        };
        let mut socket = Socket::new(NETLINK_NETFILTER).map_err(failed)?;
        socket.bind_auto().map_err(failed)?;
        socket.set_non_blocking(true).map_err(failed)?;
        let mut watch = Self { socket };
        // Does nothing, and fails where everything would.
        watch.configure(0, COMMAND, &[NOTHING]).map_err(failed)?;
        watch
            .configure(group, COMMAND, &[BIND])
            .map_err(|error| match error.raw_os_error() {
                // A group of somebody else's is `EPERM` to everybody but him.
                Some(libc::EPERM | libc::EBUSY) => EnforceError::GroupBusy { group },
                _ => failed(error),
            })?;
        let mut mode = LOGGED_BYTES.to_be_bytes().to_vec();
        mode.extend([COPY_PACKET, 0]);
        watch.configure(group, MODE, &mode).map_err(failed)?;
        watch
            .configure(group, THRESHOLD, &1_u32.to_be_bytes())
            .map_err(failed)?;
        Ok(watch)
    }

    fn configure(&mut self, group: u16, attribute: u16, value: &[u8]) -> io::Result<()> {
        const REQUEST_WITH_ANSWER: u16 = 0x05;
        let mut attributes = Vec::new();
        put(&mut attributes, attribute, value);
        let mut bytes = request(LOG, CONFIGURE, 0, &attributes);
        let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        for (place, byte) in [
            (0, length.to_ne_bytes().as_slice()),
            (6, REQUEST_WITH_ANSWER.to_ne_bytes().as_slice()),
            // The group stands where other requests have nothing.
            (18, group.to_be_bytes().as_slice()),
        ]
        .into_iter()
        .flat_map(|(start, bytes)| (start..).zip(bytes.to_vec()))
        {
            if let Some(there) = bytes.get_mut(place) {
                *there = byte;
            }
        }
        self.socket.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
        // The kernel has answered before sending returned; what else is there is a refusal that came meanwhile.
        loop {
            let mut buffer = Vec::with_capacity(1 << 16);
            self.socket.recv(&mut buffer, 0)?;
            if let Some(answer) = Messages(&buffer).find(|message| message.kind == ERROR) {
                return refusal(&answer)
                    .map_or(Ok(()), |refused| Err(io::Error::from_raw_os_error(refused.code)));
            }
        }
    }

    /// Everything that was told since the last call; does not wait.
    ///
    /// # Errors
    /// The socket is broken. That some were lost is no error: they are counted in the kernel all the same.
    pub fn refused(&mut self) -> io::Result<Vec<RefusedPacket>> {
        let mut packets = Vec::new();
        loop {
            let mut buffer = Vec::with_capacity(1 << 16);
            match self.socket.recv(&mut buffer, 0) {
                Ok(_) => packets.extend(Messages(&buffer).filter_map(|message| {
                    let is_packet = message.kind == u16::from_be_bytes([LOG, PACKET]);
                    let (_, attributes) = message.netfilter().filter(|_| is_packet)?;
                    payload(attributes)
                })),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(packets),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn payload(attributes: Attributes<'_>) -> Option<RefusedPacket> {
    RefusedPacket::read(attributes.find(PAYLOAD)?.value)
}

impl AsFd for RefusalWatch {
    #[expect(unsafe_code, reason = "netlink-sys lends its descriptor as a number only")]
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the socket keeps its descriptor open as long as it lives, and the borrow does not outlive it.
        unsafe { BorrowedFd::borrow_raw(self.socket.as_raw_fd()) }
    }
}
