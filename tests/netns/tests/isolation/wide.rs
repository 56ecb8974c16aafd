//! Probes by the table: every address of the host and every class of port, every range, every odd frame.

use std::net::Ipv4Addr;

use agentlab_netpolicy::{Destination, PortRange, Protocol};
use agentlab_tests_netns::frame::{
    ARP, BROADCAST, IPV4, arp, ethernet, ipv4, ipv4_fragment, ipv4_udp, tagged, udp,
};
use agentlab_tests_netns::guest::Guest;
use agentlab_tests_netns::lab::{GATEWAY, GATEWAY_MAC};

use crate::probes::{How, INTERNET, LAN, NAT, NEVER, OPEN, PORT, Probes, RUNNING, UNSEALED, Who};

/// Every address that the host has.
const HOST: [(&str, &str); 6] = [
    ("bridge", "10.77.0.1"),
    ("LAN", "192.168.1.10"),
    ("public", "5.5.5.5"),
    ("tailnet", "100.100.0.1"),
    ("docker", "172.17.0.1"),
    ("second bridge's", "6.6.6.1"),
];
/// SSH, resolver, hypervisor, bootstrap, control, artifacts, metrics.
pub(crate) const HOST_TCP: [u16; 7] = [22, 53, 8006, 8844, 8845, 8846, 8847];
/// Resolver, DHCP, bootstrap, and one that means nothing.
pub(crate) const HOST_UDP: [u16; 4] = [53, 67, 8844, PORT];

/// What the allowlist of `a` names. Two of them are private, and stay closed.
pub(crate) fn allowed() -> Vec<Destination> {
    let ports = |protocol, first, last| {
        Some(PortRange {
            protocol,
            first,
            last,
        })
    };
    [
        ("1.1.1.1", ports(Protocol::Tcp, 443, 443)),
        ("8.8.4.4", None),
        ("9.9.9.0/24", ports(Protocol::Udp, 9000, 9999)),
        ("10.200.0.0/16", None),
        ("192.168.1.20", None),
    ]
    .into_iter()
    .map(|(network, ports)| Destination {
        network: network.parse().unwrap(),
        ports,
    })
    .collect()
}

/// What names of the allowlist stand for: an address of the Internet, and answers of a resolver that was lied to.
pub(crate) const RESOLVED: [Ipv4Addr; 6] = [
    INTERNET,
    Ipv4Addr::new(192, 168, 1, 1),
    Ipv4Addr::new(169, 254, 169, 254),
    Ipv4Addr::new(10, 77, 0, 12),
    Ipv4Addr::new(5, 5, 5, 5),
    Ipv4Addr::new(100, 100, 0, 9),
];

/// What a name stands for that the allowlist has with one port only, and that port.
pub(crate) const RESOLVED_WITH_PORT: (Ipv4Addr, PortRange) = (
    Ipv4Addr::new(9, 9, 7, 7),
    PortRange {
        protocol: Protocol::Tcp,
        first: 443,
        last: 443,
    },
);

pub(crate) fn to_host(probes: &mut Probes) {
    for (whose, address) in HOST {
        let bridge = whose == "bridge";
        for port in HOST_TCP {
            let (row, passes) = match port {
                8844 | 8846 if bridge => ("S-02", UNSEALED),
                53 if bridge => ("S-03", OPEN),
                _ => ("S-04", NEVER),
            };
            let what = format!("TCP port {port} of the host's {whose} address");
            probes.tcp(row, what, passes, &format!("{address}:{port}"));
        }
        for port in HOST_UDP {
            let (row, passes) = match port {
                53 if bridge => ("S-03", OPEN),
                8844 if bridge => ("S-02", NEVER),
                _ => ("S-04", NEVER),
            };
            let what = format!("UDP port {port} of the host's {whose} address");
            probes.udp(row, what, passes, &format!("{address}:{port}"));
        }
    }
}

