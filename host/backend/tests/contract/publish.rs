//! Publishing a template, whichever way a node is spoken to: whatever happens on the way, there is a whole template or
//! nothing, and the next run makes one.

use std::sync::Arc;
use std::time::Duration;

use agentlab_backend::{NewTemplate, Publication, Publisher};
use pve_sim::{PveSim, Rates, Request, Version};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::proxmox::ProxmoxRig;
use crate::shell::ShellRig;
use crate::suite::vmid;

const NUMBER: u32 = 9100;
/// What whoever publishes needs, as an administrator grants it. The last is for what the stand-in for `qm` imports.
const NEEDED: [(&str, &str); 4] = [
    (
        "/vms",
        "VM.Allocate,VM.Audit,VM.Config.Disk,VM.Config.CPU,VM.Config.Memory,VM.Config.Network,VM.Config.Options,VM.Config.HWType",
    ),
    (
        "/storage/local",
        "Datastore.AllocateTemplate,Datastore.AllocateSpace,Datastore.Allocate,Datastore.Audit",
    ),
    ("/sdn/zones/localnetwork/vmbr1", "SDN.Use"),
    ("/vms/9000", "VM.Clone"),
];

/// The way to a node.
#[derive(Debug, Clone, Copy)]
enum Way {
    Api,
    Qm,
}

enum Rig {
    Api(ProxmoxRig),
    Qm(ShellRig),
}

struct Stage {
    rig: Rig,
    disk: tempfile::NamedTempFile,
}

impl Stage {
    async fn set(way: Way, version: Version) -> Self {
        let rig = match way {
            Way::Api => Rig::Api(ProxmoxRig::open(version).await.unwrap()),
            Way::Qm => Rig::Qm(ShellRig::open(version).await.unwrap()),
        };
        // As qemu-img begins one: who gets an upload looks.
        let mut bytes = b"QFI\xfb\0\0\0\x03".to_vec();
        bytes.extend_from_slice(&[0; 16]);
        bytes.extend_from_slice(&(3_u64 << 30).to_be_bytes());
        bytes.resize(64 << 10, 0x5a);
        let disk = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(disk.path(), bytes).unwrap();
        let stage = Self { rig, disk };
        for (number, (path, privileges)) in NEEDED.iter().enumerate() {
            let role = format!("Publish{number}");
            let body = json!({"roleid": role, "privs": privileges});
            stage.administrate("POST", "/access/roles", &body).await;
            for (to, name) in [("users", "agentlab@pve"), ("tokens", "agentlab@pve!lp")] {
                let body = json!({"path": path, "roles": role, to: name});
                stage.administrate("PUT", "/access/acl", &body).await;
            }
        }
        stage
    }

    async fn administrate(&self, method: &str, path: &str, body: &serde_json::Value) {
        let request = Request {
            method: method.into(),
            path: path.into(),
            authorization: Some(format!("PVEAPIToken={}", self.node().root_token())),
            content_type: Some("application/json".into()),
            body: body.to_string().into(),
            ..Request::default()
        };
        let response = self.node().answer(request).await;
        assert_eq!(response.status, 200, "{path}: {response:?}");
    }

    fn node(&self) -> &PveSim {
        match &self.rig {
            Rig::Api(rig) => rig.node(),
            Rig::Qm(rig) => rig.node(),
        }
    }

    fn publisher(&self) -> Arc<dyn Publisher> {
        match &self.rig {
            Rig::Api(rig) => rig.publisher(),
            Rig::Qm(rig) => rig.publisher(),
        }
    }

    fn template(&self) -> NewTemplate {
        let hash = Sha256::digest(std::fs::read(self.disk.path()).unwrap());
        NewTemplate {
            vmid: vmid(NUMBER),
            name: "demo-proxmox".into(),
            disk: self.disk.path().to_owned(),
            disk_sha256: hash.iter().map(|byte| format!("{byte:02x}")).collect(),
            image_id: "ab".repeat(32),
            runner_version: Some("0.1.0".into()),
            storage: "local".into(),
            bridge: "vmbr1".into(),
            replace: false,
        }
    }

    /// Calls of clients so far.
    fn calls(&self) -> u64 {
        self.node().audit().calls.values().sum()
    }

