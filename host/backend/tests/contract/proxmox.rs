//! The REST back end as the suite sees it, against a stand-in for a node of either release.

use std::sync::Arc;
use std::time::Duration;

use agentlab_api::Vmid;
use agentlab_backend::proxmox::{ApiToken, ProxmoxSettings, Trust, connect, publisher};
use agentlab_backend::{Backend, Publisher, PveOptions};
use agentlab_protocol::secret::SecretText;
use async_trait::async_trait;
use pve_sim::{PveSim, Scale, Version};

use crate::suite::{Rig, TEMPLATE, vmid};

/// How fast the node is, compared with a genuine one.
const SCALE: Scale = Scale(0.02);

pub(crate) struct ProxmoxRig {
    node: PveSim,
    backend: Arc<dyn Backend>,
}

impl ProxmoxRig {
    pub(crate) async fn open(version: Version) -> Option<Self> {
        let node = PveSim::start(version, SCALE).await.unwrap();
        let backend = settings(&node);
        Some(Self {
            backend: connect(backend).unwrap(),
            node,
        })
    }
}

impl ProxmoxRig {
    pub(crate) fn node(&self) -> &PveSim {
        &self.node
    }

    pub(crate) fn publisher(&self) -> Arc<dyn Publisher> {
        publisher(settings(&self.node)).unwrap()
    }
}

fn settings(node: &PveSim) -> ProxmoxSettings {
    let mut options = PveOptions::new((vmid(1000), vmid(1999)), "vmbr1");
    options.pool = Some("agentlab".into());
    options.storage = Some("local".into());
    options.volume_owner = Some(vmid(777));
    options.watch_interval = Duration::from_millis(200);
    let token = ApiToken::try_from(&SecretText::new(node.token())).unwrap();
    let trust = Trust::Fingerprint(node.fingerprint().parse().unwrap());
    ProxmoxSettings::new(node.url().parse().unwrap(), token, trust, options)
}

/// What clients left, without the machine that owns volumes: it stays, when nothing hangs on it.
pub(crate) fn left(node: &PveSim) -> Vec<String> {
    let owner = node.operator().config(777).unwrap_or_default();
    let is_empty = !owner.values().any(|value| value.contains("vm-777-"));
    let mut left = node.left();
    left.retain(|one| !is_empty || one != "VM 777 (no lock)");
    left
}

#[async_trait]
impl Rig for ProxmoxRig {
    fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    async fn restart(&mut self) {
        self.backend = connect(settings(&self.node)).unwrap();
    }

    async fn kill_from_outside(&self, vmid: Vmid) {
        self.node.operator().stop(vmid.into());
    }

    async fn await_hello(&self, _vmid: Vmid) {}

    async fn remove_template(&self) {
        self.node.operator().destroy(TEMPLATE);
        // A list of machines is believed for a second.
        tokio::time::sleep(Duration::from_millis(1100)).await;
    }

    fn leftovers(&self) -> Vec<String> {
        let touched = self.node.audit().foreign_touched;
        left(&self.node).into_iter().chain(touched).collect()
    }
}
