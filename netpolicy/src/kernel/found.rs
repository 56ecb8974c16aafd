//! What a standing policy says of its host: the reverse of the rules, as far as operators choose.

use std::net::Ipv4Addr;

use super::attributes::Attributes;
use super::standing::{FAMILIES, Rule, Standing, Table};
use crate::{GuestService, IfName, Protocol};

/// Keys of `meta` expressions.
const IN_NAME: u32 = 6;
const OUT_NAME: u32 = 7;
const OWNER: u32 = 10;

/// What the tables tell.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) bridge: IfName,
    /// `None` when the rules that name it are gone.
    pub(crate) address: Option<Ipv4Addr>,
    pub(crate) uplink: Option<IfName>,
    pub(crate) guest_ports: Vec<GuestService>,
    pub(crate) dns: bool,
    pub(crate) machine_uids: Option<(u32, u32)>,
    pub(crate) denial_group: Option<u16>,
    pub(crate) tailnet: Option<IfName>,
}

impl Found {
    /// Each value is looked for in two places: one rule that is gone is drift, and must not hide as another policy.
    pub(crate) fn of(standing: &Standing) -> Option<Self> {
        let [_, _, (inet, _)] = FAMILIES;
        let table = standing.tables.get(&inet)?;
        let bridge = first(table, "output", |rule| name(rule, OUT_NAME))
            .or_else(|| first(table, "forward", |rule| name(rule, IN_NAME)))?;
        let uplink = first(table, "postrouting", |rule| name(rule, OUT_NAME)).or_else(|| {
            first(table, "guest_forward", |rule| {
                name(rule, OUT_NAME).filter(|name| *name != bridge && answered(rule).is_none())
            })
        });
        // Port 53 of the bridge address; that of all others is in a rule that refuses.
        let resolver = |rule: &Rule| {
            compared::<2>(rule).filter(|port| u16::from_be_bytes(*port) == 53 && address(rule).is_some())
        };
        let address = first(table, "guest_input", address).or_else(|| first(table, "input", address));
        let published = table.sets.get("published").into_iter();
        Some(Self {
            address,
            uplink,
            guest_ports: published
                .flat_map(|set| &set.elements)
                .filter_map(|element| service(&element.key))
                .collect(),
            dns: ["nat", "allowlist"]
                .into_iter()
                .any(|chain| first(table, chain, resolver).is_some()),
            machine_uids: first(table, "output", owners),
            tailnet: first(table, "to_guest", |rule| name(rule, IN_NAME))
                .or_else(|| first(table, "guest_forward", answered)),
            denial_group: first(table, "refuse", log_group),
            bridge,
        })
    }
}

fn first<T>(table: &Table, chain: &str, look: impl Fn(&Rule) -> Option<T>) -> Option<T> {
    table.chains.get(chain)?.rules.iter().find_map(look)
}

/// The interface that a rule compares with.
fn name(rule: &Rule, key: u32) -> Option<IfName> {
    const META_KEY: u16 = 2;
    let pairs = rule.expressions.iter().zip(rule.expressions.iter().skip(1));
    let (_, (_, compared)) = pairs.into_iter().find(|((load, what), (compare, _))| {
        let asked = Attributes(what)
            .find(META_KEY)
            .map(|attribute| attribute.number());
        load == "meta" && asked == Some(key) && compare == "cmp"
    })?;
    let bytes = data(compared)?;
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    std::str::from_utf8(bytes.get(..end)?).ok()?.parse().ok()
}

/// The address that a rule compares with. An IPv4 packet is told by one byte, an interface by more than four.
fn address(rule: &Rule) -> Option<Ipv4Addr> {
    let loads_address = rule.expressions.iter().any(|(name, _)| name == "payload");
    compared::<4>(rule).filter(|_| loads_address).map(Ipv4Addr::from)
}

/// The user ids that a rule is about: the bounds it compares with.
fn owners(rule: &Rule) -> Option<(u32, u32)> {
    const META_KEY: u16 = 2;
    let by_owner = rule.expressions.iter().any(|(name, attributes)| {
        let key = Attributes(attributes).find(META_KEY);
        name == "meta" && key.map(|key| key.number()) == Some(OWNER)
    });
    let mut bounds = comparisons(rule).filter_map(|bytes| Some(u32::from_be_bytes(bytes.try_into().ok()?)));
    by_owner.then(|| Some((bounds.next()?, bounds.next()?)))?
}

/// The first value of exactly this size that a rule compares with.
fn compared<const SIZE: usize>(rule: &Rule) -> Option<[u8; SIZE]> {
    comparisons(rule).find_map(|bytes| bytes.try_into().ok())
}

fn comparisons(rule: &Rule) -> impl Iterator<Item = &[u8]> {
    let all = rule.expressions.iter().filter(|(name, _)| name == "cmp");
    all.filter_map(|(_, attributes)| data(attributes))
}

fn data(comparison: &[u8]) -> Option<&[u8]> {
    const DATA: u16 = 3;
    const VALUE: u16 = 1;
    Some(Attributes(comparison).find(DATA)?.inside().find(VALUE)?.value)
}

/// The interface that answers leave by.
fn answered(rule: &Rule) -> Option<IfName> {
    let about_flows = rule.expressions.iter().any(|(name, _)| name == "ct");
    name(rule, OUT_NAME).filter(|_| about_flows)
}

/// The group that a rule tells.
fn log_group(rule: &Rule) -> Option<u16> {
    const GROUP: u16 = 1;
    let (_, attributes) = rule.expressions.iter().find(|(name, _)| name == "log")?;
    let group = Attributes(attributes).find(GROUP)?;
    Some(u16::from_be_bytes(*group.value.first_chunk()?))
}

fn service(key: &[u8]) -> Option<GuestService> {
    let protocol = [Protocol::Tcp, Protocol::Udp]
        .into_iter()
        .find(|protocol| key.first() == Some(&protocol.number()))?;
    let port = u16::from_be_bytes(*key.get(4..6)?.first_chunk()?);
    Some(GuestService { protocol, port })
}
