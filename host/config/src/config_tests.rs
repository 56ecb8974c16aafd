use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use super::*;

fn faults(text: &str) -> String {
    parse_config(text, "c.yaml").unwrap_err().to_string()
}

#[test]
fn an_empty_file_gives_the_documented_defaults() {
    let config = parse_config("# nothing\n", "c.yaml").unwrap().value;
    assert_eq!(config.socket_path, Path::new("/run/agentlab/agentlabd.sock"));
    assert_eq!(config.db_path, Path::new("/var/lib/agentlab/agentlab.db"));
    assert_eq!(config.template_dir, Path::new("/var/lib/agentlab/templates"));
    assert_eq!(config.bootstrap_listen.to_string(), "10.77.0.1:8844");
    assert_eq!(config.artifact_listen.to_string(), "10.77.0.1:8846");
    assert_eq!(
        (config.vmid_first.to_string(), config.template_vmid.to_string()),
        ("1000".into(), "9000".into())
    );
    assert_eq!(config.provisioning_timeout, Duration::from_secs(600));
}

#[test]
fn derived_paths_follow_and_named_paths_stay() {
    let text = "data_dir: /srv/lab\nrun_dir: /run/lab\ndb_path: /srv/db/lab.db\n";
    let config = parse_config(text, "c.yaml").unwrap().value;
    assert_eq!(config.artifact_dir, Path::new("/srv/lab/artifacts"));
    assert_eq!(config.socket_path, Path::new("/run/lab/agentlabd.sock"));
    assert_eq!(config.db_path, Path::new("/srv/db/lab.db"));
}

#[test]
fn durations_are_read_as_people_write_them() {
    let text = "provisioning_timeout: 1h 30m\nboot_timeout: 90s\nreconcile_interval: PT1M\n";
    let config = parse_config(text, "c.yaml").unwrap().value;
    assert_eq!(config.provisioning_timeout, Duration::from_secs(5400));
    assert_eq!(config.boot_timeout, Duration::from_secs(90));
    assert_eq!(config.reconcile_interval, Duration::from_secs(60));
    assert!(
        faults("boot_timeout: soon\n").starts_with("c.yaml:1:15: "),
        "{}",
        faults("boot_timeout: soon\n")
    );
    assert!(faults("boot_timeout: -2m\n").starts_with("c.yaml:1:1: `boot_timeout` is "));
}

#[test]
fn the_subnet_and_its_listeners_belong_together() {
    let config = parse_config(
        "bridge_address: 10.9.8.1/24\nagent_subnet: 10.9.8.0/24\n",
        "c.yaml",
    )
    .unwrap()
    .value;
    assert_eq!(config.artifact_listen.to_string(), "10.9.8.1:8846");
    for (text, place) in [
        ("bridge_address: 10.77.0.1\n", "1:1"),
        ("bridge_address: 10.77.0.0/16\n", "1:1"),
        ("bridge_address: 8.8.8.8/16\n", "1:1"),
        ("bridge_address: 10.0.0.1/30\n", "1:1"),
        ("agent_subnet: 10.78.0.0/16\n", "1:1"),
        ("bootstrap_listen: 0.0.0.0:8844\n", "1:1"),
        ("bridge: vmbr1\nartifact_listen: 10.77.0.1:8844\n", "2:1"),
        ("bridge: this-name-is-too-long\n", "1:1"),
        ("uplink: vmbr1\n", "1:1"),
    ] {
        assert!(
            faults(text).starts_with(&format!("c.yaml:{place}: `")),
            "{text:?} gave {}",
            faults(text)
        );
    }
}

#[test]
fn a_plain_http_controller_is_accepted_with_a_warning_and_another_address_is_not() {
    let loaded = parse_config("controller_url: http://10.77.0.1:8844\n", "c.yaml").unwrap();
    assert!(
        loaded.warnings.len() == 1 && loaded.warnings[0].contains("TLS"),
        "{:?}",
        loaded.warnings
    );
    assert!(
        parse_config("controller_url: https://10.77.0.1:8844/\n", "c.yaml")
            .unwrap()
            .warnings
            .is_empty()
    );
    assert!(faults("controller_url: http://10.77.0.2:8844\n").contains("https://10.77.0.1:8844"));
    assert!(faults("controller_url: ftp://x\n").contains("https://"));
}

