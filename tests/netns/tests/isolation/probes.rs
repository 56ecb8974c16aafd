//! What is tried, and at which levels of trust it must get through.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use agentlab_tests_netns::frame::{
    ARP, BROADCAST, IPV4, IPV6, Mac, arp, echo, ethernet, ipv4, ipv4_fragment, ipv4_udp, ipv6, tagged, token,
    udp,
};
use agentlab_tests_netns::guest::Guest;
use agentlab_tests_netns::lab::{GATEWAY, GATEWAY_MAC, HOST_ON_LAN, Lab};

/// The levels of guest `a`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    Sealed,
    Bootstrap,
    Off,
    Nat,
}

pub(crate) const ALL: [Level; 4] = [Level::Sealed, Level::Bootstrap, Level::Off, Level::Nat];
pub(crate) const NEVER: &[Level] = &[];
pub(crate) const UNSEALED: &[Level] = &[Level::Bootstrap, Level::Off, Level::Nat];
pub(crate) const NAT: &[Level] = &[Level::Nat];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    A,
    Stranger,
    B,
    Host,
    Net,
    Other,
}

/// What is tried.
pub(crate) enum How {
    /// Connect from `a`.
    Tcp(SocketAddr),
    /// Send a datagram.
    Udp(Who, SocketAddr),
    /// Write frames into a guest's cable.
    Frames(Who, Vec<Vec<u8>>),
    /// The same, and look for an answer among the frames that come back.
    Ask(Who, Vec<u8>, fn(&[u8]) -> bool),
    /// The same, and look at what `ip` says on the host.
    Poison(Who, Vec<u8>, &'static str, &'static str),
}

pub(crate) struct Probe {
    /// Row of docs/security.md.
    pub(crate) row: &'static str,
    pub(crate) what: &'static str,
    /// Levels of `a` at which it must get through; at all others it must not.
    pub(crate) passes: &'static [Level],
    pub(crate) how: How,
}

/// Collects probes; the number of each is its token.
#[derive(Default)]
pub(crate) struct Probes(Vec<Probe>);

impl Probes {
    fn number(&self) -> u32 {
        u32::try_from(self.0.len()).unwrap() + 1
    }

    fn token(&self) -> Vec<u8> {
        token(self.number())
    }

    fn add(&mut self, row: &'static str, what: &'static str, passes: &'static [Level], how: How) {
        self.0.push(Probe {
            row,
            what,
            passes,
            how,
        });
    }

    fn tcp(&mut self, row: &'static str, what: &'static str, passes: &'static [Level], to: &str) {
        self.add(row, what, passes, How::Tcp(to.parse().unwrap()));
    }

    fn udp(&mut self, row: &'static str, what: &'static str, passes: &'static [Level], to: &str) {
        self.add(row, what, passes, How::Udp(Who::A, to.parse().unwrap()));
    }

    fn frame(&mut self, row: &'static str, what: &'static str, make: impl FnOnce(&[u8]) -> Vec<u8>) {
        let frame = make(&self.token());
        self.add(row, what, NEVER, How::Frames(Who::A, vec![frame]));
    }

    fn stranger(&mut self, row: &'static str, what: &'static str, make: impl FnOnce(&[u8]) -> Vec<u8>) {
        let frame = make(&self.token());
        self.add(row, what, NEVER, How::Frames(Who::Stranger, vec![frame]));
    }
}

const INTERNET: Ipv4Addr = Ipv4Addr::new(8, 8, 8, 8);
const LAN: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 20);
/// An unpublished port that is listened to everywhere.
const PORT: u16 = 9999;

fn to_host(probes: &mut Probes) {
    probes.tcp(
        "S-02",
        "bootstrap port of the bridge address",
        UNSEALED,
        "10.77.0.1:8844",
    );
    probes.tcp(
        "S-02",
        "artifact port of the bridge address",
        UNSEALED,
        "10.77.0.1:8846",
    );
    probes.tcp("S-03", "resolver over TCP", NAT, "10.77.0.1:53");
    probes.udp("S-03", "resolver over UDP", NAT, "10.77.0.1:53");
    probes.udp(
        "S-02",
        "bootstrap port's number over UDP",
        NEVER,
        "10.77.0.1:8844",
    );
    for (what, to) in [
        ("hypervisor's port of the bridge address", "10.77.0.1:8006"),
        ("SSH port of the bridge address", "10.77.0.1:22"),
        ("bootstrap port of the host's LAN address", "192.168.1.10:8844"),
        ("SSH port of the host's LAN address", "192.168.1.10:22"),
        ("bootstrap port of the host's public address", "5.5.5.5:8844"),
        ("SSH port of the host's public address", "5.5.5.5:22"),
        ("SSH port of the host's tailnet address", "100.100.0.1:22"),
        ("SSH port of the host's docker address", "172.17.0.1:22"),
        ("SSH port of the host's second bridge", "6.6.6.1:22"),
    ] {
        probes.tcp("S-04", what, NEVER, to);
    }
    for (what, to) in [
        ("unpublished UDP port of the bridge address", "10.77.0.1:9999"),
        ("resolver's port of the host's LAN address", "192.168.1.10:53"),
        ("UDP port of the host's public address", "5.5.5.5:9999"),
    ] {
        probes.udp("S-04", what, NEVER, to);
    }
}

