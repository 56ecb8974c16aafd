//! How programs write a value down: as it is, quoted, escaped, and encoded.

use std::collections::BTreeSet;

use agentlab_protocol::secret::SHORTEST_REDACTED;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

use super::GROUP;

/// Lines of a value of several lines are looked for by themselves from this length on.
const MIN_LINE_BYTES: usize = 16;
/// What is left of an encoded secret without its first group is looked for from this length on.
const MIN_ENCODED_REST: usize = 16;

/// How secrets may be written.
#[derive(Default)]
pub(super) struct Spellings {
    pub(super) plain: BTreeSet<Vec<u8>>,
    /// Those that may be spread over several lines.
    pub(super) wrapped: BTreeSet<Vec<u8>>,
}

impl Spellings {
    /// Adds every spelling of one value.
    pub(super) fn add(&mut self, value: &str) {
        let trimmed = value.trim();
        if trimmed.len() < SHORTEST_REDACTED {
            return;
        }
        for line in trimmed.lines().map(str::trim) {
            // The armour lines of a key are not secret, and everybody prints them.
            if line.len() >= MIN_LINE_BYTES && !line.starts_with("-----") {
                self.add_plain(line.as_bytes());
            }
        }
        for text in BTreeSet::from([value, trimmed]) {
            self.add_quoted(text);
            self.add_encoded(text);
        }
    }

    fn add_plain(&mut self, spelling: &[u8]) {
        if spelling.len() >= SHORTEST_REDACTED {
            self.plain.insert(spelling.to_vec());
        }
    }

    /// As it is, and as shells, JSON and URLs write it.
    fn add_quoted(&mut self, text: &str) {
        self.add_plain(text.as_bytes());
        self.add_plain(text.replace('\n', "\r\n").as_bytes());
        self.add_plain(text.replace('\'', "'\\''").as_bytes());
        self.add_plain(backslashed(text).as_bytes());
        self.add_plain(html(text).as_bytes());
        let json = json(text);
        // Some writers escape slashes, some all that is not ASCII; and a document may stand as text in another one.
        for spelling in [
            &json,
            &json.replace('/', "\\/"),
            &ascii(&json),
            &self::json(&json),
        ] {
            self.add_plain(spelling.as_bytes());
        }
        // RFC 3986, encodeURIComponent, paths, forms: they differ in what they leave alone.
        for (kept, space) in [
            ("-_.~", "%20"),
            ("-_.~!'()*", "%20"),
            ("-_.~/", "%20"),
            ("-_.*", "+"),
        ] {
            self.add_plain(&percent_encode(text, kept, space, true));
            self.add_plain(&percent_encode(text, kept, space, false));
        }
    }

    /// In base64 and in hexadecimal digits.
    fn add_encoded(&mut self, text: &str) {
        let lower = hex::encode(text);
        self.add_wrapped(lower.to_ascii_uppercase().into_bytes());
        self.add_wrapped(lower.into_bytes());
        for alignment in 0..3 {
            self.add_wrapped(base64_inside(&STANDARD_NO_PAD, text.as_bytes(), alignment));
            self.add_wrapped(base64_inside(&URL_SAFE_NO_PAD, text.as_bytes(), alignment));
        }
        self.add_wrapped(STANDARD_NO_PAD.encode(text).into_bytes());
        self.add_wrapped(URL_SAFE_NO_PAD.encode(text).into_bytes());
    }

    fn add_wrapped(&mut self, spelling: Vec<u8>) {
        if spelling.len() >= GROUP + MIN_ENCODED_REST {
            self.wrapped.insert(spelling[GROUP..].to_vec());
        }
        if spelling.len() >= SHORTEST_REDACTED {
            self.wrapped.insert(spelling);
        }
    }
}

/// As a JSON string, without its quotes.
fn json(text: &str) -> String {
    let quoted = serde_json::Value::from(text).to_string();
    let inner = quoted.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    inner.map_or(quoted.clone(), str::to_owned)
}

/// A JSON string that keeps to ASCII.
fn ascii(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_ascii() {
            out.push(c);
        } else {
            let units = c.encode_utf16(&mut [0; 2]).to_vec();
            out.extend(units.iter().map(|unit| format!("\\u{unit:04x}")));
        }
    }
    out
}

/// As `printf %q` writes it.
fn backslashed(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii() && !c.is_ascii_alphanumeric() && !"_@%+=:,./-".contains(c) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

fn html(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

/// The characters of a base64 text that depend on `value` alone when `alignment` bytes of something else stand
/// before it and anything may follow.
fn base64_inside(engine: &impl base64::Engine, value: &[u8], alignment: usize) -> Vec<u8> {
    let mut bytes = vec![0; alignment];
    bytes.extend_from_slice(value);
    let text = engine.encode(&bytes).into_bytes();
    let from = (alignment * 8).div_ceil(6);
    let to = bytes.len() * 8 / 6;
    text.get(from..to).map(<[u8]>::to_vec).unwrap_or_default()
}

pub(super) fn percent_encode(text: &str, kept: &str, space: &str, upper: bool) -> Vec<u8> {
    let mut out = String::with_capacity(text.len() * 3);
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || kept.as_bytes().contains(&byte) {
            out.push(char::from(byte));
        } else if byte == b' ' {
            out.push_str(space);
        } else if upper {
            out.push_str(&format!("%{byte:02X}"));
        } else {
            out.push_str(&format!("%{byte:02x}"));
        }
    }
    out.into_bytes()
}
