//! What AgentLab asks of a hypervisor. One trait family, several answers, one contract suite.
//!
//! ```text
//!   engine ──► Backend = Machines + Seeds + Channels + Volumes + Snapshots + Agents + Tasks
//!                │
//!                ├── qemu/   drives QEMU itself over QMP (feature `qemu`)
//!                ├── fake/   in memory, with fault injection (feature `fake`)
//!                └── pve/    Proxmox VE: proxmox/ over REST (feature `proxmox`), shell/ over qm (feature `shell`)
//! ```
//!
//! Every method is safe to repeat: asking for what already is so is success, and destroying what is absent is
//! success. `None` from [`Machines::inspect`] means that the hypervisor answered and has no such machine; not
//! reaching it is [`BackendError::Unreachable`], from which nothing may be concluded.

mod error;
mod machine;
mod task;
#[cfg(any(feature = "proxmox", feature = "qemu", feature = "shell"))]
mod turns;

#[cfg(feature = "fake")]
pub mod fake;
#[cfg(feature = "proxmox")]
pub mod proxmox;
#[cfg(any(feature = "proxmox", feature = "shell"))]
mod pve;
#[cfg(feature = "qemu")]
pub mod qemu;
#[cfg(feature = "shell")]
pub mod shell;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};

pub use error::{BackendError, Result};
pub use machine::{
    BackendInfo, Capabilities, CloneSpec, Executed, Firewall, Limits, Load, MacAddress, Machine,
    NetworkPlace, Nic, Power, PowerOn, Shape, SnapshotHolds, Stamp, Storage, Template, Usage, Volume,
    VolumeList,
};
pub use task::{BegunTask, TaskEnd, TaskId, TaskLedger, Tasks};

#[cfg(any(feature = "proxmox", feature = "shell"))]
pub use pve::{CloneMode, NewTemplate, Publication, Publisher, PveOptions, SnippetStore};

use agentlab_api::{ChannelKind, SandboxId, Vmid};

/// VMs: made, shaped, powered, looked at, destroyed.
#[async_trait]
pub trait Machines: Send + Sync {
    /// Templates that can be cloned.
    async fn templates(&self) -> Result<Vec<Template>>;

    /// Makes a stopped machine from a template, stamped from its first moment. The same spec twice is a no-op;
    /// a VMID that carries another stamp, or none, is [`BackendError::Conflict`] and is left alone.
    async fn clone_template(&self, spec: &CloneSpec) -> Result<Machine>;

    /// Sets processor, memory, disk size and NIC of a stopped machine. Disks only grow.
    async fn configure(&self, vmid: Vmid, stamp: &Stamp, shape: &Shape) -> Result<()>;

    /// Powers a machine on. The NIC's descriptor, where there is one, belongs to the machine from here on.
    /// Returns once the hypervisor runs it, not when the guest answers. Running already is success.
    async fn power_on(&self, vmid: Vmid, stamp: &Stamp, with: PowerOn) -> Result<()>;

    /// How many machines wait before this one for their turn, while its clone or its power-on waits for its own. `None`
    /// when it does not wait. Asked often, and answered at once.
    fn waits_behind(&self, _vmid: Vmid) -> Option<usize> {
        None
    }

    /// Pulls the plug. Returns once the machine no longer runs. Stopped already, or absent, is success.
    async fn power_off(&self, vmid: Vmid, stamp: &Stamp) -> Result<()>;

    /// Asks the guest to switch itself off, and pulls the plug when it has not in time. A back end that cannot ask pulls
    /// it at once.
    async fn shut_down(&self, vmid: Vmid, stamp: &Stamp, _patience: Duration) -> Result<()> {
        self.power_off(vmid, stamp).await
    }

    /// Freezes a running machine in memory. Suspended already is success.
    async fn suspend(&self, vmid: Vmid, stamp: &Stamp) -> Result<()>;

    /// Lets a suspended machine go on. Running already is success.
    async fn resume(&self, vmid: Vmid, stamp: &Stamp) -> Result<()>;

    /// What the hypervisor knows of a machine; `None` when it has no such machine.
    async fn inspect(&self, vmid: Vmid) -> Result<Option<Machine>>;

    /// All machines in our VMID range, ours or not.
    async fn list(&self) -> Result<Vec<Machine>>;

