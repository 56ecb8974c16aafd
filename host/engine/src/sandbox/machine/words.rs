//! What the machine is told, what it answers, and where it can be.

use agentlab_api::{Failure, JobId, SandboxState};

use crate::sandbox::step::Step;

/// Who holds a running sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// A job.
    Job(JobId),
    /// A person.
    Operator,
}

/// Where a sandbox stands, with what only makes sense there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Recorded, and its numbers reserved.
    Requested,
    /// The step being worked on.
    Provisioning {
        /// Which.
        at: Step,
    },
    /// Powered on; nobody has answered yet.
    Booting,
    /// The runner answered; nobody holds it.
    Ready,
    /// Held.
    Running {
        /// By whom.
        holder: Holder,
    },
    /// Frozen in memory.
    Suspended {
        /// Who will hold it again.
        holder: Holder,
    },
    /// Powered off, disk kept.
    Stopped,
    /// The lease ran out; being powered off before it is destroyed.
    TimedOut,
    /// Being taken down. Ends in FAILED when that is what it shows, else in DESTROYED.
    Unwinding {
        /// What the wire shows meanwhile.
        shown: SandboxState,
        /// Why, when something failed.
        cause: Option<Failure>,
    },
    /// Something failed.
    Failed {
        /// What.
        cause: Failure,
        /// Its machine is kept, sealed, for somebody to look at; otherwise nothing is left.
        kept: bool,
    },
    /// Gone.
    Destroyed,
}

/// Asked by a caller; may be refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Power on again, with a new token and a new seed.
    Start,
    /// Power off, keep the disk.
    Stop,
    /// Freeze in memory.
    Suspend,
    /// Go on.
    Resume,
    /// Give it to a job.
    Assign(JobId),
    /// Let the lease begin anew.
    Renew {
        /// How long it is from now on.
        minutes: u32,
    },
    /// Take everything away.
    Destroy {
        /// Also what is already being ended by its lease.
        force: bool,
    },
}

/// Has already happened; can be ignored, never refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A step took effect.
    StepDone(Step),
    /// The VMID belongs to somebody else; nothing of ours is there.
    VmidTaken,
    /// A step, or a change of trust, failed.
    StepFailed(Failure),
    /// The same of one that had been up before, and was started again.
    StartFailed,
    /// The runner redeemed its token.
    GuestUp(Option<JobId>),
    /// The guest cannot be relied on any more.
    GuestLost(Failure),
    /// The job that holds it is final.
    JobEnded,
    /// The lease ran out.
    LeaseExpired,
    /// The hypervisor says that the machine is off.
    MachineStopped(Failure),
    /// The hypervisor answered, and has no such machine.
    MachineGone(Failure),
    /// Every undo has succeeded.
    Unwound,
}

/// What a state asks of the world. A restart in a state performs the same effects again, so each is safe to repeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Do a step.
    Run(Step),
    /// Wait for the guest, within its deadline.
    AwaitGuest,
    /// Let the network trust it as far as [`State::trust`] says.
    Enforce,
    /// Let the guest switch itself off, and power off what does not.
    ShutDown,
    /// Power off.
    PowerOff,
    /// Freeze.
    Suspend,
    /// Thaw.
    Resume,
    /// Undo everything up to the cursor, again and again, until nothing is left.
    Unwind,
}

/// A move to another state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transition {
    /// The state to be recorded.
    pub next: State,
    /// What to do once it is recorded.
    pub effects: Vec<Effect>,
}

/// Answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Done with this.
    Moved(Transition),
    /// Nothing to do: what makes every request safe to repeat.
    AlreadySo,
    /// Not now.
    Refused(Refusal),
}

/// Why not, and what is allowed instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Sandbox is {state}: {reason}")]
pub struct Refusal {
    /// The state it is in.
    pub state: SandboxState,
    /// Why not.
    pub reason: &'static str,
    /// What may be asked now.
    pub allowed: &'static [&'static str],
}

impl Refusal {
    /// What of it a caller can ask for. The other requests have no route.
    #[must_use]
    pub fn offers(&self) -> Vec<&'static str> {
        let routed = |word: &&str| !["ssh", "start work"].contains(word);
        self.allowed.iter().copied().filter(routed).collect()
    }
}
