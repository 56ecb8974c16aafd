//! Publishing a disk as a template, against a stand-in for a node of either release.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use agentlab_backend::proxmox::{ApiToken, ProxmoxSettings, Trust, publisher};
use agentlab_backend::{BackendError, NewTemplate, Publisher, PveOptions};
use agentlab_protocol::secret::SecretText;
use bytes::Bytes;
use pve_sim::{PveSim, Rates, Request, Scale, Setup, Version};
use serde_json::json;

use crate::lab::vmid;

const NUMBER: u32 = 9100;
/// What whoever publishes needs besides, with the path it needs it on.
const NEEDED: [(&str, &str); 3] = [
    (
        "/vms/9100",
        "VM.Allocate,VM.Audit,VM.Config.Disk,VM.Config.CPU,VM.Config.Memory,VM.Config.Network,VM.Config.Options,VM.Config.HWType",
    ),
    (
        "/storage/local",
        "Datastore.AllocateTemplate,Datastore.AllocateSpace,Datastore.Allocate,Datastore.Audit",
    ),
    ("/sdn/zones/localnetwork/vmbr1", "SDN.Use"),
];

struct Stage {
    node: PveSim,
    dir: tempfile::TempDir,
}

impl Stage {
    async fn set(version: Version) -> Self {
        let node = Setup::lab(version, Scale(0.01)).in_process();
        let node = node.listen("127.0.0.1:0").await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        // As qemu-img begins one: the stand-in looks.
        let mut disk = b"QFI\xfb\0\0\0\x03".to_vec();
        disk.extend_from_slice(&[0; 16]);
        disk.extend_from_slice(&(3_u64 << 30).to_be_bytes());
        disk.resize(700 << 10, 0x5a);
        std::fs::write(dir.path().join("disk.qcow2"), disk).unwrap();
        Self { node, dir }
    }

    /// As an administrator grants it, on that number alone.
    async fn granted(version: Version) -> Self {
        let stage = Self::set(version).await;
        for (number, (path, privileges)) in NEEDED.iter().enumerate() {
            stage.grant(&format!("Publish{number}"), path, privileges).await;
        }
        stage
    }

    async fn grant(&self, role: &str, path: &str, privileges: &str) {
        let role_body = json!({"roleid": role, "privs": privileges});
        self.administrate("POST", "/access/roles", &role_body).await;
        for (to, name) in [("users", "agentlab@pve"), ("tokens", "agentlab@pve!lp")] {
            let body = json!({"path": path, "roles": role, to: name});
            self.administrate("PUT", "/access/acl", &body).await;
        }
    }

    async fn administrate(&self, method: &str, path: &str, body: &serde_json::Value) {
        let response = self.node.answer(self.as_root(method, path, body)).await;
        assert_eq!(response.status, 200, "{path}: {response:?}");
    }

    fn as_root(&self, method: &str, path: &str, body: &serde_json::Value) -> Request {
        Request {
            method: method.into(),
            path: path.into(),
            authorization: Some(format!("PVEAPIToken={}", self.node.root_token())),
            content_type: Some("application/json".into()),
            body: Bytes::from(body.to_string()),
            ..Request::default()
        }
    }

    fn publisher(&self) -> Arc<dyn Publisher> {
        let mut options = PveOptions::new((vmid(NUMBER), vmid(NUMBER)), "vmbr1");
        options.task_patience = Duration::from_secs(60);
        let token = ApiToken::try_from(&SecretText::new(self.node.token())).unwrap();
        let trust = Trust::Fingerprint(self.node.fingerprint().parse().unwrap());
        publisher(ProxmoxSettings::new(
            self.node.url().parse().unwrap(),
            token,
            trust,
            options,
        ))
        .unwrap()
    }

    fn template(&self) -> NewTemplate {
        let disk = self.dir.path().join("disk.qcow2");
        NewTemplate {
            vmid: vmid(NUMBER),
            name: "demo-proxmox".into(),
            disk_sha256: sha256(&disk),
            disk,
            image_id: "ab".repeat(32),
            runner_version: Some("0.1.0".into()),
            storage: "local".into(),
            bridge: "vmbr1".into(),
            replace: false,
        }
    }

    fn config(&self) -> std::collections::BTreeMap<String, String> {
        self.node.operator().config(NUMBER).unwrap_or_default()
    }
}

