//! What reaches a guest without its network: seed, channels, console.

use std::time::Duration;

use agentlab_api::{ChannelKind, SandboxId, Vmid};
use async_trait::async_trait;
use tokio::time::timeout;

use super::record::{CHANNEL_SOCKET, Found, storage};
use super::{Qemu, blocking, log, sockets};
use crate::{BackendError, ByteStream, Channels, Result, Seeds, Stamp};

const OPEN: &str = "open_channel";
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

#[async_trait]
impl Seeds for Qemu {
    async fn place_seed(&self, vmid: Vmid, stamp: &Stamp, seed: &[u8]) -> Result<()> {
        let vm = self.vm(vmid);
        let _turn = vm.operation.lock().await;
        let machine = self.ours(vmid, stamp).await?;
        let seed = seed.to_vec();
        blocking(move || machine.place_seed(&seed)).await
    }

    async fn remove_seed(&self, vmid: Vmid, stamp: &Stamp) -> Result<()> {
        let Some(machine) = self.ours_or_absent(vmid, stamp).await? else {
            return Ok(());
        };
        blocking(move || machine.remove_seed()).await
    }

    async fn has_seed(&self, vmid: Vmid) -> Result<bool> {
        match self.find(vmid).await? {
            Found::Ours(machine) => Ok(super::exists(&machine.seed_path())),
            Found::Nothing | Found::Unreadable(_) => Ok(false),
        }
    }
}

#[async_trait]
impl Channels for Qemu {
    fn channels(&self) -> &[ChannelKind] {
        &self.channels
    }

    async fn next_vsock(&self) -> Result<(SandboxId, Box<dyn ByteStream>)> {
        self.next_arrival().await
    }

    async fn open_channel(&self, vmid: Vmid) -> Result<Option<Box<dyn ByteStream>>> {
        let refused = |reason: String| BackendError::Refused {
            action: OPEN,
            vmid,
            reason,
            hint: None,
        };
        let machine = self.readable(vmid).await?;
        let Some(process) = self.recorded_process(&machine).await? else {
            return Err(refused("it is not running".to_owned()));
        };
        let vm = self.vm(vmid);
        // Before connecting: QEMU accepts the next only once it has seen the last one leave.
        vm.channel.cut();
        let connected = timeout(CONNECT_DEADLINE, sockets::connect(machine.path(), CHANNEL_SOCKET)).await;
        let stream = connected
            .map_err(|_| BackendError::TimedOut {
                action: OPEN,
                vmid,
                seconds: CONNECT_DEADLINE.as_secs(),
            })?
            .map_err(|error| refused(format!("its channel does not accept: {error}")))?;
        let taken = vm.channel.take(stream, process.identity);
        let stream: Box<dyn ByteStream> =
            Box::new(taken.map_err(storage("opening", &machine.path().join(CHANNEL_SOCKET)))?);
        Ok(Some(stream))
    }

    async fn console(&self, vmid: Vmid, max_bytes: usize) -> Result<Vec<u8>> {
        let machine = self.readable(vmid).await?;
        let max_bytes = u64::try_from(max_bytes).unwrap_or(u64::MAX);
        blocking(move || {
            let path = machine.console_path();
            log::tail(&path, max_bytes).map_err(storage("reading", &path))
        })
        .await
    }
}
