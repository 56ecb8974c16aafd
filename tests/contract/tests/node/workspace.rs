//! `agentlab workspace` on a stand-in of a Proxmox VE node, through the daemon and over TLS.

use std::process::{Child, Stdio};
use std::time::Duration;

use agentlab_tests_contract::Lab;
use pve_sim::{Plugin, PveSim, Scale, Setup, Version};
use serde_json::Value;
use tokio::time::sleep;

/// A node with two storages, and the configuration of a daemon that keeps volumes there.
pub(super) async fn lab_on(version: Version) -> (PveSim, Lab) {
    let mut setup = Setup::lab(version, Scale(0.02));
    setup.storages.push(("fast".to_owned(), Plugin::LvmThin, false));
    setup
        .grants
        .push(("/storage/fast".to_owned(), "AgentLabStorage".to_owned()));
    let node = setup.in_process().listen("127.0.0.1:0").await.unwrap();
    let lab = Lab::prepare().unwrap();
    let config = format!(
        "backend: proxmox\nproxmox_api_url: {}\nproxmox_api_token: {}\nproxmox_tls_fingerprint: \"{}\"\n\
         proxmox_pool: agentlab\nproxmox_storage: local\nproxmox_volume_vmid: 777\n",
        node.url(),
        node.token(),
        node.fingerprint(),
    );
    lab.configure(&config).unwrap();
    (node, lab)
}

/// A daemon that is killed when it is dropped, as the kernel kills.
struct Daemon(Child);

