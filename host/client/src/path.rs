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

/// What stands behind a list's path: nothing, or `?` and what is asked for.
pub(crate) fn page_query(first: Option<String>, cursor: Option<&str>, limit: Option<u32>) -> String {
    let cursor = cursor.map(|cursor| format!("cursor={}", encode(cursor, false)));
    let limit = limit.map(|limit| format!("limit={limit}"));
    let asked: Vec<String> = [first, cursor, limit].into_iter().flatten().collect();
    if asked.is_empty() {
        String::new()
    } else {
        format!("?{}", asked.join("&"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_asked_for_by_what_is_given_only() {
        assert_eq!(page_query(None, None, None), "");
        assert_eq!(
            page_query(Some("a=b".into()), Some("1.x y"), Some(5)),
            "?a=b&cursor=1.x%20y&limit=5"
        );
    }

    #[test]
    fn a_name_cannot_leave_its_segment() {
        assert_eq!(encode("a b/c?d#e%\u{e9}", false), "a%20b%2Fc%3Fd%23e%25%C3%A9");
        assert_eq!(encode("files/a b", true), "files/a%20b");
        assert_eq!(encode("x\r\nHost: y", false), "x%0D%0AHost%3A%20y");
    }
}
