//! Exit codes: scripts branch on them, so they never change their meaning.

use std::process::ExitCode;

use agentlab_api::{ErrorCode, JobState, JobView};

/// How the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// 0.
    Success,
    /// 1: the request failed.
    Failure,
    /// 2: the command line, or a value in it, cannot stand.
    Usage,
    /// 3: no such thing.
    NotFound,
    /// 4: not allowed.
    Denied,
    /// 5: the state of the thing does not allow it.
    Conflict,
    /// 6: no daemon answers.
    Unreachable,
    /// 7: time ran out.
    TimedOut,
    /// 130: Ctrl-C.
    Interrupted,
    /// 143: SIGTERM.
    Terminated,
    /// The code of what ran elsewhere: the agent, or a program of ours.
    External(u8),
}

impl ExitStatus {
    /// The number.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Failure => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Denied => 4,
            Self::Conflict => 5,
            Self::Unreachable => 6,
            Self::TimedOut => 7,
            Self::Interrupted => 130,
            Self::Terminated => 143,
            Self::External(code) => code,
        }
    }

    /// What a problem of the daemon's means for the command.
    #[must_use]
    pub fn of_problem(code: ErrorCode) -> Self {
        match code {
            ErrorCode::InvalidValue => Self::Usage,
            ErrorCode::NotFound | ErrorCode::UnknownProfile => Self::NotFound,
            ErrorCode::Unauthenticated | ErrorCode::Forbidden => Self::Denied,
            ErrorCode::StateConflict | ErrorCode::IdempotencyConflict => Self::Conflict,
            ErrorCode::ShuttingDown | ErrorCode::DaemonUnreachable => Self::Unreachable,
            ErrorCode::ProvisioningTimeout | ErrorCode::GuestSilent | ErrorCode::AgentTimeout => {
                Self::TimedOut
            }
            ErrorCode::MalformedRequest
            | ErrorCode::NoSuchRoute
            | ErrorCode::TemplateUnavailable
            | ErrorCode::SecretsUnavailable
            | ErrorCode::TooLarge
            | ErrorCode::LimitReached
            | ErrorCode::BackendFailed
            | ErrorCode::BackendUnreachable
            | ErrorCode::NetworkUnenforced
            | ErrorCode::RepositoryUnavailable
            | ErrorCode::AgentFailed
            | ErrorCode::OutOfMemory
            | ErrorCode::GuestDiskFull
            | ErrorCode::PolicyUnenforced
            | ErrorCode::PushRefused
            | ErrorCode::WorkspaceUnusable
            | ErrorCode::SandboxLost
            | ErrorCode::Cancelled
            | ErrorCode::Internal => Self::Failure,
        }
    }

    /// What `job run` returns for a job that ended: the agent's own code where the agent failed with one.
    #[must_use]
    pub fn of_job(job: &JobView) -> Self {
        match job.state {
            JobState::Completed => Self::Success,
            JobState::Timeout => Self::TimedOut,
            JobState::Failed => {
                let by_agent = job
                    .failure
                    .as_ref()
                    .is_some_and(|failure| failure.code == ErrorCode::AgentFailed);
                match job.outcome.as_ref().and_then(|outcome| outcome.exit_code) {
                    Some(code) if by_agent && code != 0 => Self::External(code),
                    Some(_) | None => Self::Failure,
                }
            }
            JobState::Cancelled | JobState::Queued | JobState::Running => Self::Failure,
        }
    }
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> Self {
        Self::from(status.code())
    }
}

#[cfg(test)]
mod tests {
    use agentlab_api::{Failure, JobOutcome, RepositorySource};

    use super::*;

    fn job(state: JobState, failure: Option<ErrorCode>, exit_code: Option<u8>) -> JobView {
        let time = "2026-01-01T00:00:00Z".parse().unwrap();
        JobView {
            id: "job_000000000000".parse().unwrap(),
            state,
            queue_position: None,
            repository: RepositorySource::Url {
                url: "https://example.org/r".to_owned(),
            },
            reference: None,
            task: "true".to_owned(),
            profile: "demo".to_owned(),
            agent: "shell".to_owned(),
            push: None,
            deadline_seconds: 300,
            sandbox: None,
            vmid: None,
            channel: None,
            outcome: Some(JobOutcome {
                exit_code,
                base_commit: None,
                head_commit: None,
                commits: 0,
                uncommitted: false,
                agent_milliseconds: 0,
                push: None,
                exposed_secrets: Vec::new(),
                secrets_unsearched: None,
            }),
            failure: failure.map(|code| Failure {
                code,
                stage: "agent".to_owned(),
                message: String::new(),
                hint: None,
            }),
            created_at: time,
            started_at: None,
            finished_at: None,
        }
    }

    #[test]
    fn a_job_returns_what_its_agent_returned_and_never_success_for_a_failure() {
        for (state, failure, exit_code, code) in [
            (JobState::Completed, None, Some(0), 0),
            (JobState::Failed, Some(ErrorCode::AgentFailed), Some(3), 3),
            (JobState::Failed, Some(ErrorCode::AgentFailed), Some(137), 137),
            (JobState::Failed, Some(ErrorCode::AgentFailed), Some(0), 1),
            (JobState::Failed, Some(ErrorCode::AgentFailed), None, 1),
            (JobState::Failed, Some(ErrorCode::SandboxLost), Some(3), 1),
            (JobState::Failed, None, None, 1),
            (JobState::Timeout, Some(ErrorCode::AgentTimeout), Some(143), 7),
            (JobState::Cancelled, Some(ErrorCode::Cancelled), None, 1),
        ] {
            assert_eq!(
                ExitStatus::of_job(&job(state, failure, exit_code)).code(),
                code,
                "{state} {failure:?} {exit_code:?}"
            );
        }
    }

    #[test]
    fn problems_keep_their_exit_codes() {
        for (code, exit) in [
            (ErrorCode::InvalidValue, 2),
            (ErrorCode::UnknownProfile, 3),
            (ErrorCode::NotFound, 3),
            (ErrorCode::Forbidden, 4),
            (ErrorCode::StateConflict, 5),
            (ErrorCode::DaemonUnreachable, 6),
            (ErrorCode::ProvisioningTimeout, 7),
            (ErrorCode::GuestSilent, 7),
            (ErrorCode::TemplateUnavailable, 1),
            (ErrorCode::Internal, 1),
        ] {
            assert_eq!(ExitStatus::of_problem(code).code(), exit, "{code}");
        }
    }
}
