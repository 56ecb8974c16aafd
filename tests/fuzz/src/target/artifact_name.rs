//! Names a guest gives its files, joined to a directory of the host's.

use std::path::{Component, Path};

use agentlab_protocol::message::{ArtifactName, ArtifactRole};
use serde_json::Value;

use super::{Outcome, Target};
use crate::properties::{fit_to_print, text};

pub(super) const TARGET: Target = Target {
    name: "artifact_name",
    seeds,
    words: &[
        "..",
        "../",
        "/",
        "//",
        "./",
        "\\",
        "\u{0}",
        "\n",
        "\u{1b}",
        "files/",
        "\u{202e}",
        "\u{2025}",
        "\u{ff0f}",
        "C:",
        "~",
        "%2e%2e%2f",
    ],
    run,
    longest: 1024,
    base_bytes: 256 << 10,
    bytes_per_byte: 128,
    inputs: 30_000,
};

fn seeds() -> Vec<Vec<u8>> {
    [
        "report.json",
        "work.bundle",
        "files/out/a b.txt",
        "files/\u{e9}/..x",
        "../etc/passwd",
        "a/../b",
        "bundle",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

fn run(input: &[u8]) -> Outcome {
    let text = text(input);
    match text.parse::<ArtifactRole>() {
        Ok(role) => assert_eq!(role.as_str(), text),
        Err(error) => fit_to_print(&error.to_string()),
    }
    let read = serde_json::from_value::<ArtifactName>(Value::String(text.clone())).ok();
    match text.parse::<ArtifactName>() {
        Ok(name) => {
            assert_eq!(read.as_ref(), Some(&name), "JSON and text disagree");
            assert_eq!(name.as_str(), text);
            fit_to_print(name.as_str());
            stays_inside(&name);
            Outcome::accepted(format!("{} parts", text.matches('/').count()))
        }
        Err(error) => {
            assert_eq!(read, None, "JSON takes what text does not");
            let message = error.to_string();
            fit_to_print(&message);
            Outcome::refused(message)
        }
    }
}

fn stays_inside(name: &ArtifactName) {
    let base = Path::new("/srv/job");
    let joined = base.join(name.as_str());
    assert!(
        joined.starts_with(base) && joined != base,
        "{} leaves its directory",
        joined.display()
    );
    let parts: Vec<Component<'_>> = Path::new(name.as_str()).components().collect();
    assert!(
        parts.iter().all(|part| matches!(part, Component::Normal(_))),
        "{parts:?}"
    );
    // The text says the same as the path: nothing is normalised away.
    assert_eq!(parts.len(), name.as_str().split('/').count(), "{name}");
}
