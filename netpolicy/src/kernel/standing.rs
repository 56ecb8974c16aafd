//! What stands, or would stand: our tables as the kernel describes them.
//!
//! Read from dumps, and from the bytes of a transaction that we would send. Two readings are compared attribute by
//! attribute; what only the kernel adds (handles, counters, set ids) is not looked at.

use std::collections::{BTreeMap, BTreeSet};

use super::attributes::{Attribute, Attributes, Messages, put_text};
use super::encode::{SET_EVAL, SET_TIMEOUT, Transaction};
use super::error::EnforceError;
use super::expressions::GOTO;
use super::socket::{NetfilterSocket, request};
use crate::ruleset::{Lasts, TABLE};
use crate::{Drift, Ruleset};

const NFTABLES: u8 = 10;
const NEW_TABLE: u8 = 0;
const GET_TABLE: u8 = 1;
const NEW_CHAIN: u8 = 3;
const GET_CHAIN: u8 = 4;
const NEW_RULE: u8 = 6;
const GET_RULE: u8 = 7;
const NEW_SET: u8 = 9;
const GET_SET: u8 = 10;
const NEW_ELEMENT: u8 = 12;
const GET_ELEMENT: u8 = 13;
/// Families we have tables in, as the kernel numbers them.
pub(crate) const FAMILIES: [(u8, &str); 3] = [(7, "bridge"), (3, "arp"), (1, "inet")];

/// Our tables by family.
#[derive(Debug, Default, Clone)]
pub(crate) struct Standing {
    pub(crate) tables: BTreeMap<u8, Table>,
}

#[derive(Debug, Default, Clone)]
pub(crate) struct Table {
    pub(crate) chains: BTreeMap<String, Chain>,
    pub(crate) sets: BTreeMap<String, Set>,
}

#[derive(Debug, Default, Clone)]
pub(crate) struct Chain {
    /// Hook, priority, policy and type; `None` for a chain that only others lead to.
    pub(crate) base: Option<(u32, u32, u32, String)>,
    pub(crate) rules: Vec<Rule>,
}

#[derive(Debug, Default, Clone)]
pub(crate) struct Rule {
    /// Names and attributes, as bytes.
    pub(crate) expressions: Vec<(String, Vec<u8>)>,
    pub(crate) comment: Option<String>,
    /// Packets and bytes, where the rule counts.
    pub(crate) counter: Option<(u64, u64)>,
}

#[derive(Debug, Default, Clone)]
pub(crate) struct Set {
    /// Flags, key type, key length, data type.
    pub(crate) shape: [u32; 4],
    pub(crate) elements: BTreeSet<Element>,
}

#[derive(Debug, Default, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Element {
    pub(crate) key: Vec<u8>,
    /// Last key of a range.
    pub(crate) end: Option<Vec<u8>>,
    pub(crate) flags: u32,
    /// The chain it leads to.
    pub(crate) chain: Option<String>,
    /// Its time, where it ends by itself.
    pub(crate) lasts: Option<Lasts>,
}

impl Standing {
    /// Reads our tables. Absent ones are absent; tables of other names are not looked at.
    pub(crate) fn read(socket: &mut NetfilterSocket) -> Result<Self, EnforceError> {
        let mut standing = Self::default();
        let mut table_name = Vec::new();
        put_text(&mut table_name, 1, TABLE);
        for (family, _) in FAMILIES {
            standing.gather(
                socket,
                "listing tables",
                &request(NFTABLES, GET_TABLE, family, &[]),
            )?;
            let Some(table) = standing.tables.get(&family) else {
                continue;
            };
            debug_assert!(table.chains.is_empty(), "a table is read once");
            standing.gather(
                socket,
                "listing chains",
                &request(NFTABLES, GET_CHAIN, family, &[]),
            )?;
            standing.gather(
                socket,
                "listing rules",
                &request(NFTABLES, GET_RULE, family, &table_name),
            )?;
            standing.gather(
                socket,
                "listing sets",
                &request(NFTABLES, GET_SET, family, &table_name),
            )?;
            let sets: Vec<String> = standing
                .tables
                .get(&family)
                .map(|table| table.sets.keys().cloned().collect())
                .unwrap_or_default();
            for set in sets {
                let mut attributes = table_name.clone();
                put_text(&mut attributes, 2, &set);
                standing.gather(
                    socket,
                    "listing elements",
                    &request(NFTABLES, GET_ELEMENT, family, &attributes),
                )?;
            }
        }
        Ok(standing)
    }

