//! `config.yaml`.

use agentlab_config::parse_config;

use super::{Outcome, Target, profile};
use crate::properties::{differing, fit_to_print, text};

pub(super) const TARGET: Target = Target {
    name: "config",
    seeds,
    words: &[
        "backend: qemu\n",
        "bridge_address: 10.77.0.1/16\n",
        "bootstrap_listen: 10.77.0.1:8844\n",
        "ssh_public_key: ",
        "provisioning_timeout: ",
        "1h 30m",
        "P1D",
        "99999999999h",
        "-5s",
        "vmid_first: ",
        "vmid_last: ",
        "max_sandboxes: ",
        "qemu:\n  ",
        "accelerator: kvm\n",
        "---\n",
        "\"",
        "|\n",
        "&a ",
        "*a",
        "!!int ",
        "[",
        "{",
        "\r",
        "\u{feff}",
        "\u{1b}[31m",
        "\\u001b",
        "255.255.255.255/8",
        "/0",
        "http://",
        "controller_url: ",
        "log_level: debug\n",
        "metrics_listen: x\n",
    ],
    run,
    longest: 8_192,
    base_bytes: 4 << 20,
    bytes_per_byte: 1_024,
    inputs: 600,
};

const LABEL: &str = "config.yaml";
/// Stands for a private key that was pasted where a public one belongs.
const PASTED: &str = "THIS-MUST-NOT-BE-SHOWN";

fn seeds() -> Vec<Vec<u8>> {
    let shipped = include_str!("../../../../packaging/config/config.yaml");
    let mut seeds = vec![
        String::new(),
        shipped.to_owned(),
        uncommented(shipped),
        "backend: qemu\nuplink: vmbr0\nqemu:\n  accelerator: tcg\n".to_owned(),
        "metrics_listen: 1\nproxmox_node: x\n".to_owned(),
    ];
    seeds.extend(profile::hostile());
    seeds.into_iter().map(String::into_bytes).collect()
}

/// The shipped file shows every key in a comment: this is the file with all of them in force, but for the one that
/// names a file.
fn uncommented(shipped: &str) -> String {
    shipped
        .lines()
        .filter_map(|line| line.strip_prefix('#'))
        .filter(|line| !line.starts_with(' ') || line.starts_with("  "))
        .filter(|line| !line.starts_with("ssh_public_key_path"))
        .map(|line| format!("{line}\n"))
        .collect()
}

fn run(input: &[u8]) -> Outcome {
    let text = text(input);
    pasted(&text);
    match parse_config(&text, LABEL) {
        Ok(loaded) => {
            loaded.warnings.iter().for_each(|warning| fit_to_print(warning));
            let config = &loaded.value;
            assert!(config.vmid_first <= config.vmid_last);
            assert!(!(config.vmid_first..=config.vmid_last).contains(&config.template_vmid));
            assert_ne!(config.bootstrap_listen, config.artifact_listen);
            assert_eq!(*config.bootstrap_listen.ip(), config.bridge_address.address);
            assert!(config.bridge_address.address.is_private());
            assert!(config.heartbeat_silence >= config.heartbeat * 3);
            for path in [
                &config.data_dir,
                &config.run_dir,
                &config.socket_path,
                &config.db_path,
                &config.qemu.binary,
            ] {
                assert!(path.is_absolute(), "{}", path.display());
            }
            let changed = parse_config("", LABEL).map(|default| differing(config, &default.value));
            Outcome::accepted(format!(
                "{} {}",
                changed.unwrap_or_default(),
                if loaded.warnings.is_empty() { "" } else { "warned" }
            ))
        }
        Err(error) => profile::refused(&text, LABEL, &error),
    }
}

/// Whatever is pasted as a key, no message shows it.
fn pasted(text: &str) {
    let value = serde_json::Value::String(format!("{PASTED}{text}"));
    for key in ["ssh_public_key", "control_auth_token"] {
        if let Err(error) = parse_config(&format!("{key}: {value}\n"), LABEL) {
            let message = error.to_string();
            assert!(!message.contains(PASTED), "{message}");
        }
    }
}
