//! Tables, sets, chains and rules in the order the kernel will see them.
//!
//! The vocabulary is only as wide as our own policy. Every word of it has one spelling in nft text (`text.rs`) and one
//! list of kernel expressions (`kernel/expressions.rs`), chosen so that both give the same bytecode.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use crate::binding::Placed;
use crate::{Cidr, IfName, PortRange, Protocol};

/// Name of each of our tables. Tables of other names are never touched.
pub(crate) const TABLE: &str = "agentlab";

/// Set on a frame once its port, MAC and address were compared; checked and removed by the host's own stack.
pub(crate) const VERIFIED: u32 = 0x6167_6c62;

/// A complete policy, comparable. `Display` prints a script that `nft -f` accepts and that replaces whatever stood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruleset {
    pub(crate) tables: Vec<Table>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Family {
    Bridge,
    Arp,
    Inet,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) family: Family,
    pub(crate) sets: Vec<Set>,
    pub(crate) chains: Vec<Chain>,
}

/// Elements that a set filled by packets or by names holds at most: every address of the largest usual agent subnet.
pub(crate) const MOST_SOURCES: u32 = 65_536;

/// Ports that are bound at once at most, and so elements of each set that holds them. The kernel makes room for as many
/// at once: a set that has to grow under a thousand elements takes twice as long to fill.
pub(crate) const MOST_PORTS: u32 = 4096;

/// What is told of a packet: its IP header, and the ports behind the longest one.
pub(crate) const LOGGED_BYTES: u32 = 64;

/// Parts that a key has at most.
const MOST_FIELDS: usize = 4;

/// A named set, or a verdict map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Set {
    pub(crate) name: &'static str,
    pub(crate) fields: &'static [Field],
    /// Elements are ranges.
    pub(crate) interval: bool,
    /// Elements lead to a chain.
    pub(crate) verdicts: bool,
    /// Filled by rules with what packets bring, so its elements are nobody's plan.
    pub(crate) dynamic: bool,
    /// Elements end by themselves, so those that stand are nobody's plan either.
    pub(crate) timed: bool,
    /// Elements it holds at most, where that is bounded.
    pub(crate) size: Option<u32>,
    pub(crate) elements: BTreeSet<Element>,
}

/// Type of one part of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Field {
    IfName,
    Ether,
    Ipv4,
    Protocol,
    Service,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Element {
    key: [Option<Value>; MOST_FIELDS],
    /// Where a map leads.
    pub(crate) chain: Option<&'static str>,
    /// How long it stays, in a set whose elements end by themselves.
    pub(crate) lasts: Option<Lasts>,
}

/// The time of an element that ends by itself, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Lasts {
    /// What it was given.
    pub(crate) given: u64,
    /// What is left of that.
    pub(crate) left: u64,
}

impl Element {
    /// An element that stays.
    pub(crate) fn new<const PARTS: usize>(key: [Value; PARTS]) -> Self {
        const { assert!(PARTS <= MOST_FIELDS, "no set has so many fields") };
        let mut parts = key.into_iter();
        Self {
            key: std::array::from_fn(|_| parts.next()),
            chain: None,
            lasts: None,
        }
    }

    /// The same, in a map that leads to a chain.
    pub(crate) fn leading_to(mut self, chain: &'static str) -> Self {
        self.chain = Some(chain);
        self
    }

    /// The same, in a set whose elements end by themselves.
    #[cfg(feature = "kernel")]
    pub(crate) fn lasting(mut self, lasts: Option<Lasts>) -> Self {
        self.lasts = lasts;
        self
    }

