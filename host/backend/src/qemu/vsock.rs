//! vsock: a stream from a guest to its host that needs no network.
//!
//! ```text
//!   guest ── CID 2, port ──► the kernel's vhost-vsock ─► our AF_VSOCK listener ─► CID of the peer ─┐
//!                       └──► a vhost-user device ─► <vsock_dir>/<vmid>.vsock_<port> ───────────────┴─► sandbox
//! ```
//!
//! Who speaks follows from the CID, which the kernel lets one guest have, or from the socket. Both are given by us and
//! belong to one machine.
//!
//! A vsock device reaches everybody who listens at the host, past the packet policy. So a machine has one only if its seed
//! names the channel.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agentlab_api::{SandboxId, Vmid};
use agentlab_protocol::seed::{Seed, SeedChannel};
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener};

use super::record::{Found, MachineDir};
use super::{Qemu, sockets};
use crate::{BackendError, ByteStream, Result};

/// What the kernel's `vhost_vsock` makes.
const KERNEL_DEVICE: &str = "/dev/vhost-vsock";
/// Our CIDs begin here, out of the way of the small numbers that others give by hand; a VMID is added.
const FIRST_CID: u32 = 0x4000_0000;
/// Connections that wait to be taken from sockets.
const WAITING: usize = 16;

/// A connection, and whose it is.
pub(super) type Arrival = (SandboxId, Box<dyn ByteStream>);

/// What stands behind a machine's device. Recorded before the machine starts: both outlive this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Device {
    /// The kernel.
    Kernel {
        /// The guest's, and nobody else's.
        cid: u32,
    },
    /// A process of the operator's, which connects to a socket that belongs to this machine alone. Devices remove the
    /// socket that they listened on, so who they are is remembered.
    User {
        /// The process runs as.
        uid: u32,
        /// The same.
        gid: u32,
    },
}

/// A device as QEMU is given it.
#[derive(Debug)]
pub(super) struct Plug {
    pub(super) device: Device,
    pub(super) descriptor: OwnedFd,
}

impl Plug {
    pub(super) fn number(&self) -> (Device, RawFd) {
        (self.device, self.descriptor.as_raw_fd())
    }
}

fn cid_of(vmid: Vmid) -> u32 {
    FIRST_CID + u32::from(vmid)
}

/// The machine that a CID may belong to. The hypervisor, the host, its loopback and what others gave are nobody's.
fn vmid_of(cid: u32) -> Option<Vmid> {
    Vmid::try_from(cid.checked_sub(FIRST_CID)?).ok()
}

/// Whether a peer is the machine it seems to be: one that was given this very CID.
fn is_its_own(recorded: Option<Device>, cid: u32) -> bool {
    recorded == Some(Device::Kernel { cid })
}

/// What this host has for vsock.
#[derive(Debug)]
pub(super) struct Vsock {
    /// Where the kernel has it.
    listener: Option<VsockListener>,
    /// Where vhost-user devices listen.
    dir: Option<PathBuf>,
    /// Guests dial this one.
    port: u16,
    arrivals: mpsc::Sender<Arrival>,
    arrived: tokio::sync::Mutex<mpsc::Receiver<Arrival>>,
}

