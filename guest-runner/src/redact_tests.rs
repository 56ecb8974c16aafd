use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use proptest::prelude::*;

use super::spellings::percent_encode;
use super::*;

fn through(needles: &Arc<Needles>, text: &[u8], chunks: &[usize]) -> Vec<u8> {
    let mut redactor = Redactor::new(Arc::clone(needles));
    let mut out = Vec::new();
    let (mut rest, mut sizes) = (text, chunks.iter().cycle());
    while !rest.is_empty() {
        let size = sizes.next().copied().unwrap_or(1).clamp(1, rest.len());
        redactor.push(&rest[..size], &mut out);
        rest = &rest[size..];
    }
    redactor.finish(&mut out);
    out
}

fn contains(hay: &[u8], needle: &[u8]) -> bool {
    hay.windows(needle.len()).any(|window| window == needle)
}

proptest! {
    #[test]
    fn no_secret_survives_any_chunking_or_encoding(
        secrets in proptest::collection::vec("[ -~]{6,40}", 1..4),
        noise in proptest::collection::vec("[ -~\n]{0,12}", 8),
        chunks in proptest::collection::vec(1_usize..9, 1..6),
        shift in "[a-z]{0,2}",
    ) {
        let needles = Arc::new(Needles::new(secrets.iter().map(String::as_str)));
        let mut text = String::new();
        let mut planted = Vec::new();
        for secret in secrets.iter().filter(|secret| secret.trim().len() >= SHORTEST_REDACTED) {
            let shifted = format!("{shift}{secret}");
            let spellings = [secret.clone(), hex::encode(secret), STANDARD.encode(&shifted),
                URL_SAFE_NO_PAD.encode(&shifted),
                String::from_utf8(percent_encode(secret, "-_.~", "%20", true)).unwrap()];
            for (spelling, noise) in spellings.iter().zip(noise.iter().cycle()) {
                text.push_str(noise);
                text.push_str(spelling);
            }
            planted.push(secret.clone());
            planted.push(hex::encode(secret));
            planted.push(STANDARD.encode(&shifted));
            planted.push(URL_SAFE_NO_PAD.encode(&shifted));
        }
        let out = through(&needles, text.as_bytes(), &chunks);
        for secret in &planted {
            // The mark itself may complete a value such as "[redac"; nothing else may.
            prop_assert!(MARK.contains(secret.as_str()) || secret.contains(MARK)
                || !contains(&out, secret.as_bytes()), "{secret:?} in {:?}", String::from_utf8_lossy(&out));
        }
        let whole = through(&needles, text.as_bytes(), &[text.len()]);
        prop_assert_eq!(out, whole, "chunking changes nothing");
    }

    #[test]
    fn text_without_a_secret_passes_unchanged(text in "[a-z \n]{0,200}", chunks in proptest::collection::vec(1_usize..9, 1..4)) {
        let needles = Arc::new(Needles::new(["abcabd1", "aaaaaab9", "S3CRET-VALUE"]));
        prop_assert_eq!(through(&needles, text.as_bytes(), &chunks), text.as_bytes());
    }
}

#[test]
fn overlapping_secrets_and_one_inside_another_leave_no_remainder() {
    let needles = Arc::new(Needles::new(["abcdef", "defghi", "abcdefghijkl"]));
    assert_eq!(needles.redact("1 abcdefghi 2"), "1 [redacted] 2");
    assert_eq!(
        needles.redact("1 abcdefghijkl 2 abcdef"),
        "1 [redacted] 2 [redacted]"
    );
    assert_eq!(needles.redact("abcdefabcdef"), "[redacted]");
}

#[test]
fn a_short_value_is_left_alone_and_an_unfinished_secret_is_not_shown() {
    let needles = Arc::new(Needles::new(["short", "a-longer-secret"]));
    assert_eq!(needles.redact("short"), "short");
    assert_eq!(needles.redact("key: a-longer-sec"), "key: [redacted]");
    assert_eq!(needles.redact("key: a-lo"), "key: a-lo");
}

