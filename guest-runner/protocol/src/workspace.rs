//! What host and guest must agree on about the disk that outlives its sandboxes.

use serde::{Deserialize, Serialize};

/// Serial number of the disk, as the guest's kernel shows it: how a guest knows it from all others.
pub const SERIAL: &str = "agentlab-work";
/// Label of its file system, for people.
pub const LABEL: &str = "AGENTLAB_WORK";

/// The disk a sandbox is given for `/work`. Without it nothing is begun: work on another disk would be lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkspaceOrder {
    /// UUID of the file system on it, and of no other.
    pub uuid: String,
    /// No guest has ever said that there is one: it is made if, and only if, the disk is blank. Otherwise a disk without
    /// it is an error.
    pub make: bool,
    /// It stays mounted after the job, because somebody goes on working in the sandbox.
    pub keep: bool,
}

/// What a guest says of its workspace, in a heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case", deny_unknown_fields)]
pub enum WorkspaceNews {
    /// It is mounted, and carries the ordered UUID.
    Mounted,
    /// It cannot be used; nothing was begun.
    Failed {
        /// Why, in the kernel's or e2fsck's words.
        reason: String,
    },
    /// Everything is written and it is unmounted: it may be taken away.
    Released,
    /// It could not be unmounted; everything written so far is on the disk.
    Held {
        /// Why.
        reason: String,
    },
}
