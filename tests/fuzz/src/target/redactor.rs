//! What takes secrets out of output: the first line of an input are the secrets, the rest is printed in pieces.

use std::sync::Arc;

use agent_runner::redact::{MARK, Needles, Redactor};
use agentlab_protocol::secret::SHORTEST_REDACTED;

use super::{Outcome, Target};

pub(super) const TARGET: Target = Target {
    name: "redactor",
    seeds,
    words: &[
        "s3cr3t-value",
        "s3cr3t",
        "\t",
        "\n",
        "czNjcjN0LXZhbHVl",
        "s3cr3t%2Dvalue",
        "aaaaaaaa",
        "abcabcabc",
        MARK,
        "\u{e9}",
    ],
    run,
    longest: 2_048,
    base_bytes: 4 << 20,
    bytes_per_byte: 32 << 10,
    inputs: 400,
};

fn seeds() -> Vec<Vec<u8>> {
    [
        "s3cr3t-value\tanother-one\nit says s3cr3t-value and another-oneanother-one, s3cr3t-val",
        "aaaaaaab\taaaaaa\naaaaaaaaaaaaaaaaaaab aaaaaaa",
        "abcdef\tdefghi\tabcdefghijkl\nabcdefghi abcdefghijkl defghijk",
        "s3cr3t-value\nczNjcjN0LXZhbHVl s3cr3t%2Dvalue",
        "short\nshort",
        "\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

fn run(input: &[u8]) -> Outcome {
    let mut parts = input.splitn(2, |byte| *byte == b'\n');
    let secrets = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    let printed = parts.next().unwrap_or_default();
    let secrets: Vec<&str> = secrets.split('\t').take(8).collect();
    let needles = Arc::new(Needles::new(secrets.iter().copied()));
    let whole = through(&needles, printed, printed.len().max(1));
    for size in [1, 2, 3, 7] {
        assert_eq!(through(&needles, printed, size), whole, "in pieces of {size}");
    }
    // What is left between two marks was printed so; a secret that stood there would be there still.
    for rest in pieces(&whole) {
        for secret in secrets.iter().map(|secret| secret.trim()) {
            if secret.len() < SHORTEST_REDACTED {
                continue;
            }
            let found = rest.windows(secret.len()).any(|part| part == secret.as_bytes());
            assert!(!found, "{secret:?} is in {:?}", String::from_utf8_lossy(&whole));
        }
    }
    if whole == printed {
        Outcome::refused("nothing found")
    } else {
        Outcome::accepted(format!("{} marks", pieces(&whole).count().min(4)))
    }
}

fn through(needles: &Arc<Needles>, printed: &[u8], size: usize) -> Vec<u8> {
    let mut redactor = Redactor::new(Arc::clone(needles));
    let mut out = Vec::new();
    for chunk in printed.chunks(size) {
        redactor.push(chunk, &mut out);
    }
    redactor.finish(&mut out);
    out
}

fn pieces(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        match text.windows(MARK.len()).position(|part| part == MARK.as_bytes()) {
            Some(at) => {
                rest = text.get(at + MARK.len()..);
                text.get(..at)
            }
            None => {
                rest = None;
                Some(text)
            }
        }
    })
}
