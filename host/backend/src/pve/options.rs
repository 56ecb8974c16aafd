//! What both ways to a Proxmox node are told about it.

use std::time::Duration;

use agentlab_api::Vmid;

use super::snippets::SnippetStore;

/// How a template becomes a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CloneMode {
    /// Linked where the template's storage can, full where it cannot.
    #[default]
    Auto,
    /// Linked, or an error.
    Linked,
    /// Full: slow, and independent of the template's disk.
    Full,
}

/// Where machines are made, and how long things may take.
#[derive(Debug, Clone)]
pub struct PveOptions {
    /// Name of the node. Where absent it is this host's name, or the only node there is.
    pub node: Option<String>,
    /// Where full clones and volumes go. A linked clone always lies beside its template.
    pub storage: Option<String>,
    /// Pool every machine is made in; the token's privileges hang on it.
    pub pool: Option<String>,
    /// Linked, full, or whichever the storage can.
    pub clone: CloneMode,
    /// First and last VMID that are ours.
    pub vmids: (Vmid, Vmid),
    /// Bridge of every machine's only NIC.
    pub bridge: String,
    /// Where seeds go that go by cloud-init; absent: all go by SMBIOS.
    pub snippets: Option<SnippetStore>,
    /// VMID that owns volumes: no sandbox has it, so no sandbox's end takes a volume along.
    pub volume_owner: Option<Vmid>,
    /// How many calls a node has to answer at once, at least 2.
    pub calls_per_node: usize,
    /// How many clones one storage makes at once: it has one lock, and who waits for it for 10 s has failed.
    pub clones_per_storage: usize,
    /// How long a task may take, other than a clone.
    pub task_patience: Duration,
    /// How long a clone may take.
    pub clone_patience: Duration,
    /// How long a lock somebody else holds is waited for. PVE's own clean-up after a rollback holds one for 30 s, and a
    /// step of the engine's takes 60 s at most.
    pub lock_patience: Duration,
    /// How often machines are looked at by whoever waits for one to stop. One call serves all of them.
    pub watch_interval: Duration,
}

impl PveOptions {
    /// The defaults for a range and a bridge.
    #[must_use]
    pub fn new(vmids: (Vmid, Vmid), bridge: impl Into<String>) -> Self {
        Self {
            node: None,
            storage: None,
            pool: None,
            clone: CloneMode::Auto,
            vmids,
            bridge: bridge.into(),
            snippets: None,
            volume_owner: None,
            calls_per_node: 3,
            clones_per_storage: 2,
            task_patience: Duration::from_secs(120),
            clone_patience: Duration::from_secs(600),
            lock_patience: Duration::from_secs(45),
            watch_interval: Duration::from_secs(10),
        }
    }

    /// How many of the calls may be changes: however slow they are, one is left for looks.
    pub(crate) fn changes_per_node(&self) -> usize {
        self.calls_per_node.saturating_sub(1).max(1)
    }
}