fn to_world(probes: &mut Probes) {
    probes.tcp("S-05", "Internet over TCP", NAT, "1.1.1.1:443");
    probes.udp("S-05", "Internet over UDP", NAT, "8.8.8.8:9999");
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
    for (what, kind) in [
        ("LLDP", 0x88cc),
        ("PPPoE discovery", 0x8863),
        ("an experimental EtherType", 0x88b5),
        ("reverse ARP", 0x8035),
        ("an 802.3 frame with a length", 46),
    ] {
        probes.frame("S-11", what, |token| ethernet(BROADCAST, a.mac, kind, token));
    }
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

fn spoofed(probes: &mut Probes, a: &Guest, b: &Guest) {
    let out = |mac: Mac, from: Ipv4Addr, to: Ipv4Addr, port: u16, token: &[u8]| {
        ethernet(GATEWAY_MAC, mac, IPV4, &ipv4_udp(from, to, port, token))
    };
    let other_mac = [0x02, 0x61, 0x67, 0, 0, 0x99];
    for (what, from, to) in [
        ("Internet from the neighbour's address", b.address, INTERNET),
        (
            "Internet from a LAN address",
            Ipv4Addr::new(192, 168, 1, 77),
            INTERNET,
        ),
        (
            "LAN from an address outside the subnet",
            Ipv4Addr::new(172, 16, 5, 5),
            LAN,
        ),
        (
            "Internet from a free address of the subnet",
            Ipv4Addr::new(10, 77, 0, 99),
            INTERNET,
        ),
    ] {
        probes.frame("S-12", what, |token| out(a.mac, from, to, PORT, token));
    }
    probes.frame("S-12", "resolver from the neighbour's address", |token| {
        out(a.mac, b.address, GATEWAY, 53, token)
    });
    probes.frame("S-12", "resolver from the neighbour's address and MAC", |token| {
        out(b.mac, b.address, GATEWAY, 53, token)
    });
    probes.frame("S-12", "Internet from another MAC", |token| {
        out(other_mac, a.address, INTERNET, PORT, token)
    });
    probes.frame("S-12", "Internet in a priority-tagged frame", |token| {
        let mut inside = vec![0, 0];
        inside.extend(IPV4.to_be_bytes());
        inside.extend(ipv4_udp(b.address, INTERNET, PORT, token));
        ethernet(GATEWAY_MAC, a.mac, 0x8100, &inside)
    });
}

fn false_claims(probes: &mut Probes, a: &Guest, b: &Guest) {
    let other_mac = [0x02, 0x61, 0x67, 0, 0, 0x99];
    let claim = |address: Ipv4Addr| {
        ethernet(
            GATEWAY_MAC,
            a.mac,
            ARP,
            &arp(1, (a.mac, address), ([0; 6], GATEWAY), &[]),
        )
    };
    let free = Ipv4Addr::new(10, 77, 0, 99);
    probes.add(
        "S-13",
        "ARP claim to a free address",
        NEVER,
        How::Poison(Who::A, claim(free), "neigh show 10.77.0.99", "lladdr"),
    );
    let mine = "02:61:67:00:00:00";
    probes.add(
        "S-13",
        "ARP claim to the neighbour's address",
        NEVER,
        How::Poison(Who::A, claim(b.address), "neigh show 10.77.0.12", mine),
    );
    probes.frame(
        "S-13",
        "ARP claim to the gateway's address, to the neighbour",
        |token| {
            ethernet(
                b.mac,
                a.mac,
                ARP,
                &arp(2, (a.mac, GATEWAY), (b.mac, b.address), token),
            )
        },
    );
    let lie = ethernet(
        GATEWAY_MAC,
        a.mac,
        ARP,
        &arp(1, (other_mac, a.address), ([0; 6], GATEWAY), &[]),
    );
    probes.add(
        "S-13",
        "ARP claim of another MAC for the own address",
        NEVER,
        How::Poison(Who::A, lie, "neigh show 10.77.0.11", "00:99"),
    );
    let elsewhere = ethernet(
        BROADCAST,
        a.mac,
        ARP,
        &arp(1, (a.mac, a.address), ([0; 6], HOST_ON_LAN), &[]),
    );
    probes.add(
        "S-13",
        "ARP request for the host's LAN address",
        NEVER,
        How::Ask(Who::A, elsewhere, |frame| is_arp_reply_from(frame, HOST_ON_LAN)),
    );
    let gateway = ethernet(
        BROADCAST,
        a.mac,
        ARP,
        &arp(1, (a.mac, a.address), ([0; 6], GATEWAY), &[]),
    );
    probes.add(
        "S-01",
        "ARP request for the gateway",
        UNSEALED,
        How::Ask(Who::A, gateway, |frame| is_arp_reply_from(frame, GATEWAY)),
    );
}

fn odd(probes: &mut Probes, a: &Guest) {
    let own = |to: Ipv4Addr, port: u16, token: &[u8]| ipv4_udp(a.address, to, port, token);
    probes.frame("S-14", "unicast packet in a broadcast frame", |token| {
        ethernet(BROADCAST, a.mac, IPV4, &own(GATEWAY, 53, token))
    });
    probes.frame("S-14", "subnet broadcast", |token| {
        ethernet(
            BROADCAST,
            a.mac,
            IPV4,
            &own(Ipv4Addr::new(10, 77, 255, 255), PORT, token),
        )
    });
    probes.frame("S-14", "limited broadcast", |token| {
        ethernet(BROADCAST, a.mac, IPV4, &own(Ipv4Addr::BROADCAST, PORT, token))
    });
    probes.frame("S-10", "DHCP request to the host", |token| {
        let packet = ipv4(
            Ipv4Addr::UNSPECIFIED,
            Ipv4Addr::BROADCAST,
            17,
            &udp(68, 67, token),
        );
        ethernet(BROADCAST, a.mac, IPV4, &packet)
    });
    for (what, last) in [
        ("an LLDP group's frame", 0x0e),
        ("a slow protocol group's frame", 0x02),
    ] {
        probes.frame("S-14", what, |token| {
            ethernet(
                [0x01, 0x80, 0xc2, 0, 0, last],
                a.mac,
                IPV4,
                &own(Ipv4Addr::new(5, 5, 5, 5), PORT, token),
            )
        });
    }
    let token = probes.token();
    let datagram = udp(40_001, PORT, &token);
    let (first, second) = datagram.split_at(16);
    let fragments = [(0x2000, first), (2, second)].map(|(field, part)| {
        ethernet(
            GATEWAY_MAC,
            a.mac,
            IPV4,
            &ipv4_fragment(a.address, LAN, 17, field, part),
        )
    });
    probes.add(
        "S-06",
        "LAN in fragments",
        NEVER,
        How::Frames(Who::A, fragments.into()),
    );
    let ping = |to| ethernet(GATEWAY_MAC, a.mac, IPV4, &ipv4(a.address, to, 1, &echo(b"ping")));
    probes.add(
        "S-04",
        "echo request to the bridge address",
        NEVER,
        How::Ask(Who::A, ping(GATEWAY), |frame| is_echo_reply_from(frame, GATEWAY)),
    );
    probes.add(
        "S-05",
        "echo request to the Internet",
        NAT,
        How::Ask(Who::A, ping(INTERNET), |frame| {
            is_echo_reply_from(frame, INTERNET)
        }),
    );
}

fn over_ipv6(probes: &mut Probes, a: &Guest) {
    let own6: Ipv6Addr = "2001:db8:77::5".parse().unwrap();
    for (what, to) in [
        ("IPv6 address of the host", "2001:db8:1::10"),
        ("IPv6 Internet", "2001:db8:1::1"),
    ] {
        let to: Ipv6Addr = to.parse().unwrap();
        probes.frame("S-15", what, |token| {
            ethernet(GATEWAY_MAC, a.mac, IPV6, &udp6(own6, to, token))
        });
    }
    let mut advertisement = vec![134, 0, 0, 0, 64, 0, 0x07, 0x08];
    advertisement.extend([0; 8]);
    let rogue = ipv6(link_local(1), "ff02::1".parse().unwrap(), 58, 2, &advertisement);
    let rogue = ethernet([0x33, 0x33, 0, 0, 0, 1], a.mac, IPV6, &rogue);
    probes.add(
        "S-15",
        "router advertisement to the host",
        NEVER,
        How::Poison(Who::A, rogue, "-6 route show default", "vmbr1"),
    );
}

fn from_outside(probes: &mut Probes) {
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

fn link_local(last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, last)
}

fn udp6(from: Ipv6Addr, to: Ipv6Addr, token: &[u8]) -> Vec<u8> {
    ipv6(from, to, 17, 6, &udp(40_000, PORT, token))
}

fn is_arp_reply_from(frame: &[u8], address: Ipv4Addr) -> bool {
    frame.get(12..14) == Some(&ARP.to_be_bytes())
        && frame.get(20..22) == Some(&[0, 2])
        && frame.get(28..32) == Some(&address.octets())
}

fn is_echo_reply_from(frame: &[u8], address: Ipv4Addr) -> bool {
    frame.get(23) == Some(&1) && frame.get(26..30) == Some(&address.octets()) && frame.get(34) == Some(&0)
}

pub(crate) fn all_probes(lab: &Lab) -> Vec<Probe> {
    let mut probes = Probes::default();
    to_host(&mut probes);
    to_world(&mut probes);
    to_neighbour(&mut probes, &lab.a, &lab.b);
    spoofed(&mut probes, &lab.a, &lab.b);
    false_claims(&mut probes, &lab.a, &lab.b);
    odd(&mut probes, &lab.a);
    over_ipv6(&mut probes, &lab.a);
    from_outside(&mut probes);
    from_stranger(&mut probes, &lab.a, &lab.b, &lab.stranger);
    probes.0
}