    /// Elements of one of our sets; none where the set is not.
    pub(crate) fn elements(
        socket: &mut NetfilterSocket,
        family: u8,
        set: &str,
    ) -> Result<BTreeSet<Element>, EnforceError> {
        let mut standing = Self::default();
        standing.tables.insert(family, Table::default());
        let mut attributes = Vec::new();
        put_text(&mut attributes, 1, TABLE);
        put_text(&mut attributes, 2, set);
        let read = standing.gather(
            socket,
            "listing elements",
            &request(NFTABLES, GET_ELEMENT, family, &attributes),
        );
        match read {
            Err(EnforceError::Netfilter { source, .. }) if source.raw_os_error() == Some(libc::ENOENT) => {
                return Ok(BTreeSet::new());
            }
            other => other?,
        }
        let table = standing.tables.remove(&family);
        let set = table.and_then(|mut table| table.sets.remove(set));
        Ok(set.map(|set| set.elements).unwrap_or_default())
    }

    fn gather(
        &mut self,
        socket: &mut NetfilterSocket,
        action: &'static str,
        request: &[u8],
    ) -> Result<(), EnforceError> {
        // Gathered first and noted afterwards: a disturbed dump begins again, and must not leave half of itself.
        let found = socket.dump(action, request, |kind, family, attributes| {
            Some((kind, family, attributes.0.to_vec()))
        })?;
        for (kind, family, bytes) in found {
            self.note(kind, family, Attributes(&bytes));
        }
        Ok(())
    }

    /// What should stand.
    pub(crate) fn of(ruleset: &Ruleset) -> Result<Self, EnforceError> {
        Ok(Self::expected(&Transaction::replace(ruleset).bytes()?))
    }

    /// What would stand after a transaction that replaces everything.
    fn expected(transaction: &[u8]) -> Self {
        let mut standing = Self::default();
        for message in Messages(transaction) {
            if let Some((family, attributes)) = message.netfilter() {
                standing.note(message.kind, family, attributes);
            }
        }
        standing
    }

    fn note(&mut self, kind: u16, family: u8, attributes: Attributes<'_>) {
        let [subsystem, message] = kind.to_be_bytes();
        let text = |kind| {
            attributes
                .find(kind)
                .map(|attribute| attribute.text())
                .unwrap_or_default()
        };
        if subsystem != NFTABLES || text(1) != TABLE {
            return;
        }
        if message == NEW_TABLE {
            self.tables.entry(family).or_default();
            return;
        }
        let Some(table) = self.tables.get_mut(&family) else {
            return;
        };
        let number = |kind| attributes.find(kind).map_or(0, |attribute| attribute.number());
        match message {
            NEW_CHAIN => {
                let base = attributes.find(4).map(|hook| {
                    let part = |kind| hook.inside().find(kind).map_or(0, |attribute| attribute.number());
                    (part(1), part(2), number(5), text(7))
                });
                table.chains.entry(text(3)).or_default().base = base;
            }
            NEW_RULE => table
                .chains
                .entry(text(2))
                .or_default()
                .rules
                .push(Rule::read(attributes)),
            NEW_SET => {
                table.sets.entry(text(2)).or_default().shape = [number(3), number(4), number(5), number(6)]
            }
            NEW_ELEMENT => {
                let set = table.sets.entry(text(2)).or_default();
                let list = attributes.find(3).into_iter().flat_map(|list| list.inside());
                set.elements
                    .extend(list.map(|element| Element::read(element.inside())));
            }
            _ => {}
        }
    }

    /// Every difference from `self`, which should stand, to `seen`, which does.
    pub(crate) fn drift(&self, seen: &Self) -> Vec<Drift> {
        let mut drifts = Vec::new();
        for (family, word) in FAMILIES {
            let name = format!("table {word} {TABLE}");
            match (self.tables.get(&family), seen.tables.get(&family)) {
                (None, None) => {}
                (Some(_), None) => drifts.push(Drift::new(name, "is missing")),
                (None, Some(_)) => drifts.push(Drift::new(name, "should not exist")),
                (Some(expected), Some(seen)) => expected.drift(&name, seen, &mut drifts),
            }
        }
        drifts
    }
}

impl Table {
    fn drift(&self, name: &str, seen: &Self, drifts: &mut Vec<Drift>) {
        for (chain, expected) in &self.chains {
            let object = format!("chain {chain} of {name}");
            match seen.chains.get(chain) {
                None => drifts.push(Drift::new(object, "is missing")),
                Some(seen) => expected.drift(&object, seen, drifts),
            }
        }
        for (set, expected) in &self.sets {
            let object = format!("set {set} of {name}");
            match seen.sets.get(set) {
                None => drifts.push(Drift::new(object, "is missing")),
                Some(seen) => expected.drift(&object, seen, drifts),
            }
        }
        let extra_chains = seen
            .chains
            .keys()
            .filter(|chain| !self.chains.contains_key(*chain));
        drifts.extend(
            extra_chains.map(|chain| Drift::new(format!("chain {chain} of {name}"), "should not exist")),
        );
        let extra_sets = seen.sets.keys().filter(|set| !self.sets.contains_key(*set));
        drifts.extend(extra_sets.map(|set| Drift::new(format!("set {set} of {name}"), "should not exist")));
    }
}

