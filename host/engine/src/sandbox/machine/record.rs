//! A state as it stands in the record of its sandbox.

use agentlab_api::{ErrorCode, Failure, SandboxState};
use agentlab_store::SandboxRecord;

use super::{Holder, State};
use crate::sandbox::step::Step;

impl State {
    /// What a record says.
    #[must_use]
    pub fn of(record: &SandboxRecord) -> Self {
        let cause = || {
            record.failure.clone().unwrap_or_else(|| Failure {
                code: ErrorCode::Internal,
                stage: record.cursor.clone(),
                message: "No reason was recorded".to_owned(),
                hint: None,
            })
        };
        if record.state == SandboxState::Destroyed {
            return Self::Destroyed;
        }
        if record.unwinding {
            return if record.cursor.is_empty() && record.state == SandboxState::Failed {
                Self::Failed {
                    cause: cause(),
                    kept: false,
                }
            } else {
                Self::Unwinding {
                    shown: record.state,
                    cause: record.failure.clone(),
                }
            };
        }
        let holder = record.job.clone().map(Holder::Job);
        match record.state {
            SandboxState::Requested => Self::Requested,
            SandboxState::Provisioning => Self::Provisioning {
                at: Step::named(&record.cursor).unwrap_or(Step::Reserve),
            },
            SandboxState::Booting => Self::Booting,
            SandboxState::Ready => Self::Ready,
            SandboxState::Running => Self::Running {
                holder: holder.unwrap_or(Holder::Operator),
            },
            SandboxState::Suspended => Self::Suspended {
                holder: holder.unwrap_or(Holder::Operator),
            },
            SandboxState::Stopped => Self::Stopped,
            SandboxState::Timeout => Self::TimedOut,
            SandboxState::Failed => Self::Failed {
                cause: cause(),
                kept: true,
            },
            SandboxState::Destroyed => Self::Destroyed,
        }
    }

    /// Writes the state into its record; [`Self::of`] reads it back.
    pub fn write_to(&self, record: &mut SandboxRecord) {
        record.state = self.shown();
        match self {
            Self::Requested => record.cursor = Step::Reserve.as_str().to_owned(),
            Self::Provisioning { at } => record.cursor = at.as_str().to_owned(),
            Self::Booting => record.cursor = Step::AwaitGuest.as_str().to_owned(),
            Self::Running {
                holder: Holder::Job(job),
            }
            | Self::Suspended {
                holder: Holder::Job(job),
            } => record.job = Some(job.clone()),
            // No job holds it any more; the job remembers its sandbox.
            Self::Ready
            | Self::Running {
                holder: Holder::Operator,
            }
            | Self::Suspended {
                holder: Holder::Operator,
            } => {
                record.job = None;
            }
            Self::Stopped | Self::TimedOut => {}
            Self::Unwinding { cause, .. } => {
                record.unwinding = true;
                record.failure = cause.clone();
            }
            Self::Failed { cause, kept } => {
                record.failure = Some(cause.clone());
                if !kept {
                    record.unwinding = true;
                    record.cursor.clear();
                }
            }
            Self::Destroyed => {
                record.unwinding = true;
                record.cursor.clear();
            }
        }
    }
}
