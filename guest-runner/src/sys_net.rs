//! Three rtnetlink requests, written by hand: a runner that sets one address needs no netlink library.
//!
//! Each request replaces what is there, so repeating it changes nothing.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const NLMSG_ERROR: u16 = 2;
/// REQUEST, ACK.
const REQUEST: u16 = 0x1 | 0x4;
/// REQUEST, ACK, REPLACE, CREATE.
const REPLACE: u16 = REQUEST | 0x100 | 0x400;
const AF_INET: u8 = 2;
const IFF_UP: u32 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RTN_UNICAST: u8 = 1;

/// A route netlink socket.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    pub(crate) fn open() -> io::Result<Self> {
        // Protocol 0 of the family is NETLINK_ROUTE.
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Brings an interface up.
    pub(crate) fn set_up(&mut self, index: u32) -> io::Result<()> {
        // struct ifinfomsg: family, padding, type, index, flags, mask of flags to change.
        let mut body = vec![0u8; 4];
        for field in [index, IFF_UP, IFF_UP] {
            body.extend_from_slice(&field.to_ne_bytes());
        }
        self.ask(RTM_NEWLINK, REQUEST, &body)
    }

    /// Gives an interface an address.
    pub(crate) fn set_address(&mut self, index: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        // struct ifaddrmsg: family, prefix length, flags, scope (universe), index.
        let mut body = vec![AF_INET, prefix, 0, 0];
        body.extend_from_slice(&index.to_ne_bytes());
        attribute(&mut body, IFA_LOCAL, address.octets());
        attribute(&mut body, IFA_ADDRESS, address.octets());
        self.ask(RTM_NEWADDR, REPLACE, &body)
    }

    /// Makes `gateway` the default route.
    pub(crate) fn set_default_route(&mut self, index: u32, gateway: Ipv4Addr) -> io::Result<()> {
        // struct rtmsg: family, destination and source length, tos, table, protocol, scope (universe), type, flags.
        let mut body = vec![
            AF_INET,
            0,
            0,
            0,
            RT_TABLE_MAIN,
            RTPROT_BOOT,
            0,
            RTN_UNICAST,
            0,
            0,
            0,
            0,
        ];
        attribute(&mut body, RTA_GATEWAY, gateway.octets());
        attribute(&mut body, RTA_OIF, index.to_ne_bytes());
        self.ask(RTM_NEWROUTE, REPLACE, &body)
    }

    fn ask(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        self.sequence += 1;
        send(
            &self.socket,
            &message(kind, flags, self.sequence, body),
            SendFlags::empty(),
        )?;
        let mut answer = [0u8; 512];
        loop {
            let (_, length) = recv(&self.socket, &mut answer, RecvFlags::empty())?;
            if let Some(result) = outcome(answer.get(..length).unwrap_or(&answer), self.sequence) {
                return result;
            }
        }
    }
}

/// struct nlmsghdr: length, type, flags, sequence, port id; then the body. All in the machine's own byte order.
fn message(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
    // Bodies here are some tens of bytes.
    let length = u32::try_from(16 + body.len()).unwrap_or(u32::MAX);
    let mut out = length.to_ne_bytes().to_vec();
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&flags.to_ne_bytes());
    out.extend_from_slice(&sequence.to_ne_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(body);
    out
}

/// struct rtattr with a value of four bytes, which needs no padding.
fn attribute(body: &mut Vec<u8>, kind: u16, value: [u8; 4]) {
    body.extend_from_slice(&8u16.to_ne_bytes());
    body.extend_from_slice(&kind.to_ne_bytes());
    body.extend_from_slice(&value);
}