fn sha256(path: &Path) -> String {
    use sha2::{Digest as _, Sha256};
    let hash = Sha256::digest(std::fs::read(path).unwrap());
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn a_disk_becomes_a_template_that_says_what_it_is_and_the_upload_goes() {
    for version in [Version::V8, Version::V9] {
        let stage = Stage::granted(version).await;
        let publisher = stage.publisher();
        let template = stage.template();
        let publication = publisher.prepare(&template).await.unwrap();
        assert_eq!(
            stage.node.left(),
            Vec::<String>::new(),
            "preparing changes nothing"
        );
        publisher.publish(&template, &publication).await.unwrap();
        publisher.tidy(&publication).await.unwrap();
        let config = stage.config();
        let value = |key: &str| config.get(key).map(String::as_str).unwrap_or_default();
        assert_eq!(value("template"), "1");
        assert!(
            value("scsi0").starts_with("local:9100/base-9100-disk-0"),
            "{config:?}"
        );
        assert!(
            value("description").contains("agentlab-runner: 0.1.0"),
            "{config:?}"
        );
        assert!(value("net0").contains("bridge=vmbr1"), "{config:?}");
        for (key, expected) in [
            ("agent", "1"),
            ("scsihw", "virtio-scsi-single"),
            ("serial0", "socket"),
            ("ostype", "l26"),
        ] {
            assert_eq!(value(key), expected, "{key}");
        }
        assert!(
            !stage.node.left().iter().any(|left| left.contains("import")),
            "{:?}",
            stage.node.left()
        );
    }
}

#[tokio::test]
async fn a_number_that_is_taken_is_left_alone_unless_it_is_our_earlier_template() {
    let stage = Stage::granted(Version::V9).await;
    let publisher = stage.publisher();
    let mut template = stage.template();
    let first = publisher.prepare(&template).await.unwrap();
    publisher.publish(&template, &first).await.unwrap();
    publisher.tidy(&first).await.unwrap();
    let error = publisher.prepare(&template).await.unwrap_err().to_string();
    assert!(error.contains("say --replace"), "{error}");

    template.replace = true;
    template.image_id = "cd".repeat(32);
    let error = publisher.prepare(&template).await.unwrap_err().to_string();
    assert!(error.contains("PVE takes that away"), "{error}");
    stage.grant("Everywhere", "/vms", NEEDED[0].1).await;
    let second = publisher.prepare(&template).await.unwrap();
    publisher.publish(&template, &second).await.unwrap();
    publisher.tidy(&second).await.unwrap();
    assert!(stage.config()["description"].contains(&"cd".repeat(32)));
    // What the first run left is nothing: its mark stands nowhere any more.
    publisher.take_back(&first).await.unwrap();
    assert_eq!(stage.config()["template"], "1");

    // The template of somebody else, with a line that looks like ours.
    let operator = stage.node.operator();
    operator.configure(NUMBER, "description", Some("agentlab-runner: 0.1.0"));
    let error = publisher.prepare(&template).await.unwrap_err();
    assert!(matches!(error, BackendError::Conflict { .. }), "{error:?}");
    publisher.take_back(&second).await.unwrap();
    assert_eq!(stage.config()["template"], "1");
}

#[tokio::test]
async fn a_token_that_may_not_is_told_which_privilege_and_nothing_is_there() {
    let stage = Stage::set(Version::V9).await;
    let publisher = stage.publisher();
    let template = stage.template();
    let error = match publisher.prepare(&template).await {
        Ok(publication) => {
            let error = publisher.publish(&template, &publication).await.unwrap_err();
            publisher.take_back(&publication).await.unwrap_or_default();
            error
        }
        Err(error) => error,
    };
    let said = format!("{error} {:?}", error.hint());
    assert!(said.contains("Datastore.") || said.contains("import"), "{said}");
    assert_eq!(stage.node.left(), Vec::<String>::new());
}

#[tokio::test]
async fn whatever_fails_on_the_way_there_is_a_whole_template_or_nothing() {
    let (mut whole, mut nothing) = (0, 0);
    for seed in 0..24 {
        let stage = Stage::granted(if seed % 2 == 0 { Version::V8 } else { Version::V9 }).await;
        let publisher = stage.publisher();
        let template = stage.template();
        let publication = publisher.prepare(&template).await.unwrap();
        stage.node.plan_faults(seed, Rates::worst_day());
        let published = publisher.publish(&template, &publication).await;
        stage.node.plan_faults(seed, Rates::default());
        if published.is_ok() {
            whole += 1;
            publisher.tidy(&publication).await.unwrap();
            assert_eq!(stage.config()["template"], "1", "seed {seed}");
        } else {
            nothing += 1;
            publisher.take_back(&publication).await.unwrap();
            assert_eq!(
                stage.node.left(),
                Vec::<String>::new(),
                "seed {seed}: {published:?}"
            );
        }
        assert_eq!(
            stage.node.audit().foreign_touched,
            Vec::<String>::new(),
            "seed {seed}"
        );
    }
    assert!(whole > 0 && nothing > 0, "{whole} whole, {nothing} nothing");
}
