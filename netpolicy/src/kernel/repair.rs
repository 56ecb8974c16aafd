//! The way from what stands to what should stand that lets no packet slip through.
//!
//! A transaction is atomic for each rule, and for each look into a set; it is not for a packet that is between two of
//! them. Two things would be seen by such a packet. A base chain that is deleted and made again: the packet was handed
//! the old list of chains, and the old chain is empty by now. And an element that is deleted and added again: it may not
//! be found. So what stands as it should is left alone, chains keep their hooks and get other rules, and sets get and
//! lose the elements that differ. Tables that have another shape are the exception, and are replaced.

use nftnl::MsgType;

use super::encode::{
    Builder, Object, PER_ELEMENT, PER_RULE, Transaction, chain_of, number, protocol, set_of,
};
use super::expressions::c_string;
use super::standing::{self, Standing};
use crate::Ruleset;
use crate::ruleset::{TABLE, Table};

impl Transaction {
    /// From `seen` to `ruleset`, whose reading is `expected`. `None` where a table must be replaced as a whole.
    pub(crate) fn repair(ruleset: &Ruleset, expected: &Standing, seen: &Standing) -> Option<Self> {
        let size = ruleset.rule_count() * PER_RULE + elements(expected, seen) * PER_ELEMENT;
        let mut builder = Builder::new(size);
        for table in &ruleset.tables {
            let family = number(table.family);
            let (wanted, there) = (expected.tables.get(&family)?, seen.tables.get(&family)?);
            repair_table(&mut builder, table, wanted, there)?;
        }
        Some(builder.finish())
    }
}

fn elements(expected: &Standing, seen: &Standing) -> usize {
    [expected, seen]
        .into_iter()
        .flat_map(|standing| standing.tables.values())
        .flat_map(|table| table.sets.values())
        .map(|set| set.elements.len())
        .sum()
}

fn repair_table(
    builder: &mut Builder,
    table: &Table,
    wanted: &standing::Table,
    there: &standing::Table,
) -> Option<()> {
    let family = table.family;
    let handle = nftnl::Table::new(c_string(TABLE), protocol(family));
    // New chains and sets first: rules and elements lead to them.
    for chain in &table.chains {
        match (wanted.chains.get(chain.name)?, there.chains.get(chain.name)) {
            (_, None) => builder.add(
                Object::Chain(family, chain.name),
                &chain_of(chain, &handle),
                MsgType::Add,
            ),
            (wanted, Some(there)) if wanted.base != there.base => return None,
            (_, Some(_)) => {}
        }
    }
    for set in &table.sets {
        match (wanted.sets.get(set.name)?, there.sets.get(set.name)) {
            (wanted, Some(there)) if wanted.shape == there.shape => {}
            (_, Some(_)) => return None,
            (_, None) => builder.add(
                Object::Set(family, set.name),
                &set_of(set, 0, &handle),
                MsgType::Add,
            ),
        }
    }
    // What opens goes before what closes is changed, and what closes stands before what opens comes.
    for action in [MsgType::Del, MsgType::Add] {
        for set in &table.sets {
            let wanted = wanted.sets.get(set.name)?;
            let there = there.sets.get(set.name);
            if wanted.is_nobodys_plan() {
                continue;
            }
            let none = Default::default();
            let there = there.map_or(&none, |there| &there.elements);
            let differing: Vec<&standing::Element> = match action {
                MsgType::Del => there.difference(&wanted.elements).collect(),
                MsgType::Add => wanted.elements.difference(there).collect(),
            };
            builder.read_elements(family, set, &differing, action);
        }
    }
    for chain in &table.chains {
        let wanted = wanted.chains.get(chain.name)?;
        let there = there.chains.get(chain.name);
        let stands = there.is_some_and(|there| {
            wanted.rules.len() == there.rules.len()
                && wanted
                    .rules
                    .iter()
                    .zip(&there.rules)
                    .all(|(wanted, there)| wanted.stands_as(there))
        });
        if stands {
            continue;
        }
        let message = chain_of(chain, &handle);
        if there.is_some() {
            let all = nftnl::Rule::new(&message);
            builder.add(Object::Chain(family, chain.name), &all, MsgType::Del);
        }
        builder.rules(family, chain, &message);
    }
    remove_extra(builder, table, wanted, there, &handle);
    Some(())
}

/// Chains and sets that should not exist. Rules lead to them no more; those in them go first.
fn remove_extra(
    builder: &mut Builder,
    table: &Table,
    wanted: &standing::Table,
    there: &standing::Table,
    handle: &nftnl::Table,
) {
    let object = Object::Table(table.family);
    let extra: Vec<_> = there
        .chains
        .iter()
        .filter(|(name, _)| !wanted.chains.contains_key(*name))
        .map(|(name, chain)| (nftnl::Chain::new(c_string(name), handle), chain))
        .collect();
    for (chain, there) in &extra {
        if !there.rules.is_empty() {
            builder.add(object, &nftnl::Rule::new(chain), MsgType::Del);
        }
    }
    for (chain, _) in &extra {
        builder.add(object, chain, MsgType::Del);
    }
    for name in there.sets.keys().filter(|name| !wanted.sets.contains_key(*name)) {
        let family = handle.get_family();
        let set: nftnl::set::Set<'_, super::encode::AnyKey> =
            nftnl::set::Set::new_named(&c_string(name), 0, handle, family);
        builder.add(object, &set, MsgType::Del);
    }
}
