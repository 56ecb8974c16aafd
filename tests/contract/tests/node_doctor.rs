//! What `agentlab doctor` says of a node where everything is that can spoil a sandbox, seen through the daemon's token over
//! TLS. No secret that a machine or a configuration holds is ever part of it.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use agentlab_testkit::idle_daemon;
use agentlab_tests_contract::run;
use pve_sim::{Plugin, PveSim, Request, Scale, Setup, Version};
use serde_json::{Value, json};

/// Stands in a seed, in notes and in the token.
const CANARY: &str = "Q0FOQVJZLWNhbmFyeS1jYW5hcnk";

const QUICK: Scale = Scale(0.01);

/// Check, state, and what is said and to be done.
type Row = (String, String, String);

fn doctor(node: &PveSim, fingerprint: &str) -> Vec<Row> {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.yaml");
    let text = format!(
        "backend: proxmox\nproxmox_api_url: {}\nproxmox_api_token: {}\nproxmox_tls_fingerprint: \"{fingerprint}\"\n\
         proxmox_pool: agentlab\nproxmox_node: {}\ndata_dir: {}\n",
        node.url(),
        node.token(),
        node.node(),
        dir.path().display()
    );
    std::fs::write(&config, text).unwrap();
    std::fs::set_permissions(&config, std::fs::Permissions::from_mode(0o600)).unwrap();
    let socket = dir.path().join("socket");
    idle_daemon(&socket, "9.2.11").unwrap();
    let program = std::env::current_exe().unwrap();
    let program = program.ancestors().nth(2).unwrap().join("agentlab");
    let mut command = Command::new(program);
    command.args(["doctor", "--json", "--config"]).arg(&config);
    command.env("AGENTLAB_SOCKET", &socket);
    let ran = run(command).unwrap();
    let token = node.token();
    for secret in [CANARY, token.split_once('=').unwrap().1] {
        assert!(
            !ran.stdout.contains(secret) && !ran.stderr.contains(secret),
            "{}{}",
            ran.stdout,
            ran.stderr
        );
    }
    let document: Value = serde_json::from_str(&ran.stdout).unwrap();
    let rows = document["checks"].as_array().unwrap().iter();
    let text = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
    rows.map(|row| {
        let said = format!("{} -> {}", text(row, "seen"), text(row, "next"));
        (text(row, "check"), text(row, "state"), said)
    })
    .collect()
}

/// As the administrator.
async fn change(node: &PveSim, path: &str, parameters: Value) {
    let request = Request {
        method: "POST".into(),
        path: format!("/nodes/{}/qemu/{path}", node.node()),
        authorization: Some(format!("PVEAPIToken={}", node.root_token())),
        content_type: Some("application/json".into()),
        body: parameters.to_string().into(),
        ..Request::default()
    };
    let response = node.answer(request).await;
    assert_eq!(response.status, 200, "{path}: {response:?}");
    let task = response.body.unwrap()["data"].as_str().unwrap().to_owned();
    let request = Request {
        method: "GET".into(),
        path: format!("/nodes/{}/tasks/{task}/status", node.node()),
        authorization: Some(format!("PVEAPIToken={}", node.root_token())),
        ..Request::default()
    };
    loop {
        let status = node.answer(request.clone()).await.body.unwrap()["data"].clone();
        if status["status"] == "stopped" {
            assert_eq!(status["exitstatus"], "OK", "{path}");
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

/// Two nodes of which the first has a template on a storage that can link and snapshot nothing, and whose token may look
/// at the cluster.
async fn spoilt(version: Version) -> PveSim {
    let mut setup = Setup::lab(version, QUICK);
    setup.nodes.push("other".into());
    setup.storages.push(("thick".into(), Plugin::Lvm, false));
    setup.template_storage = "thick".into();
    setup.grants.push(("/".into(), "PVEAuditor".into()));
    let node = setup.in_process().listen("127.0.0.1:0").await.unwrap();
    let operator = node.operator();
    assert!(operator.create_foreign(1003));
    let seed = format!("uuid=7044d74f-1b98-4cfc-9c6c-f23016492a02,base64=1,serial={CANARY}");
    for (key, value) in [
        ("smbios1", seed.as_str()),
        ("description", CANARY),
        ("net0", "virtio=BC:24:11:00:00:01,bridge=vmbr1,firewall=1"),
    ] {
        operator.configure(1003, key, Some(value));
    }
    change(&node, "1003/status/start", json!({})).await;
    operator.let_time_pass();
    change(
        &node,
        "1003/snapshot",
        json!({ "snapname": "live", "vmstate": 1 }),
    )
    .await;
    operator.let_time_pass();
    operator.set_firewall(true);
    operator.set_quorate(false);
    operator.jump_clock(3600);
    node
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_names_all_that_can_spoil_a_sandbox_on_a_node_and_no_secret() {
    for version in [Version::V8, Version::V9] {
        let node = spoilt(version).await;
        let rows = doctor(&node, &node.fingerprint());
        for (check, state, words) in [
            ("quorum", "fail", "no quorum"),
            ("pve-firewall", "warn", "--iface vmbr1"),
            ("storage", "warn", "makes no linked clones"),
            ("storage", "warn", "takes no snapshots"),
            ("template", "ok", "9000"),
            ("clock", "warn", "ahead of this host's"),
            ("certificate", "ok", "the one that is pinned"),
            ("left over", "warn", "1003 has a seed in SMBIOS"),
            ("fwbr", "fail", "1003 has firewall=1 on net0"),
            ("snapshots", "fail", "qm delsnapshot 1003 live"),
        ] {
            let is_said = |row: &Row| row.0 == check && row.1 == state && row.2.contains(words);
            assert!(
                rows.iter().any(is_said),
                "{check} {state} {words} is not in {rows:#?}"
            );
        }
        assert_eq!(node.audit().foreign_touched, Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_shows_a_certificate_that_is_not_the_pinned_one() {
    let node = PveSim::start(Version::V9, QUICK).await.unwrap();
    let rows = doctor(&node, &["AB"; 32].join(":"));
    let row = rows.iter().find(|row| row.0 == "certificate").unwrap();
    assert_eq!(row.1, "fail", "{row:?}");
    assert!(
        row.2.contains(&node.fingerprint()) && row.2.contains("agentlab init --apply"),
        "{row:?}"
    );
}
