//! The packet policy in memory: which ports stand, and whether every machine that runs has one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use agentlab_api::{Profile, SandboxId, Vmid};
use agentlab_backend::ByteStream;
use agentlab_engine::port::{GuestDoor, Network, NetworkError, Port, Trust};
use agentlab_engine::{Delivery, Secrets, SecretsUnavailable};
use async_trait::async_trait;

/// It outlives every daemon, as a kernel's does.
#[derive(Debug, Clone, Default)]
pub(super) struct Wires(Arc<Mutex<BTreeMap<Vmid, Trust>>>);

impl Wires {
    pub(super) fn ports(&self) -> Vec<Vmid> {
        self.0.lock().unwrap().keys().copied().collect()
    }

    pub(super) fn is_bound(&self, vmid: u32) -> bool {
        self.0
            .lock()
            .unwrap()
            .keys()
            .any(|bound| u32::from(*bound) == vmid)
    }
}

#[async_trait]
impl Network for Wires {
    async fn supports(&self, _trust: Trust) -> Result<(), NetworkError> {
        Ok(())
    }

    async fn attach(&self, port: &Port) -> Result<Option<std::os::fd::OwnedFd>, NetworkError> {
        self.0.lock().unwrap().insert(port.vmid, Trust::Sealed);
        Ok(None)
    }

    async fn set_trust(&self, vmid: Vmid, trust: Trust) -> Result<(), NetworkError> {
        match self.0.lock().unwrap().get_mut(&vmid) {
            Some(stands) => *stands = trust,
            None => {
                return Err(NetworkError::Unenforced {
                    action: "set_trust",
                    reason: format!("{vmid} has no port"),
                });
            }
        }
        Ok(())
    }

    async fn detach(&self, vmid: Vmid) -> Result<(), NetworkError> {
        self.0.lock().unwrap().remove(&vmid);
        Ok(())
    }

    async fn reached(&self) -> Result<BTreeSet<Vmid>, NetworkError> {
        Ok(BTreeSet::new())
    }

    async fn attached(&self) -> Result<Vec<Vmid>, NetworkError> {
        Ok(self.ports())
    }
}

/// No guest here has a line that is not its network.
#[derive(Debug)]
pub(super) struct NoDoor;

#[async_trait]
impl GuestDoor for NoDoor {
    async fn serve(&self, _sandbox: SandboxId, _stream: Box<dyn ByteStream>) {}
}

/// No profile here names a secret.
#[derive(Debug)]
pub(super) struct NoSecrets;

#[async_trait]
impl Secrets for NoSecrets {
    async fn reveal(&self, _profile: &Profile) -> Result<Delivery, SecretsUnavailable> {
        Ok(Delivery::default())
    }
}
