//! Frames as a hostile guest would write them.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Six bytes of an Ethernet address.
pub type Mac = [u8; 6];

/// Everyone.
pub const BROADCAST: Mac = [0xff; 6];
/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ARP: u16 = 0x0806;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;
/// Begins every payload of ours.
const SIGN: &[u8] = b"AGENTLAB";

/// A payload that can be recognised anywhere, by its number.
#[must_use]
pub fn token(number: u32) -> Vec<u8> {
    let mut bytes = SIGN.to_vec();
    bytes.extend(number.to_be_bytes());
    bytes
}

/// Numbers of all tokens somewhere in `bytes`.
#[must_use]
pub fn tokens(bytes: &[u8]) -> Vec<u32> {
    let whole = SIGN.len() + 4;
    let number = |window: &[u8]| {
        window
            .strip_prefix(SIGN)?
            .first_chunk()
            .map(|bytes| u32::from_be_bytes(*bytes))
    };
    bytes.windows(whole).filter_map(number).collect()
}

/// An Ethernet frame.
#[must_use]
pub fn ethernet(to: Mac, from: Mac, kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [to, from].concat();
    frame.extend(kind.to_be_bytes());
    frame.extend(payload);
    frame.resize(frame.len().max(60), 0);
    frame
}

/// A frame with a VLAN tag, of either kind.
#[must_use]
pub fn tagged(to: Mac, from: Mac, tag: u16, kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut inside = 5_u16.to_be_bytes().to_vec();
    inside.extend(kind.to_be_bytes());
    inside.extend(payload);
    ethernet(to, from, tag, &inside)
}

fn sum(bytes: &[u8], start: u32) -> u32 {
    bytes.chunks(2).fold(start, |sum, pair| {
        let [high, low] = [pair.first(), pair.get(1)].map(|byte| u32::from(*byte.unwrap_or(&0)));
        sum + (high << 8 | low)
    })
}

fn folded(mut sum: u32) -> [u8; 2] {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let [_, _, high, low] = (!sum).to_be_bytes();
    [high, low]
}

fn length(bytes: usize) -> [u8; 2] {
    u16::try_from(bytes).unwrap_or(u16::MAX).to_be_bytes()
}

/// An IPv4 packet. `fragment` is the flags and offset field.
#[must_use]
pub fn ipv4_fragment(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![0x45, 0];
    header.extend(length(payload.len() + 20));
    header.extend(0x4242_u16.to_be_bytes());
    header.extend(fragment.to_be_bytes());
    header.extend([64, protocol, 0, 0]);
    header.extend(from.octets());
    header.extend(to.octets());
    let [high, low] = folded(sum(&header, 0));
    if let Some(place) = header.get_mut(10..12) {
        place.copy_from_slice(&[high, low]);
    }
    header.extend(payload);
    header
}

/// An IPv4 packet in one piece.
#[must_use]
pub fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    ipv4_fragment(from, to, protocol, 0, payload)
}

/// A UDP datagram without checksum, which IPv4 allows.
#[must_use]
pub fn udp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = [
        from.to_be_bytes(),
        to.to_be_bytes(),
        length(payload.len() + 8),
        [0, 0],
    ]
    .concat();
    bytes.extend(payload);
    bytes
}

/// A UDP datagram in an IPv4 packet.
#[must_use]
pub fn ipv4_udp(from: Ipv4Addr, to: Ipv4Addr, port: u16, payload: &[u8]) -> Vec<u8> {
    ipv4(from, to, 17, &udp(40_000, port, payload))
}

/// An ICMP echo request.
#[must_use]
pub fn echo(payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![8, 0, 0, 0, 0x12, 0x34, 0, 1];
    bytes.extend(payload);
    let [high, low] = folded(sum(&bytes, 0));
    if let Some(place) = bytes.get_mut(2..4) {
        place.copy_from_slice(&[high, low]);
    }
    bytes
}

/// An IPv6 packet whose payload's checksum stands at `checksum`.
#[must_use]
pub fn ipv6(from: Ipv6Addr, to: Ipv6Addr, protocol: u8, checksum: usize, payload: &[u8]) -> Vec<u8> {
    let mut payload = payload.to_vec();
    let pseudo = u32::from(protocol) + u32::try_from(payload.len()).unwrap_or(0);
    let start = sum(&to.octets(), sum(&from.octets(), pseudo));
    let value = folded(sum(&payload, start));
    if let Some(place) = payload.get_mut(checksum..checksum + 2) {
        place.copy_from_slice(&value);
    }
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(length(payload.len()));
    packet.extend([protocol, 255]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(payload);
    packet
}

/// An ARP packet for Ethernet and IPv4.
#[must_use]
pub fn arp(operation: u16, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr), trailer: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 1, 8, 0, 6, 4];
    bytes.extend(operation.to_be_bytes());
    bytes.extend(sender.0);
    bytes.extend(sender.1.octets());
    bytes.extend(target.0);
    bytes.extend(target.1.octets());
    bytes.extend(trailer);
    bytes
}
