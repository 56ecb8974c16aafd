//! Everything between a guest and what is not a guest: the host, the uplink, and what lies behind it.

use super::{
    ALLOWED, ALLOWED_PORTS, PORTS, RESOLVED, RESOLVED_PORTS, RUNNING, TRUST, base_chain, chain, on_bridge,
    set, set_of_ports,
};
use crate::ruleset::{
    Action, Base, BaseKind, Chain, Direction, Element, Family, Field, Hook, Is, MOST_SOURCES, Match, Rule,
    Selector, Set, Side, Table, VERIFIED, Value,
};
use crate::{Cidr, HostPolicy, IfName, Protocol};

const PUBLISHED: &str = "published";
/// Every guest that has flows, with their number.
const FLOWS: &str = "flows";
/// Every guest that was refused something, with how much of it was told lately.
const TOLD: &str = "told";
/// Refusals of one guest that the daemon is told of, each second.
const TOLD_PER_SECOND: u32 = 5;
/// Flows that one guest may have at once, to the host and to the outside together. The kernel's table of flows is the
/// whole host's: full, it refuses everybody. A busy agent has some hundred.
const FLOWS_PER_GUEST: u32 = 4096;

/// Networks that no guest reaches.
pub(super) const DENIED: &str = "denied";

/// Private and special ranges. No trust level opens any of them.
const DENIED_NETWORKS: [&str; 14] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/3",
];

/// Before defragmentation and connection tracking, so that what is dropped leaves no trace in either.
const BEFORE_DEFRAGMENTATION: i32 = -450;
/// Just before the usual filter chains: our drop comes first, our accept is not final.
const BEFORE_FILTER: i32 = -5;
const SOURCE_NAT: i32 = 100;

/// Refusals sent per second and chain, beyond which the rest is dropped silently.
const REFUSALS_PER_SECOND: u32 = 50;

pub(super) fn table(host: &HostPolicy) -> Table {
    let mut chains = vec![refuse_chain(host)];
    chains.extend(trust_chains(host));
    chains.extend([
        from_bridge_chain(),
        guest_input_chain(host),
        guest_forward_chain(host),
    ]);
    chains.extend(to_guest_chains(host));
    chains.extend(inet_base_chains(host));
    Table {
        family: Family::Inet,
        sets: inet_sets(host),
        chains,
    }
}

fn inet_sets(host: &HostPolicy) -> Vec<Set> {
    let mut published = set(PUBLISHED, &[Field::Protocol, Field::Service]);
    published.elements.extend(
        host.guest_ports
            .iter()
            .map(|service| Element::new([Value::Protocol(service.protocol), Value::Port(service.port)])),
    );
    let mut denied = Set {
        interval: true,
        ..set(DENIED, &[Field::Ipv4])
    };
    denied
        .elements
        .extend(denied_networks().map(|network| Element::new([Value::Network(network)])));
    vec![
        set_of_ports(PORTS, &[Field::IfName]),
        Set {
            dynamic: true,
            size: Some(MOST_SOURCES),
            ..set(FLOWS, &[Field::Ipv4])
        },
        Set {
            dynamic: true,
            size: Some(MOST_SOURCES),
            ..set(TOLD, &[Field::Ipv4])
        },
        published,
        denied,
        set_of_ports(RUNNING, &[Field::Ipv4]),
        Set {
            interval: true,
            ..set(ALLOWED, &[Field::Ipv4, Field::Ipv4])
        },
        Set {
            interval: true,
            ..set(
                ALLOWED_PORTS,
                &[Field::Ipv4, Field::Ipv4, Field::Protocol, Field::Service],
            )
        },
        Set {
            timed: true,
            size: Some(MOST_SOURCES),
            ..set(RESOLVED, &[Field::Ipv4, Field::Ipv4])
        },
        Set {
            timed: true,
            size: Some(MOST_SOURCES),
            ..set(
                RESOLVED_PORTS,
                &[Field::Ipv4, Field::Ipv4, Field::Protocol, Field::Service],
            )
        },
        Set {
            verdicts: true,
            ..set_of_ports(TRUST, &[Field::Ipv4])
        },
    ]
}