    /// The parts of its key.
    pub(crate) fn key(&self) -> impl Iterator<Item = &Value> {
        self.key.iter().flatten()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Value {
    IfName(IfName),
    Ether([u8; 6]),
    Ipv4(Ipv4Addr),
    Network(Cidr),
    Protocol(Protocol),
    Port(u16),
    Ports(PortRange),
}

impl From<Ipv4Addr> for Value {
    fn from(address: Ipv4Addr) -> Self {
        Self::Ipv4(address)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) name: &'static str,
    pub(crate) base: Option<Base>,
    pub(crate) rules: Vec<Rule>,
}

/// Where a chain hooks into the kernel. The policy is always accept: what is not ours is not judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Base {
    pub(crate) kind: BaseKind,
    pub(crate) hook: Hook,
    pub(crate) priority: i32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BaseKind {
    Filter,
    Nat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) matches: Vec<Match>,
    /// Count what matched.
    pub(crate) counted: bool,
    pub(crate) action: Action,
    /// What a counted rule stands for, in words an operator reads.
    pub(crate) comment: Option<&'static str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Is {
    Equal,
    Not,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Match {
    Name(Direction, Is, IfName),
    Mark(Is, u32),
    /// Addressed to this host by MAC.
    NotToHost,
    Ipv4(Is),
    EtherType(EtherType),
    /// Ethernet/IPv4 ARP, by its header.
    ArpForEthernet,
    ArpOperation(u16),
    /// To 01:80:c2:00:00:00 - 01:80:c2:00:00:0f.
    ToLinkLocalGroup,
    Address(Side, Is, Ipv4Addr),
    Inside(Side, Cidr),
    /// Local, broadcast, multicast or unroutable.
    DestinationNotUnicast,
    TransportProtocol(Protocol),
    DestinationPort(u16),
    /// Sent by a socket of a process under one of these user ids, first to last.
    Owner(u32, u32),
    CtInvalid,
    /// First packet of a flow.
    CtNew,
    /// Belongs to a flow that was answered.
    CtEstablished,
    /// The source has more flows than this, by the books kept in a set.
    FlowsOver(u32, &'static str),
    /// Belongs to a flow that the other side began.
    CtReply,
    /// At most this many per second.
    Limit(u32),
    /// At most this many per second of each source, by the books kept in a set.
    LimitOfSource(u32, &'static str),
    /// Came in by a port of this bridge. Not every kernel can tell.
    OnBridge(IfName),
    In(&'static [Selector], Is, &'static str),
    Map(&'static [Selector], &'static str),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    In,
    Out,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Source,
    Destination,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EtherType {
    Ip,
    Arp,
}

/// A part of a packet that can be looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Selector {
    InName,
    OutName,
    EtherSource,
    EtherDestination,
    IpSource,
    IpDestination,
    ArpSenderEther,
    ArpSenderIp,
    ArpTargetIp,
    IpProtocol,
    DestinationPort,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Only the matches and the counter.
    Continue,
    /// Tells a netlink group of the packet, and goes on.
    Log(u16),
    Accept,
    Drop,
    Goto(&'static str),
    SetMark(u32),
    Masquerade,
    RejectWithReset,
    RejectProhibited,
}

impl Field {
    /// Its width in a key.
    #[cfg_attr(
        not(feature = "kernel"),
        allow(dead_code, reason = "only the kernel half encodes")
    )]
    pub(crate) fn width(self) -> usize {
        match self {
            Self::IfName => IfName::SIZE,
            Self::Ether => 6,
            Self::Ipv4 => 4,
            Self::Protocol => 1,
            Self::Service => 2,
        }
    }
}

impl Selector {
    /// The type of key it is compared with.
    #[cfg_attr(
        not(feature = "kernel"),
        allow(dead_code, reason = "only the kernel half encodes")
    )]
    pub(crate) fn field(self) -> Field {
        match self {
            Self::InName | Self::OutName => Field::IfName,
            Self::EtherSource | Self::EtherDestination | Self::ArpSenderEther => Field::Ether,
            Self::IpSource | Self::IpDestination | Self::ArpSenderIp | Self::ArpTargetIp => Field::Ipv4,
            Self::IpProtocol => Field::Protocol,
            Self::DestinationPort => Field::Service,
        }
    }
}

impl Rule {
    /// Matches that lead somewhere.
    pub(crate) fn new(matches: impl Into<Vec<Match>>, action: Action) -> Self {
        Self {
            matches: matches.into(),
            counted: false,
            action,
            comment: None,
        }
    }

    /// A counted drop with its reason.
    pub(crate) fn deny(matches: impl Into<Vec<Match>>, why: &'static str) -> Self {
        Self {
            matches: matches.into(),
            counted: true,
            action: Action::Drop,
            comment: Some(why),
        }
    }

    /// Counts, and says why.
    pub(crate) fn because(mut self, why: &'static str) -> Self {
        self.counted = true;
        self.comment = Some(why);
        self
    }
}

impl Ruleset {
    /// Adds elements to the sets they belong to.
    pub(crate) fn insert(&mut self, elements: impl Iterator<Item = Placed>) {
        let mut groups: Vec<(Family, &'static str, Vec<Element>)> = Vec::new();
        for (family, set, element) in elements {
            let known = groups
                .iter_mut()
                .find(|group| (group.0, group.1) == (family, set));
            match known {
                Some((_, _, group)) => group.push(element),
                None => groups.push((family, set, vec![element])),
            }
        }
        for (family, name, group) in groups {
            if let Some(set) = self.set_mut(family, name) {
                // Sorted and then built at once, which is several times as fast as one after the other.
                set.elements.append(&mut group.into_iter().collect());
            }
        }
    }

    /// Number of rules, for benchmarks and logs.
    #[must_use]
    pub fn rule_count(&self) -> usize {
        self.tables
            .iter()
            .flat_map(|table| &table.chains)
            .map(|chain| chain.rules.len())
            .sum()
    }

    /// Number of set elements.
    #[must_use]
    pub fn element_count(&self) -> usize {
        self.tables
            .iter()
            .flat_map(|table| &table.sets)
            .map(|set| set.elements.len())
            .sum()
    }

    pub(crate) fn set_mut(&mut self, family: Family, name: &str) -> Option<&mut Set> {
        self.tables
            .iter_mut()
            .find(|table| table.family == family)?
            .sets
            .iter_mut()
            .find(|set| set.name == name)
    }
}
