//! From the entries of a profile's allowlist to what policy and resolver are told.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::Ipv4Addr;

use agentlab_api::{AllowEntry, AllowPorts};
use agentlab_netpolicy::{Cidr, Destination, PortRange, Protocol};

/// Its names, for the resolver.
pub(super) fn names(list: &[AllowEntry]) -> Vec<String> {
    ports_of_names(list).into_keys().collect()
}

/// What each of its names opens: these ports, or every port when there are none.
pub(super) fn ports_of_names(list: &[AllowEntry]) -> BTreeMap<String, Ports> {
    let mut names: BTreeMap<String, Ports> = BTreeMap::new();
    for entry in list {
        let AllowEntry::Name { name, ports } = entry else {
            continue;
        };
        let ports = ports.map(|ports| vec![range(ports)]);
        match names.entry(name.clone()) {
            Entry::Vacant(entry) => {
                entry.insert(ports);
            }
            Entry::Occupied(mut entry) => {
                let known = entry.insert(None);
                entry.insert(together(known, ports));
            }
        }
    }
    names
}

/// Some ports, or all of them.
pub(super) type Ports = Option<Vec<PortRange>>;

/// What both open.
pub(super) fn together(these: Ports, those: Ports) -> Ports {
    let (mut all, those) = (these?, those?);
    all.extend(those);
    Some(all)
}

fn range(ports: AllowPorts) -> PortRange {
    PortRange {
        protocol: if ports.tcp { Protocol::Tcp } else { Protocol::Udp },
        first: ports.first,
        last: ports.last,
    }
}

/// Its networks, for the policy, with nothing said twice: the kernel's sets refuse what overlaps.
pub(super) fn destinations(list: &[AllowEntry]) -> Vec<Destination> {
    let mut kinds: BTreeMap<Option<Protocol>, Vec<(Cidr, u16, u16)>> = BTreeMap::new();
    for entry in list {
        let AllowEntry::Network {
            address,
            prefix,
            ports,
        } = entry
        else {
            continue;
        };
        let (protocol, first, last) = match ports {
            None => (None, 0, u16::MAX),
            Some(ports) => {
                let PortRange {
                    protocol,
                    first,
                    last,
                } = range(*ports);
                (Some(protocol), first, last)
            }
        };
        let network = Cidr::containing(*address, *prefix);
        kinds.entry(protocol).or_default().push((network, first, last));
    }
    let ranges = |protocol: Option<Protocol>, (network, first, last)| Destination {
        network,
        ports: protocol.map(|protocol| PortRange {
            protocol,
            first,
            last,
        }),
    };
    kinds
        .into_iter()
        .flat_map(|(protocol, entries)| {
            apart(entries)
                .into_iter()
                .map(move |entry| ranges(protocol, entry))
        })
        .collect()
}

/// The same addresses and ports, none of them twice. Of two networks one lies in the other, or they share nothing.
fn apart(mut entries: Vec<(Cidr, u16, u16)>) -> Vec<(Cidr, u16, u16)> {
    // A network stands before those that lie in it, and those stand right behind it.
    entries.sort_by_key(|(network, first, last)| (network.network(), network.prefix(), *first, *last));
    let mut around: Vec<(Cidr, u16, u16)> = Vec::new();
    let mut all = Vec::new();
    for (network, first, last) in entries {
        around.retain(|(outer, ..)| outer.contains(network.network()));
        let taken: Vec<(u16, u16)> = around.iter().map(|(_, first, last)| (*first, *last)).collect();
        let rest: Vec<_> = without((first, last), &taken)
            .into_iter()
            .map(|(first, last)| (network, first, last))
            .collect();
        around.extend(&rest);
        all.extend(rest);
    }
    all
}

/// What is left of a range of ports without others.
fn without(range: (u16, u16), taken: &[(u16, u16)]) -> Vec<(u16, u16)> {
    let mut left = vec![range];
    for (from, to) in taken {
        left = left
            .into_iter()
            .flat_map(|(first, last)| {
                let below = (first < *from).then(|| (first, last.min(from.saturating_sub(1))));
                let above = (last > *to).then(|| (first.max(to.saturating_add(1)), last));
                [below, above].into_iter().flatten()
            })
            .collect();
    }
    left
}