/// The acknowledgement of this request, if that is what came.
fn outcome(answer: &[u8], sequence: u32) -> Option<io::Result<()>> {
    let word = |at: usize| answer.get(at..).and_then(|rest| rest.first_chunk::<4>()).copied();
    let kind = answer
        .get(4..)
        .and_then(|rest| rest.first_chunk::<2>())
        .copied()
        .map(u16::from_ne_bytes);
    if kind != Some(NLMSG_ERROR) || word(8).map(u32::from_ne_bytes) != Some(sequence) {
        return None;
    }
    // The kernel's error number is negative; zero is an acknowledgement.
    match word(16).map(i32::from_ne_bytes)? {
        0 => Some(Ok(())),
        number => Some(Err(io::Error::from_raw_os_error(number.saturating_neg()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::requirement::skipped_without_root;

    /// In a network namespace of the calling thread's own, with a cable that leads nowhere.
    fn in_fresh_network<T: Send>(work: impl FnOnce(u32) -> T + Send) -> T {
        std::thread::scope(|scope| {
            let namespaced = scope.spawn(|| {
                #[expect(unsafe_code, reason = "leaving a network namespace affects this thread alone")]
                // SAFETY: NEWNET shares no memory or descriptor table; the thread ends with the test.
                unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
                    .expect("this test needs root");
                let arguments = ["link", "add", "guest0", "type", "veth", "peer", "name", "host0"];
                assert!(
                    std::process::Command::new("ip")
                        .args(arguments)
                        .status()
                        .unwrap()
                        .success()
                );
                let up = ["link", "set", "host0", "up"];
                assert!(
                    std::process::Command::new("ip")
                        .args(up)
                        .status()
                        .unwrap()
                        .success()
                );
                let socket = Netlink::open().unwrap().socket;
                work(rustix::net::netdevice::name_to_index(&socket, "guest0").unwrap())
            });
            namespaced.join().unwrap()
        })
    }

    #[test]
    fn an_interface_gets_its_address_and_the_default_route_and_may_get_them_again() {
        if skipped_without_root() {
            return;
        }
        let (routes, addresses) = in_fresh_network(|index| {
            let mut netlink = Netlink::open().unwrap();
            for _ in 0..2 {
                netlink.set_up(index).unwrap();
                netlink
                    .set_address(index, Ipv4Addr::new(10, 77, 3, 232), 16)
                    .unwrap();
                netlink
                    .set_default_route(index, Ipv4Addr::new(10, 77, 0, 1))
                    .unwrap();
            }
            let read = |name: &str| std::fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap();
            (read("route"), read("fib_trie"))
        });
        // Interface, destination, gateway: addresses in hexadecimal of the wire's byte order, read backwards.
        let rows: Vec<Vec<&str>> = routes
            .lines()
            .skip(1)
            .map(|line| line.split_whitespace().take(3).collect())
            .collect();
        assert_eq!(
            rows,
            [
                ["guest0", "00000000", "01004D0A"],
                ["guest0", "00004D0A", "00000000"]
            ]
        );
        assert!(addresses.contains("10.77.3.232"), "{addresses}");
    }

    #[test]
    fn what_the_kernel_refuses_is_an_error_with_its_number() {
        if skipped_without_root() {
            return;
        }
        in_fresh_network(|index| {
            let mut netlink = Netlink::open().unwrap();
            let nowhere = index + 1000;
            assert_eq!(netlink.set_up(nowhere).unwrap_err().raw_os_error(), Some(19));
            let address = Ipv4Addr::new(10, 77, 3, 232);
            assert_eq!(
                netlink
                    .set_address(nowhere, address, 16)
                    .unwrap_err()
                    .raw_os_error(),
                Some(19)
            );
            // Up, but the gateway is in no subnet of ours: ENETUNREACH.
            netlink.set_up(index).unwrap();
            let refused = netlink
                .set_default_route(index, Ipv4Addr::new(192, 0, 2, 1))
                .unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(101));
        });
    }

    #[test]
    fn an_answer_to_another_request_is_not_taken() {
        let mut answer = message(NLMSG_ERROR, 0, 7, &(-17i32).to_ne_bytes());
        assert!(outcome(&answer, 8).is_none());
        assert_eq!(outcome(&answer, 7).unwrap().unwrap_err().raw_os_error(), Some(17));
        answer.truncate(17);
        assert!(outcome(&answer, 7).is_none());
    }
}
