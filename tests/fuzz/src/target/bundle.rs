//! Bundles of secrets, as they are once they are decrypted.

use agentlab_secrets::{SecretsError, parse_bundle};

use super::{Outcome, Target};
use crate::properties::{fit_to_print, inside, text};

pub(super) const TARGET: Target = Target {
    name: "bundle",
    seeds,
    words: &[
        "version: 1\n",
        "git:\n",
        "  token: ",
        "  ssh_private_key: |\n",
        "-----BEGIN OPENSSH PRIVATE KEY-----",
        "env:\n",
        "  A: ",
        "claude: {settings: ",
        "settings_json: '{",
        "ssh: {keys: {",
        "ssh-ed25519 AAAA",
        "tailscale:\n",
        "metadata: ",
        CANARY,
        "\"",
        "\\n",
        "\\ud83d\\ude00",
        "{\"",
        "\": ",
        "&a ",
        "*a",
        "---\n",
        "\u{1b}[31m",
        "\u{0}",
    ],
    run,
    longest: 8_192,
    base_bytes: 4 << 20,
    bytes_per_byte: 2_048,
    inputs: 700,
};

const LABEL: &str = "default.age";
/// A value that stands in every seed, and is no name of anything.
const CANARY: &str = "c4n4ry/+=";

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = vec![
        format!("version: 1\ngit: {{username: me, token: {CANARY}}}\nenv:\n  A: {CANARY}\n  B: 1\n  C: \"{CANARY}\\n\"\n"),
        format!("{{\"version\": 1, \"env\": {{\"A\": \"{CANARY}\"}}, \"metadata\": {{\"x\": [\"{CANARY}\", 1.5]}}}}"),
        format!("claude: {{settings: {{env: {{A: {CANARY}}}, on: true}}}}\nartifact: {{token: {CANARY}}}\n"),
        format!("claude: {{settings_json: '{{\"a\": \"{CANARY}\"}}'}}\ntailscale: {{authkey: {CANARY}, tags: [a]}}\n"),
        format!("git:\n  tokn: {CANARY}\n  token: [{CANARY}]\nenv: {CANARY}\n"),
        format!("git:\n  ssh_private_key: |\n    -----BEGIN X PRIVATE KEY-----\n    {CANARY}\n    -----END X PRIVATE KEY-----\n"),
        "ssh: {keys: {me: {key: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGvHkKJbDUZGgMyqqUwyO0gSYpyZxcM2vVzhzQ8rY3bk a}}}\n"
            .to_owned(),
    ];
    seeds.extend(super::profile::hostile());
    seeds.into_iter().map(String::into_bytes).collect()
}

fn run(input: &[u8]) -> Outcome {
    match parse_bundle(input, LABEL) {
        Ok(bundle) => {
            let written = bundle.emit();
            let again = parse_bundle(written.as_bytes(), LABEL).map(|again| again.emit());
            assert!(
                again.as_ref().is_ok_and(|again| **again == *written),
                "a bundle that was written does not read as it was"
            );
            hides(&format!("{bundle:?}"));
            let lines = written.lines().filter_map(|line| line.split_once(':'));
            let keys: Vec<&str> = lines.map(|(key, _)| key.trim()).take(6).collect();
            Outcome::accepted(keys.join(" "))
        }
        Err(error) => {
            let said = error.to_string();
            fit_to_print(&said);
            hides(&said);
            hides(&format!("{error:?} {:?}", error.hint()));
            if let SecretsError::Faults { faults, .. } = &error {
                let text = text(input);
                for fault in faults.iter().filter(|fault| fault.place.line > 0) {
                    inside(&text, fault.place.line, fault.place.column, &said);
                }
            }
            let words = said
                .split(|c: char| c.is_ascii_digit())
                .next()
                .unwrap_or_default();
            Outcome::refused(words)
        }
    }
}

fn hides(said: &str) {
    assert!(!said.contains(CANARY), "a value is said: {said}");
}
