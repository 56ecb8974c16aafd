//! What is tried, and at which levels of trust it must get through.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use agentlab_tests_netns::frame::{
    ARP, BROADCAST, IPV4, IPV6, arp, ethernet, ipv4, ipv4_udp, ipv6, tagged, token, udp,
};
use agentlab_tests_netns::guest::Guest;
use agentlab_tests_netns::lab::{GATEWAY, GATEWAY_MAC, Lab};

use crate::{hostile, wide};

/// The levels of guest `a`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    Sealed,
    Bootstrap,
    Off,
    Nat,
    /// `ALLOWED`, and what `RESOLVED` stands for at the moment.
    Allowlist,
}

pub(crate) const ALL: [Level; 5] = [
    Level::Sealed,
    Level::Bootstrap,
    Level::Off,
    Level::Nat,
    Level::Allowlist,
];
pub(crate) const NEVER: &[Level] = &[];
pub(crate) const UNSEALED: &[Level] = &[Level::Bootstrap, Level::Off, Level::Nat, Level::Allowlist];
pub(crate) const RUNNING: &[Level] = &[Level::Off, Level::Nat, Level::Allowlist];
/// With a way out.
pub(crate) const OPEN: &[Level] = &[Level::Nat, Level::Allowlist];
pub(crate) const NAT: &[Level] = &[Level::Nat];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    A,
    Stranger,
    B,
    Host,
    Net,
    Other,
    /// The same place as `Other`, by its address of the tailnet.
    Tailnet,
}

/// What is tried.
pub(crate) enum How {
    /// Connect from `a`.
    Tcp(SocketAddr),
    /// Connect from elsewhere.
    TcpFrom(Who, SocketAddr),
    /// Send a datagram.
    Udp(Who, SocketAddr),
    /// Write frames into a guest's cable.
    Frames(Who, Vec<Vec<u8>>),
    /// The same, and look for an answer among the frames that come back.
    Ask(Who, Vec<u8>, fn(&[u8]) -> bool),
    /// Make the host do something, and look for signs of it among the frames that guests get.
    Overhear(&'static str, fn(&[u8]) -> bool),
    /// Write a frame into a guest's cable, and look at what `ip` says on the host.
    Poison(Who, Vec<u8>, &'static str, &'static str),
}

pub(crate) struct Probe {
    /// Row of docs/security.md.
    pub(crate) row: &'static str,
    pub(crate) what: String,
    /// Levels of `a` at which it must get through; at all others it must not.
    pub(crate) passes: &'static [Level],
    pub(crate) how: How,
}

/// Collects probes; the number of each is its token.
#[derive(Default)]
pub(crate) struct Probes(pub(crate) Vec<Probe>);

impl Probes {
    pub(crate) fn number(&self) -> u32 {
        u32::try_from(self.0.len()).unwrap() + 1
    }

    pub(crate) fn token(&self) -> Vec<u8> {
        token(self.number())
    }

    pub(crate) fn add(
        &mut self,
        row: &'static str,
        what: impl Into<String>,
        passes: &'static [Level],
        how: How,
    ) {
        self.0.push(Probe {
            row,
            what: what.into(),
            passes,
            how,
        });
    }

    pub(crate) fn tcp(
        &mut self,
        row: &'static str,
        what: impl Into<String>,
        passes: &'static [Level],
        to: &str,
    ) {
        self.add(row, what, passes, How::Tcp(to.parse().unwrap()));
    }

    pub(crate) fn udp(
        &mut self,
        row: &'static str,
        what: impl Into<String>,
        passes: &'static [Level],
        to: &str,
    ) {
        self.add(row, what, passes, How::Udp(Who::A, to.parse().unwrap()));
    }

    pub(crate) fn frame(
        &mut self,
        row: &'static str,
        what: impl Into<String>,
        make: impl FnOnce(&[u8]) -> Vec<u8>,
    ) {
        let frame = make(&self.token());
        self.add(row, what, NEVER, How::Frames(Who::A, vec![frame]));
    }

    fn stranger(&mut self, row: &'static str, what: &'static str, make: impl FnOnce(&[u8]) -> Vec<u8>) {
        let frame = make(&self.token());
        self.add(row, what, NEVER, How::Frames(Who::Stranger, vec![frame]));
    }
}

pub(crate) const INTERNET: Ipv4Addr = Ipv4Addr::new(8, 8, 8, 8);
pub(crate) const LAN: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 20);
/// An unpublished port that is listened to everywhere.
pub(crate) const PORT: u16 = 9999;

