//! The REST back end against the reader's own node, of either release.
//!
//! ```text
//!   AGENTLAB_PVE_URL          https://node:8006
//!   AGENTLAB_PVE_TOKEN        user@realm!name=secret, with what `agentlab init` grants
//!   AGENTLAB_PVE_FINGERPRINT  SHA-256 of the node's certificate; absent: the system's authorities
//!   AGENTLAB_PVE_POOL         absent: agentlab
//!   AGENTLAB_PVE_BRIDGE       absent: vmbr1
//!   AGENTLAB_PVE_NODE         absent: the only node, or the one that answers
//!   AGENTLAB_PVE_VOLUME_OWNER number that owns volumes, which a machine of ours gets and keeps; absent: none are asked for
//!   AGENTLAB_PVE_STORAGE      where volumes are made; absent: beside the template
//! ```
//!
//! Template 9000 is cloned to the numbers 1000 and 1001, which must be free. What a test leaves is destroyed by its stamp
//! when the test ends, and before the next begins should it have died. Nobody can take the template of a genuine node
//! away for a test, so that one promise is kept to the stand-in.

use std::sync::Arc;
use std::time::Duration;

use agentlab_api::Vmid;
use agentlab_backend::proxmox::{ApiToken, ProxmoxSettings, Trust, connect};
use agentlab_backend::{Backend, PveOptions};
use agentlab_protocol::secret::SecretText;
use async_trait::async_trait;

use crate::suite::{Rig, vmid};

pub(crate) struct GenuineRig {
    backend: Arc<dyn Backend>,
}

impl GenuineRig {
    pub(crate) async fn open() -> Option<Self> {
        let rig = Self {
            backend: connect(settings()).unwrap(),
        };
        rig.sweep().await;
        Some(rig)
    }

    /// Ends whatever carries a stamp of ours in the range.
    async fn sweep(&self) {
        for machine in self.backend.list().await.unwrap() {
            if let Some(stamp) = &machine.stamp {
                self.backend.destroy(machine.vmid, stamp).await.unwrap();
            }
        }
    }

    /// An asynchronous answer where only a synchronous one is taken.
    fn wait<T>(answer: impl Future<Output = T>) -> T {
        tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(answer))
    }
}

impl Drop for GenuineRig {
    fn drop(&mut self) {
        Self::wait(self.sweep());
    }
}

fn named(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn needed(name: &str) -> String {
    named(name).unwrap_or_else(|| panic!("{name} is not set: it says which node is asked"))
}

fn settings() -> ProxmoxSettings {
    let bridge = named("AGENTLAB_PVE_BRIDGE").unwrap_or_else(|| "vmbr1".into());
    let mut options = PveOptions::new((vmid(1000), vmid(1999)), bridge);
    options.pool = Some(named("AGENTLAB_PVE_POOL").unwrap_or_else(|| "agentlab".into()));
    options.node = named("AGENTLAB_PVE_NODE");
    options.volume_owner = named("AGENTLAB_PVE_VOLUME_OWNER").map(|owner| vmid(owner.parse().unwrap()));
    options.storage = named("AGENTLAB_PVE_STORAGE");
    options.watch_interval = Duration::from_secs(2);
    let token = ApiToken::try_from(&SecretText::new(needed("AGENTLAB_PVE_TOKEN"))).unwrap();
    let trust = named("AGENTLAB_PVE_FINGERPRINT").map_or(Trust::SystemRoots, |fingerprint| {
        Trust::Fingerprint(fingerprint.parse().unwrap())
    });
    let url = needed("AGENTLAB_PVE_URL").parse().unwrap();
    ProxmoxSettings::new(url, token, trust, options)
}

#[async_trait]
impl Rig for GenuineRig {
    fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    async fn restart(&mut self) {
        self.backend = connect(settings()).unwrap();
    }

    /// By another daemon's connection: the one that is asked learns it from the node.
    async fn kill_from_outside(&self, vmid: Vmid) {
        let other = connect(settings()).unwrap();
        let machine = other.inspect(vmid).await.unwrap().unwrap();
        other.power_off(vmid, &machine.stamp.unwrap()).await.unwrap();
    }

    async fn await_hello(&self, _vmid: Vmid) {}

    async fn remove_template(&self) {
        panic!("the template of a genuine node stays where it is");
    }

    fn leftovers(&self) -> Vec<String> {
        let machines = Self::wait(self.backend.list()).unwrap();
        machines.iter().map(|machine| format!("{machine:?}")).collect()
    }
}