impl Daemon {
    async fn start(lab: &Lab) -> Self {
        let mut daemon = lab.daemon("agentlabd-fake");
        let daemon = daemon.stdout(Stdio::null()).stderr(Stdio::null());
        let daemon = Self(daemon.spawn().unwrap());
        while lab.agentlab(&["status"]).unwrap().code() != Some(0) {
            sleep(Duration::from_millis(20)).await;
        }
        daemon
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn volumes(node: &PveSim) -> Vec<String> {
    let mut left = node.left();
    left.retain(|one| one.starts_with("volume "));
    left
}

fn volume(view: &Value) -> String {
    format!("volume {}", view["volume"].as_str().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workspace_is_kept_forked_and_moved_on_both_releases() {
    for version in [Version::V8, Version::V9] {
        let (node, mut lab) = lab_on(version).await;
        lab.start().unwrap();
        let workspace = |words: &[&str]| {
            let words: Vec<&str> = ["workspace"].iter().chain(words).copied().collect();
            lab.json(&words).unwrap()
        };
        workspace(&["create", "work", "--size", "1G"]);
        let kept = workspace(&["snapshot", "create", "work", "before"]);
        assert_eq!(kept["snapshots"][0]["name"], "before");
        let then = workspace(&["fork", "work", "then", "--from-snapshot", "before"]);
        let now = workspace(&["fork", "work", "now"]);
        let back = workspace(&["snapshot", "restore", "work", "before"]);
        assert_eq!(back["state"], "DETACHED");
        let ran = lab.agentlab(&["workspace", "move", "work", "fast"]).unwrap();
        assert!(
            ran.code() != Some(0) && ran.stderr.contains("snapshot delete"),
            "{ran:?}"
        );
        let moved = workspace(&["move", "now", "fast"]);
        assert!(
            moved["volume"].as_str().unwrap().starts_with("fast:vm-777-"),
            "{moved}"
        );
        let mut there = [volume(&back), volume(&then), volume(&moved)];
        there.sort();
        assert_eq!(volumes(&node), there);
        let ran = lab.agentlab(&["workspace", "move", "now", "elsewhere"]).unwrap();
        assert!(
            ran.code() != Some(0) && ran.stderr.contains("/storage/elsewhere"),
            "{ran:?}"
        );
        assert_eq!(workspace(&["show", "now"])["volume"], moved["volume"], "{now}");
        for name in ["work", "then", "now"] {
            workspace(&["delete", name, "--yes"]);
        }
        assert_eq!(volumes(&node), Vec::<String>::new());
        assert_eq!(node.audit().foreign_touched, Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_dies_while_pve_copies_ends_with_one_copy() {
    let (node, lab) = lab_on(Version::V9).await;
    let daemon = Daemon::start(&lab).await;
    lab.json(&["workspace", "create", "work", "--size", "1G"])
        .unwrap();
    let asked = lab.begin(&["workspace", "fork", "work", "copy"]).unwrap();
    let is_copying = || node.audit().changes.iter().any(|line| line.contains("clone VM"));
    while !is_copying() {
        sleep(Duration::from_millis(5)).await;
    }
    drop(daemon);
    drop(asked);
    let _daemon = Daemon::start(&lab).await;
    let copy = loop {
        let copy = lab.json(&["workspace", "show", "copy"]).unwrap();
        if copy["state"] == "DETACHED" {
            break copy;
        }
        sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(volumes(&node).len(), 2, "{copy}");
    assert!(volumes(&node).contains(&volume(&copy)));
    assert_eq!(node.operator().clients_machines(), [777]);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_database_was_lost_a_check_names_the_volumes_and_they_are_adopted_with_what_is_on_them() {
    let (node, mut lab) = lab_on(Version::V9).await;
    lab.start().unwrap();
    let made = lab
        .json(&["workspace", "create", "work", "--size", "1G"])
        .unwrap();
    lab.json(&["workspace", "snapshot", "create", "work", "before"])
        .unwrap();
    let fork = lab.json(&["workspace", "fork", "work", "copy"]).unwrap();
    let before = volumes(&node);
    assert_eq!(lab.agentlab(&["workspace", "check"]).unwrap().code(), Some(0));
    lab.stop().unwrap();
    for entry in std::fs::read_dir(lab.path("data")).unwrap() {
        let path = entry.unwrap().path();
        if path
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .starts_with("agentlab.db")
        {
            std::fs::remove_file(path).unwrap();
        }
    }
    lab.start().unwrap();
    let ran = lab.agentlab(&["workspace", "check", "--json"]).unwrap();
    assert_eq!(ran.code(), Some(1), "{ran:?}");
    let checked: Value = serde_json::from_str(&ran.stdout).unwrap();
    let findings = checked["findings"].as_array().unwrap();
    assert!(
        findings.len() == 2 && findings.iter().all(|one| one["kind"] == "orphan"),
        "{checked}"
    );
    while !lab
        .agentlab(&["status"])
        .unwrap()
        .stdout
        .contains("Volumes without a workspace")
    {
        sleep(Duration::from_millis(20)).await;
    }
    // What was made anew keeps its hands off them.
    assert_eq!(volumes(&node), before);
    let volume = made["volume"].as_str().unwrap();
    let adopted = lab.json(&["workspace", "adopt", "again", volume]).unwrap();
    assert_eq!(
        (&adopted["id"], &adopted["snapshots"][0]["name"]),
        (&made["id"], &"before".into())
    );
    let (copy, of) = (fork["volume"].as_str().unwrap(), made["id"].as_str().unwrap());
    lab.json(&["workspace", "adopt", "copy", copy, "--file-system", of])
        .unwrap();
    let ran = lab.agentlab(&["workspace", "check"]).unwrap();
    assert_eq!(
        (ran.code(), ran.stdout.trim()),
        (Some(0), "2 workspaces are as recorded")
    );
    assert!(
        !lab.agentlab(&["status"])
            .unwrap()
            .stdout
            .contains("Volumes without")
    );
    for name in ["again", "copy"] {
        lab.json(&["workspace", "delete", name, "--yes"]).unwrap();
    }
    assert_eq!(volumes(&node), Vec::<String>::new());
    assert_eq!(node.audit().foreign_touched, Vec::<String>::new());
}
