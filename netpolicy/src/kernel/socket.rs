//! The socket to netfilter: one transaction per datagram, answers matched to what they are about.

use std::io;

use netlink_sys::{Socket, SocketAddr};
use rustix::net::sockopt;

use super::attributes::{Attributes, ERROR, FAMILY_HEADER, HEADER, Message, Messages};
use super::encode::Transaction;
use super::error::{EnforceError, hint};

pub(crate) const NETLINK_NETFILTER: isize = 12;
/// A thousand sandboxes take less than half a megabyte.
const BUFFER: usize = 16 << 20;
const REQUEST: u16 = 0x01;
const ACK: u16 = 0x04;
const DUMP: u16 = 0x300;
const DUMP_INTERRUPTED: u16 = 0x10;
/// In an error: attributes with the kernel's own words follow.
const WITH_TEXT: u16 = 0x200;
/// In an error: the offending message's payload was left out.
const CAPPED: u16 = 0x100;
const DONE: u16 = 3;
/// How often a dump that others disturbed is begun again.
const DUMP_ATTEMPTS: usize = 8;

/// A socket bound to the network namespace it was opened in.
#[derive(Debug)]
pub(crate) struct NetfilterSocket {
    socket: Socket,
    sequence: u32,
}

/// An error message of the kernel.
pub(crate) struct Refusal {
    pub(crate) sequence: u32,
    pub(crate) code: i32,
    pub(crate) text: Option<String>,
}

