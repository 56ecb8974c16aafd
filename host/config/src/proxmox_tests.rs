use super::*;
use crate::{Config, ConfigError, parse_config};

fn parse(text: &str) -> Config {
    parse_config(text, "c.yaml").unwrap().value
}

fn refused(text: &str) -> String {
    match parse_config(text, "c.yaml") {
        Err(ConfigError::Invalid(faults)) => faults.iter().map(ToString::to_string).collect(),
        other => panic!("{other:?}"),
    }
}

const TOKEN: &str = "proxmox_api_token: agentlab@pve!lp=0d08f8bc-0a12\n";

#[test]
fn a_file_as_it_was_always_written_means_proxmox() {
    let config = parse(
        "proxmox_backend: api\nproxmox_api_url: https://localhost:8006\n\
         proxmox_api_token: root@pam!token-id=token-uuid\nproxmox_node: \"\"\n",
    );
    assert_eq!(config.backend, BackendKind::Proxmox);
    assert_eq!(config.proxmox.url, "https://localhost:8006");
    assert_eq!(config.proxmox.node, None);
    assert_eq!(config.proxmox.trust, TlsTrust::System);
    assert_eq!(config.proxmox.clone_mode, CloneMode::Auto);
    assert_eq!(parse(TOKEN).backend, BackendKind::Proxmox);
    assert_eq!(parse("proxmox_backend: shell").backend, BackendKind::Shell);
    assert_eq!(
        parse(&format!("proxmox_backend: shell\n{TOKEN}")).backend,
        BackendKind::Shell
    );
    assert_eq!(
        parse("backend: shell\nproxmox_node: pve8")
            .proxmox
            .node
            .as_deref(),
        Some("pve8")
    );
    assert_eq!(parse("").backend, BackendKind::Qemu);
}

#[test]
fn a_token_is_never_shown() {
    let config = parse(TOKEN);
    assert!(!format!("{config:?}").contains("0d08f8bc"));
    let fault = refused("backend: proxmox\nproxmox_api_token: very-secret-uuid");
    assert!(!fault.contains("very-secret"), "{fault}");
    assert!(fault.contains("c.yaml:2"), "{fault}");
}

#[test]
fn what_is_missing_contradictory_or_idle_is_refused_by_name() {
    for (text, part) in [
        ("backend: proxmox".to_owned(), "`proxmox_api_token` is missing"),
        (
            format!("backend: qemu\n{TOKEN}"),
            "no effect with `backend: qemu`",
        ),
        (
            format!("backend: shell\n{TOKEN}"),
            "no effect with `backend: shell`",
        ),
        ("proxmox_node: pve1".to_owned(), "no effect with `backend: qemu`"),
        (
            format!("{TOKEN}proxmox_api_token_path: /etc/token"),
            "exclude each other",
        ),
        (
            format!("{TOKEN}proxmox_api_url: http://localhost:8006"),
            "must begin with https://",
        ),
        (
            format!("{TOKEN}proxmox_tls_fingerprint: AA:BB"),
            "SHA-256 fingerprint",
        ),
        (
            format!(
                "{TOKEN}proxmox_tls_fingerprint: {}\nproxmox_tls_ca_path: /ca.pem",
                "AB".repeat(32)
            ),
            "exclude each other",
        ),
        (
            format!("{TOKEN}proxmox_api_url: https://pve:8006\nproxmox_tls_insecure: true"),
            "whoever answers",
        ),
        (format!("{TOKEN}proxmox_storage: --evil"), "must be a name"),
        (format!("{TOKEN}proxmox_volume_vmid: 1500"), "own range"),
        (format!("{TOKEN}snippet_storage: nfs"), "where its snippets are"),
        (format!("{TOKEN}snippets_dir: snippets"), "absolute"),
        (
            "snippet_storage: local".to_owned(),
            "no effect with `backend: qemu`",
        ),
        (
            format!("{TOKEN}proxmox_clone_mode: fast"),
            "expected one of `auto`",
        ),
        (
            "backend: docker".to_owned(),
            "must be `qemu`, `proxmox` or `shell`",
        ),
    ] {
        let fault = refused(&text);
        assert!(fault.contains(part), "{text}: {fault}");
    }
}

#[test]
fn a_certificate_may_go_unseen_on_this_host_only_and_not_without_a_word() {
    let loaded = parse_config(&format!("{TOKEN}proxmox_tls_insecure: true"), "c.yaml").unwrap();
    assert_eq!(loaded.value.proxmox.trust, TlsTrust::Unverified);
    assert!(
        loaded
            .warnings
            .iter()
            .any(|warning| warning.contains("proxmox_tls_fingerprint"))
    );
    // Names that merely begin like ours are not ours.
    assert!(
        refused(&format!(
            "{TOKEN}proxmox_api_url: https://localhost.evil\nproxmox_tls_insecure: true"
        ))
        .contains("whoever")
    );
}

#[test]
fn every_key_changes_something_and_is_named_as_needing_a_restart() {
    let standing = parse(TOKEN);
    for line in [
        "proxmox_api_url: https://pve:8006".to_owned(),
        "proxmox_tls_ca_path: /ca.pem".to_owned(),
        format!("proxmox_tls_fingerprint: {}", "AB".repeat(32)),
        "proxmox_tls_insecure: true".to_owned(),
        "proxmox_node: pve1".to_owned(),
        "proxmox_pool: agentlab".to_owned(),
        "proxmox_storage: local-zfs".to_owned(),
        "proxmox_clone_mode: full".to_owned(),
        "proxmox_command_timeout: 5m".to_owned(),
        "proxmox_calls_per_node: 4".to_owned(),
        "proxmox_clones_per_storage: 1".to_owned(),
        "proxmox_volume_vmid: 777".to_owned(),
        "snippets_dir: /mnt/pve/nfs/snippets".to_owned(),
        "snippet_storage: local".to_owned(),
    ] {
        let changed = parse(&format!("{TOKEN}{line}"));
        assert_eq!(standing.fixed_differences(&changed).len(), 1, "{line}");
    }
    let moved = parse("backend: proxmox\nproxmox_api_token_path: /etc/agentlab/token");
    assert_eq!(standing.fixed_differences(&moved), ["proxmox_api_token"]);
}

#[test]
fn either_key_of_snippets_brings_the_other() {
    let snippets = |line: &str| parse(&format!("{TOKEN}{line}")).proxmox.snippets;
    assert_eq!(snippets(""), None);
    let usual = SnippetPlace {
        dir: "/var/lib/vz/snippets".into(),
        storage: "local".into(),
    };
    for line in [
        "snippet_storage: local",
        "snippets_dir: /var/lib/vz/snippets",
        "snippets_dir: /var/lib/vz/snippets\nsnippet_storage: local",
    ] {
        assert_eq!(snippets(line), Some(usual.clone()), "{line}");
    }
    let elsewhere = snippets("snippets_dir: /mnt/pve/nfs/snippets\nsnippet_storage: nfs").unwrap();
    assert_eq!(elsewhere.storage, "nfs");
}
