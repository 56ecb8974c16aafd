//! What a sandbox may do next, and how far the network trusts it meanwhile.
//! Pure: no clock, no I/O, no lock. `driver.rs` feeds it and performs its effects.
//!
//! ```text
//!   REQUESTED ─► PROVISIONING ─► BOOTING ─► READY ◄─► RUNNING ◄─► SUSPENDED
//!       │             ▲ │           │        │  │       │ │           │
//!       │       start │ │ failed    │        ▼  │       │ │           │
//!       │             └─┼───────────┼─── STOPPED│       │ │           │
//!       │               ▼           ▼        │  │       ▼ │           │
//!       │              FAILED ◄──────────────┼──┼── lost ─┘           │
//!       └──────────────────┬─────────────────┴──┴──► TIMEOUT ◄────────┘ lease
//!                          ▼                            ▼
//!                   (unwinding until nothing is left) ─► DESTROYED, or FAILED with its reason kept
//! ```
//!
//! While unwinding, the wire shows where the sandbox came from: DESTROYED is only said when all is gone. What fails to
//! start again goes back to STOPPED: its disk has work on it.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "what a state does not name changes nothing or is refused: the closed answer, also for new states"
)]

mod record;
mod words;

use agentlab_api::{Failure, NetworkMode, SandboxState};

pub use self::words::{Effect, Event, Holder, Refusal, Request, State, Transition, Verdict};
use super::step::Step;
use crate::port::Trust;

impl State {
    /// The state on the wire.
    #[must_use]
    pub fn shown(&self) -> SandboxState {
        match self {
            Self::Requested => SandboxState::Requested,
            Self::Provisioning { .. } => SandboxState::Provisioning,
            Self::Booting => SandboxState::Booting,
            Self::Ready => SandboxState::Ready,
            Self::Running { .. } => SandboxState::Running,
            Self::Suspended { .. } => SandboxState::Suspended,
            Self::Stopped => SandboxState::Stopped,
            Self::TimedOut => SandboxState::Timeout,
            Self::Unwinding { shown, .. } => *shown,
            Self::Failed { .. } => SandboxState::Failed,
            Self::Destroyed => SandboxState::Destroyed,
        }
    }

    /// The one place that says which packets each state deserves.
    #[must_use]
    pub fn trust(&self, mode: NetworkMode) -> Trust {
        match self {
            Self::Provisioning { at: Step::PowerOn } | Self::Booting => Trust::BootstrapOnly,
            // A frozen machine sends nothing; its flows may go on when it thaws.
            Self::Ready | Self::Running { .. } | Self::Suspended { .. } => granted(mode),
            Self::Requested
            | Self::Provisioning { .. }
            | Self::Stopped
            | Self::TimedOut
            | Self::Unwinding { .. }
            | Self::Failed { .. }
            | Self::Destroyed => Trust::Sealed,
        }
    }

    /// What this state asks of the world, in order.
    #[must_use]
    pub fn effects(&self) -> Vec<Effect> {
        match self {
            Self::Requested => vec![Effect::Run(Step::Reserve)],
            Self::Provisioning { at } => vec![Effect::Run(*at)],
            Self::Booting => vec![Effect::Enforce, Effect::AwaitGuest],
            Self::Ready | Self::Running { .. } => vec![Effect::Resume, Effect::Enforce],
            Self::Suspended { .. } => vec![Effect::Suspend, Effect::Enforce],
            Self::Stopped => vec![Effect::Enforce, Effect::ShutDown],
            Self::TimedOut => vec![Effect::Enforce, Effect::PowerOff],
            Self::Failed { kept: true, .. } => vec![Effect::Enforce],
            Self::Unwinding { .. } => vec![Effect::Unwind],
            Self::Failed { kept: false, .. } | Self::Destroyed => Vec::new(),
        }
    }

    /// Whether the machine is powered on, as far as we are concerned.
    #[must_use]
    pub fn is_up(&self) -> bool {
        match self {
            Self::Booting | Self::Ready | Self::Running { .. } | Self::Suspended { .. } => true,
            Self::Failed { kept, .. } => *kept,
            Self::Requested
            | Self::Provisioning { .. }
            | Self::Stopped
            | Self::TimedOut
            | Self::Unwinding { .. }
            | Self::Destroyed => false,
        }
    }

    /// Whether anything of it may exist outside the records.
    #[must_use]
    pub fn holds_something(&self) -> bool {
        !matches!(self, Self::Destroyed | Self::Failed { kept: false, .. })
    }