/// Private and special ranges.
pub(super) fn denied_networks() -> impl Iterator<Item = Cidr> {
    DENIED_NETWORKS.iter().filter_map(|text| text.parse().ok())
}

/// An agent that is refused should learn it at once instead of waiting for a timeout.
fn refuse_chain(host: &HostPolicy) -> Chain {
    let limit = Match::Limit(REFUSALS_PER_SECOND);
    chain(
        "refuse",
        vec![
            Rule::new([], Action::Continue).because("Refused"),
            Rule::new(
                [
                    Match::Ipv4(Is::Equal),
                    Match::LimitOfSource(TOLD_PER_SECOND, TOLD),
                ],
                Action::Log(host.denial_group),
            ),
            Rule::new(
                [Match::TransportProtocol(Protocol::Tcp), limit.clone()],
                Action::RejectWithReset,
            ),
            Rule::new([limit], Action::RejectProhibited),
            Rule::new([], Action::Drop),
        ],
    )
}

/// What each trust level means. Reached with a packet to the host, through the uplink, or of a reply to the guest;
/// private ranges and other ways out were refused before.
fn trust_chains(host: &HostPolicy) -> Vec<Chain> {
    use Action::{Accept, Goto};
    let to_bridge_address = Match::Address(Side::Destination, Is::Equal, host.bridge.address);
    let published = Rule::new(
        [
            Match::Ipv4(Is::Equal),
            to_bridge_address.clone(),
            Match::In(
                &[Selector::IpProtocol, Selector::DestinationPort],
                Is::Equal,
                PUBLISHED,
            ),
        ],
        Accept,
    );
    let resolver = |protocol| {
        Rule::new(
            [
                Match::Ipv4(Is::Equal),
                to_bridge_address.clone(),
                Match::TransportProtocol(protocol),
                Match::DestinationPort(53),
            ],
            Accept,
        )
    };
    let confined = || {
        vec![
            Rule::deny(
                [on_bridge(host, Direction::Out)],
                "Reply from outside to a guest that must not get any",
            ),
            published.clone(),
            Rule::new([], Goto("refuse")),
        ]
    };
    let leaving = |ways_out: Vec<Rule>| {
        let mut rules = vec![
            Rule::new([on_bridge(host, Direction::Out)], Accept),
            published.clone(),
        ];
        if host.dns {
            rules.extend([resolver(Protocol::Udp), resolver(Protocol::Tcp)]);
        }
        rules.extend(other_resolvers());
        rules.extend(ways_out);
        rules.push(Rule::new([], Goto("refuse")));
        rules
    };
    vec![
        chain("bootstrap", confined()),
        chain("off", confined()),
        chain("nat", leaving(through_uplink(host, &[]))),
        chain("allowlist", leaving(listed_ways(host))),
    ]
}

/// Whatever else is open: what is asked of another resolver is asked past the host's, which filters, limits and tells.
fn other_resolvers() -> Vec<Rule> {
    let other_resolver = |port, protocol| {
        Rule::new(
            [
                Match::Ipv4(Is::Equal),
                Match::TransportProtocol(protocol),
                Match::DestinationPort(port),
            ],
            Action::Goto("refuse"),
        )
        .because("Resolver other than the host's")
    };
    [53, 853]
        .into_iter()
        .flat_map(|port| [Protocol::Udp, Protocol::Tcp].map(|protocol| other_resolver(port, protocol)))
        .collect()
}

fn through_uplink(host: &HostPolicy, more: &[Match]) -> Vec<Rule> {
    host.uplink
        .iter()
        .map(|uplink| {
            let mut matches = vec![Match::Name(Direction::Out, Is::Equal, uplink.clone())];
            matches.extend_from_slice(more);
            Rule::new(matches, Action::Accept)
        })
        .collect()
}

