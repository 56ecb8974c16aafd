//! Chooses the numbers of a new sandbox. Pure; called inside the store's write transaction, so that two requests
//! never choose the same.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use agentlab_api::{SandboxId, Vmid};
use agentlab_store::SandboxRecord;

use crate::sandbox::machine::State;
use crate::settings::Settings;

/// How often a VMID that turned out to be taken is replaced by another.
pub(crate) const TRIES: usize = 8;
/// First two bytes of every MAC address we give: locally administered, unicast, recognisable.
const MAC_PREFIX: [u8; 2] = [0x02, 0xa1];

/// A sandbox's Ethernet address: four bytes of its UUID's random tail, and the next free one should a neighbour have
/// the same. The clock part of the UUID would collide among sandboxes of one millisecond.
fn free_mac(sandbox: SandboxId, live: &[SandboxRecord]) -> [u8; 6] {
    let held: HashSet<[u8; 6]> = live.iter().map(|record| record.mac).collect();
    let [.., a, b, c, d] = *sandbox.as_bytes();
    let [first, second] = MAC_PREFIX;
    let mut tail = u32::from_be_bytes([a, b, c, d]);
    loop {
        let [a, b, c, d] = tail.to_be_bytes();
        let mac = [first, second, a, b, c, d];
        if !held.contains(&mac) {
            return mac;
        }
        tail = tail.wrapping_add(1);
    }
}

/// The lowest VMID of our range that neither a live record nor the hypervisor has.
pub(crate) fn free_vmid(
    settings: &Settings,
    live: &[SandboxRecord],
    occupied: &HashSet<Vmid>,
) -> Result<Vmid, String> {
    let held: HashSet<Vmid> = live.iter().map(|record| record.vmid).collect();
    let (first, last) = (u32::from(settings.vmid_first), u32::from(settings.vmid_last));
    (first..=last)
        .filter_map(|raw| Vmid::try_from(raw).ok())
        .find(|vmid| !held.contains(vmid) && !occupied.contains(vmid))
        .ok_or_else(|| format!("No VMID from {first} to {last} is free"))
}

/// The lowest host address of the agent subnet that no live record has.
fn free_address(settings: &Settings, live: &[SandboxRecord]) -> Result<Ipv4Addr, String> {
    let held: HashSet<Ipv4Addr> = live.iter().map(|record| record.address).collect();
    let (network, broadcast) = bounds(settings.subnet);
    (network.saturating_add(1)..broadcast)
        .map(Ipv4Addr::from)
        .find(|address| *address != settings.gateway && !held.contains(address))
        .ok_or_else(|| {
            format!(
                "No address of {}/{} is free",
                settings.subnet.0, settings.subnet.1
            )
        })
}

/// Network and broadcast address.
pub(crate) fn bounds((address, prefix): (Ipv4Addr, u8)) -> (u32, u32) {
    let mask = u32::MAX
        .checked_shl(32u32.saturating_sub(u32::from(prefix)))
        .unwrap_or(0);
    let network = u32::from(address) & mask;
    (network, network | !mask)
}

/// Why there is no place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Full {
    /// The operator's bound is reached; a place becomes free when a sandbox ends.
    #[error("{0}")]
    Limit(String),
    /// The numbers have run out, perhaps to others.
    #[error("{0}")]
    Numbers(String),
}

/// Chooses the numbers of a sandbox, if there may be one more.
pub(crate) fn place(
    settings: &Settings,
    max_sandboxes: usize,
    live: &[SandboxRecord],
    occupied: &HashSet<Vmid>,
    sandbox: &mut SandboxRecord,
) -> Result<(), Full> {
    below_limit(max_sandboxes, live).map_err(Full::Limit)?;
    if let Some(workspace) = sandbox.workspace
        && let Some(other) = crate::workspace::holder(live, workspace)
    {
        return Err(Full::Limit(format!("Sandbox {} has its workspace", other.vmid)));
    }
    sandbox.vmid = free_vmid(settings, live, occupied).map_err(Full::Numbers)?;
    sandbox.address = free_address(settings, live).map_err(Full::Numbers)?;
    sandbox.mac = free_mac(sandbox.id, live);
    Ok(())
}

/// Refuses what would exceed the operator's bound. A FAILED sandbox of which nothing is left does not count.
fn below_limit(max_sandboxes: usize, live: &[SandboxRecord]) -> Result<(), String> {
    let holding = live
        .iter()
        .filter(|record| State::of(record).holds_something())
        .count();
    if holding < max_sandboxes {
        return Ok(());
    }
    Err(format!(
        "{holding} sandboxes exist and no more than {max_sandboxes} may"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::machine::tests::record;

    fn settings() -> Settings {
        let vmid = |raw| Vmid::try_from(raw).unwrap();
        Settings {
            vmid_first: vmid(1000),
            vmid_last: vmid(1002),
            subnet: (Ipv4Addr::new(10, 77, 0, 0), 29),
            ..Settings::default()
        }
    }

    fn live(vmid: u32, address: [u8; 4]) -> SandboxRecord {
        SandboxRecord {
            vmid: Vmid::try_from(vmid).unwrap(),
            address: Ipv4Addr::from(address),
            ..record()
        }
    }

    #[test]
    fn network_gateway_and_broadcast_are_never_given_away() {
        let mut taken = Vec::new();
        while let Ok(address) = free_address(&settings(), &taken) {
            taken.push(live(1000, address.octets()));
        }
        let given: Vec<String> = taken.iter().map(|record| record.address.to_string()).collect();
        assert_eq!(
            given,
            ["10.77.0.2", "10.77.0.3", "10.77.0.4", "10.77.0.5", "10.77.0.6"]
        );
    }

    #[test]
    fn a_vmid_known_to_either_side_is_not_chosen() {
        let occupied = HashSet::from([Vmid::try_from(1001).unwrap()]);
        let taken = [live(1000, [10, 77, 0, 2])];
        assert_eq!(
            free_vmid(&settings(), &taken, &occupied),
            Ok(Vmid::try_from(1002).unwrap())
        );
        let taken = [live(1000, [10, 77, 0, 2]), live(1002, [10, 77, 0, 3])];
        assert!(
            free_vmid(&settings(), &taken, &occupied)
                .unwrap_err()
                .contains("1000 to 1002")
        );
    }

    #[test]
    fn a_mac_address_is_local_unicast_and_nobody_elses() {
        let id = SandboxId::from_bytes([0xff; 16]);
        let first = free_mac(id, &[]);
        assert_eq!(first, [0x02, 0xa1, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(first[0] & 0b11, 0b10);
        let taken = [SandboxRecord {
            mac: first,
            ..record()
        }];
        assert_eq!(free_mac(id, &taken), [0x02, 0xa1, 0, 0, 0, 0]);
    }

    #[test]
    fn any_prefix_has_bounds() {
        assert_eq!(bounds((Ipv4Addr::UNSPECIFIED, 0)), (0, u32::MAX));
        let one = u32::from(Ipv4Addr::new(10, 0, 0, 1));
        assert_eq!(bounds((Ipv4Addr::new(10, 0, 0, 1), 32)), (one, one));
    }
}
