//! Request targets out of names that people and guests chose.

use std::fmt::Write;

/// Percent-encodes a text for one path segment or query value. With `keep_slash` it may span several segments.
pub(crate) fn encode(text: &str, keep_slash: bool) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || (keep_slash && byte == b'/') {
            encoded.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_leave_its_segment() {
        assert_eq!(encode("a b/c?d#e%\u{e9}", false), "a%20b%2Fc%3Fd%23e%25%C3%A9");
        assert_eq!(encode("files/a b", true), "files/a%20b");
        assert_eq!(encode("x\r\nHost: y", false), "x%0D%0AHost%3A%20y");
    }
}
