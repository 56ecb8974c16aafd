//! Frames that lie, and frames of unusual kinds.

use std::net::{Ipv4Addr, Ipv6Addr};

use agentlab_tests_netns::frame::{
    ARP, BROADCAST, IPV4, IPV6, Mac, arp, echo, ethernet, ipv4, ipv4_fragment, ipv4_udp, ipv6, udp,
};
use agentlab_tests_netns::guest::Guest;
use agentlab_tests_netns::lab::{GATEWAY, GATEWAY_MAC, HOST_ON_LAN};

use crate::probes::{
    How, INTERNET, LAN, NEVER, OPEN, PORT, Probes, UNSEALED, Who, is_arp_reply_from, is_echo_reply_from,
    link_local, udp6,
};

pub(crate) fn spoofed(probes: &mut Probes, a: &Guest, b: &Guest) {
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

pub(crate) fn false_claims(probes: &mut Probes, a: &Guest, b: &Guest) {
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

pub(crate) fn odd(probes: &mut Probes, a: &Guest) {
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
        OPEN,
        How::Ask(Who::A, ping(INTERNET), |frame| {
            is_echo_reply_from(frame, INTERNET)
        }),
    );
}

pub(crate) fn over_ipv6(probes: &mut Probes, a: &Guest) {
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
