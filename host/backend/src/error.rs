//! What a hypervisor can answer instead of yes.

use agentlab_api::Vmid;

/// Result of every back end call.
pub type Result<T> = std::result::Result<T, BackendError>;

/// Why a back end did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// Nothing is known: the hypervisor, or its answer, could not be reached. Re-read before repeating.
    #[error("{backend} could not be reached at {action}: {reason}")]
    Unreachable {
        /// Which back end.
        backend: &'static str,
        /// What was being asked.
        action: &'static str,
        /// In its own words.
        reason: String,
    },
    /// The hypervisor answered and refused.
    #[error("{action} of VM {vmid} was refused: {reason}")]
    Refused {
        /// What was asked.
        action: &'static str,
        /// Of which machine.
        vmid: Vmid,
        /// In its own words.
        reason: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// No such machine.
    #[error("VM {vmid} does not exist")]
    NoSuchMachine {
        /// Which.
        vmid: Vmid,
    },
    /// The VMID is taken by something else.
    #[error("VMID {vmid} is taken: {reason}")]
    Conflict {
        /// Which.
        vmid: Vmid,
        /// By what.
        reason: String,
    },
    /// The stamp is foreign, unreadable or absent. Nothing was touched.
    #[error("VM {vmid} is not ours: {reason}")]
    NotOurs {
        /// Which.
        vmid: Vmid,
        /// What was seen.
        reason: String,
    },
    /// The template is absent or unusable.
    #[error("Template {template} cannot be used: {reason}")]
    Template {
        /// Name or VMID.
        template: String,
        /// Why.
        reason: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// A file of ours could not be read or written.
    #[error("{action} failed on {path}")]
    Storage {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The call did not end in time; nothing is known of its effect.
    #[error("{action} of VM {vmid} did not end within {seconds} s")]
    TimedOut {
        /// What was asked.
        action: &'static str,
        /// Of which machine.
        vmid: Vmid,
        /// How long was waited.
        seconds: u64,
    },
    /// Somebody else works on the machine, and did for as long as was waited.
    #[error("{action} of VM {vmid} had to wait too long for others: {reason}")]
    Busy {
        /// What was asked.
        action: &'static str,
        /// Of which machine.
        vmid: Vmid,
        /// In the hypervisor's own words.
        reason: String,
        /// What to do when it stays so.
        hint: Option<String>,
    },
    /// This back end cannot do it.
    #[error("This back end has no {what}")]
    Unsupported {
        /// What.
        what: &'static str,
    },
}

impl BackendError {
    /// What to do about it, where that is known.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Refused { hint, .. } | Self::Template { hint, .. } | Self::Busy { hint, .. } => {
                hint.as_deref()
            }
            Self::Unreachable { .. }
            | Self::NoSuchMachine { .. }
            | Self::Conflict { .. }
            | Self::NotOurs { .. }
            | Self::Storage { .. }
            | Self::TimedOut { .. }
            | Self::Unsupported { .. } => None,
        }
    }

    /// Whether the same call may succeed later without anyone changing anything.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::TimedOut { .. } | Self::Busy { .. } => true,
            Self::Storage { source, .. } => {
                matches!(
                    source.kind(),
                    std::io::ErrorKind::StorageFull | std::io::ErrorKind::Interrupted
                )
            }
            Self::Refused { .. }
            | Self::NoSuchMachine { .. }
            | Self::Conflict { .. }
            | Self::NotOurs { .. }
            | Self::Template { .. }
            | Self::Unsupported { .. } => false,
        }
    }
}
