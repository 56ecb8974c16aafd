//! `agentlab doctor` and the daemon's program against a stand-in of a Proxmox VE node, over TLS.

mod condition;
mod workspace;

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use agentlab_tests_contract::run;
use pve_sim::{PveSim, Scale, Version};
use serde_json::Value;

struct Doctor {
    code: Option<i32>,
    rows: Vec<Value>,
}

impl Doctor {
    fn of(node: &PveSim, token: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config.yaml");
        let text = format!(
            "backend: proxmox\nproxmox_api_url: {}\nproxmox_api_token: {token}\nproxmox_tls_fingerprint: \"{}\"\n\
             proxmox_pool: agentlab\nproxmox_storage: local\nproxmox_volume_vmid: 777\ndata_dir: {}\n",
            node.url(),
            node.fingerprint(),
            dir.path().display()
        );
        std::fs::write(&config, text).unwrap();
        std::fs::set_permissions(&config, std::fs::Permissions::from_mode(0o600)).unwrap();
        let program = std::env::current_exe().unwrap();
        let program = program.ancestors().nth(2).unwrap().join("agentlab");
        let mut command = Command::new(program);
        command.args(["doctor", "--json", "--config"]).arg(&config);
        command.env("AGENTLAB_SOCKET", dir.path().join("socket"));
        let ran = run(command).unwrap();
        assert!(
            !ran.stdout.contains(token.split_once('=').unwrap().1),
            "{}",
            ran.stdout
        );
        let document: Value = serde_json::from_str(&ran.stdout).unwrap();
        Self {
            code: ran.status.code(),
            rows: document["checks"].as_array().unwrap().clone(),
        }
    }

    /// The states of all rows of a check, and what they say.
    fn check(&self, name: &str) -> (Vec<&str>, String) {
        let rows = || self.rows.iter().filter(|row| row["check"] == name);
        let states = rows().map(|row| row["state"].as_str().unwrap()).collect();
        (states, rows().map(ToString::to_string).collect())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_proves_with_the_token_what_it_may_and_what_it_must_not() {
    for version in [Version::V8, Version::V9] {
        let node = PveSim::start(version, Scale(0.0)).await.unwrap();
        let seen = Doctor::of(&node, &node.token());
        for check in ["token", "certificate", "clock", "privileges", "reach", "template"] {
            let (states, said) = seen.check(check);
            assert_eq!(states, ["ok"], "{check}: {said} {:#?}", seen.rows);
        }
        assert!(seen.check("token").1.contains(version.text()), "{:#?}", seen.rows);
        // No daemon answers here.
        assert_eq!((seen.check("daemon").0, seen.code), (vec!["fail"], Some(1)));

        // As somebody might have it who took root's token: it works, and far too well.
        let seen = Doctor::of(&node, &node.root_token());
        let (states, said) = seen.check("reach");
        assert!(
            states.len() == 11 && states.iter().all(|state| *state == "fail"),
            "{said}"
        );
        assert!(said.contains("may make roles"), "{said}");
        assert_eq!(
            node.audit().changes,
            Vec::<String>::new(),
            "a doctor changes nothing"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_says_that_a_secret_is_wrong_and_how_to_get_another() {
    let node = PveSim::start(Version::V8, Scale(0.0)).await.unwrap();
    let wrong = "agentlab@pve!lp=00000000-0000-0000-0000-000000000000";
    let seen = Doctor::of(&node, wrong);
    let (states, said) = seen.check("token");
    assert!(states == ["fail"] && said.contains("--rotate"), "{said}");
}
