//! Nouns of the back end traits.

use std::fmt;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::str::FromStr;

use agentlab_api::{SandboxId, Vmid};

/// Proof that a machine is ours: our UUID and a fresh nonce, in the hypervisor's own record from the machine's first
/// moment and journalled before. Compared before every destructive call.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Stamp {
    /// The sandbox it belongs to.
    pub sandbox: SandboxId,
    /// 16 random bytes, lower-case hexadecimal; not a secret.
    pub nonce: String,
}

impl fmt::Display for Stamp {
    /// `agentlab:<uuid>:<nonce>`, as it stands in a VM's description.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "agentlab:{}:{}", self.sandbox, self.nonce)
    }
}

impl FromStr for Stamp {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{}` is not an AgentLab stamp",
                text.escape_debug().take(120).collect::<String>()
            )
        };
        let (sandbox, nonce) = text
            .strip_prefix("agentlab:")
            .and_then(|rest| rest.split_once(':'))
            .ok_or_else(wrong)?;
        let fits = nonce.len() == 32
            && nonce
                .bytes()
                .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        match sandbox.parse() {
            Ok(sandbox) if fits => Ok(Self {
                sandbox,
                nonce: nonce.to_owned(),
            }),
            Ok(_) | Err(_) => Err(wrong()),
        }
    }
}

/// Six bytes of an Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A template that can be cloned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// Name of its recipe.
    pub name: String,
    /// The VMID it has, or stands for.
    pub vmid: Vmid,
    /// Content address, where there is one.
    pub id: String,
    /// Version of the runner baked in; absent when it cannot be known without booting it.
    pub runner_version: Option<String>,
}

/// What to clone into what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloneSpec {
    /// The machine to make.
    pub vmid: Vmid,
    /// The template, by the VMID it has or stands for.
    pub template: Vmid,
    /// Its name, a valid host name.
    pub name: String,
    /// Its stamp.
    pub stamp: Stamp,
}

/// Size of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// Virtual processors.
    pub cores: u16,
    /// Memory in MiB.
    pub memory_mb: u32,
    /// Grow the root disk to this many GiB.
    pub root_size_gb: Option<u32>,
    /// Its Ethernet address.
    pub mac: MacAddress,
    /// How much of its host it may take.
    pub limits: Limits,
    /// Where it is on its network. For guests that are set up by cloud-init: a runner has it from its seed.
    pub place: Option<NetworkPlace>,
}

/// Bounds on what a machine takes of its host, and sends through it. A back end that cannot keep one refuses the shape.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Limits {
    /// Processor time, in hundredths of a processor of the host.
    pub cpu_percent: Option<u32>,
    /// Processors of the host that it runs on, such as `0-3,8`.
    pub processors: Option<String>,
    /// Memory in MiB that the host leaves it when it takes some back.
    pub balloon_mb: Option<u32>,
    /// The hypervisor's own firewall, besides our policy.
    pub firewall: Option<Firewall>,
}

/// A hypervisor's own firewall: nothing comes in but what its group lets in.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Firewall {
    /// Rules that its administrator keeps under a name.
    pub group: Option<String>,
}

/// A machine's address, and who answers there for the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetworkPlace {
    /// Its own address.
    pub address: Ipv4Addr,
    /// Length of its network's prefix.
    pub prefix: u8,
    /// Router and resolver.
    pub gateway: Ipv4Addr,
}

/// The machine's cable, made and sealed before power-on.
#[derive(Debug)]
pub struct Nic {
    /// Open tap device; absent where the hypervisor makes its own.
    pub tap: Option<OwnedFd>,
}

/// What a power-on needs.
#[derive(Debug)]
pub struct PowerOn {
    /// The cable; absent for a machine without a NIC.
    pub nic: Option<Nic>,
}

/// Whether it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    /// Off.
    Stopped,
    /// On.
    Running,
    /// Frozen in memory.
    Suspended,
}

/// A machine as its hypervisor records it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// VMID.
    pub vmid: Vmid,
    /// Name.
    pub name: String,
    /// Whether it runs.
    pub power: Power,
    /// The stamp in its record; `None` when there is none or it cannot be read: then it is not ours.
    pub stamp: Option<Stamp>,
}

/// A volume of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its identifier, in the hypervisor's words.
    pub id: String,
    /// The name it was made under; `None` when nothing tells any more.
    pub name: Option<String>,
    /// Its size.
    pub bytes: u64,
    /// Names of its snapshots, oldest first.
    pub snapshots: Vec<String>,
}

/// All volumes of ours that could be looked at.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VolumeList {
    /// By identifier.
    pub volumes: Vec<Volume>,
    /// What could not be looked at, and why: of a volume that is not in the list nothing may be concluded then.
    pub unread: Vec<String>,
}

/// What a snapshot keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotHolds {
    /// The machine's disks, as a power failure would leave them if it runs.
    Disks,
    /// And its memory, if it runs: whatever secret it holds as well.
    Memory,
}

/// Resources used so far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Usage {
    /// Processor seconds since power-on.
    pub cpu_seconds: f64,
    /// Resident bytes on the host.
    pub memory_bytes: u64,
}

/// How much a machine computes, as its hypervisor tells it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Load {
    /// Share of its own processors that it used lately, 0 to about 1.
    Share(f64),
    /// Seconds that its processors have worked since power-on.
    Worked(f64),
}

/// What a back end can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities {
    /// [`crate::Volumes`] is implemented.
    pub volumes: bool,
    /// [`crate::Snapshots`] is implemented.
    pub snapshots: bool,
    /// Suspend and resume keep memory.
    pub suspend: bool,
    /// Power-on takes a tap descriptor.
    pub takes_tap: bool,
}

/// What a back end is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendInfo {
    /// `qemu`, `proxmox`, `shell` or `fake`.
    pub kind: &'static str,
    /// Version in the hypervisor's own words.
    pub version: String,
    /// `kvm` or `tcg`, where we choose.
    pub accelerator: Option<String>,
    /// Why that one.
    pub accelerator_reason: Option<String>,
    /// What it can do.
    pub capabilities: Capabilities,
    /// How many machines may be starting at once.
    pub concurrent_starts: usize,
}

/// Room where machines are stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Storage {
    /// Free there.
    pub free_bytes: u64,
    /// What should stay free.
    pub floor_bytes: u64,
    /// What each machine has written to its disk.
    pub written: Vec<(Vmid, u64)>,
}

/// What became of a program in a guest. The guest's word, and its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Executed {
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i64>,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
    /// Whether there was more than is shown.
    pub truncated: bool,
}