fn to_world(probes: &mut Probes) {
    probes.tcp("S-05", "Internet over TCP", OPEN, "1.1.1.1:443");
    probes.udp("S-05", "Internet over UDP", OPEN, "8.8.8.8:9999");
    for (what, to) in [
        ("LAN gateway", "192.168.1.1:80"),
        ("LAN neighbour", "192.168.1.20:445"),
        ("private network behind the gateway", "10.200.0.5:80"),
        ("metadata address", "169.254.169.254:80"),
        ("172.16/12", "172.16.9.9:80"),
        ("shared address space", "100.64.1.1:80"),
        ("benchmark range", "198.18.0.9:80"),
        ("documentation range 203.0.113/24", "203.0.113.9:80"),
        ("documentation range 192.0.2/24", "192.0.2.9:80"),
        ("documentation range 198.51.100/24", "198.51.100.9:80"),
    ] {
        probes.tcp("S-06", what, NEVER, to);
    }
    probes.udp("S-06", "LAN neighbour over UDP", NEVER, "192.168.1.20:9999");
    for (what, to) in [
        ("public addresses behind another bridge", "6.6.6.6:80"),
        ("container behind docker0", "172.17.0.5:80"),
        ("device of the tailnet", "100.100.0.9:22"),
    ] {
        probes.tcp("S-07", what, NEVER, to);
    }
    probes.udp(
        "S-07",
        "public addresses behind another bridge, over UDP",
        NEVER,
        "6.6.6.6:9999",
    );
}

fn to_neighbour(probes: &mut Probes, a: &Guest, b: &Guest) {
    probes.tcp("S-08", "neighbour over its own sockets", NEVER, "10.77.0.12:22");
    probes.frame("S-08", "IP frame to the neighbour", |token| {
        ethernet(b.mac, a.mac, IPV4, &ipv4_udp(a.address, b.address, PORT, token))
    });
    probes.frame(
        "S-09",
        "IP packet to the neighbour through the gateway",
        |token| {
            ethernet(
                GATEWAY_MAC,
                a.mac,
                IPV4,
                &ipv4_udp(a.address, b.address, PORT, token),
            )
        },
    );
    probes.frame("S-08", "ARP request for the neighbour", |token| {
        ethernet(
            BROADCAST,
            a.mac,
            ARP,
            &arp(1, (a.mac, a.address), ([0; 6], b.address), token),
        )
    });
    probes.frame("S-08", "IPv6 frame to the neighbour", |token| {
        ethernet(b.mac, a.mac, IPV6, &udp6(link_local(1), link_local(2), token))
    });
    probes.frame(
        "S-10",
        "DHCP offer from the guest's own address, broadcast",
        |token| {
            let packet = ipv4(a.address, Ipv4Addr::BROADCAST, 17, &udp(67, 68, token));
            ethernet(BROADCAST, a.mac, IPV4, &packet)
        },
    );
    probes.frame(
        "S-10",
        "DHCP offer that claims to come from the gateway",
        |token| {
            let packet = ipv4(GATEWAY, Ipv4Addr::BROADCAST, 17, &udp(67, 68, token));
            ethernet(BROADCAST, a.mac, IPV4, &packet)
        },
    );
    probes.frame("S-08", "multicast DNS", |token| {
        let group = Ipv4Addr::new(224, 0, 0, 251);
        ethernet(
            [1, 0, 0x5e, 0, 0, 0xfb],
            a.mac,
            IPV4,
            &ipv4_udp(a.address, group, 5353, token),
        )
    });
    for (what, tag) in [("a VLAN tag", 0x8100), ("a QinQ tag", 0x88a8)] {
        probes.frame("S-11", what, |token| {
            tagged(
                b.mac,
                a.mac,
                tag,
                IPV4,
                &ipv4_udp(a.address, b.address, PORT, token),
            )
        });
    }
}

fn from_outside(probes: &mut Probes) {
    probes.add(
        "S-32",
        "the host's ARP request for somebody else",
        NEVER,
        How::Overhear("neigh replace 10.77.0.98 dev vmbr1 use", |frame| {
            frame.get(12..14) == Some(&ARP.to_be_bytes()) && frame.get(38..42) == Some(&[10, 77, 0, 98])
        }),
    );
    for (what, who, to) in [
        (
            "guest from the LAN, by a static route",
            Who::Net,
            "10.77.0.11:9999",
        ),
        ("guest from another bridge", Who::Other, "10.77.0.11:9999"),
        ("guest from the host itself", Who::Host, "10.77.0.11:9999"),
        ("bridge address from the LAN", Who::Net, "10.77.0.1:9999"),
        (
            "published port's number of the bridge address from another bridge",
            Who::Other,
            "10.77.0.1:8844",
        ),
    ] {
        probes.add("S-16", what, NEVER, How::Udp(who, to.parse().unwrap()));
    }
}

