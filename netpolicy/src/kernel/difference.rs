//! What stands, line by line, against what should.
//!
//! A rule that stands is known by the plan's rule that it does the same as, and shown in its words; one that the plan
//! does not have has only its own comment, and the names of its expressions.

use super::encode::number;
use super::standing::{self, Standing};
use crate::Ruleset;
use crate::ruleset::{TABLE, Table};

/// Lines with `-` for what stands and should not, `+` for what should and does not. Nothing where nothing differs.
pub(crate) fn lines(ruleset: &Ruleset, expected: &Standing, seen: &Standing) -> Vec<String> {
    let mut lines = Vec::new();
    for table in &ruleset.tables {
        let number = number(table.family);
        let (none, wanted) = (standing::Table::default(), expected.tables.get(&number));
        let there = seen.tables.get(&number).unwrap_or(&none);
        let Some(wanted) = wanted else { continue };
        chains(table, wanted, there, &mut lines);
        sets(table, wanted, there, &mut lines);
    }
    lines
}

fn chains(table: &Table, wanted: &standing::Table, there: &standing::Table, lines: &mut Vec<String>) {
    let none = standing::Chain::default();
    let family = table.family;
    for chain in &table.chains {
        let rules: Vec<String> = chain.rules.iter().map(ToString::to_string).collect();
        let wanted = wanted.chains.get(chain.name).unwrap_or(&none);
        let standing = there.chains.get(chain.name).unwrap_or(&none);
        let known = |rule: &standing::Rule| {
            let place = wanted.rules.iter().position(|known| known.stands_as(rule));
            place
                .and_then(|place| rules.get(place).cloned())
                .unwrap_or_else(|| unknown(rule))
        };
        let shown: Vec<String> = standing.rules.iter().map(known).collect();
        if shown == rules {
            continue;
        }
        lines.push(format!("@ chain {family} {TABLE} {}", chain.name));
        lines.extend(difference(&shown, &rules));
    }
    let extra = there
        .chains
        .keys()
        .filter(|name| !wanted.chains.contains_key(*name));
    lines.extend(extra.map(|name| format!("- chain {family} {TABLE} {name}")));
}

fn unknown(rule: &standing::Rule) -> String {
    let names: Vec<&str> = rule.expressions.iter().map(|(name, _)| name.as_str()).collect();
    match &rule.comment {
        Some(comment) => format!("(a rule of {}) comment \"{comment}\"", names.join(", ")),
        None => format!("(a rule of {})", names.join(", ")),
    }
}

fn sets(table: &Table, wanted: &standing::Table, there: &standing::Table, lines: &mut Vec<String>) {
    for set in &table.sets {
        let none = standing::Set::default();
        let wanted = wanted.sets.get(set.name).unwrap_or(&none);
        let there = there.sets.get(set.name).unwrap_or(&none);
        if wanted.is_nobodys_plan() {
            continue;
        }
        let lacks = wanted.elements.difference(&there.elements).count();
        let extra = there.elements.difference(&wanted.elements).count();
        if lacks + extra > 0 {
            lines.push(format!("@ set {} {TABLE} {}", table.family, set.name));
            lines.push(format!("- {extra} elements"));
            lines.push(format!("+ {lacks} elements"));
        }
    }
}

/// The longest common part stays, as in any diff; chains are short.
fn difference(before: &[String], after: &[String]) -> Vec<String> {
    let mut kept = vec![vec![0_usize; after.len() + 1]; before.len() + 1];
    let at = |kept: &Vec<Vec<usize>>, row: usize, column: usize| {
        kept.get(row)
            .and_then(|row| row.get(column))
            .copied()
            .unwrap_or(0)
    };
    for (row, one) in before.iter().enumerate().rev() {
        for (column, other) in after.iter().enumerate().rev() {
            let best = if one == other {
                at(&kept, row + 1, column + 1) + 1
            } else {
                at(&kept, row + 1, column).max(at(&kept, row, column + 1))
            };
            if let Some(cell) = kept.get_mut(row).and_then(|row| row.get_mut(column)) {
                *cell = best;
            }
        }
    }
    let (mut row, mut column, mut lines) = (0, 0, Vec::new());
    loop {
        match (before.get(row), after.get(column)) {
            (Some(one), Some(other)) if one == other => (row, column) = (row + 1, column + 1),
            (Some(one), other)
                if other.is_none() || at(&kept, row + 1, column) >= at(&kept, row, column + 1) =>
            {
                lines.push(format!("- {one}"));
                row += 1;
            }
            (_, Some(other)) => {
                lines.push(format!("+ {other}"));
                column += 1;
            }
            (_, None) => return lines,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn changed(before: &str, after: &str) -> BTreeSet<String> {
        let split = |text: &str| text.chars().map(String::from).collect::<Vec<_>>();
        difference(&split(before), &split(after)).into_iter().collect()
    }

    #[test]
    fn only_what_differs_is_shown() {
        let lines = |list: &[&str]| list.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
        assert_eq!(changed("abc", "abc"), lines(&[]));
        assert_eq!(changed("abc", "ac"), lines(&["- b"]));
        assert_eq!(changed("ac", "abc"), lines(&["+ b"]));
        assert_eq!(changed("abc", "axc"), lines(&["- b", "+ x"]));
        assert_eq!(changed("", "a"), lines(&["+ a"]));
    }
}
