//! What the daemon's token may do on a node, and nothing else: roles by version, and the paths they are granted on.
//!
//! ```text
//!   /pool/agentlab                      AgentLab         its own machines, and only as long as they are in the pool
//!   /vms/<template>                     PVETemplateUser  look and clone; the template is not in the pool
//!   /storage/<storage>                  AgentLabStore    room for disks
//!   /storage/<storage of volumes>       AgentLabVolumes  and delete them, which PVE allows for all of a storage or none
//!   /sdn/zones/localnetwork/<bridge>    AgentLabNet      a NIC there
//!   /vms/<owner of volumes>             AgentLabVol      attach what belongs to that number
//! ```
//! Each is granted to the user and to the token: what a token may is what both may.

use std::collections::BTreeSet;

use agentlab_api::Vmid;

/// Versions whose privileges differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Release {
    /// 8: `VM.Monitor`.
    Eight,
    /// 9 and later: `VM.GuestAgent.*`.
    Nine,
}

impl Release {
    /// `8.4.21` as `/version` says it; `None` for what is older than 8.
    pub(crate) fn of_version(version: &str) -> Option<Self> {
        match version.split('.').next()?.parse::<u32>().ok()? {
            8 => Some(Self::Eight),
            9.. => Some(Self::Nine),
            _ => None,
        }
    }

    fn guest_agent(self) -> &'static [&'static str] {
        match self {
            Self::Eight => &["VM.Monitor"],
            Self::Nine => &["VM.GuestAgent.Audit", "VM.GuestAgent.Unrestricted"],
        }
    }
}

/// On every machine of the pool, with every version.
const MACHINES: &[&str] = &[
    "Pool.Audit",
    "VM.Allocate",
    "VM.Audit",
    "VM.Clone",
    "VM.Config.CPU",
    "VM.Config.Cloudinit",
    "VM.Config.Disk",
    "VM.Config.Memory",
    "VM.Config.Network",
    "VM.Config.Options",
    "VM.PowerMgmt",
    "VM.Snapshot",
    "VM.Snapshot.Rollback",
];

/// What the seed in `smbios1` needs.
pub(crate) const SMBIOS: &str = "VM.Config.HWType";

/// Earlier set-ups of ours may have had it.
const ONCE_OURS: &[&str] = &["VM.Config.CDROM"];

/// A role of ours, or one that PVE brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Role {
    pub(crate) name: &'static str,
    pub(crate) privileges: BTreeSet<&'static str>,
    /// PVE's own: never made or changed by us.
    pub(crate) built_in: bool,
}

impl Role {
    fn ours(name: &'static str, privileges: &[&'static str]) -> Self {
        Self {
            name,
            privileges: privileges.iter().copied().collect(),
            built_in: false,
        }
    }

    /// Whether a role of this name that holds `privileges` can be one that we made, with this version or another one.
    pub(crate) fn may_be_ours(&self, privileges: &BTreeSet<String>) -> bool {
        let versions = [Release::Eight, Release::Nine];
        let sometimes: BTreeSet<&str> = versions
            .into_iter()
            .flat_map(|release| machines(release, true).privileges)
            .chain(ONCE_OURS.iter().copied())
            .collect();
        let is_machines = self.name == MACHINES_ROLE;
        privileges.iter().all(|privilege| {
            self.privileges.contains(privilege.as_str())
                || is_machines && sometimes.contains(privilege.as_str())
        })
    }

    /// As `pveum` wants them.
    pub(crate) fn list(&self) -> String {
        self.privileges.iter().copied().collect::<Vec<_>>().join(",")
    }
}

const MACHINES_ROLE: &str = "AgentLab";
/// Tells which storage an earlier set-up gave to workspaces.
pub(crate) const VOLUMES_ROLE: &str = "AgentLabVolumes";

/// What the daemon may do with its own machines.
pub(crate) fn machines(release: Release, smbios_seed: bool) -> Role {
    let mut role = Role::ours(MACHINES_ROLE, MACHINES);
    role.privileges.extend(release.guest_agent());
    if smbios_seed {
        role.privileges.insert(SMBIOS);
    }
    role
}

fn template() -> Role {
    Role {
        built_in: true,
        ..Role::ours("PVETemplateUser", &["VM.Audit", "VM.Clone"])
    }
}

fn storage() -> Role {
    Role::ours("AgentLabStore", &["Datastore.AllocateSpace", "Datastore.Audit"])
}

fn volume_storage() -> Role {
    Role::ours(
        VOLUMES_ROLE,
        &["Datastore.Allocate", "Datastore.AllocateSpace", "Datastore.Audit"],
    )
}

fn bridge() -> Role {
    Role::ours("AgentLabNet", &["SDN.Use"])
}

fn volume_owner() -> Role {
    Role::ours("AgentLabVol", &["VM.Audit", "VM.Config.Disk"])
}

/// Where the daemon works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reach {
    pub(crate) release: Release,
    pub(crate) smbios_seed: bool,
    pub(crate) pool: String,
    pub(crate) templates: BTreeSet<Vmid>,
    /// Storages that hold disks of templates, machines or volumes.
    pub(crate) storages: BTreeSet<String>,
    /// The one of volumes, where it is theirs alone.
    pub(crate) volume_storage: Option<String>,
    /// The bridge of every machine, and those of templates: a clone is checked for them too.
    pub(crate) bridges: BTreeSet<String>,
    pub(crate) volume_owner: Option<Vmid>,
}

/// A role on a path, and what it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Grant {
    pub(crate) path: String,
    pub(crate) role: Role,
    pub(crate) purpose: &'static str,
}

impl Reach {
    /// Everything that is needed, the pool first.
    pub(crate) fn grants(&self) -> Vec<Grant> {
        let grant = |path: String, role: Role, purpose: &'static str| Grant { path, role, purpose };
        let mut grants = vec![grant(
            format!("/pool/{}", self.pool),
            machines(self.release, self.smbios_seed),
            "make and end sandboxes",
        )];
        for vmid in &self.templates {
            grants.push(grant(format!("/vms/{vmid}"), template(), "clone the template"));
        }
        for name in &self.storages {
            let path = format!("/storage/{name}");
            grants.push(if self.volume_storage.as_ref() == Some(name) {
                grant(path, volume_storage(), "make and delete workspaces")
            } else {
                grant(path, storage(), "room for disks")
            });
        }
        for name in &self.bridges {
            let path = format!("/sdn/zones/localnetwork/{name}");
            grants.push(grant(path, bridge(), "a NIC on the bridge"));
        }
        if let Some(vmid) = self.volume_owner {
            grants.push(grant(format!("/vms/{vmid}"), volume_owner(), "attach workspaces"));
        }
        grants
    }

    /// The roles among them that we make, each once.
    pub(crate) fn roles(&self) -> Vec<Role> {
        let mut roles: Vec<Role> = Vec::new();
        for grant in self.grants() {
            if !grant.role.built_in && !roles.contains(&grant.role) {
                roles.push(grant.role);
            }
        }
        roles
    }
}