    /// Removes a machine with all its disks, after comparing its stamp. Absent is success; a foreign or unreadable
    /// stamp is [`BackendError::NotOurs`] and nothing is touched.
    async fn destroy(&self, vmid: Vmid, stamp: &Stamp) -> Result<()>;

    /// Waits until the machine is no longer running, whoever ended it. Returns at once when it is not.
    async fn stopped(&self, vmid: Vmid) -> Result<()>;

    /// Processor seconds and memory used so far, for idle detection.
    async fn usage(&self, vmid: Vmid) -> Result<Usage>;

    /// How much the machines in our range compute, with as few questions as their hypervisor allows. Those of which it
    /// cannot tell are absent.
    async fn loads(&self) -> Result<BTreeMap<Vmid, Load>>;
}

/// The small record a VM is born with.
#[async_trait]
pub trait Seeds: Send + Sync {
    /// Stores the encoded seed where the guest will find it at its next power-on. Replaces any older one.
    async fn place_seed(&self, vmid: Vmid, stamp: &Stamp, seed: &[u8]) -> Result<()>;

    /// Removes it from whatever the hypervisor stores. Absent is success.
    async fn remove_seed(&self, vmid: Vmid, stamp: &Stamp) -> Result<()>;

    /// Whether a seed is stored for the machine.
    async fn has_seed(&self, vmid: Vmid) -> Result<bool>;
}

/// A byte stream to a guest.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// Ways into a guest that do not use its network.
#[async_trait]
pub trait Channels: Send + Sync {
    /// Ways this back end gives every machine, in order of preference.
    fn channels(&self) -> &[ChannelKind];

    /// Opens the host's end of the machine's serial channel. One opener at a time: a second call takes it over.
    /// `None` when the machine has no such channel.
    async fn open_channel(&self, vmid: Vmid) -> Result<Option<Box<dyn ByteStream>>>;

    /// Waits for the next connection that a running machine opens over vsock, and says whose it is: by the CID or the
    /// socket that this back end gave its machine. Cancel safe. The default waits for ever.
    async fn next_vsock(&self) -> Result<(SandboxId, Box<dyn ByteStream>)> {
        std::future::pending().await
    }

    /// The last `max_bytes` of the machine's console. Bytes a guest chose: escape before printing.
    async fn console(&self, vmid: Vmid, max_bytes: usize) -> Result<Vec<u8>>;
}

/// Extra disks. A back end without them answers [`BackendError::Unsupported`]. A volume belongs to no machine, so none
/// takes it along when it ends; that it is attached to one at a time is the back end's to see to, because no hypervisor
/// does.
#[async_trait]
pub trait Volumes: Send + Sync {
    /// Makes an empty volume of a size in GiB. The same name and size again is the same volume.
    async fn create_volume(&self, _name: &str, _size_gb: u32) -> Result<String> {
        Err(BackendError::Unsupported { what: "volumes" })
    }
    /// Attaches a volume to a machine; attached there already is success, attached elsewhere is refused.
    async fn attach_volume(&self, _volume: &str, _to: Vmid, _stamp: &Stamp) -> Result<()> {
        Err(BackendError::Unsupported { what: "volumes" })
    }
    /// Detaches it from a machine; detached already, or an absent machine, is success.
    async fn detach_volume(&self, _volume: &str, _from: Vmid, _stamp: &Stamp) -> Result<()> {
        Err(BackendError::Unsupported { what: "volumes" })
    }
    /// Grows a volume that is attached to a machine which is off. As large already, or larger, is success.
    async fn grow_volume(&self, _volume: &str, _at: Vmid, _stamp: &Stamp, _size_gb: u32) -> Result<()> {
        Err(BackendError::Unsupported { what: "volumes" })
    }
    /// Destroys it with its snapshots; absent is success, attached is refused.
    async fn destroy_volume(&self, _volume: &str) -> Result<()> {
        Err(BackendError::Unsupported { what: "volumes" })
    }
    /// Keeps the state of a volume that no running machine has. One of that name already is success.
    async fn take_volume_snapshot(&self, _volume: &str, _name: &str) -> Result<()> {
        Err(BackendError::Unsupported {
            what: "snapshots of volumes",
        })
    }
    /// Goes back to a snapshot, which stays.
    async fn roll_back_volume(&self, _volume: &str, _name: &str) -> Result<()> {
        Err(BackendError::Unsupported {
            what: "snapshots of volumes",
        })
    }
    /// Removes a snapshot; absent is success.
    async fn delete_volume_snapshot(&self, _volume: &str, _name: &str) -> Result<()> {
        Err(BackendError::Unsupported {
            what: "snapshots of volumes",
        })
    }
    /// Takes a volume that nobody has to another storage of the hypervisor's, under this name; there already is success.
    /// What it is called from then on.
    async fn move_volume(&self, _volume: &str, _name: &str, _storage: &str) -> Result<String> {
        Err(BackendError::Unsupported {
            what: "storages to move a volume between",
        })
    }
    /// Every volume of ours, whoever has it.
    async fn volumes(&self) -> Result<VolumeList> {
        Err(BackendError::Unsupported { what: "volumes" })
    }
    /// Which machine has which volume of ours, read anew; also machines that are not ours, as far as we may see them. A
    /// volume that several have is there several times.
    async fn volume_holders(&self) -> Result<Vec<(String, Vmid)>> {
        Err(BackendError::Unsupported { what: "volumes" })
    }
    /// Whether a volume of this identifier would be ours. Nothing is asked of the hypervisor.
    fn owns_volume(&self, _volume: &str) -> bool {
        false
    }
    /// Ends what an earlier process began with volumes, and clears what it left that is provably ours and no volume.
    /// Called after a start, beside everything else, and now and then.
    async fn settle_volumes(&self) -> Result<()> {
        Ok(())
    }
    /// Makes a volume of this name with what another holds, or held at a snapshot. The same name again is the same
    /// volume.
    async fn copy_volume(&self, _of: &str, _snapshot: Option<&str>, _name: &str) -> Result<String> {
        Err(BackendError::Unsupported {
            what: "copies of volumes",
        })
    }
}

