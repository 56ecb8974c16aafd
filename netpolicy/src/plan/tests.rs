//! What the compile step refuses, and what it promises about every intent.

use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::{PlanError, plan};
use crate::{
    BridgeSpec, Destination, GuestPort, GuestService, HostPolicy, IfName, Intent, PortRange, Protocol, Trust,
    USUAL_DENIAL_GROUP,
};

pub(crate) fn host() -> HostPolicy {
    let tcp = |port| GuestService {
        protocol: Protocol::Tcp,
        port,
    };
    HostPolicy {
        bridge: BridgeSpec {
            name: name("vmbr1"),
            address: Ipv4Addr::new(10, 77, 0, 1),
            prefix: 16,
            mtu: None,
        },
        uplink: Some(name("vmbr0")),
        guest_ports: vec![tcp(8844), tcp(8846)],
        dns: true,
        machine_uids: Some((1_900_000_000, 1_900_004_095)),
        tailnet: Some(name("tailscale0")),
        denial_group: USUAL_DENIAL_GROUP,
    }
}

fn name(text: &str) -> IfName {
    text.parse().unwrap()
}

fn port(number: u8, trust: Trust) -> GuestPort {
    GuestPort {
        name: name(&format!("tap{}i0", 1000 + u32::from(number))),
        mac: [2, 0, 0, 0, 0, number],
        address: Ipv4Addr::new(10, 77, 1, number),
        trust,
    }
}

fn refusal(change: impl FnOnce(&mut Intent)) -> PlanError {
    let mut intent = Intent {
        host: host(),
        ports: vec![port(1, Trust::Nat), port(2, Trust::Sealed)],
    };
    assert!(plan(&intent).is_ok());
    change(&mut intent);
    plan(&intent).unwrap_err()
}

#[test]
fn more_ports_than_the_sets_have_room_for_are_refused() {
    let numbered = |number: u32| GuestPort {
        name: name(&format!("tap{number}i0")),
        mac: std::array::from_fn(|place| {
            if place < 2 {
                2
            } else {
                number.to_be_bytes()[place - 2]
            }
        }),
        address: Ipv4Addr::from_bits(Ipv4Addr::new(10, 77, 1, 0).to_bits() + number),
        trust: Trust::Sealed,
    };
    let error = refusal(|intent| intent.ports = (0..4097).map(numbered).collect());
    assert_eq!(error, PlanError::TooManyPorts { count: 4097 });
}

#[test]
fn user_ids_that_would_cut_off_root_or_nobody_are_refused() {
    for range in [(0, 4095), (7, 7), (8, 7)] {
        let error = refusal(|intent| intent.host.machine_uids = Some(range));
        assert!(matches!(error, PlanError::MachineUids { .. }), "{error}");
    }
}

#[test]
fn ten_thousand_entries_of_an_allowlist_are_refused_at_once() {
    let destination = |number: u32| Destination {
        network: crate::Cidr::containing(Ipv4Addr::from_bits(0x0100_0000 + number), 32),
        ports: None,
    };
    let list = |count| Trust::Allowlist((0..count).map(destination).collect());
    let error = refusal(|intent| intent.ports[0].trust = list(10_000));
    assert!(
        matches!(error, PlanError::LongAllowlist { count: 10_000, .. }),
        "{error}"
    );
    let fitting = Intent {
        host: host(),
        ports: vec![port(1, list(1000))],
    };
    assert!(plan(&fitting).unwrap().element_count() > 1000);
}

#[test]
fn denied_networks_never_overlap_and_the_larger_one_stays() {
    let mut ruleset = super::skeleton(&host());
    let networks = [
        "9.9.9.0/24",
        "9.9.0.0/16",
        "9.9.9.9/32",
        "10.1.0.0/16",
        "192.0.0.0/8",
        "0.0.0.0/0",
    ];
    crate::rules::deny_networks(&mut ruleset, networks.map(|text| text.parse().unwrap()));
    let text = ruleset.to_string();
    for closed in ["9.9.0.0/16", "10.0.0.0/8", "192.0.0.0/8", "224.0.0.0/3"] {
        assert!(
            text.contains(&format!("\t{closed},")),
            "{closed} is missing in {text}"
        );
    }
    for covered in ["9.9.9.0", "10.1.0.0", "192.0.2.0", "192.168.0.0", "\t0.0.0.0/0"] {
        assert!(!text.contains(&format!("\t{covered}")), "{covered} is in {text}");
    }
}