impl Vsock {
    /// Looks for what there is. A listener that cannot be had is a channel that is not offered.
    pub(super) fn open(dir: Option<PathBuf>, port: u16) -> Arc<Self> {
        let (arrivals, arrived) = mpsc::channel(WAITING);
        let wanted = dir.is_none() && port != 0 && Path::new(KERNEL_DEVICE).exists();
        let listener = wanted.then(|| VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port.into())));
        let listener = match listener {
            Some(Err(error)) => {
                tracing::warn!(port, %error, "No channel over vsock: its port cannot be listened on");
                None
            }
            Some(Ok(listener)) => Some(listener),
            None => None,
        };
        Arc::new(Self {
            listener,
            dir,
            port,
            arrivals,
            arrived: tokio::sync::Mutex::new(arrived),
        })
    }

    /// Whether machines can have such a channel here.
    pub(super) fn is_offered(&self) -> bool {
        self.port != 0 && (self.dir.is_some() || self.listener.is_some())
    }

    /// The device for a machine that is about to start, if its seed names the channel; and its record.
    pub(super) fn plug(&self, machine: &MachineDir) -> Result<Option<Plug>> {
        let plug = if names_vsock(machine.seed()?.as_deref()) {
            let refused = |error: io::Error| BackendError::Refused {
                action: "power_on",
                vmid: machine.record.vmid,
                reason: format!("its vsock device cannot be had: {error}"),
                hint: Some("leave `vsock` out of the profile's `network.channels`, or see to it".to_owned()),
            };
            Some(self.device_of(machine.record.vmid).map_err(refused)?)
        } else {
            None
        };
        machine.set_vsock(plug.as_ref().map(|plug| plug.device))?;
        Ok(plug)
    }

    fn device_of(&self, vmid: Vmid) -> io::Result<Plug> {
        if let Some(dir) = &self.dir {
            let stream = sockets::connect_now(dir, &format!("{vmid}.sock"))?;
            let process = rustix::net::sockopt::socket_peercred(&stream)?;
            return Ok(Plug {
                device: Device::User {
                    uid: process.uid.as_raw(),
                    gid: process.gid.as_raw(),
                },
                descriptor: stream.into(),
            });
        }
        let file = OpenOptions::new().read(true).write(true).open(KERNEL_DEVICE)?;
        Ok(Plug {
            device: Device::Kernel { cid: cid_of(vmid) },
            descriptor: file.into(),
        })
    }

    /// Where a vhost-user device brings a machine's connections to; nothing for other machines.
    pub(super) fn door(&self, machine: &MachineDir) -> io::Result<Option<Door>> {
        let (Some(dir), Some(Device::User { uid, gid }), Some(stamp)) =
            (&self.dir, machine.vsock(), machine.record.stamp())
        else {
            return Ok(None);
        };
        let name = format!("{}.vsock_{}", machine.record.vmid, self.port);
        let listener = std::os::unix::net::UnixListener::from(sockets::listen(dir, &name)?);
        let path = dir.join(name);
        // Whoever serves the device may connect, and nobody else: this socket says who is speaking.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        chown(&path, Some(uid), Some(gid))?;
        listener.set_nonblocking(true)?;
        Ok(Some(Door {
            listener: UnixListener::from_std(listener)?,
            path,
            sandbox: stamp.sandbox,
            arrivals: self.arrivals.clone(),
        }))
    }
}

fn names_vsock(seed: Option<&[u8]>) -> bool {
    let decoded = seed.and_then(|bytes| Seed::decode(bytes).ok());
    decoded.is_some_and(|seed| seed.channels.contains(&SeedChannel::Vsock))
}

/// A machine's own socket, for as long as it runs. Dropping it removes the socket.
#[derive(Debug)]
pub(super) struct Door {
    listener: UnixListener,
    path: PathBuf,
    sandbox: SandboxId,
    arrivals: mpsc::Sender<Arrival>,
}

impl Door {
    /// Passes on what connects, until nobody takes it any more.
    pub(super) async fn serve(&self) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    if self
                        .arrivals
                        .send((self.sandbox, Box::new(stream)))
                        .await
                        .is_err()
                    {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!(path = %self.path.display(), %error, "A vsock connection was not accepted");
                    tokio::time::sleep(sockets::LINE_FULL).await;
                }
            }
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        // Already gone: then somebody cleared the directory.
        fs::remove_file(&self.path).ok();
    }
}