/// Snapshots of a machine. A back end without them answers [`BackendError::Unsupported`].
#[async_trait]
pub trait Snapshots: Send + Sync {
    /// Takes one. One of that name already is success, whatever it holds.
    async fn take_snapshot(
        &self,
        _of: Vmid,
        _stamp: &Stamp,
        _name: &str,
        _holds: SnapshotHolds,
    ) -> Result<()> {
        Err(BackendError::Unsupported { what: "snapshots" })
    }
    /// Goes back to one. With its memory the machine runs afterwards, and without it is off.
    async fn roll_back(&self, _of: Vmid, _stamp: &Stamp, _name: &str) -> Result<()> {
        Err(BackendError::Unsupported { what: "snapshots" })
    }
    /// Removes one; absent is success.
    async fn delete_snapshot(&self, _of: Vmid, _stamp: &Stamp, _name: &str) -> Result<()> {
        Err(BackendError::Unsupported { what: "snapshots" })
    }
    /// Names of all, oldest first.
    async fn snapshots(&self, _of: Vmid) -> Result<Vec<String>> {
        Err(BackendError::Unsupported { what: "snapshots" })
    }
}

/// The hypervisor's own agent inside a guest, where it has one. Our runner needs none of it; it is for a look into guests
/// that our runner is not, or not yet, in. What it says is the guest's word.
#[async_trait]
pub trait Agents: Send + Sync {
    /// Whether it answers.
    async fn agent_answers(&self, _of: Vmid) -> Result<bool> {
        Err(BackendError::Unsupported { what: "guest agent" })
    }
    /// Addresses of the interface with the machine's own Ethernet address: not those of bridges inside the guest.
    async fn agent_addresses(&self, _of: Vmid) -> Result<Vec<IpAddr>> {
        Err(BackendError::Unsupported { what: "guest agent" })
    }
    /// Executes a program in the guest and waits for its end. No shell is involved unless the program is one.
    async fn agent_execute(
        &self,
        _in_guest: Vmid,
        _stamp: &Stamp,
        _program: &[String],
        _patience: Duration,
    ) -> Result<Executed> {
        Err(BackendError::Unsupported { what: "guest agent" })
    }
}

/// What the engine holds as `Arc<dyn Backend>`.
#[async_trait]
pub trait Backend: Machines + Seeds + Channels + Volumes + Snapshots + Agents + Tasks {
    /// Kind, version, accelerator and what it can do.
    async fn info(&self) -> Result<BackendInfo>;

    /// Room where machines are stored; `None` when that is not ours to watch.
    async fn storage(&self) -> Result<Option<Storage>> {
        Ok(None)
    }

    /// Takes up what an earlier process of ours left running, and reports what it found. Called once at start,
    /// before anything else.
    async fn adopt(&self) -> Result<Vec<Machine>>;
}