/// Networks, networks with ports, and what names stand for at the moment. What began while its name stood for an address
/// goes on when it does not any more: flows are cut when trust falls, not by time.
fn listed_ways(host: &HostPolicy) -> Vec<Rule> {
    let mut rules = Vec::new();
    let to_network = [Selector::IpSource, Selector::IpDestination].as_slice();
    let to_port = [
        Selector::IpSource,
        Selector::IpDestination,
        Selector::IpProtocol,
        Selector::DestinationPort,
    ]
    .as_slice();
    for (selectors, set) in [
        (to_network, ALLOWED),
        (to_port, ALLOWED_PORTS),
        (to_network, RESOLVED),
        (to_port, RESOLVED_PORTS),
    ] {
        let allowed = Match::In(selectors, Is::Equal, set);
        rules.extend(through_uplink(host, &[Match::Ipv4(Is::Equal), allowed]));
    }
    rules.extend(through_uplink(
        host,
        &[Match::Ipv4(Is::Equal), Match::CtEstablished],
    ));
    rules
}

fn from_bridge_chain() -> Chain {
    chain(
        "from_bridge",
        vec![
            Rule::deny(
                [Match::Mark(Is::Not, VERIFIED)],
                "Packet from a port that nobody bound",
            ),
            Rule::new([], Action::SetMark(0)),
            Rule::deny(
                [Match::NotToHost],
                "Broadcast, multicast, or unicast in such a frame",
            ),
            Rule::deny([Match::Ipv4(Is::Not)], "IPv6"),
        ],
    )
}

fn too_many_flows() -> Rule {
    Rule::new(
        [
            Match::Ipv4(Is::Equal),
            Match::CtNew,
            Match::FlowsOver(FLOWS_PER_GUEST, FLOWS),
        ],
        Action::Goto("refuse"),
    )
    .because("More flows at once than one guest may have")
}

fn guest_input_chain(host: &HostPolicy) -> Chain {
    chain(
        "guest_input",
        vec![
            Rule::deny([Match::CtInvalid], "Packet of no known flow, to the host"),
            Rule::new(
                [
                    Match::Ipv4(Is::Equal),
                    Match::Address(Side::Destination, Is::Not, host.bridge.address),
                ],
                Action::Goto("refuse"),
            )
            .because("Address of the host other than the bridge's"),
            too_many_flows(),
            Rule::new(
                [Match::Ipv4(Is::Equal), Match::Map(&[Selector::IpSource], TRUST)],
                Action::Continue,
            ),
            Rule::deny([], "Guest without trust, to the host"),
        ],
    )
}

fn guest_forward_chain(host: &HostPolicy) -> Chain {
    let mut rules = vec![
        Rule::new([on_bridge(host, Direction::Out)], Action::Goto("refuse"))
            .because("Guest to guest through the host's routing"),
    ];
    rules.extend(host.tailnet.iter().map(|tailnet| {
        Rule::new(
            [
                Match::Name(Direction::Out, Is::Equal, tailnet.clone()),
                Match::Ipv4(Is::Equal),
                Match::CtReply,
                Match::In(&[Selector::IpSource], Is::Equal, RUNNING),
            ],
            Action::Accept,
        )
    }));
    match &host.uplink {
        None => rules.push(Rule::new([], Action::Goto("refuse")).because("No uplink is configured")),
        Some(uplink) => rules.extend([
            Rule::deny([Match::CtInvalid], "Packet of no known flow, to the uplink"),
            Rule::new(
                [Match::Name(Direction::Out, Is::Not, uplink.clone())],
                Action::Goto("refuse"),
            )
            .because("Way out other than the uplink"),
            Rule::new(
                [
                    Match::Ipv4(Is::Equal),
                    Match::In(&[Selector::IpDestination], Is::Equal, DENIED),
                ],
                Action::Goto("refuse"),
            )
            .because("Private or special range"),
            Rule::deny(
                [Match::DestinationNotUnicast],
                "Destination that is the host's own, broadcast or multicast",
            ),
            too_many_flows(),
            Rule::new(
                [Match::Ipv4(Is::Equal), Match::Map(&[Selector::IpSource], TRUST)],
                Action::Continue,
            ),
            Rule::deny([], "Guest without trust, to the uplink"),
        ]),
    }
    chain("guest_forward", rules)
}