#[test]
fn a_subnet_that_is_public_or_useless_is_refused() {
    for (address, prefix) in [
        ("9.9.0.1", 16),
        ("172.15.0.1", 16),
        ("100.128.0.1", 16),
        ("192.168.0.1", 8),
        ("172.16.0.1", 8),
    ] {
        let refused = refusal(|intent| {
            intent.host.bridge.address = address.parse().unwrap();
            intent.host.bridge.prefix = prefix;
        });
        assert!(
            matches!(refused, PlanError::PublicSubnet { .. }),
            "{address}/{prefix}: {refused}"
        );
    }
    for prefix in [0, 7, 30, 31, 32, 33, 255] {
        let refused = refusal(|intent| intent.host.bridge.prefix = prefix);
        assert!(
            matches!(refused, PlanError::Prefix { .. }),
            "/{prefix}: {refused}"
        );
    }
    for address in ["10.77.0.0", "10.77.255.255"] {
        let refused = refusal(|intent| intent.host.bridge.address = address.parse().unwrap());
        assert!(
            matches!(refused, PlanError::BridgeAddress { .. }),
            "{address}: {refused}"
        );
    }
}

#[test]
fn an_uplink_that_is_the_bridge_or_absent_is_refused() {
    let refused = refusal(|intent| intent.host.uplink = Some(name("vmbr1")));
    assert!(matches!(refused, PlanError::UplinkIsBridge { .. }), "{refused}");
    let refused = refusal(|intent| intent.host.uplink = None);
    assert!(matches!(refused, PlanError::NoUplink { .. }), "{refused}");
}

#[test]
fn published_ports_that_are_none_or_twice_there_are_refused() {
    let refused = refusal(|intent| {
        intent.host.guest_ports.push(GuestService {
            protocol: Protocol::Udp,
            port: 0,
        })
    });
    assert!(matches!(refused, PlanError::Service { .. }), "{refused}");
    let refused = refusal(|intent| {
        intent.host.guest_ports.push(GuestService {
            protocol: Protocol::Tcp,
            port: 8844,
        })
    });
    assert!(matches!(refused, PlanError::Service { .. }), "{refused}");
}

#[test]
fn two_ports_that_share_a_name_a_mac_or_an_address_are_refused() {
    type Change = fn(&mut GuestPort, &GuestPort);
    let changes: [(Change, &str); 3] = [
        (|one, other| one.name = other.name.clone(), "name"),
        (|one, other| one.mac = other.mac, "MAC"),
        (|one, other| one.address = other.address, "address"),
    ];
    for (change, what) in changes {
        let refused = refusal(|intent| {
            let other = intent.ports[1].clone();
            change(&mut intent.ports[0], &other);
        });
        assert!(
            matches!(refused, PlanError::Shared { what: shared, .. } if shared == what),
            "{what}: {refused}"
        );
    }
}

#[test]
fn addresses_and_names_that_are_somebody_else_s_are_refused() {
    for address in [
        "10.78.0.5",
        "10.77.0.1",
        "10.77.0.0",
        "10.77.255.255",
        "192.168.1.1",
    ] {
        let refused = refusal(|intent| intent.ports[0].address = address.parse().unwrap());
        assert!(
            matches!(refused, PlanError::GuestAddress { .. }),
            "{address}: {refused}"
        );
    }
    for taken in ["vmbr0", "vmbr1", "lo"] {
        let refused = refusal(|intent| intent.ports[0].name = name(taken));
        assert!(
            matches!(refused, PlanError::PortName { .. }),
            "{taken}: {refused}"
        );
    }
    for mac in [[0; 6], [1, 0, 0x5e, 0, 0, 1], [0xff; 6]] {
        let refused = refusal(|intent| intent.ports[0].mac = mac);
        assert!(
            matches!(refused, PlanError::GuestMac { .. }),
            "{mac:?}: {refused}"
        );
    }
}

#[test]
fn allowlists_that_one_interval_set_cannot_hold_are_refused() {
    let allow = |network: &str, ports: Option<(u16, u16)>| Destination {
        network: network.parse().unwrap(),
        ports: ports.map(|(first, last)| PortRange {
            protocol: Protocol::Tcp,
            first,
            last,
        }),
    };
    for list in [
        vec![allow("1.0.0.0/8", None), allow("1.1.1.1", None)],
        vec![
            allow("1.0.0.0/8", None),
            allow("1.0.0.0/16", None),
            allow("2.0.0.0/8", None),
        ],
        vec![
            allow("1.1.1.1", Some((80, 90))),
            allow("1.1.0.0/16", Some((85, 100))),
        ],
        vec![allow("1.1.1.1", Some((90, 80)))],
        vec![allow("1.1.1.1", Some((0, 80)))],
    ] {
        let refused = refusal(|intent| intent.ports[0].trust = Trust::Allowlist(list.clone()));
        assert!(
            matches!(refused, PlanError::Allowlist { .. }),
            "{list:?}: {refused}"
        );
    }
    let fine = vec![
        allow("1.1.1.1", Some((80, 80))),
        allow("1.1.1.1", Some((443, 443))),
        allow("1.1.1.1", Some((443, 443))),
        allow("1.1.0.0/16", None),
    ];
    assert!(
        plan(&Intent {
            host: host(),
            ports: vec![port(1, Trust::Allowlist(fine))]
        })
        .is_ok()
    );
}

