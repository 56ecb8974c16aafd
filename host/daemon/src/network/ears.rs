//! Hears from the kernel that somebody was at the packet rules: we ourselves included, so what is heard says only that it
//! is time to look, and how soon.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

/// `NFNLGRP_NFTABLES`, the seventh group, as a bit.
const TABLES: u32 = 1 << 6;
/// `NFT_MSG_DELTABLE`, `NFT_MSG_DELCHAIN` and `NFT_MSG_DELRULE`, of `NFNL_SUBSYS_NFTABLES`.
const REMOVALS: [u16; 3] = [0x0a02, 0x0a05, 0x0a08];
/// Size of `nlmsghdr`.
const HEADER: usize = 16;
const PIECE: usize = 8192;
/// Read at once, for a host whose rules never rest: what is left is heard again.
const PIECES: usize = 1000;

/// What happened to the rules since it was asked last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    /// Something was added, or elements came and went.
    Change,
    /// Something was taken away: what it closed is open.
    Removal,
}

/// Notifications of the network namespace that this was opened in. Its descriptor is readable when there are some.
#[derive(Debug)]
pub(super) struct Ears(OwnedFd);

impl Ears {
    /// Needs CAP_NET_ADMIN.
    pub(super) fn open() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(NETFILTER))?;
        bind(&socket, &SocketAddrNetlink::new(0, TABLES))?;
        Ok(Self(socket))
    }

    /// Forgets what was heard so far and says what it was: a look that begins now sees its result. Does not wait.
    pub(super) fn heard(&self) -> io::Result<Heard> {
        let mut heard = Heard::Change;
        let mut piece = [0u8; PIECE];
        for _ in 0..PIECES {
            match recv(&self.0, &mut piece[..], RecvFlags::empty()) {
                Ok((length, _)) if takes_away(piece.get(..length).unwrap_or_default()) => {
                    heard = Heard::Removal
                }
                Ok(_) | Err(Errno::INTR) => {}
                // Overrun: it may have been anything.
                Err(Errno::NOBUFS) => heard = Heard::Removal,
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(heard)
    }
}

impl AsFd for Ears {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn takes_away(mut messages: &[u8]) -> bool {
    while let Some((length, kind)) = header(messages) {
        if REMOVALS.contains(&kind) {
            return true;
        }
        messages = messages.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    false
}

/// Length and kind of the first message.
fn header(messages: &[u8]) -> Option<(usize, u16)> {
    let length = u32::from_ne_bytes(*messages.first_chunk()?);
    let kind = u16::from_ne_bytes(*messages.get(4..)?.first_chunk()?);
    let length = usize::try_from(length).ok()?;
    (length >= HEADER).then_some((length, kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, payload: usize) -> Vec<u8> {
        let length = u32::try_from(HEADER + payload).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.resize((HEADER + payload).next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn what_takes_rules_away_is_told_from_what_only_adds_and_from_nonsense() {
        let (element, rule) = (message(0x0a0c, 21), message(0x0a08, 4));
        assert!(!takes_away(&element));
        assert!(takes_away(&[element.clone(), rule.clone()].concat()));
        assert!(takes_away(&rule));
        // Lengths that lie end the walk.
        for length in [0, 15, u32::MAX] {
            let mut lying = element.clone();
            lying[..4].copy_from_slice(&length.to_ne_bytes());
            assert!(!takes_away(&[lying, rule.clone()].concat()));
        }
        assert!(!takes_away(&rule[..5]));
    }
}