    /// What may be asked of it. A refusal quotes what callers can ask for: [`Refusal::offers`].
    #[must_use]
    pub fn allowed(&self) -> &'static [&'static str] {
        match self {
            Self::Requested | Self::Provisioning { .. } | Self::Booting | Self::Failed { .. } => {
                &["show", "logs", "destroy"]
            }
            Self::Ready => &[
                "show",
                "logs",
                "ssh",
                "exec",
                "start work",
                "stop",
                "destroy",
                "lease renew",
            ],
            Self::Running { .. } => &[
                "show",
                "logs",
                "ssh",
                "exec",
                "stop",
                "pause",
                "destroy",
                "lease renew",
            ],
            Self::Suspended { .. } => &["show", "logs", "resume", "destroy", "lease renew"],
            Self::Stopped => &[
                "show",
                "logs",
                "start",
                "destroy",
                "lease renew",
                "prune --stopped",
            ],
            Self::TimedOut => &["show", "logs", "destroy --force", "prune"],
            Self::Unwinding { .. } => &["show", "logs"],
            Self::Destroyed => &["show"],
        }
    }

    /// Decides on what a caller asks.
    #[must_use]
    pub fn request(&self, request: &Request) -> Verdict {
        match request {
            Request::Destroy { force } => self.destroy(*force),
            Request::Start => match self {
                Self::Stopped => moved(Self::Provisioning { at: Step::IssueToken }),
                Self::Provisioning { .. } | Self::Booting | Self::Ready | Self::Running { .. } => {
                    Verdict::AlreadySo
                }
                _ => self.refused("only a stopped sandbox can be started"),
            },
            Request::Stop => match self {
                Self::Ready | Self::Running { .. } => moved(Self::Stopped),
                Self::Stopped => Verdict::AlreadySo,
                _ => self.refused("only a ready or running sandbox can be stopped"),
            },
            Request::Suspend => match self {
                Self::Running { holder } => moved(Self::Suspended {
                    holder: holder.clone(),
                }),
                Self::Suspended { .. } => Verdict::AlreadySo,
                _ => self.refused("only a running sandbox can be paused"),
            },
            Request::Resume => match self {
                Self::Suspended { holder } => moved(Self::Running {
                    holder: holder.clone(),
                }),
                Self::Ready | Self::Running { .. } => Verdict::AlreadySo,
                _ => self.refused("only a paused sandbox can be resumed"),
            },
            Request::Assign(job) => match self {
                Self::Ready => moved(Self::Running {
                    holder: Holder::Job(job.clone()),
                }),
                Self::Running {
                    holder: Holder::Job(held),
                } if held == job => Verdict::AlreadySo,
                Self::Running { .. } => self.refused("somebody holds it already"),
                _ => self.refused("only a ready sandbox can take a job"),
            },
            // Nothing moves but the lease; what is stopped or paused must not lose its work for want of one.
            Request::Renew { .. } => match self {
                Self::Ready | Self::Running { .. } | Self::Suspended { .. } | Self::Stopped => {
                    moved(self.clone())
                }
                _ => self.refused("only the lease of a sandbox that is up, paused or stopped can be renewed"),
            },
        }
    }

    fn destroy(&self, force: bool) -> Verdict {
        match self {
            Self::TimedOut if !force => {
                self.refused("its lease ran out and it is being stopped and destroyed; --force does not wait")
            }
            Self::Requested
            | Self::Provisioning { .. }
            | Self::Booting
            | Self::Ready
            | Self::Running { .. }
            | Self::Suspended { .. }
            | Self::Stopped
            | Self::TimedOut => moved(Self::Unwinding {
                shown: self.shown(),
                cause: None,
            }),
            // No longer shown as FAILED, since it is to end in DESTROYED; the reason stays on the record.
            Self::Failed { cause, kept: true } => moved(Self::Unwinding {
                shown: SandboxState::Stopped,
                cause: Some(cause.clone()),
            }),
            Self::Unwinding {
                shown: SandboxState::Failed,
                cause,
            } => moved(Self::Unwinding {
                shown: SandboxState::Stopped,
                cause: cause.clone(),
            }),
            Self::Failed { kept: false, .. } => moved(Self::Destroyed),
            Self::Unwinding { .. } | Self::Destroyed => Verdict::AlreadySo,
        }
    }

    /// Takes in what happened. `keep` says that a failed or finished sandbox keeps its machine. `None`: it changes
    /// nothing here.
    #[must_use]
    pub fn event(&self, event: &Event, keep: bool) -> Option<Transition> {
        match event {
            Event::StepDone(step) => self.step_done(*step),
            Event::VmidTaken => match self {
                Self::Provisioning { at: Step::Clone } => enter(Self::Provisioning { at: Step::Reserve }),
                _ => None,
            },
            Event::StepFailed(cause) => match self {
                Self::Requested | Self::Provisioning { .. } | Self::Booting => unwind_failed(cause),
                _ => self.lost(cause, keep),
            },
            // Its disk holds what somebody did there before.
            Event::StartFailed => match self {
                Self::Provisioning { .. } | Self::Booting => enter(Self::Stopped),
                _ => None,
            },
            Event::GuestUp(job) => match self {
                Self::Provisioning { at: Step::PowerOn } | Self::Booting => enter(match job {
                    Some(job) => Self::Running {
                        holder: Holder::Job(job.clone()),
                    },
                    // Who asked for a sandbox without a job holds it until the end.
                    None => Self::Running {
                        holder: Holder::Operator,
                    },
                }),
                _ => None,
            },
            Event::GuestLost(cause) => match self {
                Self::Provisioning { at: Step::PowerOn } | Self::Booting => unwind_failed(cause),
                _ => self.lost(cause, keep),
            },
            Event::JobEnded => self.job_ended(keep),
            Event::LeaseExpired => self.lease_expired(),
            Event::MachineStopped(cause) => match self {
                Self::Booting => unwind_failed(cause),
                Self::Running {
                    holder: Holder::Job(_),
                } => self.lost(cause, keep),
                Self::Ready
                | Self::Running {
                    holder: Holder::Operator,
                }
                | Self::Suspended { .. } => enter(Self::Stopped),
                Self::TimedOut => enter(Self::Unwinding {
                    shown: SandboxState::Timeout,
                    cause: None,
                }),
                _ => None,
            },
            Event::MachineGone(cause) => match self {
                Self::Booting
                | Self::Ready
                | Self::Running { .. }
                | Self::Suspended { .. }
                | Self::Stopped
                | Self::TimedOut => enter(Self::Unwinding {
                    shown: self.shown(),
                    cause: Some(cause.clone()),
                }),
                Self::Failed { cause, kept: true } => enter(Self::Unwinding {
                    shown: SandboxState::Stopped,
                    cause: Some(cause.clone()),
                }),
                _ => None,
            },
            Event::Unwound => match self {
                Self::Unwinding {
                    shown: SandboxState::Failed,
                    cause: Some(cause),
                } => enter(Self::Failed {
                    cause: cause.clone(),
                    kept: false,
                }),
                Self::Unwinding { .. } => enter(Self::Destroyed),
                _ => None,
            },
        }
    }

    fn step_done(&self, step: Step) -> Option<Transition> {
        match self {
            Self::Requested if step == Step::Reserve => enter(Self::Provisioning { at: Step::Clone }),
            Self::Provisioning { at } if *at == step => match step.next() {
                None | Some(Step::AwaitGuest) => enter(Self::Booting),
                Some(next) => enter(Self::Provisioning { at: next }),
            },
            _ => None,
        }
    }

    fn lost(&self, cause: &Failure, keep: bool) -> Option<Transition> {
        match self {
            Self::Ready | Self::Running { .. } | Self::Suspended { .. } if keep => enter(Self::Failed {
                cause: cause.clone(),
                kept: true,
            }),
            Self::Ready | Self::Running { .. } | Self::Suspended { .. } => unwind_failed(cause),
            _ => None,
        }
    }

    fn job_ended(&self, keep: bool) -> Option<Transition> {
        match self {
            Self::Running {
                holder: Holder::Job(_),
            } if keep => enter(Self::Ready),
            Self::Suspended {
                holder: Holder::Job(_),
            } if keep => enter(Self::Suspended {
                holder: Holder::Operator,
            }),
            // A sandbox that never came up has nothing worth keeping.
            Self::Requested
            | Self::Provisioning { .. }
            | Self::Booting
            | Self::Running {
                holder: Holder::Job(_),
            }
            | Self::Suspended {
                holder: Holder::Job(_),
            } => enter(Self::Unwinding {
                shown: self.shown(),
                cause: None,
            }),
            _ => None,
        }
    }

    fn lease_expired(&self) -> Option<Transition> {
        match self {
            Self::Requested | Self::Provisioning { .. } | Self::Booting => enter(Self::Unwinding {
                shown: SandboxState::Timeout,
                cause: None,
            }),
            Self::Ready | Self::Running { .. } | Self::Suspended { .. } | Self::Stopped => {
                enter(Self::TimedOut)
            }
            Self::Failed { cause, kept: true } => enter(Self::Unwinding {
                shown: SandboxState::Timeout,
                cause: Some(cause.clone()),
            }),
            Self::Failed { kept: false, .. } => enter(Self::Destroyed),
            Self::TimedOut | Self::Unwinding { .. } | Self::Destroyed => None,
        }
    }

    fn refused(&self, reason: &'static str) -> Verdict {
        Verdict::Refused(Refusal {
            state: self.shown(),
            reason,
            allowed: self.allowed(),
        })
    }
}

/// What a network mode is worth once the guest has answered.
#[must_use]
pub fn granted(mode: NetworkMode) -> Trust {
    match mode {
        NetworkMode::Off => Trust::Off,
        NetworkMode::Nat => Trust::Nat,
        NetworkMode::Allowlist => Trust::Allowlist,
    }
}

fn transition(next: State) -> Transition {
    let effects = next.effects();
    Transition { next, effects }
}

#[expect(clippy::unnecessary_wraps, reason = "every caller answers with an option")]
fn enter(next: State) -> Option<Transition> {
    Some(transition(next))
}

fn moved(next: State) -> Verdict {
    Verdict::Moved(transition(next))
}

fn unwind_failed(cause: &Failure) -> Option<Transition> {
    enter(State::Unwinding {
        shown: SandboxState::Failed,
        cause: Some(cause.clone()),
    })
}

#[cfg(test)]
pub(crate) mod tests;