/// An allowlist opens what it names, no other port, nothing private, and no way around the host's resolver.
pub(crate) fn through_the_list(probes: &mut Probes) {
    for (what, passes, to) in [
        ("another port of an address on the list", NAT, "1.1.1.1:80"),
        ("an address on the list with every port", OPEN, "8.8.4.4:443"),
        ("an address that a name stands for", OPEN, "8.8.8.8:443"),
        ("an address that nothing names", NAT, "9.9.8.9:443"),
        ("the wrong protocol of a range on the list", NAT, "9.9.9.9:9000"),
        (
            "the port of a name that the list has with it",
            OPEN,
            "9.9.7.7:443",
        ),
        (
            "another port of a name that the list has with one",
            NAT,
            "9.9.7.7:80",
        ),
        ("private network that is on the list", NEVER, "10.200.0.5:22"),
        ("LAN neighbour that is on the list", NEVER, "192.168.1.20:80"),
        ("LAN gateway that a name stands for", NEVER, "192.168.1.1:443"),
        (
            "metadata address that a name stands for",
            NEVER,
            "169.254.169.254:443",
        ),
        (
            "public address of the host that a name stands for",
            NEVER,
            "5.5.5.5:443",
        ),
        (
            "device of the tailnet that a name stands for",
            NEVER,
            "100.100.0.9:80",
        ),
    ] {
        probes.tcp("S-19", what, passes, to);
    }
    probes.udp("S-19", "first port of a range on the list", OPEN, "9.9.9.9:9000");
    probes.udp("S-19", "last port of a range on the list", OPEN, "9.9.9.9:9999");
    let wrong = "the wrong protocol of a name that the list has with a port";
    probes.udp("S-19", wrong, NAT, "9.9.7.7:443");
    for (what, to) in [
        (
            "DNS of an address that is on the list with every port",
            "8.8.4.4:53",
        ),
        ("DNS of an address that a name stands for", "8.8.8.8:53"),
        ("DNS of an address that nothing names", "9.9.8.9:53"),
        ("DNS over TLS of an address that is on the list", "8.8.4.4:853"),
        ("DNS over TLS of an address that a name stands for", "8.8.8.8:853"),
    ] {
        probes.tcp("S-37", format!("{what}, TCP"), NEVER, to);
        probes.udp("S-37", format!("{what}, UDP"), NEVER, to);
    }
}

/// One packet into every private and special range, answered for by the Internet's namespace.
pub(crate) fn to_private_ranges(probes: &mut Probes, a: &Guest) {
    for to in [
        [0, 1, 2, 3],
        [10, 200, 0, 5],
        [100, 64, 1, 1],
        [127, 0, 0, 1],
        [169, 254, 169, 254],
        [172, 16, 9, 9],
        [192, 0, 0, 9],
        [192, 0, 2, 9],
        [192, 88, 99, 9],
        [192, 168, 200, 9],
        [198, 18, 0, 9],
        [198, 51, 100, 9],
        [203, 0, 113, 9],
        [240, 1, 2, 3],
    ] {
        let to = Ipv4Addr::from(to);
        probes.frame("S-06", format!("UDP frame for {to}"), |token| {
            ethernet(GATEWAY_MAC, a.mac, IPV4, &ipv4_udp(a.address, to, PORT, token))
        });
    }
}

pub(crate) fn other_ethertypes(probes: &mut Probes, a: &Guest, b: &Guest) {
    for (what, kind) in [
        ("LLDP", 0x88cc),
        ("PPPoE discovery", 0x8863),
        ("PPPoE session", 0x8864),
        ("an experimental EtherType", 0x88b5),
        ("reverse ARP", 0x8035),
        ("MPLS", 0x8847),
        ("802.1X", 0x888e),
        ("precision time", 0x88f7),
        ("ATA over Ethernet", 0x88a2),
        ("MACsec", 0x88e5),
        ("IPX", 0x8137),
        ("loopback", 0x9000),
        ("an 802.3 frame with a length", 46),
    ] {
        probes.frame("S-11", format!("{what}, broadcast"), |token| {
            ethernet(BROADCAST, a.mac, kind, token)
        });
        probes.frame("S-11", format!("{what}, to the neighbour"), |token| {
            ethernet(b.mac, a.mac, kind, token)
        });
    }
    probes.frame("S-11", "two VLAN tags, to the neighbour", |token| {
        let packet = ipv4_udp(a.address, b.address, PORT, token);
        let inner = tagged(b.mac, a.mac, 0x8100, IPV4, &packet);
        tagged(b.mac, a.mac, 0x88a8, 0x8100, inner.get(14..).unwrap())
    });
}

