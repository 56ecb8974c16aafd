//! Lines that a terminal, or the eye, reads as something else than a compiler does.

use super::{Change, Risk, RiskKind};
use crate::terminal::is_invisible;

/// Files whose added lines hold such characters, and those that a patch which was cut off does not reach.
pub(super) fn risks(patch: &str, is_cut: bool, changes: &[Change]) -> Vec<Risk> {
    let mut found: Vec<Risk> = Vec::new();
    let mut path = None;
    let mut in_header = false;
    // Where the last section begins: of a patch that was cut off it may go on.
    let mut last = 0;
    let mut at = 0;
    for line in patch.split_inclusive('\n') {
        let start = at;
        at += line.len();
        let line = line.trim_end_matches('\n');
        if line.starts_with("diff --git ") {
            (in_header, path, last) = (true, None, start);
        } else if line.starts_with("@@") {
            in_header = false;
        } else if let Some(name) = line.strip_prefix("+++ ").filter(|_| in_header) {
            path = Some(unquoted(name));
        } else if let (Some(added), Some(name), false) = (line.strip_prefix('+'), &path, in_header)
            && let Some(detail) = deceit(added)
            && found.last().is_none_or(|last| last.path != *name)
        {
            found.push(risk(name.clone(), detail));
        }
    }
    if is_cut {
        let unread = &changes[reached(&patch[..last], changes)..];
        let written = unread.iter().filter(|change| change.new.is_some());
        found.extend(written.map(|change| risk(change.path.clone(), "more than can be looked at")));
    }
    found
}

fn risk(path: String, detail: &str) -> Risk {
    Risk {
        kind: RiskKind::HiddenText,
        path,
        detail: detail.to_owned(),
    }
}

/// How many of the changes the sections of a patch are about.
fn reached(patch: &str, changes: &[Change]) -> usize {
    let mut sections = patch
        .lines()
        .filter(|line| line.starts_with("diff --git "))
        .count();
    let whole = changes.iter().take_while(|change| {
        // What was there goes in one, what comes in its place in another.
        let own = if change.changes_type() { 2 } else { 1 };
        let fits = sections >= own;
        sections = sections.saturating_sub(own);
        fits
    });
    whole.count()
}

/// What is wrong with a line.
fn deceit(line: &str) -> Option<&'static str> {
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.contains(is_invisible) {
        Some("characters that reorder or hide text")
    } else if line.contains(|c: char| c.is_control() && !matches!(c, '\t' | '\u{c}')) {
        Some("characters that a terminal obeys")
    } else {
        None
    }
}

/// A name as git writes it behind `+++`: quoted as in C where it must be, with a tab behind it where it has spaces.
fn unquoted(name: &str) -> String {
    let name = name.strip_suffix('\t').unwrap_or(name);
    let plain = match name.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(quoted) => unescaped(quoted),
        None => name.to_owned(),
    };
    plain.strip_prefix("b/").map_or(plain.clone(), str::to_owned)
}

fn unescaped(quoted: &str) -> String {
    let mut bytes = Vec::with_capacity(quoted.len());
    let mut rest = quoted.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        let meant = match rest.next() {
            Some(b'a') => 0x07,
            Some(b'b') => 0x08,
            Some(b't') => b'\t',
            Some(b'n') => b'\n',
            Some(b'v') => 0x0b,
            Some(b'f') => 0x0c,
            Some(b'r') => b'\r',
            Some(first @ b'0'..=b'3') => {
                let digits = [first, rest.next().unwrap_or(b'0'), rest.next().unwrap_or(b'0')];
                digits.iter().fold(0, |value: u8, digit| {
                    value.wrapping_mul(8).wrapping_add(digit.wrapping_sub(b'0'))
                })
            }
            Some(other) => other,
            None => b'\\',
        };
        bytes.push(meant);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_as_git_quotes_it() {
        for (written, name) in [
            ("b/plain", "plain"),
            ("b/two words\t", "two words"),
            (r#""b/a\tb\n\"c\"\\""#, "a\tb\n\"c\"\\"),
            (r#""b/\033[2J\303\251""#, "\u{1b}[2J\u{e9}"),
        ] {
            assert_eq!(unquoted(written), name);
        }
    }

    #[test]
    fn what_a_cut_patch_does_not_reach_is_named() {
        let change = |path: &str| Change {
            path: path.to_owned(),
            old: None,
            new: Some(super::super::Mode::File),
        };
        let changes = ["a", "b", "c", "d"].map(change);
        let patch = "diff --git a/a b/a\n+++ b/a\n@@ -0,0 +1 @@\n+x\ndiff --git a/b b/b\n+++ b/b\n@@ -0,0 +1 @@\n+y\n\
                     diff --git a/c b/c\n+++ b/c\n@@ -0,0 +1 @@\n+z";
        assert_eq!(risks(patch, false, &changes), []);
        let named: Vec<String> = risks(patch, true, &changes)
            .into_iter()
            .map(|risk| risk.path)
            .collect();
        assert_eq!(named, ["c", "d"], "the third may go on");
    }
}