impl NetfilterSocket {
    pub(crate) fn open() -> Result<Self, EnforceError> {
        let failed = |action| move |source| EnforceError::Netfilter { action, source };
        let mut socket = Socket::new(NETLINK_NETFILTER).map_err(failed("opening"))?;
        socket.bind_auto().map_err(failed("binding"))?;
        socket
            .set_ext_ack(true)
            .map_err(failed("asking for error texts"))?;
        socket
            .set_cap_ack(true)
            .map_err(failed("asking for short errors"))?;
        socket.set_non_blocking(true).map_err(failed("setting it up"))?;
        // Without CAP_NET_ADMIN both fail, and so will the first transaction, with a better message.
        for forced in [
            sockopt::set_socket_send_buffer_size_force(&socket, BUFFER),
            sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER),
        ] {
            if let Err(error) = forced {
                tracing::debug!(%error, "netlink buffers keep their default size");
            }
        }
        Ok(Self { socket, sequence: 0 })
    }

    /// Performs a transaction: all of it or, with an error that names the object at fault, nothing.
    ///
    /// The kernel commits inside `sendmsg`, so once that returns every answer is there to be read. A lost answer
    /// (`ENOBUFS`) is not a lost transaction; the caller reads back what stands.
    pub(crate) fn commit(&mut self, transaction: &Transaction) -> Result<(), EnforceError> {
        let bytes = transaction.bytes()?;
        match self.send_whole(&bytes)?.into_iter().next() {
            None => Ok(()),
            Some(refusal) => Err(transaction.refused(&bytes, refusal)),
        }
    }

    /// Whether the kernel takes a transaction up to its last message, which it never takes.
    pub(crate) fn accepts(&mut self, transaction: &Transaction) -> Result<bool, EnforceError> {
        let bytes = transaction.bytes()?;
        let refusals = self.send_whole(&bytes)?;
        if let Some(refusal) = refusals.iter().find(|refusal| refusal.code == libc::EPERM) {
            let code = io::Error::from_raw_os_error(refusal.code);
            return Err(EnforceError::Refused {
                object: "a question about what it can do".to_owned(),
                text: None,
                hint: hint(&code).to_owned(),
                code,
            });
        }
        Ok(refusals.len() == 1)
    }

    /// Sends a transaction and returns everything the kernel has against it.
    fn send_whole(&mut self, bytes: &[u8]) -> Result<Vec<Refusal>, EnforceError> {
        let failed = |action| move |source| EnforceError::Netfilter { action, source };
        self.drain()?;
        self.socket
            .send_to(bytes, &SocketAddr::new(0, 0), 0)
            .map_err(failed("sending a transaction"))?;
        let mut refusals = Vec::new();
        while let Some(datagram) = self.receive().map_err(failed("reading the answers"))? {
            refusals.extend(Messages(&datagram).filter_map(|message| refusal(&message)));
        }
        Ok(refusals)
    }

    /// Sends one request and gives every answer to `each`. Begins again when the dump was disturbed.
    pub(crate) fn dump<T>(
        &mut self,
        action: &'static str,
        request: &[u8],
        mut each: impl FnMut(u16, u8, Attributes<'_>) -> Option<T>,
    ) -> Result<Vec<T>, EnforceError> {
        let failed = |source| EnforceError::Netfilter { action, source };
        for _ in 0..DUMP_ATTEMPTS {
            self.drain()?;
            self.send(request, DUMP).map_err(failed)?;
            let mut found = Vec::new();
            let mut disturbed = false;
            'dump: loop {
                let datagram = self
                    .receive()
                    .map_err(failed)?
                    .ok_or_else(|| failed(io::ErrorKind::WouldBlock.into()))?;
                for message in Messages(&datagram) {
                    disturbed |= message.flags & DUMP_INTERRUPTED != 0;
                    if message.kind == DONE {
                        break 'dump;
                    }
                    if let Some(refusal) = refusal(&message) {
                        return Err(failed(io::Error::from_raw_os_error(refusal.code)));
                    }
                    if let Some((family, attributes)) = message.netfilter()
                        && message.kind != ERROR
                    {
                        found.extend(each(message.kind, family, attributes));
                    }
                }
            }
            if !disturbed {
                return Ok(found);
            }
        }
        Err(failed(io::Error::other(
            "the state changed faster than it could be read",
        )))
    }

    /// Sends one request and waits for its acknowledgement.
    pub(crate) fn request(&mut self, request: &[u8]) -> io::Result<()> {
        self.send(request, ACK)?;
        while let Some(datagram) = self.receive()? {
            if let Some(message) = Messages(&datagram).find(|message| message.kind == ERROR) {
                return refusal(&message)
                    .map_or(Ok(()), |refusal| Err(io::Error::from_raw_os_error(refusal.code)));
            }
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Sends `request`, made by [`request`], with flags and a sequence number.
    fn send(&mut self, request: &[u8], flags: u16) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut bytes = request.to_vec();
        let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        for (place, byte) in bytes.iter_mut().zip(length.to_ne_bytes()) {
            *place = byte;
        }
        let flags = (REQUEST | flags).to_ne_bytes();
        let rest = flags.into_iter().chain(self.sequence.to_ne_bytes());
        for (place, byte) in bytes.iter_mut().skip(6).zip(rest) {
            *place = byte;
        }
        self.socket.send_to(&bytes, &SocketAddr::new(0, 0), 0).map(drop)
    }

    /// The next datagram, or `None` when there is none.
    fn receive(&self) -> io::Result<Option<Vec<u8>>> {
        let mut buffer = Vec::with_capacity(1 << 16);
        match self.socket.recv(&mut buffer, 0) {
            Ok(_) => Ok(Some(buffer)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Throws away what an earlier, failed exchange may have left.
    fn drain(&self) -> Result<(), EnforceError> {
        loop {
            match self.receive() {
                Ok(None) => return Ok(()),
                Ok(Some(_)) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(source) => {
                    return Err(EnforceError::Netfilter {
                        action: "clearing old answers",
                        source,
                    });
                }
            }
        }
    }
}

/// A request of a netfilter subsystem, without length, flags and sequence number.
pub(crate) fn request(subsystem: u8, message: u8, family: u8, attributes: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    for (place, byte) in bytes
        .iter_mut()
        .skip(4)
        .zip(u16::from_be_bytes([subsystem, message]).to_ne_bytes())
    {
        *place = byte;
    }
    bytes.extend([family, 0, 0, 0]);
    debug_assert_eq!(bytes.len(), HEADER + FAMILY_HEADER);
    bytes.extend(attributes);
    bytes
}

/// The error in a message; an acknowledgement is none.
pub(crate) fn refusal(message: &Message<'_>) -> Option<Refusal> {
    const TEXT: u16 = 1;
    if message.kind != ERROR {
        return None;
    }
    let code = -i32::from_ne_bytes(*message.payload.first_chunk()?);
    if code == 0 {
        return None;
    }
    let mut text = None;
    if message.flags & WITH_TEXT != 0 {
        let offender: [u8; 4] = *message.payload.get(4..)?.first_chunk()?;
        let offender = if message.flags & CAPPED != 0 {
            HEADER
        } else {
            usize::try_from(u32::from_ne_bytes(offender))
                .ok()?
                .next_multiple_of(4)
        };
        text = Attributes(message.payload.get(4 + offender..).unwrap_or_default())
            .find(TEXT)
            .map(|text| text.text());
    }
    Some(Refusal {
        sequence: message.sequence,
        code,
        text,
    })
}
