//! What PVE says, made fit to be shown and kept.
//!
//! It quotes the whole command of a start that failed, and there stands the seed as the guest gets it, with a token that
//! nobody has redeemed.

/// Longest text shown.
const MOST_SHOWN: usize = 1500;
/// Longest command shown with its arguments: the reason comes after it.
const LONGEST_COMMAND: usize = 300;
/// Shortest serial number that may be a seed. That of a workspace's drive is shorter.
const SHORTEST_SEED: usize = 32;

/// One line of bounded length, whatever a guest or a plugin put there.
pub(super) fn shown(words: &str) -> String {
    let words = without_seed(&without_arguments(words.trim()));
    let mut line = String::new();
    for letter in words.chars().take(MOST_SHOWN) {
        match letter {
            '\n' | '\t' => line.push(' '),
            letter if letter.is_control() => line.extend(letter.escape_debug()),
            letter => line.push(letter),
        }
    }
    line
}

/// `command '/usr/bin/kvm ...' failed: got timeout`.
fn without_arguments(words: &str) -> String {
    const BEFORE: &str = "command '";
    const AFTER: &str = "' failed";
    let parts = words
        .split_once(BEFORE)
        .and_then(|(before, rest)| Some((before, rest.split_once(AFTER)?)));
    match parts {
        Some((before, (command, after))) if command.len() > LONGEST_COMMAND => {
            let program = command.split_whitespace().next().unwrap_or_default();
            format!("{before}{BEFORE}{program} ...{AFTER}{after}")
        }
        Some(_) | None => words.to_owned(),
    }
}

/// The same text without what may be a seed, as SMBIOS or a configuration holds it.
pub(crate) fn without_seed(words: &str) -> String {
    const KEY: &str = "serial=";
    let mut parts = words.split(KEY);
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let is_of_seed = |letter: char| letter.is_ascii_alphanumeric() || "+/=_-".contains(letter);
        let rest = part.trim_start_matches(is_of_seed);
        text.push_str(KEY);
        if part.len() - rest.len() < SHORTEST_SEED {
            text.push_str(part);
        } else {
            text.push_str("[redacted]");
            text.push_str(rest);
        }
    }
    text
}