    async fn is_asked(&self, calls: u64) {
        while self.calls() < calls {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn publish(&self) -> Publication {
        let (publisher, template) = (self.publisher(), self.template());
        let publication = publisher.prepare(&template).await.unwrap();
        publisher.publish(&template, &publication).await.unwrap();
        publisher.tidy(&publication).await.unwrap();
        publication
    }

    fn assert_whole(&self, of: &str) {
        let config = self.node().operator().config(NUMBER).unwrap_or_default();
        let value = |key: &str| config.get(key).map(String::as_str).unwrap_or_default();
        assert_eq!(value("template"), "1", "{of}: {config:?}");
        assert!(
            value("scsi0").starts_with("local:9100/base-9100-disk-0"),
            "{of}: {config:?}"
        );
        assert!(
            value("description").contains(&"ab".repeat(32)),
            "{of}: {config:?}"
        );
        assert!(value("net0").contains("bridge=vmbr1"), "{of}: {config:?}");
        let left = self.node().left();
        assert!(!left.iter().any(|one| one.starts_with("image")), "{of}: {left:?}");
    }

    /// After a process that died, another one: all that it has is what was written down before.
    async fn assert_taken_back(&self, publication: &Publication, of: &str) {
        self.publisher().take_back(publication).await.unwrap();
        assert_eq!(self.node().left(), Vec::<String>::new(), "{of}");
        assert_eq!(self.node().audit().foreign_touched, Vec::<String>::new(), "{of}");
    }
}

#[tokio::test]
async fn a_disk_becomes_a_template_by_qm_and_takes_the_place_of_the_earlier_one() {
    for version in [Version::V8, Version::V9] {
        let stage = Stage::set(Way::Qm, version).await;
        stage.publish().await;
        stage.assert_whole("the first");
        let mut template = stage.template();
        let refused = stage.publisher().prepare(&template).await.unwrap_err();
        assert!(refused.to_string().contains("say --replace"), "{refused}");
        template.replace = true;
        let publication = stage.publisher().prepare(&template).await.unwrap();
        stage.publisher().publish(&template, &publication).await.unwrap();
        stage.assert_whole("the second");
    }
}

#[tokio::test]
async fn a_run_that_dies_at_any_call_leaves_what_the_next_one_takes_back() {
    for way in [Way::Api, Way::Qm] {
        let mut last = 0;
        for number in 1.. {
            let of = format!("{way:?}, call {number}");
            let stage = Stage::set(way, Version::V9).await;
            let (publisher, template) = (stage.publisher(), stage.template());
            let publication = publisher.prepare(&template).await.unwrap();
            let dies_at = stage.calls() + number;
            let ended = tokio::select! {
                ended = publisher.publish(&template, &publication) => Some(ended),
                () = stage.is_asked(dies_at) => None,
            };
            drop(publisher);
            match ended {
                Some(ended) => {
                    ended.unwrap();
                    last = number;
                    break;
                }
                None => stage.assert_taken_back(&publication, &of).await,
            }
            stage.publish().await;
            stage.assert_whole(&of);
        }
        assert!(last > 3, "{way:?} took {last} calls");
    }
}

#[tokio::test]
async fn whatever_qm_says_on_the_way_there_is_a_whole_template_or_nothing() {
    let rates = Rates {
        lock_timeout: 150,
        task_error: 250,
        task_warning: 200,
        ..Rates::default()
    };
    let (mut whole, mut nothing) = (0, 0);
    for seed in 0..24 {
        let version = if seed % 2 == 0 { Version::V8 } else { Version::V9 };
        let stage = Stage::set(Way::Qm, version).await;
        let (publisher, template) = (stage.publisher(), stage.template());
        let publication = publisher.prepare(&template).await.unwrap();
        stage.node().plan_faults(seed, rates);
        let published = publisher.publish(&template, &publication).await;
        stage.node().plan_faults(seed, Rates::default());
        let of = format!("seed {seed}: {published:?}");
        if published.is_ok() {
            whole += 1;
            stage.assert_whole(&of);
        } else {
            nothing += 1;
            stage.assert_taken_back(&publication, &of).await;
        }
    }
    assert!(whole > 0 && nothing > 0, "{whole} whole, {nothing} nothing");
}
