//! What an operator can do about a refusal. `None` where it passes by itself, or where its own words say all there is.

use agentlab_api::Vmid;

use super::{Kind, Refusal};

impl Refusal {
    /// Of a call about this machine.
    pub(super) fn hint_for(&self, vmid: Vmid) -> Option<String> {
        if let Kind::Locked(lock) = &self.kind {
            Some(remedy(lock, vmid))
        } else {
            self.hint()
        }
    }

    /// Of any other call.
    pub(super) fn hint(&self) -> Option<String> {
        Some(match &self.kind {
            Kind::Permission(Some((path, privileges))) => {
                let privileges = privileges.replace('|', " or ");
                format!(
                    "the token lacks {privileges} on {path}: add it to its role (`pveum role modify`) and see that the \
                     role is granted there to both user and token (`pveum acl modify`)"
                )
            }
            Kind::Permission(None) => {
                "compare the token's privileges (`pveum user token permissions`) with those in docs/proxmox.md; \
                 clones must be made in the pool it may allocate in (`proxmox_pool`)"
                    .to_owned()
            }
            Kind::Unauthenticated => {
                "see that `proxmox_api_token` is user@realm!name=secret, and that user and token exist, are enabled \
                 and have not expired"
                    .to_owned()
            }
            Kind::NoPool => "make it with `pveum pool add`, or correct `proxmox_pool`".to_owned(),
            Kind::NoStorage => "correct `proxmox_storage`, or enable the storage on this node".to_owned(),
            Kind::StorageFull => "make room on the storage".to_owned(),
            Kind::NoLinkedClone => {
                "set `proxmox_clone_mode: auto`, or keep the template on a storage that can clone".to_owned()
            }
            Kind::NoFullClone => {
                "its storage copies no snapshots: go back to the snapshot first, and copy that".to_owned()
            }
            Kind::CannotSnapshot => {
                "its storage takes no snapshots of such a disk: of a workspace, `agentlab workspace fork` makes a copy"
                    .to_owned()
            }
            Kind::NotNewest => {
                "its storage goes back to the newest snapshot only: delete the newer ones first".to_owned()
            }
            Kind::NoNode => "correct `proxmox_node`".to_owned(),
            Kind::LocalTemplate => {
                "this daemon guards the network of its own node only: make the template there too \
                 (`agentlab-template`), or keep it on a storage that the nodes share"
                    .to_owned()
            }
            Kind::NoKvm => {
                "switch virtualisation on in the node's firmware (of a node that is a VM, in its host: nested), or let the \
                 template do without, slowly: `qm set <template> --kvm 0`"
                    .to_owned()
            }
            Kind::RootOnly => "no API token may: leave it out, or use `backend: shell` on the node".to_owned(),
            Kind::NoMachine
            | Kind::Taken
            | Kind::LockTimeout
            | Kind::BeingMade
            | Kind::Digest
            | Kind::Locked(_)
            | Kind::NoSnapshot
            | Kind::SnapshotTaken
            | Kind::NoQuorum
            | Kind::NoTask
            | Kind::AgentDown
            | Kind::AgentAbsent
            | Kind::AlreadyRunning
            | Kind::NotRunning
            | Kind::Running
            | Kind::Protected
            | Kind::BaseInUse
            | Kind::IsTemplate
            | Kind::VolumeTaken
            | Kind::Invalid(_)
            | Kind::Unreached
            | Kind::Unfinished(_)
            | Kind::Unknown
            | Kind::Other => return None,
        })
    }
}

/// How an administrator ends a lock whose holder died. No token may, and nothing is unlocked blindly.
fn remedy(lock: &str, vmid: Vmid) -> String {
    let first =
        "when no task of PVE works on it any more (`pvesh get /nodes/localhost/tasks --source active`)";
    if lock == "clone" || lock == "create" {
        // What its worker had made so far carries no stamp, so nobody else may say what it was.
        return format!(
            "{first}, its worker died half way, and root@pam clears it away: `qm unlock {vmid} && qm destroy {vmid} \
             --purge 1 --destroy-unreferenced-disks 1`"
        );
    }
    format!("{first}, root@pam ends the lock `{lock}`: `qm unlock {vmid}`")
}