impl Chain {
    fn drift(&self, object: &str, seen: &Self, drifts: &mut Vec<Drift>) {
        if self.base != seen.base {
            drifts.push(Drift::new(object, "hooks in elsewhere"));
        }
        let longest = self.rules.len().max(seen.rules.len());
        for index in 0..longest {
            let object = format!("rule {} of {object}", index + 1);
            match (self.rules.get(index), seen.rules.get(index)) {
                (Some(_), None) => drifts.push(Drift::new(object, "is missing")),
                (None, Some(_)) => drifts.push(Drift::new(object, "should not exist")),
                (Some(expected), Some(seen)) if !expected.stands_as(seen) => {
                    drifts.push(Drift::new(object, "is another rule"));
                }
                (Some(_), Some(_)) | (None, None) => {}
            }
        }
    }
}

impl Set {
    /// Its elements come from packets, or go with time.
    pub(crate) fn is_nobodys_plan(&self) -> bool {
        self.shape[0] & (SET_EVAL | SET_TIMEOUT) != 0
    }

    fn drift(&self, object: &str, seen: &Self, drifts: &mut Vec<Drift>) {
        if self.shape != seen.shape {
            drifts.push(Drift::new(object, "is of another type"));
        }
        if self.is_nobodys_plan() {
            return;
        }
        let missing = self.elements.difference(&seen.elements).count();
        let extra = seen.elements.difference(&self.elements).count();
        if missing > 0 {
            drifts.push(Drift::new(object, format!("lacks {missing} elements")));
        }
        if extra > 0 {
            drifts.push(Drift::new(object, format!("has {extra} elements too many")));
        }
    }
}

impl Rule {
    fn read(attributes: Attributes<'_>) -> Self {
        let mut rule = Self::default();
        for element in attributes.find(4).into_iter().flat_map(|list| list.inside()) {
            let name = element
                .inside()
                .find(1)
                .map(|name| name.text())
                .unwrap_or_default();
            let data = element.inside().find(2);
            if name == "counter" {
                let part = |kind| {
                    data.and_then(|data| data.inside().find(kind))
                        .map_or(0, |value| value.long())
                };
                rule.counter = Some((part(2), part(1)));
            }
            rule.expressions
                .push((name, data.map(|data| data.value.to_vec()).unwrap_or_default()));
        }
        // The comment is one entry of a list of our own making: type, length, text.
        rule.comment = attributes.find(7).and_then(|data| match data.value {
            [0, _, text @ ..] => Some(
                Attribute {
                    kind: 0,
                    nested: false,
                    value: text,
                }
                .text(),
            ),
            _ => None,
        });
        rule
    }

    /// Whether `seen` does what `self` says: the same expressions, each with every attribute that we set.
    pub(crate) fn stands_as(&self, seen: &Self) -> bool {
        self.comment == seen.comment
            && self.expressions.len() == seen.expressions.len()
            && self
                .expressions
                .iter()
                .zip(&seen.expressions)
                .all(|((name, data), (seen_name, seen_data))| {
                    name == seen_name
                        && (name == "counter" || holds(Attributes(data), Attributes(seen_data), name))
                })
    }
}

/// Whether every attribute of `expected` is in `seen`. A set's id is ours only until the transaction ends.
fn holds(mut expected: Attributes<'_>, seen: Attributes<'_>, expression: &str) -> bool {
    const LOOKUP_SET_ID: u16 = 4;
    const DYNSET_SET_ID: u16 = 2;
    expected.all(|attribute| {
        if matches!(
            (expression, attribute.kind),
            ("lookup", LOOKUP_SET_ID) | ("dynset", DYNSET_SET_ID)
        ) {
            return true;
        }
        seen.find(attribute.kind).is_some_and(|other| {
            if attribute.nested {
                holds(attribute.inside(), other.inside(), "")
            } else {
                attribute.value == other.value
            }
        })
    })
}

impl Element {
    fn read(attributes: Attributes<'_>) -> Self {
        let value = |kind| {
            attributes
                .find(kind)
                .and_then(|key| key.inside().find(1))
                .map(|value: Attribute<'_>| value.value.to_vec())
        };
        let verdict = attributes.find(2).and_then(|data| data.inside().find(2));
        let chain = verdict.map(|verdict| {
            let part = |kind| verdict.inside().find(kind);
            match (part(1).map(|code| code.number()), part(2)) {
                (Some(GOTO), Some(chain)) => chain.text(),
                // Anything but a jump is not ours, and compares unequal to every chain's name.
                (code, _) => format!("verdict {}", code.unwrap_or_default()),
            }
        });
        Self {
            key: value(1).unwrap_or_default(),
            end: value(10),
            flags: attributes.find(3).map_or(0, |flags| flags.number()),
            chain,
            lasts: attributes.find(4).map(|given| Lasts {
                given: given.long(),
                left: attributes.find(5).map_or(given.long(), |left| left.long()),
            }),
        }
    }
}