fn from_stranger(probes: &mut Probes, a: &Guest, b: &Guest, stranger: &Guest) {
    probes.stranger("S-17", "unbound port as the guest, to the Internet", |token| {
        ethernet(
            GATEWAY_MAC,
            a.mac,
            IPV4,
            &ipv4_udp(a.address, INTERNET, PORT, token),
        )
    });
    probes.stranger("S-17", "unbound port as the guest, to the resolver", |token| {
        ethernet(GATEWAY_MAC, a.mac, IPV4, &ipv4_udp(a.address, GATEWAY, 53, token))
    });
    probes.stranger("S-17", "unbound port as itself, to the host", |token| {
        ethernet(
            GATEWAY_MAC,
            stranger.mac,
            IPV4,
            &ipv4_udp(stranger.address, GATEWAY, PORT, token),
        )
    });
    probes.stranger("S-17", "unbound port to a guest", |token| {
        ethernet(
            b.mac,
            stranger.mac,
            IPV4,
            &ipv4_udp(stranger.address, b.address, PORT, token),
        )
    });
    let request = ethernet(
        BROADCAST,
        stranger.mac,
        ARP,
        &arp(1, (stranger.mac, stranger.address), ([0; 6], GATEWAY), &[]),
    );
    probes.add(
        "S-17",
        "unbound port asks for the gateway",
        NEVER,
        How::Ask(Who::Stranger, request.clone(), |frame| {
            is_arp_reply_from(frame, GATEWAY)
        }),
    );
    let for_guest = ethernet(
        BROADCAST,
        stranger.mac,
        ARP,
        &arp(1, (stranger.mac, stranger.address), ([0; 6], b.address), &[]),
    );
    probes.add(
        "S-17",
        "unbound port asks for a guest",
        NEVER,
        How::Ask(Who::Stranger, for_guest, |frame| {
            is_arp_reply_from(frame, Ipv4Addr::new(10, 77, 0, 12))
        }),
    );
    probes.add(
        "S-17",
        "unbound port in the host's neighbour table",
        NEVER,
        How::Poison(Who::Stranger, request, "neigh show 10.77.0.13", "lladdr"),
    );
    let frame = ethernet(
        stranger.mac,
        b.mac,
        IPV4,
        &ipv4_udp(b.address, stranger.address, PORT, &probes.token()),
    );
    probes.add(
        "S-17",
        "guest to an unbound port",
        NEVER,
        How::Frames(Who::B, vec![frame]),
    );
}

pub(crate) fn link_local(last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, last)
}

pub(crate) fn udp6(from: Ipv6Addr, to: Ipv6Addr, token: &[u8]) -> Vec<u8> {
    ipv6(from, to, 17, 6, &udp(40_000, PORT, token))
}

pub(crate) fn is_arp_reply_from(frame: &[u8], address: Ipv4Addr) -> bool {
    frame.get(12..14) == Some(&ARP.to_be_bytes())
        && frame.get(20..22) == Some(&[0, 2])
        && frame.get(28..32) == Some(&address.octets())
}

pub(crate) fn is_echo_reply_from(frame: &[u8], address: Ipv4Addr) -> bool {
    frame.get(23) == Some(&1) && frame.get(26..30) == Some(&address.octets()) && frame.get(34) == Some(&0)
}

pub(crate) fn all_probes(lab: &Lab) -> Vec<Probe> {
    let mut probes = Probes::default();
    wide::to_host(&mut probes);
    to_world(&mut probes);
    wide::through_the_list(&mut probes);
    wide::to_private_ranges(&mut probes, &lab.a);
    wide::other_ethertypes(&mut probes, &lab.a, &lab.b);
    wide::other_arp(&mut probes, &lab.a, &lab.b);
    wide::odd_sources(&mut probes, &lab.a);
    wide::over_the_tailnet(&mut probes);
    wide::in_pieces(&mut probes, &lab.a, &lab.b);
    to_neighbour(&mut probes, &lab.a, &lab.b);
    hostile::spoofed(&mut probes, &lab.a, &lab.b);
    hostile::false_claims(&mut probes, &lab.a, &lab.b);
    hostile::odd(&mut probes, &lab.a);
    hostile::over_ipv6(&mut probes, &lab.a);
    from_outside(&mut probes);
    from_stranger(&mut probes, &lab.a, &lab.b, &lab.stranger);
    probes.0
}