/// Addresses that lie in one of the networks.
pub(super) fn any_within(networks: &[Cidr], addresses: &[Ipv4Addr]) -> bool {
    addresses
        .iter()
        .any(|address| networks.iter().any(|network| network.contains(*address)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(texts: &[&str]) -> Vec<String> {
        let list: Vec<AllowEntry> = texts.iter().map(|text| text.parse().unwrap()).collect();
        destinations(&list)
            .iter()
            .map(|destination| match destination.ports {
                None => destination.network.to_string(),
                Some(ports) => format!(
                    "{} {}/{}-{}",
                    destination.network, ports.protocol, ports.first, ports.last
                ),
            })
            .collect()
    }

    #[test]
    fn what_overlaps_is_taken_apart_and_nothing_is_lost() {
        assert_eq!(
            shown(&["8.8.8.8", "8.8.0.0/16", "8.8.0.0/16", "example.com"]),
            ["8.8.0.0/16"]
        );
        assert_eq!(
            shown(&[
                "8.8.8.8 tcp/400-500",
                "8.8.0.0/16 tcp/443",
                "8.8.0.0/16 udp/443",
                "tcp/450"
            ]),
            [
                "0.0.0.0/0 tcp/450-450",
                "8.8.0.0/16 tcp/443-443",
                "8.8.8.8 tcp/400-442",
                "8.8.8.8 tcp/444-449",
                "8.8.8.8 tcp/451-500",
                "8.8.0.0/16 udp/443-443",
            ]
        );
        // With every port open, some ports are nothing new; the sets are two, so both may stand.
        assert_eq!(
            shown(&["1.1.1.1", "1.1.1.1 tcp/443"]),
            ["1.1.1.1", "1.1.1.1 tcp/443-443"]
        );
    }

    #[test]
    fn a_name_opens_the_ports_of_all_its_entries_and_every_port_when_one_has_none() {
        let texts = [
            "a.example",
            "a.example tcp/443",
            "b.example:443",
            "b.example udp/53",
            "1.1.1.1:443",
        ];
        let list: Vec<AllowEntry> = texts.iter().map(|text| text.parse().unwrap()).collect();
        let ports = ports_of_names(&list);
        assert_eq!(names(&list), ["a.example", "b.example"]);
        assert_eq!(ports["a.example"], None);
        let range = |protocol, port| PortRange {
            protocol,
            first: port,
            last: port,
        };
        let of_b = vec![range(Protocol::Tcp, 443), range(Protocol::Udp, 53)];
        assert_eq!(ports["b.example"], Some(of_b));
    }

    #[test]
    fn a_thousand_entries_make_a_policy_that_can_stand() {
        let list: Vec<AllowEntry> = (0..1000_u32)
            .map(|number| {
                let prefix = 20 + number % 12;
                let bits = 0x0808_0000 | (number.wrapping_mul(2_654_435_761) & 0xffff);
                let network = Cidr::containing(Ipv4Addr::from_bits(bits), u8::try_from(prefix).unwrap());
                let ports =
                    (number % 3 > 0).then(|| format!(" tcp/{}-{}", number % 90 + 1, number % 90 + 40));
                format!("{network}{}", ports.unwrap_or_default()).parse().unwrap()
            })
            .collect();
        let made = destinations(&list);
        for (index, one) in made.iter().enumerate() {
            for other in made
                .iter()
                .skip(index + 1)
                .filter(|other| one.network.overlaps(other.network))
            {
                let apart = match (one.ports, other.ports) {
                    (None, None) => false,
                    (Some(one), Some(other)) => one.last < other.first || other.last < one.first,
                    (None, Some(_)) | (Some(_), None) => true,
                };
                assert!(apart, "{one:?} {other:?}");
            }
        }
    }
}