#[test]
fn an_unknown_key_is_named_with_its_place_and_the_nearest_one() {
    assert_eq!(
        faults("data_dir: /x\nmax_sandbox: 3\n"),
        "c.yaml:2:1: unknown key `max_sandbox`; did you mean `max_sandboxes`?"
    );
    assert_eq!(
        faults("qemu:\n  tb_size: 3\n"),
        "c.yaml:2:3: unknown key `tb_size`; did you mean `tb_size_mb`?"
    );
    assert_eq!(
        faults("run_dir: /a\nrun_dir: /b\n"),
        "c.yaml:2:1: key `run_dir` stands here twice"
    );
}

#[test]
fn everything_that_is_wrong_is_said_at_once_in_the_order_of_the_text() {
    let text = "max_sandboxes: 0\nmetrics_listen: 127.0.0.1:8847\nheartbeat_secnds: 4\nqemu:\n  accelerator: xen\n\
                boot_timeout: soon\ncli_path: |\n  one\n  two\ntrust_agent_subnet:\n- 10.0.0.0/8\n# end\n\
                log_max_bytes: 0\n";
    let said = faults(text);
    let places: Vec<&str> = said.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(
        places,
        [
            "c.yaml:1:1:",
            "c.yaml:2:1:",
            "c.yaml:3:1:",
            "c.yaml:5:16:",
            "c.yaml:6:15:",
            "c.yaml:7:1:",
            "c.yaml:10:1:",
            "c.yaml:13:1:"
        ],
        "{said}"
    );
}

#[test]
fn what_cannot_be_left_out_hides_at_most_what_follows_and_invents_nothing() {
    for text in [
        "{max_sandboxes: 0, metrics_listen: 1}\n",
        "metrics_listen: &x a\nbridge: *x\nmax_sandboxes: 0\n",
        "qemu: {metrics_listen: 1, tb: 2}\n",
    ] {
        let said = faults(text);
        assert_eq!(said.lines().count(), 1, "{text:?} gave {said}");
        assert!(said.starts_with("c.yaml:1:"), "{text:?} gave {said}");
    }
}

#[test]
fn documented_keys_that_nothing_enforces_are_refused_without_their_value() {
    let said = faults("control_auth_token: hunter2hunter2\nmetrics_listen: 127.0.0.1:8847\n");
    assert!(
        said.contains("`control_auth_token`") && said.contains("c.yaml:2:1: key `metrics_listen`"),
        "{said}"
    );
    assert!(!said.contains("hunter2"), "{said}");
}

#[test]
fn numbers_that_contradict_each_other_are_refused() {
    for text in [
        "vmid_first: 2000\nvmid_last: 1999\n",
        "template_vmid: 1500\n",
        "vmid_first: 1000\nvmid_last: 1003\n",
        "max_sandboxes: 0\n",
        "heartbeat_seconds: 30\n",
        "max_sandboxes: 64\nqemu:\n  uid_count: 64\n",
        "qemu:\n  uid_first: 0\n",
        "qemu:\n  accelerator: xen\n",
        "data_dir: var/lib\n",
        "data_dir: /var/../lib\n",
        "log_level: loud\n",
        "vmid_first: 99\n",
    ] {
        assert!(parse_config(text, "c.yaml").is_err(), "{text:?}");
    }
    let enough = "max_sandboxes: 64\nqemu:\n  uid_count: 65\n";
    assert!(parse_config(enough, "c.yaml").is_ok());
    assert!(faults("---\ndata_dir: /a\n---\ndata_dir: /b\n").contains("second"));
}

#[test]
fn a_file_open_to_others_is_refused_and_one_open_to_its_group_warned_about() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.yaml");
    fs::write(&path, "backend: qemu\n").unwrap();
    for (mode, allowed, warned) in [
        (0o600, true, false),
        (0o400, true, false),
        (0o640, true, true),
        (0o644, false, false),
        (0o604, false, false),
        (0o601, false, false),
        (0o620, false, false),
        (0o650, false, false),
    ] {
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        match load_config(&path) {
            Ok(loaded) => assert!(allowed && warned != loaded.warnings.is_empty(), "{mode:o}"),
            Err(error) => assert!(
                !allowed && error.hint().unwrap().contains("0600"),
                "{mode:o} {error}"
            ),
        }
    }
    assert!(matches!(
        load_config(dir.path()),
        Err(ConfigError::NotAFile { .. })
    ));
    assert!(matches!(
        load_config(&dir.path().join("absent")),
        Err(ConfigError::Missing { .. })
    ));
}