fn to_guest_chains(host: &HostPolicy) -> [Chain; 2] {
    let mut to_guest = vec![Rule::new(
        [
            Match::Ipv4(Is::Equal),
            Match::CtReply,
            Match::Map(&[Selector::IpDestination], TRUST),
        ],
        Action::Continue,
    )];
    to_guest.extend(host.tailnet.iter().map(|tailnet| {
        Rule::new(
            [
                Match::Name(Direction::In, Is::Equal, tailnet.clone()),
                Match::Ipv4(Is::Equal),
                Match::In(&[Selector::IpDestination], Is::Equal, RUNNING),
            ],
            Action::Accept,
        )
    }));
    to_guest.push(Rule::deny([], "From outside to a guest that did not ask"));
    [
        chain("to_guest", to_guest),
        chain(
            "host_to_guest",
            vec![
                Rule::new([Match::Ipv4(Is::Equal), Match::CtReply], Action::Accept),
                Rule::deny([], "From the host to a guest that did not ask"),
            ],
        ),
    ]
}

fn inet_base_chains(host: &HostPolicy) -> Vec<Chain> {
    let bridge_in = on_bridge(host, Direction::In);
    let bridge_out = on_bridge(host, Direction::Out);
    let not_in = |name: &IfName| Match::Name(Direction::In, Is::Not, name.clone());
    let mut input = vec![Rule::new([bridge_in.clone()], Action::Goto("guest_input"))];
    if let Ok(loopback) = "lo".parse() {
        input.push(Rule::deny(
            [
                not_in(&loopback),
                Match::Ipv4(Is::Equal),
                Match::Address(Side::Destination, Is::Equal, host.bridge.address),
            ],
            "Bridge address from outside the bridge",
        ));
    }
    // First: a machine's process has no business with the host's network at all, its guest has a cable of its own.
    let mut output: Vec<Rule> = host
        .machine_uids
        .map(|(first, last)| {
            Rule::deny(
                [Match::Owner(first, last)],
                "Virtual machine's process that talks to the network",
            )
        })
        .into_iter()
        .collect();
    output.push(Rule::new([bridge_out.clone()], Action::Goto("host_to_guest")));
    let mut chains = vec![
        base_chain(
            "prerouting",
            Hook::Prerouting,
            BEFORE_DEFRAGMENTATION,
            vec![
                Rule::deny(
                    [Match::In(&[Selector::InName], Is::Equal, PORTS)],
                    "Packet delivered on a port itself",
                ),
                Rule::deny(
                    [not_in(&host.bridge.name), Match::Mark(Is::Equal, VERIFIED)],
                    "Guest's port that hangs on another bridge",
                ),
                Rule::new([bridge_in.clone()], Action::Goto("from_bridge")),
            ],
        ),
        base_chain("input", Hook::Input, BEFORE_FILTER, input),
        base_chain(
            "forward",
            Hook::Forward,
            BEFORE_FILTER,
            vec![
                Rule::new([bridge_in], Action::Goto("guest_forward")),
                Rule::new([bridge_out], Action::Goto("to_guest")),
            ],
        ),
        base_chain("output", Hook::Output, BEFORE_FILTER, output),
    ];
    if let Some(uplink) = &host.uplink {
        chains.push(Chain {
            name: "postrouting",
            base: Some(Base {
                kind: BaseKind::Nat,
                hook: Hook::Postrouting,
                priority: SOURCE_NAT,
            }),
            rules: vec![Rule::new(
                [
                    Match::Ipv4(Is::Equal),
                    Match::Inside(Side::Source, host.bridge.subnet()),
                    Match::Name(Direction::Out, Is::Equal, uplink.clone()),
                ],
                Action::Masquerade,
            )],
        });
    }
    chains
}
