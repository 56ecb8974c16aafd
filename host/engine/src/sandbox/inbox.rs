//! What can be put into a driver's inbox. Everything about one sandbox goes through it, in order.

use agentlab_api::{ChannelKind, Failure, Problem, WorkspaceId};
use agentlab_protocol::message::{Heartbeat, HeartbeatAnswer, LogBatch, RedeemAnswer, Report};
use agentlab_store::{JobRecord, SandboxRecord};
use tokio::sync::oneshot;

use super::machine::Request;
use crate::guest::GuestRefusal;
use crate::idle::Use;
use crate::upload::Unrecorded;

/// Where an answer goes. The asker may have left.
pub(crate) type Reply<T> = oneshot::Sender<T>;

/// A redemption, stripped of everything that is not needed to judge it.
#[derive(Debug)]
pub(crate) struct Redemption {
    /// SHA-256 of the token, hexadecimal.
    pub(crate) token_sha256: String,
    /// SHA-256 of the runner's key.
    pub(crate) key_sha256: [u8; 32],
    pub(crate) runner_version: String,
    pub(crate) channel: ChannelKind,
}

/// What is to become of a stopped sandbox's workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WorkspaceChange {
    /// It gets this one, which nobody has.
    Take(WorkspaceId),
    /// It has none any more.
    Give,
}

#[derive(Debug)]
pub(crate) enum Message {
    /// An operator asks.
    Request {
        request: Request,
        reply: Reply<Result<SandboxRecord, Problem>>,
    },
    /// An operator wants the job ended.
    Cancel {
        reply: Reply<Result<JobRecord, Problem>>,
    },
    /// An operator gives it a workspace, or takes the one it has.
    Workspace {
        change: WorkspaceChange,
        reply: Reply<Result<SandboxRecord, Problem>>,
    },
    /// The hypervisor's list disagrees with the record.
    Look,
    /// Whether anybody uses it.
    Used { seen: Use },
    /// It harms others: its machine goes, kept or not.
    TakeAway { cause: Failure },
    /// A guest wants to know what it is for.
    Redeem {
        redemption: Redemption,
        reply: Reply<Result<RedeemAnswer, GuestRefusal>>,
    },
    /// It has its answer.
    Acknowledge { reply: Reply<Result<(), GuestRefusal>> },
    /// It is alive.
    Heartbeat {
        beat: Heartbeat,
        reply: Reply<Result<HeartbeatAnswer, GuestRefusal>>,
    },
    /// It is alive, and busy with an upload.
    Heard,
    /// It printed something.
    Logs {
        batch: LogBatch,
        reply: Reply<Result<(), GuestRefusal>>,
    },
    /// A file of it has arrived whole.
    Stored {
        artifact: Unrecorded,
        reply: Reply<Result<(), GuestRefusal>>,
    },
    /// It has done its job.
    Report {
        report: Box<Report>,
        reply: Reply<Result<(), GuestRefusal>>,
    },
}