#[test]
fn without_an_uplink_no_rule_accepts_towards_the_outside() {
    let mut host = host();
    host.uplink = None;
    let text = plan(&Intent {
        host,
        ports: vec![port(1, Trust::Off)],
    })
    .unwrap()
    .to_string();
    assert!(!text.contains("masquerade") && !text.contains("vmbr0"), "{text}");
}

fn any_trust() -> impl Strategy<Value = Trust> {
    let network = (1_u8..=223, any::<u8>(), 9_u8..=32);
    let destinations = proptest::collection::vec(network, 0..4).prop_map(|networks| {
        let one = |(first, second, prefix)| Destination {
            network: crate::Cidr::containing(Ipv4Addr::new(first, second, 0, 0), prefix),
            ports: None,
        };
        Trust::Allowlist(networks.into_iter().map(one).collect())
    });
    prop_oneof![
        Just(Trust::Sealed),
        Just(Trust::BootstrapOnly),
        Just(Trust::Off),
        Just(Trust::Nat),
        destinations
    ]
}

fn any_ports() -> impl Strategy<Value = Vec<GuestPort>> {
    proptest::collection::vec((1_u8..=250, any_trust()), 0..12).prop_map(|ports| {
        ports
            .into_iter()
            .map(|(number, trust)| port(number, trust))
            .collect()
    })
}

/// Lines of the text that are about this guest.
fn about(text: &str, port: &GuestPort) -> Vec<String> {
    let (quoted, address) = (format!("\"{}\"", port.name), port.address.to_string());
    let mentions =
        |line: &&str| line.contains(&quoted) || line.split([' ', ',', '\t']).any(|word| word == address);
    text.lines().filter(mentions).map(str::to_owned).collect()
}

proptest! {
    #[test]
    fn one_more_sandbox_changes_nothing_for_another(ports in any_ports(), trust in any_trust()) {
        let newcomer = port(251, trust);
        let Ok(before) = plan(&Intent { host: host(), ports: ports.clone() }) else { return Ok(()) };
        let mut more = ports.clone();
        more.push(newcomer);
        let Ok(after) = plan(&Intent { host: host(), ports: more }) else { return Ok(()) };
        prop_assert_eq!(before.rule_count(), after.rule_count());
        let (before, after) = (before.to_string(), after.to_string());
        for port in &ports {
            prop_assert_eq!(about(&before, port), about(&after, port));
        }
    }

    #[test]
    fn a_sealed_guest_is_in_no_set_that_opens_anything(ports in any_ports()) {
        let Ok(ruleset) = plan(&Intent { host: host(), ports: ports.clone() }) else { return Ok(()) };
        for port in ports.iter().filter(|port| port.trust == Trust::Sealed) {
            for table in &ruleset.tables {
                for set in table.sets.iter().filter(|set| !["ports", "parked"].contains(&set.name)) {
                    let text = set.elements.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
                    prop_assert!(about(&text, port).is_empty(), "{} of {}: {}", set.name, table.family, text);
                }
            }
        }
    }

    #[test]
    fn no_intent_makes_the_compiler_panic(
        address in any::<u32>(), prefix in any::<u8>(), guest in any::<u32>(), mac in any::<[u8; 6]>(),
        services in proptest::collection::vec(any::<u16>(), 0..4), trust in any_trust(),
    ) {
        let mut host = host();
        host.bridge.address = Ipv4Addr::from_bits(address);
        host.bridge.prefix = prefix;
        host.guest_ports =
            services.into_iter().map(|port| GuestService { protocol: Protocol::Tcp, port }).collect();
        let port = GuestPort { mac, address: Ipv4Addr::from_bits(guest), ..port(1, trust) };
        if let Ok(ruleset) = plan(&Intent { host, ports: vec![port] }) {
            prop_assert!(!ruleset.to_string().is_empty());
        }
    }
}
