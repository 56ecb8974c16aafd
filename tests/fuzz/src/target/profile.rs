//! Profiles, as an operator writes them.

use agentlab_config::{ConfigError, parse_profiles};

use super::{Outcome, Target};
use crate::properties::{differing, fit_to_print, inside, text};

pub(super) const TARGET: Target = Target {
    name: "profile",
    seeds,
    words: &[
        "---\n",
        "...\n",
        "name: ",
        "template_vmid: ",
        "network: {mode: off}",
        "  channels: [serial, tls]\n",
        "inner_sandbox_args: [",
        "\"",
        "'",
        "|\n",
        ">-\n",
        "&a ",
        "*a",
        "<<: *a",
        "!!str ",
        "!!binary ",
        "%YAML 1.2\n",
        "\t",
        "\r",
        "\u{85}",
        "\u{2028}",
        "\u{feff}",
        "? ",
        ": ",
        "- ",
        "[",
        "{",
        "#",
        "0x10",
        "1_000",
        ".inf",
        "~",
        "host_path: /",
        "mounts:\n",
        "\u{1b}[31m",
        "\\u001b",
        "\\x1b",
    ],
    run,
    longest: 8_192,
    base_bytes: 4 << 20,
    bytes_per_byte: 1_024,
    inputs: 700,
};

const LABEL: &str = "p.yaml";

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = vec![
        include_str!("../../../../packaging/profiles/defaults.yaml").to_owned(),
        include_str!("../../../../packaging/profiles/demo.yaml").to_owned(),
        "{\"name\": \"json\", \"template_vmid\": 9000, \"behavior\": {\"inner_sandbox_args\": [\"--a\", \"b c\"]}}"
            .to_owned(),
        "name: all\ntemplate_vmid: 9000\nnetwork:\n  mode: nat\n  bridge: vmbr1\n  channels: [tls]\nartifacts:\n  max_files: 3\n"
            .to_owned(),
        "name: a\ntemplate_vmid: 9000\nstorage: {workspace: x}\nbind_mounts: [/]\n".to_owned(),
        "name: a\nname: b\n".to_owned(),
    ];
    seeds.extend(hostile());
    seeds.into_iter().map(String::into_bytes).collect()
}

/// Texts that make a careless YAML reader run out of stack, memory or time.
pub(super) fn hostile() -> Vec<String> {
    let level = |n: u32| format!("l{n}: &l{n} [{}]\n", vec![format!("*l{}", n - 1); 9].join(", "));
    let laughs: String = std::iter::once("l0: &l0 [lol, lol]\n".to_owned())
        .chain((1..9).map(level))
        .collect();
    let thousand = format!("a: &a [{}]\n", vec!["x"; 1_000].join(","));
    vec![
        laughs,
        format!("{thousand}b: [{}]\n", vec!["*a"; 900].join(",")),
        "[".repeat(8_000),
        "{a: ".repeat(2_000),
        "- ".repeat(4_000),
        "? ".repeat(4_000),
        (0..80).map(|n| format!("{}a:\n", " ".repeat(n))).collect(),
        "a: &a [*a]\n".to_owned(),
        format!("name: {}\n", "x".repeat(8_000)),
        "---\n".repeat(2_000),
    ]
}

fn run(input: &[u8]) -> Outcome {
    let text = text(input);
    match parse_profiles(&text, LABEL) {
        Ok(profiles) => {
            let mut names: Vec<&str> = profiles
                .iter()
                .map(|loaded| loaded.profile.name.as_str())
                .collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), profiles.len(), "two profiles of one name");
            for loaded in &profiles {
                inside(&text, loaded.line, loaded.column, "a profile's name");
                let profile = &loaded.profile;
                assert!((1..=128).contains(&profile.resources.cores));
                assert!(profile.resources.memory_mb >= 256);
                // JSON with escapes is YAML: a profile that is printed by `--json` can be used as a profile.
                let Ok(printed) = serde_json::to_string(profile) else {
                    panic!("a profile that was read cannot be printed")
                };
                let printed = escaped(&printed);
                let again = parse_profiles(&printed, LABEL)
                    .map(|again| again.into_iter().map(|loaded| loaded.profile).collect::<Vec<_>>());
                assert!(
                    again
                        .as_ref()
                        .is_ok_and(|again| again == std::slice::from_ref(profile)),
                    "{printed} is read as {again:?}"
                );
            }
            let plain = parse_profiles("{name: a, template_vmid: 9000}", LABEL).unwrap_or_default();
            let changed = profiles.iter().zip(plain.iter().cycle());
            let changed = changed.map(|(one, plain)| differing(&one.profile, &plain.profile));
            Outcome::accepted(changed.take(3).collect::<Vec<_>>().join("\n"))
        }
        Err(error) => refused(&text, LABEL, &error),
    }
}

/// YAML has no raw form for some characters that JSON has one for.
fn escaped(json: &str) -> String {
    let mut escaped = String::new();
    for letter in json.chars() {
        match u16::try_from(u32::from(letter)) {
            Ok(code) if code > 0x7e => escaped.push_str(&format!("\\u{code:04x}")),
            Ok(_) | Err(_) => escaped.push(letter),
        }
    }
    escaped
}

/// Every fault has a place that exists, and words fit for a terminal.
pub(super) fn refused(text: &str, label: &str, error: &ConfigError) -> Outcome {
    let ConfigError::Invalid(faults) = error else {
        panic!("a text alone gave {error}")
    };
    assert!(!faults.is_empty(), "refused without a reason");
    for fault in faults {
        assert_eq!(fault.file, label);
        fit_to_print(&fault.message);
        let of_the_whole = fault.message == "holds no profile";
        if !of_the_whole {
            inside(text, fault.line, fault.column, &fault.message);
        }
    }
    let words: Vec<&str> = faults
        .iter()
        .take(4)
        .map(|fault| fault.message.as_str())
        .collect();
    Outcome::refused(words.join("\n"))
}
