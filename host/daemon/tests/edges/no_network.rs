//! No packet policy: machines in memory send nothing.

use std::os::fd::OwnedFd;

use agentlab_api::Vmid;
use agentlab_engine::port::{Network, NetworkError, Port, Trust};
use async_trait::async_trait;

/// A policy that permits and forbids nothing.
#[derive(Debug)]
pub(crate) struct NoNetwork;

#[async_trait]
impl Network for NoNetwork {
    async fn supports(&self, _trust: Trust) -> Result<(), NetworkError> {
        Ok(())
    }
    async fn attach(&self, _port: &Port) -> Result<Option<OwnedFd>, NetworkError> {
        Ok(None)
    }
    async fn set_trust(&self, _vmid: Vmid, _trust: Trust) -> Result<(), NetworkError> {
        Ok(())
    }
    async fn detach(&self, _vmid: Vmid) -> Result<(), NetworkError> {
        Ok(())
    }
    async fn attached(&self) -> Result<Vec<Vmid>, NetworkError> {
        Ok(Vec::new())
    }
    async fn operate(&self, order: &str) -> Result<String, NetworkError> {
        if order.contains("unbind") {
            return Err(NetworkError::Unenforced {
                action: "an operator's order",
                reason: "No port `tap9i0` is bound".into(),
            });
        }
        Ok(order.to_owned())
    }
}