impl Qemu {
    /// The next connection over vsock of a running machine of ours.
    pub(super) async fn next_arrival(&self) -> Result<Arrival> {
        let mut waiting = self.vsock.arrived.lock().await;
        loop {
            let accepted = async {
                match &self.vsock.listener {
                    Some(listener) => listener.accept().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(arrival) = waiting.recv() => return Ok(arrival),
                accepted = accepted => {
                    let (stream, peer) = accepted
                        .map_err(|error| super::unreachable("accepting over vsock", error.to_string()))?;
                    match self.owner_of(peer.cid()).await? {
                        Some(sandbox) => return Ok((sandbox, Box::new(stream))),
                        None => tracing::debug!(cid = peer.cid(), "A vsock peer that is no sandbox was cut off"),
                    }
                }
            }
        }
    }

    /// The sandbox that was given a CID and runs.
    async fn owner_of(&self, cid: u32) -> Result<Option<SandboxId>> {
        let Some(vmid) = vmid_of(cid) else { return Ok(None) };
        let Found::Ours(machine) = self.find(vmid).await? else {
            return Ok(None);
        };
        if !is_its_own(machine.vsock(), cid) || self.recorded_process(&machine).await?.is_none() {
            return Ok(None);
        }
        Ok(machine.record.stamp().map(|stamp| stamp.sandbox))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vmid(number: u32) -> Vmid {
        number.try_into().unwrap()
    }

    #[test]
    fn a_cid_is_of_one_machine_and_the_reserved_ones_are_of_none() {
        for number in [100, 1000, 8999, 999_999_999] {
            let cid = cid_of(vmid(number));
            assert_eq!(vmid_of(cid), Some(vmid(number)));
        }
        // Hypervisor, loopback, host, what other tools give, the number before and after ours, any.
        for cid in [
            0,
            1,
            2,
            3,
            1000,
            FIRST_CID,
            FIRST_CID + 99,
            cid_of(Vmid::MAX) + 1,
            VMADDR_CID_ANY,
        ] {
            assert_eq!(vmid_of(cid), None, "{cid}");
        }
    }

    #[test]
    fn a_peer_is_known_only_by_the_cid_its_machine_was_given() {
        let cid = cid_of(vmid(1000));
        assert!(is_its_own(Some(Device::Kernel { cid }), cid));
        assert!(!is_its_own(Some(Device::Kernel { cid: cid + 1 }), cid));
        assert!(!is_its_own(Some(Device::User { uid: 0, gid: 0 }), cid));
        assert!(!is_its_own(None, cid));
    }

    #[test]
    fn only_a_seed_that_names_the_channel_gives_a_device() {
        let host = std::net::Ipv4Addr::new(10, 77, 0, 1);
        let seed = |channels: Vec<SeedChannel>| {
            let seed = Seed {
                vmid: 1000,
                sandbox: [1; 16],
                hostname: "a".to_owned(),
                address: std::net::Ipv4Addr::new(10, 77, 0, 2),
                prefix: 16,
                gateway: host,
                bootstrap: std::net::SocketAddrV4::new(host, 8844),
                artifacts: std::net::SocketAddrV4::new(host, 8846),
                token: agentlab_protocol::secret::Secret32::new([3; 32]),
                spki_sha256: [4; 32],
                channels,
                clock: 5,
            };
            seed.encode().unwrap()
        };
        assert!(names_vsock(Some(&seed(vec![
            SeedChannel::Vsock,
            SeedChannel::Tls
        ]))));
        assert!(!names_vsock(Some(&seed(vec![
            SeedChannel::Serial,
            SeedChannel::Tls
        ]))));
        assert!(!names_vsock(Some(b"no seed")) && !names_vsock(None));
    }

    #[tokio::test]
    async fn a_host_with_neither_offers_nothing() {
        assert!(!Vsock::open(None, 0).is_offered());
        assert!(!Vsock::open(Some("/run/devices".into()), 0).is_offered());
        assert!(Vsock::open(Some("/run/devices".into()), 8844).is_offered());
    }
}
