//! Texts that say whose a thing is: stamps of machines, ids of sandboxes and jobs, VMIDs. A wrong answer here destroys
//! somebody else's machine.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use agentlab_api::{JobId, SandboxId, Vmid};
use agentlab_backend::Stamp;

use super::{Outcome, Target};
use crate::properties::{fit_to_print, text};

pub(super) const TARGET: Target = Target {
    name: "stamp",
    seeds,
    words: &[
        "agentlab:",
        "job_",
        ":",
        "-",
        "urn:uuid:",
        "{",
        "}",
        "0",
        "+",
        "\u{1b}[31m",
        "\u{0}",
        "\u{e9}",
    ],
    run,
    longest: 2048,
    base_bytes: 256 << 10,
    bytes_per_byte: 128,
    inputs: 25_000,
};

fn seeds() -> Vec<Vec<u8>> {
    [
        "agentlab:01930011-2233-7444-8555-66778899aabb:0123456789abcdef0123456789abcdef",
        "01930011-2233-7444-8555-66778899aabb",
        "01930011223374448555 66778899AABB",
        "job_0123456789ab",
        "1000",
        "999999999",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

fn run(input: &[u8]) -> Outcome {
    let text = text(input);
    let mut words = Vec::new();
    let mut accepted = false;
    for (name, known) in [
        ("stamp", stands::<Stamp>(&text)),
        ("sandbox", stands::<SandboxId>(&text)),
        ("job", stands::<JobId>(&text)),
        ("vmid", stands::<Vmid>(&text)),
    ] {
        if known {
            words.push(name);
            accepted = true;
        }
    }
    if let Ok(stamp) = text.parse::<Stamp>() {
        assert!(
            stamp.nonce.len() == 32 && text.ends_with(&stamp.nonce),
            "another nonce: {stamp}"
        );
    }
    if let Ok(vmid) = text.parse::<Vmid>() {
        assert!((Vmid::MIN..=Vmid::MAX).contains(&vmid));
        assert_eq!(vmid.to_string(), text, "one VMID has two spellings");
    }
    Outcome {
        accepted,
        words: words.join(" "),
    }
}

/// Whether a text is one; then it survives its own text.
fn stands<T: FromStr<Err: Display> + Display + Debug + PartialEq>(text: &str) -> bool {
    match text.parse::<T>() {
        Ok(value) => {
            let shown = value.to_string();
            assert_eq!(shown.parse::<T>().ok(), Some(value), "{shown} is another's text");
            true
        }
        Err(error) => {
            fit_to_print(&error.to_string());
            false
        }
    }
}
