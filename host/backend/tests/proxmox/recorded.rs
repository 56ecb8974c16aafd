//! What genuine nodes of both releases answered, as the back end understands it.

use std::collections::HashMap;

use agentlab_backend::{BackendError, Power, SnapshotHolds};
use serde_json::Value;

use crate::lab::{settings, stamp, vmid};
use crate::server::{Reply, Server};
use agentlab_backend::proxmox::connect;

const RECORDED: [(&str, &str, &str); 2] = [
    ("pve8", "8.4.21", include_str!("../recorded/pve-8.4.21.jsonl")),
    ("pve9", "9.2.11", include_str!("../recorded/pve-9.2.11.jsonl")),
];

/// Answers under the notes they were recorded with.
struct Recorded(HashMap<String, Value>);

impl Recorded {
    fn read(text: &str) -> Self {
        let lines = text
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap());
        Self(
            lines
                .map(|line| (line["note"].as_str().unwrap().to_owned(), line))
                .collect(),
        )
    }

    fn reply(&self, note: &str) -> Reply {
        let line = self
            .0
            .get(note)
            .unwrap_or_else(|| panic!("nothing recorded as `{note}`"));
        let response = &line["response"];
        let body = &response["body"];
        let body = body.as_str().map_or_else(|| body.to_string(), str::to_owned);
        let status = u16::try_from(response["status"].as_u64().unwrap()).unwrap();
        Reply::Answer(status, response["reason"].as_str().unwrap().to_owned(), body)
    }
}

/// Serves recorded answers, each to the target that it is given for; whatever else is asked is not implemented.
async fn serving(
    text: &'static str,
    answers: &'static [(&'static str, &'static str)],
    node: &'static str,
) -> Server {
    let recorded = Recorded::read(text);
    Server::start(move |seen| {
        let target = seen.target.replace(&format!("/nodes/{node}/"), "/nodes/N/");
        let asked = format!("{} {target}", seen.method);
        match answers.iter().find(|(known, _)| *known == asked) {
            Some((_, "free")) => Reply::free(),
            Some((_, note)) => recorded.reply(note),
            None => recorded.reply("no such method"),
        }
    })
    .await
}

fn backend(server: &Server, node: &str) -> std::sync::Arc<dyn agentlab_backend::Backend> {
    let mut settings = settings(server);
    settings.pve.node = Some(node.to_owned());
    settings.pve.vmids = (vmid(400), vmid(500));
    connect(settings).unwrap()
}

#[tokio::test]
async fn versions_templates_and_states_are_read() {
    for (node, version, text) in RECORDED {
        const ANSWERS: &[(&str, &str)] = &[
            ("GET /version", "version"),
            ("GET /cluster/resources?type=vm", "resources"),
            ("GET /nodes/N/qemu/9000/config", "template config"),
            ("GET /nodes/N/qemu/410/config", "config of the clone"),
        ];
        for (note, power) in [
            ("status stopped", Power::Stopped),
            ("status running", Power::Running),
            ("status paused", Power::Suspended),
        ] {
            let recorded = Recorded::read(text);
            let server = Server::start(move |seen| {
                let target = seen.target.replace(&format!("/nodes/{node}/"), "/nodes/N/");
                let asked = format!("GET {target}");
                match ANSWERS.iter().find(|(known, _)| *known == asked) {
                    Some((_, note)) => recorded.reply(note),
                    None if target.ends_with("/status/current") => recorded.reply(note),
                    None => Reply::data(serde_json::json!([])),
                }
            })
            .await;
            let backend = backend(&server, node);
            assert_eq!(
                backend.info().await.unwrap().version,
                format!("Proxmox VE {version}")
            );
            let machine = backend.inspect(vmid(410)).await.unwrap().unwrap();
            assert_eq!(
                (machine.name.as_str(), machine.power, machine.stamp),
                ("rec410", power, None),
                "{note}"
            );
            let templates = backend.templates().await.unwrap();
            assert_eq!(
                (templates[0].name.as_str(), templates[0].vmid),
                ("tmpl", vmid(9000))
            );
        }
    }
}

#[tokio::test]
async fn a_machine_without_our_stamp_is_never_changed() {
    const ANSWERS: &[(&str, &str)] = &[
        ("GET /version", "version"),
        ("GET /nodes/N/qemu/410/config", "config of the clone"),
        ("GET /nodes/N/qemu/410/status/current", "status stopped"),
    ];
    for (node, _, text) in RECORDED {
        let server = serving(text, ANSWERS, node).await;
        let backend = backend(&server, node);
        let at = vmid(410);
        let answers = [
            backend.destroy(at, &stamp()).await,
            backend.power_off(at, &stamp()).await,
            backend.configure(at, &stamp(), &crate::lab::shape()).await,
            backend.place_seed(at, &stamp(), b"seed").await,
            backend
                .take_snapshot(at, &stamp(), "clean", SnapshotHolds::Memory)
                .await,
        ];
        for answer in answers {
            assert!(matches!(answer, Err(BackendError::NotOurs { .. })), "{answer:?}");
        }
        assert_eq!(server.changes(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_machine_is_gone_when_the_cluster_says_so_and_not_when_it_is_hidden() {
    const GONE: &[(&str, &str)] = &[
        (
            "GET /nodes/N/qemu/410/config",
            "after destroy, least-privilege token",
        ),
        ("GET /cluster/nextid?vmid=410", "free"),
    ];
    const MISSING: &[(&str, &str)] = &[
        ("GET /nodes/N/qemu/410/config", "after destroy, root token"),
        ("GET /cluster/nextid?vmid=410", "free"),
    ];
    const HIDDEN: &[(&str, &str)] = &[
        (
            "GET /nodes/N/qemu/410/config",
            "after destroy, least-privilege token",
        ),
        ("GET /cluster/nextid?vmid=410", "next id of a taken VMID"),
        ("GET /cluster/resources?type=vm", "resources"),
    ];
    for (node, _, text) in RECORDED {
        for answers in [GONE, MISSING] {
            let server = serving(text, answers, node).await;
            let backend = backend(&server, node);
            assert_eq!(backend.inspect(vmid(410)).await.unwrap(), None);
            backend.destroy(vmid(410), &stamp()).await.unwrap();
            backend.remove_seed(vmid(410), &stamp()).await.unwrap();
            assert_eq!(server.changes(), Vec::<String>::new());
        }
        let server = serving(text, HIDDEN, node).await;
        let backend = backend(&server, node);
        let machine = backend.inspect(vmid(410)).await.unwrap().unwrap();
        assert_eq!(machine.stamp, None);
        let error = backend.destroy(vmid(410), &stamp()).await.unwrap_err();
        // Nobody is told to grant us what may be a stranger's.
        assert!(
            matches!(&error, BackendError::Refused { reason, hint: None, .. }
                if reason.contains("VM 410 exists") && reason.contains("`qm config 410`")),
            "{error:?}"
        );
        assert_eq!(server.changes(), Vec::<String>::new());
    }
}
