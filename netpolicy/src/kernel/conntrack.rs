//! Ends the live flows of one guest: without this, what was allowed goes on after trust has fallen.

use std::net::Ipv4Addr;

use super::attributes::{Attributes, nest, put};
use super::error::EnforceError;
use super::socket::{NetfilterSocket, request};

const CONNTRACK: u8 = 1;
const GET: u8 = 1;
const DELETE: u8 = 2;
const INET: u8 = 2;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_IP: u16 = 1;
const IP_V4_SOURCE: u16 = 1;
const IP_V4_DESTINATION: u16 = 2;
const TUPLE_PROTO: u16 = 2;
const PROTO_NUMBER: u16 = 1;
const PROTO_DESTINATION_PORT: u16 = 3;
const PROTOCOL_INFO: u16 = 4;
const INFO_TCP: u16 = 1;
const TCP_STATE: u16 = 1;
const ESTABLISHED: u8 = 3;
const TCP: u8 = 6;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
const FILTER_ORIGINAL: u16 = 1;
/// Compare protocol (bit 3) and destination port (bit 5) only.
const BY_PROTOCOL_AND_PORT: u32 = 1 << 3 | 1 << 5;
/// Compare the source address only.
const BY_SOURCE: u32 = 1;

/// Deletes every flow that `guest` began, except to `spared`, and returns how many there were.
///
/// The host's own address is spared: what goes there is judged packet by packet, and a flow that is forgotten in the
/// middle would hang until the guest speaks again.
pub(crate) fn cut(
    socket: &mut NetfilterSocket,
    guest: Ipv4Addr,
    spared: Ipv4Addr,
) -> Result<usize, EnforceError> {
    // A kernel before 5.8 ignores the filter, so it is asked again here.
    delete(socket, &by_source(guest), |source, destination| {
        source == guest && destination != spared
    })
}

/// Deletes every flow that `guest` began, wherever to: for one that is gone or passes nothing any more.
///
/// Since Linux 6.8 that is one request, and ten times as fast as a look at every flow of the host. An older kernel takes
/// the address for the one flow that is meant, and refuses it as incomplete.
pub(crate) fn cut_whole(socket: &mut NetfilterSocket, guest: Ipv4Addr) -> Result<(), EnforceError> {
    let attributes = by_source(guest);
    if let Err(error) = socket.request(&request(CONNTRACK, DELETE, INET, &attributes)) {
        tracing::debug!(%error, "flows cannot be deleted by their source, and are looked for");
        delete(socket, &attributes, |source, _| source == guest)?;
    }
    Ok(())
}

/// What names the flows that a guest began.
fn by_source(guest: Ipv4Addr) -> Vec<u8> {
    let mut attributes = Vec::new();
    nest(&mut attributes, TUPLE_ORIGINAL, |tuple| {
        nest(tuple, TUPLE_IP, |address| {
            put(address, IP_V4_SOURCE, &guest.octets())
        });
    });
    nest(&mut attributes, FILTER, |filter| {
        put(filter, FILTER_ORIGINAL, &BY_SOURCE.to_ne_bytes());
    });
    attributes
}

/// Deletes every flow whose source and destination are wanted, and returns how many there were.
pub(crate) fn cut_all(
    socket: &mut NetfilterSocket,
    wanted: impl Fn(Ipv4Addr, Ipv4Addr) -> bool,
) -> Result<usize, EnforceError> {
    delete(socket, &[], wanted)
}

/// Each flow is deleted by its own tuple and id.
fn delete(
    socket: &mut NetfilterSocket,
    attributes: &[u8],
    wanted: impl Fn(Ipv4Addr, Ipv4Addr) -> bool,
) -> Result<usize, EnforceError> {
    let flows = socket.dump(
        "listing flows",
        &request(CONNTRACK, GET, INET, attributes),
        |_, _, flow| {
            ends(flow)
                .is_some_and(|(source, destination)| wanted(source, destination))
                .then(|| deletion(flow))
        },
    )?;
    for flow in &flows {
        match socket.request(&request(CONNTRACK, DELETE, INET, flow)) {
            Ok(()) => {}
            // It ended by itself meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(source) => {
                return Err(EnforceError::Netfilter {
                    action: "cutting a flow",
                    source,
                });
            }
        }
    }
    Ok(flows.len())
}

/// Destinations of the TCP flows to a port that are established, in one dump that the kernel filters: it walks its whole
/// table for each, so one is asked for all guests.
pub(crate) fn reached(socket: &mut NetfilterSocket, port: u16) -> Result<Vec<Ipv4Addr>, EnforceError> {
    let mut attributes = Vec::new();
    nest(&mut attributes, TUPLE_ORIGINAL, |tuple| {
        nest(tuple, TUPLE_PROTO, |transport| {
            put(transport, PROTO_NUMBER, &[TCP]);
            put(transport, PROTO_DESTINATION_PORT, &port.to_be_bytes());
        });
    });
    nest(&mut attributes, FILTER, |filter| {
        put(filter, FILTER_ORIGINAL, &BY_PROTOCOL_AND_PORT.to_ne_bytes());
    });
    let request = request(CONNTRACK, GET, INET, &attributes);
    socket.dump("listing flows", &request, |_, _, flow| {
        // A kernel before 5.8 ignores the filter, so it is asked again here.
        let transport = flow.find(TUPLE_ORIGINAL)?.inside().find(TUPLE_PROTO)?.inside();
        let protocol = *transport.find(PROTO_NUMBER)?.value.first()?;
        let to = u16::from_be_bytes(*transport.find(PROTO_DESTINATION_PORT)?.value.first_chunk()?);
        let state = flow
            .find(PROTOCOL_INFO)?
            .inside()
            .find(INFO_TCP)?
            .inside()
            .find(TCP_STATE)?;
        let lives = state.value.first() == Some(&ESTABLISHED);
        let (_, destination) = ends(flow)?;
        (protocol == TCP && to == port && lives).then_some(destination)
    })
}

/// Who began it, and towards whom.
fn ends(flow: Attributes<'_>) -> Option<(Ipv4Addr, Ipv4Addr)> {
    let tuple = flow.find(TUPLE_ORIGINAL)?.inside().find(TUPLE_IP)?.inside();
    let address = |kind| Some(Ipv4Addr::from(*tuple.find(kind)?.value.first_chunk::<4>()?));
    Some((address(IP_V4_SOURCE)?, address(IP_V4_DESTINATION)?))
}

/// The attributes that name exactly this flow.
fn deletion(flow: Attributes<'_>) -> Vec<u8> {
    let mut attributes = Vec::new();
    for attribute in flow.filter(|attribute| [TUPLE_ORIGINAL, ID, ZONE].contains(&attribute.kind)) {
        if attribute.kind == TUPLE_ORIGINAL {
            nest(&mut attributes, attribute.kind, |inside| {
                inside.extend(attribute.value);
            });
        } else {
            put(&mut attributes, attribute.kind, attribute.value);
        }
    }
    attributes
}