#[test]
fn lines_of_a_private_key_are_found_one_by_one() {
    let key = "-----BEGIN KEY-----\nb3BlbnNzaC1rZXktdjEAAAAA\nAAAABG5vbmUAAAAEbm9uZQAA\n-----END KEY-----\n";
    let needles = Arc::new(Needles::new([key]));
    assert_eq!(needles.redact("| AAAABG5vbmUAAAAEbm9uZQAA |"), "| [redacted] |");
    assert_eq!(needles.redact("-----BEGIN KEY----- x"), "-----BEGIN KEY----- x");
    assert!(!format!("{needles:?}").contains("b3Bl"));
}

proptest! {
    #[test]
    fn an_encoded_secret_is_found_however_its_lines_are_broken(
        secret in "[A-Z0-9]{30,120}",
        before in "[a-z ]{0,80}",
        after in "[a-z ]{0,20}",
        width in 20_usize..100,
        line_end in "\r?\n",
        chunks in proptest::collection::vec(1_usize..90, 1..4),
    ) {
        let needles = Arc::new(Needles::new([secret.as_str()]));
        let text = format!("{before}{secret}{after}");
        let at = |byte: usize, characters: usize, bytes: usize| byte * characters / bytes;
        for (encoded, characters, bytes) in [
            (STANDARD.encode(&text), 4, 3),
            (URL_SAFE_NO_PAD.encode(&text), 4, 3),
            (hex::encode(&text), 2, 1),
        ] {
            let lines: Vec<&[u8]> = encoded.as_bytes().chunks(width).collect();
            let out = through(&needles, &lines.join(line_end.as_bytes()), &chunks);
            let shown = String::from_utf8(out).unwrap().replace(['\r', '\n'], "");
            let end = at(before.len() + secret.len(), characters, bytes);
            let of_secret = &encoded.as_bytes()[at(before.len(), characters, bytes)..end];
            // Its first group and what it shares with its neighbours, and not a character more.
            for window in of_secret.windows(2 * GROUP + 1) {
                prop_assert!(!contains(shown.as_bytes(), window), "{shown}");
            }
        }
    }
}

#[test]
fn a_value_is_found_as_programs_quote_it() {
    let needles = Arc::new(Needles::new(["it's/a <\"s\u{e9}cret\">&\\"]));
    for written in [
        // sh
        "it'\\''s/a <\"s\u{e9}cret\">&\\",
        // printf %q
        "it\\'s/a\\ \\<\\\"s\u{e9}cret\\\"\\>\\&\\\\",
        // JSON, with slashes escaped, in ASCII, and as text in another document
        "it's/a <\\\"s\u{e9}cret\\\">&\\\\",
        "it's\\/a <\\\"s\u{e9}cret\\\">&\\\\",
        "it's/a <\\\"s\\u00e9cret\\\">&\\\\",
        "it's/a <\\\\\\\"s\u{e9}cret\\\\\\\">&\\\\\\\\",
        // HTML
        "it&#39;s/a &lt;&quot;s\u{e9}cret&quot;&gt;&amp;\\",
        // a form
        "it%27s%2Fa+%3C%22s%C3%A9cret%22%3E%26%5C",
    ] {
        assert_eq!(
            needles.redact(&format!("<<{written}>>")),
            "<<[redacted]>>",
            "{written}"
        );
    }
}

#[test]
fn line_ends_without_end_are_not_waited_for() {
    let needles = Arc::new(Needles::new(["S3CRET-VALUE-OF-SOME-LENGTH"]));
    let begun = STANDARD.encode("S3CRET-VAL");
    let mut redactor = Redactor::new(Arc::clone(&needles));
    let mut out = Vec::new();
    redactor.push(begun.as_bytes(), &mut out);
    redactor.push(&[b'\n'; 10_000], &mut out);
    assert_eq!(out.len(), begun.len() + 10_000);
}

#[test]
fn ordinary_text_is_not_delayed() {
    let needles = Arc::new(Needles::new(["s3cret-value"]));
    let mut redactor = Redactor::new(needles);
    let mut out = Vec::new();
    redactor.push(b"password: s3c", &mut out);
    assert_eq!(out, b"password: ");
    redactor.push(b"ond try", &mut out);
    assert_eq!(out, b"password: s3cond try");
}
