//! What is asked of a node, as values. Each way to it renders them: the REST API as method, path and parameters, the
//! shell as arguments of `qm` and `pvesm`.

use agentlab_api::Vmid;

/// A question. Asking has no effect, so it can be asked again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Read {
    /// Below `/api2/json`.
    pub(crate) path: String,
    pub(crate) query: Vec<(&'static str, String)>,
}

impl Read {
    pub(crate) fn new(path: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            query: Vec::new(),
        }
    }

    pub(crate) fn with(mut self, key: &'static str, value: impl ToString) -> Self {
        self.query.push((key, value.to_string()));
        self
    }

    pub(crate) fn config(node: &str, vmid: Vmid) -> Self {
        Self::new(format!("/nodes/{node}/qemu/{vmid}/config"))
    }

    pub(crate) fn status(node: &str, vmid: Vmid) -> Self {
        Self::new(format!("/nodes/{node}/qemu/{vmid}/status/current"))
    }

    pub(crate) fn interfaces(node: &str, vmid: Vmid) -> Self {
        Self::new(format!("/nodes/{node}/qemu/{vmid}/agent/network-get-interfaces"))
    }

    pub(crate) fn machines(node: &str) -> Self {
        Self::new(format!("/nodes/{node}/qemu"))
    }

    pub(crate) fn resources() -> Self {
        Self::new("/cluster/resources").with("type", "vm")
    }

    /// Answered with the number when nobody in the cluster has it, whatever the asker may see.
    pub(crate) fn is_free(vmid: Vmid) -> Self {
        Self::new("/cluster/nextid").with("vmid", vmid)
    }
}

/// Power, as PVE names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PowerWord {
    Start,
    Stop,
    Suspend,
    Resume,
}

impl PowerWord {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Suspend => "suspend",
            Self::Resume => "resume",
        }
    }
}

/// Keys of a configuration with their values.
pub(crate) type Values = Vec<(String, String)>;

/// What is changed of a machine's firewall.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FirewallEdit {
    Options(Values),
    AddRule(Values),
    /// The one at this place.
    RemoveRule(usize),
}

/// Something that has an effect. `Ok` means that it took effect, however long PVE works on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    Clone {
        template: Vmid,
        to: Vmid,
        values: Values,
    },
    /// A machine from nothing.
    Create {
        vmid: Vmid,
        values: Values,
    },
    /// Makes a template of a machine.
    Convert {
        vmid: Vmid,
    },
    Set {
        vmid: Vmid,
        values: Values,
    },
    Resize {
        vmid: Vmid,
        disk: String,
        size: String,
    },
    Power {
        vmid: Vmid,
        to: PowerWord,
    },
    /// Asks the guest first, and pulls the plug after so many seconds.
    ShutDown {
        vmid: Vmid,
        seconds: u64,
    },
    Destroy {
        vmid: Vmid,
    },
    TakeSnapshot {
        vmid: Vmid,
        name: String,
        memory: bool,
        /// What people read beside it; empty: nothing.
        description: String,
    },
    RollBack {
        vmid: Vmid,
        name: String,
    },
    DeleteSnapshot {
        vmid: Vmid,
        name: String,
    },
    Allocate {
        storage: String,
        owner: Vmid,
        filename: String,
        size_gb: u32,
        format: String,
    },
    Free {
        storage: String,
        owner: Vmid,
        volume: String,
    },
    Firewall {
        vmid: Vmid,
        edit: FirewallEdit,
    },
    /// To another storage; what it was made of goes.
    MoveDisk {
        vmid: Vmid,
        disk: String,
        storage: String,
    },
    /// To another machine, which owns it from then on. PVE names it anew.
    GiveDisk {
        vmid: Vmid,
        disk: String,
        to: Vmid,
        slot: String,
    },
}

impl Change {
    /// What is asked for, in a word or two.
    pub(crate) fn action(&self) -> &'static str {
        match self {
            Self::Clone { .. } => "clone",
            Self::Create { .. } => "create",
            Self::Convert { .. } => "convert",
            Self::Set { .. } => "configure",
            Self::Resize { .. } => "resize",
            Self::Power { to, .. } => to.as_str(),
            Self::ShutDown { .. } => "shut down",
            Self::Destroy { .. } => "destroy",
            Self::TakeSnapshot { .. } => "snapshot",
            Self::RollBack { .. } => "rollback",
            Self::DeleteSnapshot { .. } => "delete snapshot",
            Self::Allocate { .. } => "create volume",
            Self::Free { .. } => "destroy volume",
            Self::Firewall { .. } => "set firewall",
            Self::MoveDisk { .. } => "move disk",
            Self::GiveDisk { .. } => "give disk",
        }
    }

    /// The machine that it changes or makes; of a volume, the number that owns it.
    pub(crate) fn vmid(&self) -> Vmid {
        match self {
            Self::Clone { to: vmid, .. }
            | Self::Create { vmid, .. }
            | Self::Convert { vmid }
            | Self::Set { vmid, .. }
            | Self::Resize { vmid, .. }
            | Self::Power { vmid, .. }
            | Self::ShutDown { vmid, .. }
            | Self::Destroy { vmid }
            | Self::TakeSnapshot { vmid, .. }
            | Self::RollBack { vmid, .. }
            | Self::DeleteSnapshot { vmid, .. }
            | Self::Firewall { vmid, .. }
            | Self::MoveDisk { vmid, .. }
            | Self::GiveDisk { vmid, .. }
            | Self::Allocate { owner: vmid, .. }
            | Self::Free { owner: vmid, .. } => *vmid,
        }
    }
}

/// One key with its value.
pub(crate) fn pair(key: &str, value: impl ToString) -> (String, String) {
    (key.to_owned(), value.to_string())
}
