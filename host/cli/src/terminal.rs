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
    (c.is_control() && c != '\t') || is_invisible(c)
}

/// Characters that reorder text, take no room in it, or end a line only for some.
pub(crate) fn is_invisible(c: char) -> bool {
    matches!(c, '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{3164}' | '\u{ffa0}')
        || matches!(c, '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(c, '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}')
        // Of the variation selectors those that pictures are written with are left.
        || matches!(c, '\u{fe00}'..='\u{fe0d}' | '\u{e0000}'..='\u{e0fff}')
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

/// Output that comes in pieces, made safe as it comes: what a piece breaks off in the middle waits for the next one.
#[derive(Debug, Default)]
pub(crate) struct Flowing {
    waiting: Vec<u8>,
}

impl Flowing {
    /// All that can be shown so far.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> String {
        self.waiting.extend_from_slice(bytes);
        let keep = unfinished(&self.waiting);
        let rest = self.waiting.split_off(self.waiting.len() - keep);
        let text = String::from_utf8_lossy(&std::mem::replace(&mut self.waiting, rest)).into_owned();
        escape_lines(&text)
    }
}

/// How many bytes at the end may mean something else together with what follows: half a character, a carriage return
/// before a line end, half a colour.
fn unfinished(bytes: &[u8]) -> usize {
    let tail = &bytes[bytes.len().saturating_sub(32)..];
    if let Some(at) = tail.iter().rposition(|byte| *byte == 0x1b) {
        let body = &tail[at + 1..];
        let numbers = body.strip_prefix(b"[").unwrap_or(body);
        let begun = body.is_empty() || body.starts_with(b"[");
        if begun
            && numbers
                .iter()
                .all(|byte| byte.is_ascii_digit() || b";:".contains(byte))
        {
            return tail.len() - at;
        }
    }
    if tail.ends_with(b"\r") {
        return 1;
    }
    match std::str::from_utf8(tail) {
        // `None`: it breaks off in the middle of a character.
        Err(error) if error.error_len().is_none() => tail.len() - error.valid_up_to(),
        Ok(_) | Err(_) => tail
            .iter()
            .rposition(|byte| *byte >= 0xc0)
            .map(|at| tail.len() - at)
            .filter(|length| {
                let first = tail[tail.len() - length];
                let whole = first.leading_ones();
                usize::try_from(whole).is_ok_and(|whole| whole <= 4 && *length < whole)
            })
            .unwrap_or(0),
    }
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

    #[test]
    fn output_in_pieces_is_as_safe_as_a_whole_one() {
        let text = "caf\u{e9} \u{1b}[1;31mred\u{1b}[0m\r\nnext \u{1f600}\u{1b}[2J end\n";
        for size in 1..text.len() {
            let mut flowing = Flowing::default();
            let shown: String = text
                .as_bytes()
                .chunks(size)
                .map(|piece| flowing.push(piece))
                .collect();
            assert_eq!(shown, escape_lines(text), "in pieces of {size}");
        }
        let mut flowing = Flowing::default();
        assert_eq!(
            flowing.push(b"prompt> "),
            "prompt> ",
            "it is shown without its line end"
        );
        assert_eq!(flowing.push(b"\xff\xfe\xc3"), "\u{fffd}\u{fffd}");
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