#[test]
fn profiles_are_held_against_the_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let text = format!(
        "profiles_dir: {}\nartifact_max_bytes: 1000\n",
        dir.path().display()
    );
    let config = parse_config(&text, "c.yaml").unwrap().value;
    fs::write(
        dir.path().join("a.yaml"),
        "name: a\ntemplate_vmid: 9000\nnetwork: {bridge: vmbr1}\n",
    )
    .unwrap();
    assert_eq!(config.load_profiles().unwrap()[0].artifacts.max_file_bytes, 1000);
    fs::write(
        dir.path().join("a.yaml"),
        "name: a\ntemplate_vmid: 9000\nnetwork: {bridge: vmbr0}\n",
    )
    .unwrap();
    assert!(
        config
            .load_profiles()
            .unwrap_err()
            .to_string()
            .contains("a.yaml:1:1: profile `a` wants bridge `vmbr0`")
    );
}

#[test]
fn upstreams_are_addresses_of_others() {
    let upstreams = |text: &str| parse_config(text, "c.yaml").map(|config| config.value.dns.upstreams);
    let good = upstreams("dns: {upstreams: [9.9.9.9, '192.0.2.7:5353', '2620:fe::fe']}").unwrap();
    let shown: Vec<String> = good.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["9.9.9.9:53", "192.0.2.7:5353", "[2620:fe::fe]:53"]);
    for (text, words) in [
        ("dns: {upstreams: [dns.google]}", "must hold addresses"),
        ("dns: {upstreams: [0.0.0.0]}", "must hold addresses"),
        ("dns: {upstreams: ['9.9.9.9:0']}", "must hold addresses"),
        (
            "dns: {upstreams: [10.77.0.1]}",
            "where the resolver itself listens",
        ),
        (
            "dns: {upstreams: [1.1.1.1, 1.0.0.1, 9.9.9.9, 8.8.8.8]}",
            "at most 3",
        ),
        ("dns: {enabled: false, upstreams: [9.9.9.9]}", "would be ignored"),
    ] {
        let said = upstreams(text).unwrap_err().to_string();
        assert!(
            said.starts_with("c.yaml:1:7: ") || said.starts_with("c.yaml:1:"),
            "{said}"
        );
        assert!(said.contains(words), "{text}: {said}");
    }
}

#[test]
fn the_shipped_file_says_the_defaults_and_names_every_key() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/config/config.yaml");
    let text = fs::read_to_string(path).unwrap();
    let plain = parse_config("", "c.yaml").unwrap();
    assert_eq!(parse_config(&text, "c.yaml").unwrap(), plain);
    // With every commented example line active it must still be accepted: no key in it is made up.
    let active: String = text
        .lines()
        .map(|line| match line.strip_prefix("#") {
            Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase()) || rest.starts_with("  ") => {
                rest
            }
            Some(_) | None => line,
        })
        .map(|line| format!("{line}\n"))
        .collect();
    let all = parse_config(&active, "c.yaml").unwrap();
    assert_eq!(all.value.uplink.as_deref(), Some("vmbr0"));
    for key in crate::keys::of::<Raw>() {
        // Not all of Proxmox's can stand beside each other, so they are there to be read.
        let named = active.contains(&format!("\n{key}:")) || active.contains(&format!("\n# {key}: "));
        assert!(named, "{key} is not named");
    }
    for key in crate::keys::of::<crate::raw::RawQemu>() {
        assert!(
            active.contains(&format!("\n  {key}: ")),
            "qemu.{key} is not named"
        );
    }
    for key in crate::keys::of::<crate::network::RawDns>() {
        assert!(active.contains(&format!("\n  {key}: ")), "dns.{key} is not named");
    }
}

#[test]
fn a_value_of_the_wrong_kind_is_told_which_key_it_stands_at_and_what_belongs_there() {
    for (text, said) in [
        (
            "max_sandboxes: -1\n",
            "c.yaml:1:16: `max_sandboxes` must be a whole number, 0 or more",
        ),
        (
            "idle_stop_enabled: maybe\n",
            "c.yaml:1:20: `idle_stop_enabled` must be true or false",
        ),
        (
            "qemu: fast\n",
            "c.yaml:1:7: `qemu` must be a block of keys with values, such as `key: value`",
        ),
        (
            "backend qemu\n",
            "c.yaml:1:1: here belongs a block of keys with values, such as `key: value`",
        ),
    ] {
        assert_eq!(faults(text), said);
    }
}