/// ARP for what nobody needs it for.
pub(crate) fn other_arp(probes: &mut Probes, a: &Guest, b: &Guest) {
    for (what, operation) in [("reverse request", 3), ("inverse request", 8), ("nonsense", 99)] {
        probes.frame("S-13", format!("ARP {what} to the neighbour"), |token| {
            let packet = arp(operation, (a.mac, a.address), (b.mac, b.address), token);
            ethernet(b.mac, a.mac, ARP, &packet)
        });
    }
    probes.frame("S-13", "ARP for another kind of network", |token| {
        let mut packet = arp(1, (a.mac, a.address), (b.mac, b.address), token);
        packet[1] = 6;
        ethernet(b.mac, a.mac, ARP, &packet)
    });
}

/// Sources that nobody may have, and the host's own.
pub(crate) fn odd_sources(probes: &mut Probes, a: &Guest) {
    for from in [
        GATEWAY,
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::BROADCAST,
        Ipv4Addr::LOCALHOST,
        Ipv4Addr::new(10, 77, 255, 255),
        Ipv4Addr::new(224, 0, 0, 1),
        Ipv4Addr::new(192, 168, 1, 10),
        Ipv4Addr::new(5, 5, 5, 5),
        Ipv4Addr::new(8, 8, 4, 4),
    ] {
        for (whom, to, port) in [("the Internet", INTERNET, PORT), ("the resolver", GATEWAY, 53)] {
            probes.frame("S-12", format!("packet from {from} to {whom}"), |token| {
                ethernet(GATEWAY_MAC, a.mac, IPV4, &ipv4_udp(from, to, port, token))
            });
        }
    }
}

/// The operator's devices may come in while a sandbox runs; it may not go out to them.
pub(crate) fn over_the_tailnet(probes: &mut Probes) {
    let guest = |port: u16| format!("10.77.0.11:{port}").parse().unwrap();
    probes.add(
        "S-36",
        "SSH of the guest from a device of the tailnet",
        RUNNING,
        How::TcpFrom(Who::Tailnet, guest(22)),
    );
    probes.add(
        "S-36",
        "datagram to the guest from a device of the tailnet",
        RUNNING,
        How::Udp(Who::Tailnet, guest(PORT)),
    );
    for (what, who) in [
        ("the LAN", Who::Net),
        ("another bridge", Who::Other),
        ("the host itself", Who::Host),
    ] {
        let what = format!("SSH of the guest from {what}");
        probes.add("S-16", what, NEVER, How::TcpFrom(who, guest(22)));
    }
    probes.udp(
        "S-36",
        "datagram to a device of the tailnet",
        NEVER,
        "100.100.0.9:9999",
    );
    probes.tcp(
        "S-36",
        "another port of a device of the tailnet",
        NEVER,
        "100.100.0.9:80",
    );
}

/// What hides its ports in fragments.
pub(crate) fn in_pieces(probes: &mut Probes, a: &Guest, b: &Guest) {
    for (row, what, to, port) in [
        ("S-06", "private network", Ipv4Addr::new(10, 200, 0, 5), PORT),
        ("S-04", "unpublished port of the bridge address", GATEWAY, PORT),
        ("S-09", "neighbour through the gateway", b.address, PORT),
        (
            "S-04",
            "LAN address of the host",
            Ipv4Addr::new(192, 168, 1, 10),
            53,
        ),
    ] {
        let token = probes.token();
        let datagram = udp(40_001, port, &token);
        let (first, second) = datagram.split_at(16);
        let frames = [(0x2000, first), (2, second)].map(|(field, part)| {
            let packet = ipv4_fragment(a.address, to, 17, field, part);
            ethernet(GATEWAY_MAC, a.mac, IPV4, &packet)
        });
        let how = How::Frames(Who::A, frames.into());
        probes.add(row, format!("{what}, in fragments"), NEVER, how);
    }
    // No first fragment at all: ports are what the payload says they are.
    probes.frame("S-06", "LAN by a fragment without a beginning", |token| {
        let packet = ipv4_fragment(a.address, LAN, 17, 0x0010, &udp(53, 53, token));
        ethernet(GATEWAY_MAC, a.mac, IPV4, &packet)
    });
    for (what, protocol) in [("GRE", 47), ("IP in IP", 4), ("SCTP", 132), ("ESP", 50)] {
        probes.frame("S-06", format!("{what} packet to the LAN"), |token| {
            ethernet(GATEWAY_MAC, a.mac, IPV4, &ipv4(a.address, LAN, protocol, token))
        });
        probes.frame("S-09", format!("{what} packet to the neighbour"), |token| {
            ethernet(
                GATEWAY_MAC,
                a.mac,
                IPV4,
                &ipv4(a.address, b.address, protocol, token),
            )
        });
    }
}
