//! Text that a guest, a repository or another user chose, made safe to print.
//!
//! A terminal obeys what it is sent: it can be made to lie about what was printed, to answer as if the operator had
//! typed, or to set its title and clipboard. So nothing but plain text passes: colour is dropped, every other control
//! character is shown in its escaped form, and so are the characters that change the direction of text.

use std::borrow::Cow;
use std::fmt::Write;

/// One line, without its end. Tabs stay.
pub(crate) fn escape(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_dangerous) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        if let Some(length) = colour(rest) {
            rest = &rest[length..];
            continue;
        }
        if !is_dangerous(next) {
            safe.push(next);
        } else if u32::from(next) < 0x100 {
            // Writing to a String cannot fail.
            let _ = write!(safe, "\\x{:02x}", u32::from(next));
        } else {
            let _ = write!(safe, "\\u{{{:x}}}", u32::from(next));
        }
        rest = &rest[next.len_utf8()..];
    }
    Cow::Owned(safe)
}

/// Several lines; line ends stay, and CRLF becomes one.
pub(crate) fn escape_lines(text: &str) -> String {
    text.split('\n')
        .map(|line| escape(line.strip_suffix('\r').unwrap_or(line)))
        .collect::<Vec<_>>()
        .join("\n")
}

/// A JSON document: what a terminal would obey is written as `\\uXXXX`, which a program reads as the same text. JSON
/// itself leaves only characters below U+0020 no choice; outside of strings it has no others than plain ones.
pub(crate) fn escape_document(json: &str) -> Cow<'_, str> {
    let harmful = |c: char| c != '\n' && is_dangerous(c);
    if !json.contains(harmful) {
        return Cow::Borrowed(json);
    }
    let mut safe = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        if harmful(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(safe, "\\u{unit:04x}");
            }
        } else {
            safe.push(c);
        }
    }
    Cow::Owned(safe)
}

fn is_dangerous(c: char) -> bool {
    (c.is_control() && c != '\t')
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
        || matches!(c, '\u{61c}' | '\u{e0000}'..='\u{e007f}')
}

/// Length of the colour sequence (`ESC [ numbers m`) that a text begins with.
fn colour(text: &str) -> Option<usize> {
    let body = text.strip_prefix("\u{1b}[")?;
    let numbers = body
        .bytes()
        .take_while(|byte| byte.is_ascii_digit() || *byte == b';' || *byte == b':')
        .count();
    (body.as_bytes().get(numbers) == Some(&b'm')).then_some(2 + numbers + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn plain_text_passes_untouched() {
        for text in [
            "",
            "ok: 2 and 3 make 5",
            "caf\u{e9}\t\u{1f600} \u{4f60}\u{597d}",
            "C:\\x",
        ] {
            assert!(
                matches!(escape(text), Cow::Borrowed(same) if same == text),
                "{text}"
            );
        }
    }

    #[test]
    fn colour_is_dropped_and_every_other_command_is_shown() {
        assert_eq!(escape("\u{1b}[1;31mred\u{1b}[0m \u{1b}[mend"), "red end");
        assert_eq!(escape("\u{1b}]0;title\u{7}"), "\\x1b]0;title\\x07");
        assert_eq!(escape("\u{1b}[2J\u{1b}[c\u{9b}1m"), "\\x1b[2J\\x1b[c\\x9b1m");
        assert_eq!(escape("safe\rlie \u{8}\u{7f}"), "safe\\x0dlie \\x08\\x7f");
        assert_eq!(
            escape("a\u{202e}b\u{2066}c\u{feff}"),
            "a\\u{202e}b\\u{2066}c\\u{feff}"
        );
        assert_eq!(escape("\u{1b}[31"), "\\x1b[31");
        assert_eq!(escape_lines("a\r\nb\u{1b}\n"), "a\nb\\x1b\n");
    }

    proptest! {
        #[test]
        fn a_document_keeps_its_meaning_and_has_nothing_a_terminal_obeys(
            text in "[\u{0}-\u{ff}\"\\\\\u{202a}-\u{202e}\u{e0001}a-z]{0,60}"
        ) {
            let value = serde_json::json!({ "text": text });
            let json = serde_json::to_string_pretty(&value).unwrap();
            let safe = escape_document(&json);
            prop_assert!(!safe.chars().any(|c| c != '\n' && is_dangerous(c)), "{safe:?}");
            prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&safe).unwrap(), value);
        }

        #[test]
        fn nothing_a_terminal_obeys_ever_passes(text in "[\u{0}-\u{ff}m;\\[\u{202a}-\u{202e}a-z]{0,60}") {
            let safe = escape(&text);
            prop_assert!(!safe.chars().any(is_dangerous), "{safe:?}");
            prop_assert_eq!(escape(&safe), safe.clone());
        }
    }
}
