//! What a guest's report is worth. Everything in it is a guest's word: checked, cut and completed here, pure.

use agentlab_api::{ArtifactKind, ErrorCode, Failure, JobOutcome, JobState, PushOutcome};
use agentlab_protocol::message::{
    BUNDLE_NAME, DIFF_NAME, FailureCause, Phase, PushResult, Report, ReportStatus,
};
use agentlab_store::{ArtifactRecord, JobRecord};

use crate::exposed;
use crate::sandbox::driver::JobEnd;

/// Longest text of a guest's that is kept.
pub(crate) const MESSAGE: usize = 4000;
/// More commits than anybody makes in one job.
const COMMITS: u32 = 1_000_000;

/// Takes control characters out of a guest's text, keeps line ends and tabs, and cuts it.
pub(crate) fn clean(text: &str, limit: usize) -> String {
    text.chars()
        .filter(|c| !c.is_control() || matches!(c, '\n' | '\t'))
        .take(limit)
        .collect()
}

/// One line of it.
pub(crate) fn clean_line(text: &str, limit: usize) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(limit)
        .collect::<String>()
        .trim()
        .to_owned()
}

/// Name of a phase as a stage.
pub(crate) fn stage_of(phase: Phase) -> &'static str {
    match phase {
        Phase::Idle => "Idle",
        Phase::Repository => "Repository",
        Phase::Agent => "Agent",
        Phase::Collect => "Collect",
        Phase::Push => "Push",
        Phase::Upload => "Upload",
        Phase::Report => "Report",
    }
}

/// How a job ends by its guest's report and by what has really arrived.
pub(crate) fn judge(report: &Report, job: &JobRecord, stored: &[ArtifactRecord], longest: u64) -> JobEnd {
    let outcome = JobOutcome {
        exit_code: report.exit_code,
        base_commit: report.base_commit.as_deref().and_then(commit),
        head_commit: report.head_commit.as_deref().and_then(commit),
        commits: report.commits.min(COMMITS),
        uncommitted: report.uncommitted,
        agent_milliseconds: report.agent_milliseconds.min(longest),
        push: job.push.as_ref().and(report.push.as_ref()).map(push_outcome),
        exposed_secrets: exposed::secrets(report),
        secrets_unsearched: exposed::unsearched(report),
    };
    let (state, mut failure) = verdict(report, job, stored);
    if let (Some(name), Some(failure)) = (lost_work(report, stored), failure.as_mut()) {
        let text = format!("{}; {}", failure.message, not_arrived(name, report));
        failure.message = clean(&text, MESSAGE);
    }
    JobEnd {
        state,
        outcome: Some(outcome),
        failure,
    }
}

/// The first part of the work that the report counts and that is not here: it exists in the machine only.
pub(crate) fn lost_work(report: &Report, stored: &[ArtifactRecord]) -> Option<&'static str> {
    let has = |kind: ArtifactKind| stored.iter().any(|file| file.kind == kind);
    if report.commits > 0 && !has(ArtifactKind::Bundle) {
        return Some(BUNDLE_NAME);
    }
    (report.uncommitted && !has(ArtifactKind::Diff)).then_some(DIFF_NAME)
}

/// That a part of the work is missing, and why as far as the guest said.
fn not_arrived(name: &str, report: &Report) -> String {
    let said: Vec<String> = report
        .left_out
        .iter()
        .filter_map(|line| line.strip_prefix(name))
        .take(3)
        .map(|reason| clean_line(reason.trim_start_matches(':'), 500))
        .collect();
    let why = if said.is_empty() {
        "the guest gave no reason".to_owned()
    } else {
        said.join("; ")
    };
    format!("{name} has not arrived: {why}")
}

fn verdict(report: &Report, job: &JobRecord, stored: &[ArtifactRecord]) -> (JobState, Option<Failure>) {
    let said = report
        .message
        .as_deref()
        .map(|text| clean(text, MESSAGE))
        .filter(|text| !text.is_empty());
    let failed = |code, stage: &str, text: String| {
        (
            JobState::Failed,
            Some(Failure {
                code,
                stage: stage.to_owned(),
                message: text,
                hint: hint_of(code),
            }),
        )
    };
    match report.status {
        ReportStatus::Completed => completed(report, job, stored),
        _ if job.cancel_requested => {
            let text = said.unwrap_or_else(|| "Cancelled by an operator".to_owned());
            let stage = stage_of(report.failed_phase.unwrap_or(Phase::Agent)).to_owned();
            (
                JobState::Cancelled,
                Some(Failure {
                    code: ErrorCode::Cancelled,
                    stage,
                    message: text,
                    hint: None,
                }),
            )
        }
        ReportStatus::Timeout => {
            let text = said.unwrap_or_else(|| {
                format!(
                    "The agent was still running after its deadline of {} s",
                    job.deadline_seconds
                )
            });
            let failure = Failure {
                code: ErrorCode::AgentTimeout,
                stage: "Agent".to_owned(),
                message: text,
                hint: None,
            };
            (JobState::Timeout, Some(failure))
        }
        ReportStatus::Failed | ReportStatus::Cancelled => {
            let phase = report.failed_phase.unwrap_or(Phase::Agent);
            let code = code_of(report.cause, phase);
            let text = said.unwrap_or_else(|| match report.exit_code {
                Some(status) => format!("The agent ended with status {status}"),
                None => "The guest gave no reason".to_owned(),
            });
            failed(code, stage_of(phase), text)
        }
    }
}

/// The guest's word for it, or else what the phase says.
fn code_of(cause: Option<FailureCause>, phase: Phase) -> ErrorCode {
    match (cause, phase) {
        (Some(FailureCause::Clone), _) | (None, Phase::Repository) => ErrorCode::RepositoryUnavailable,
        (Some(FailureCause::Oom), _) => ErrorCode::OutOfMemory,
        (Some(FailureCause::DiskFull), _) => ErrorCode::GuestDiskFull,
        (Some(FailureCause::Policy), _) => ErrorCode::PolicyUnenforced,
        (Some(FailureCause::Lost), _) => ErrorCode::SandboxLost,
        (Some(FailureCause::Workspace), _) => ErrorCode::WorkspaceUnusable,
        (Some(FailureCause::Push), _) | (None, Phase::Push) => ErrorCode::PushRefused,
        (Some(FailureCause::AgentExit), _)
        | (None, Phase::Idle | Phase::Agent | Phase::Collect | Phase::Upload | Phase::Report) => {
            ErrorCode::AgentFailed
        }
    }
}

/// What to change before it runs again.
fn hint_of(code: ErrorCode) -> Option<String> {
    let text = if code == ErrorCode::OutOfMemory {
        "give the profile more `resources.memory_mb`"
    } else if code == ErrorCode::GuestDiskFull {
        "give the profile a larger `storage.root_size_gb`"
    } else if code == ErrorCode::PushRefused {
        "the commits are here all the same: `agentlab job apply --force`"
    } else {
        return None;
    };
    Some(text.to_owned())
}

/// What a reported success is worth.
fn completed(report: &Report, job: &JobRecord, stored: &[ArtifactRecord]) -> (JobState, Option<Failure>) {
    let agent = |text| (ErrorCode::AgentFailed, "Agent", text);
    let (code, stage, message) = match (report.exit_code, missing(report, stored)) {
        (Some(0), None) if lost_work(report, stored).is_none() => match not_pushed(report, job) {
            None => return (JobState::Completed, None),
            Some(text) => (ErrorCode::PushRefused, "Push", text),
        },
        (Some(0), None) => {
            let text = "The agent ended well, but its work was not handed over".to_owned();
            (ErrorCode::LimitReached, "Upload", text)
        }
        (Some(0), Some(name)) => {
            let text = format!("The guest reported {name}, which has not arrived");
            (ErrorCode::AgentFailed, "Upload", text)
        }
        (Some(code), _) => agent(format!("The guest reported success with exit status {code}")),
        (None, _) => agent("The guest reported success without an exit status".to_owned()),
    };
    let failure = Failure {
        code,
        stage: stage.to_owned(),
        message,
        hint: hint_of(code),
    };
    (JobState::Failed, Some(failure))
}

/// Why the push that was asked for is not done, whatever the report says of the job.
fn not_pushed(report: &Report, job: &JobRecord) -> Option<String> {
    let target = job.push.as_ref()?;
    match report.push.as_ref().map(push_outcome) {
        Some(PushOutcome::Pushed { .. } | PushOutcome::NothingToPush) => None,
        Some(PushOutcome::Refused { reason }) => Some(reason),
        None => Some(format!(
            "The guest does not say whether it pushed to `{}`",
            target.branch
        )),
    }
}

/// What a guest says of its push, bounded. A commit that is none was not pushed.
fn push_outcome(said: &PushResult) -> PushOutcome {
    match said {
        PushResult::Pushed { commit: text } => match commit(text) {
            Some(commit) => PushOutcome::Pushed { commit },
            None => PushOutcome::Refused {
                reason: "The guest names no commit that it pushed".to_owned(),
            },
        },
        PushResult::NothingToPush => PushOutcome::NothingToPush,
        PushResult::Refused { reason } => PushOutcome::Refused {
            reason: clean(reason, MESSAGE),
        },
    }
}

/// The first file the report names that is not here as reported.
fn missing(report: &Report, stored: &[ArtifactRecord]) -> Option<String> {
    report
        .artifacts
        .iter()
        .find(|said| {
            !stored.iter().any(|file| {
                file.name == said.name.as_str()
                    && file.size_bytes == said.size_bytes
                    && file.sha256.eq_ignore_ascii_case(&said.sha256)
            })
        })
        .map(|said| clean_line(said.name.as_str(), 200))
}

/// A commit id, or nothing.
fn commit(text: &str) -> Option<String> {
    let fits = matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    fits.then(|| text.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use agentlab_api::RepositorySource;
    use agentlab_protocol::message::{ArtifactRole, ReportedArtifact, SecretSearch};
    use jiff::Timestamp;

    use super::*;
    use crate::exposed::{MOST, UNSEARCHED, alarm};

    fn job() -> JobRecord {
        JobRecord {
            id: "job_0123456789ab".parse().unwrap(),
            state: JobState::Running,
            repository: RepositorySource::Url {
                url: "https://example.org/a.git".into(),
            },
            reference: None,
            task: "true".into(),
            profile: "demo".into(),
            agent: "shell".into(),
            push: None,
            retention_days: None,
            deadline_seconds: 60,
            sandbox: None,
            vmid: None,
            channel: None,
            cancel_requested: false,
            next_log_piece: 0,
            outcome: None,
            failure: None,
            created_at: Timestamp::UNIX_EPOCH,
            started_at: None,
            paused_seconds: 0,
            finished_at: None,
            waiting: None,
        }
    }

    fn report(status: ReportStatus, exit_code: Option<u8>) -> Report {
        Report {
            version: 1,
            job: "job_0123456789ab".into(),
            status,
            failed_phase: None,
            cause: None,
            message: None,
            exit_code,
            base_commit: Some("z".repeat(40)),
            head_commit: Some("A".repeat(40)),
            commits: 0,
            uncommitted: false,
            agent_milliseconds: u64::MAX,
            push: None,
            exposed_secrets: vec![],
            secret_search: Some(SecretSearch::Complete),
            artifacts: vec![],
            left_out: vec![],
            inner_sandbox: "bubblewrap".into(),
        }
    }

    #[test]
    fn completed_needs_status_zero_and_every_file_it_names() {
        let state = |report: &Report| judge(report, &job(), &[], 1000).state;
        assert_eq!(
            state(&report(ReportStatus::Completed, Some(0))),
            JobState::Completed
        );
        assert_eq!(state(&report(ReportStatus::Completed, Some(1))), JobState::Failed);
        assert_eq!(state(&report(ReportStatus::Completed, None)), JobState::Failed);
        let mut lying = report(ReportStatus::Completed, Some(0));
        lying.artifacts.push(ReportedArtifact {
            name: "work.bundle".parse().unwrap(),
            role: ArtifactRole::Bundle,
            size_bytes: 1,
            sha256: "0".repeat(64),
        });
        let end = judge(&lying, &job(), &[], 1000);
        assert_eq!(end.state, JobState::Failed);
        assert!(end.failure.unwrap().message.contains("work.bundle"));
    }

    #[test]
    fn work_that_is_counted_and_has_not_arrived_is_never_completed() {
        let stored = |kind, name: &str| ArtifactRecord {
            job: job().id,
            name: name.into(),
            kind,
            size_bytes: 1,
            sha256: String::new(),
            created_at: Timestamp::UNIX_EPOCH,
        };
        let bundle = stored(ArtifactKind::Bundle, BUNDLE_NAME);
        let diff = stored(ArtifactKind::Diff, DIFF_NAME);
        let mut said = report(ReportStatus::Completed, Some(0));
        said.commits = 2;
        said.uncommitted = true;
        said.left_out = vec![format!("{BUNDLE_NAME}: 300 bytes,\u{7} more than 200")];
        let end = judge(&said, &job(), &[], 1000);
        let failure = end.failure.unwrap();
        assert_eq!((end.state, failure.stage.as_str()), (JobState::Failed, "Upload"));
        let why = "work.bundle has not arrived: 300 bytes,  more than 200";
        assert!(failure.message.ends_with(why), "{}", failure.message);
        let failure = judge(&said, &job(), std::slice::from_ref(&bundle), 1000).failure;
        let failure = failure.unwrap();
        assert!(failure.message.contains(DIFF_NAME), "{}", failure.message);
        assert_eq!(
            judge(&said, &job(), &[bundle, diff], 1000).state,
            JobState::Completed
        );
        said.status = ReportStatus::Timeout;
        let end = judge(&said, &job(), &[], 1000);
        assert_eq!(end.state, JobState::Timeout);
        assert!(end.failure.unwrap().message.contains(why));
    }

    #[test]
    fn secrets_in_the_work_are_named_bounded_and_raise_an_alarm() {
        let mut said = report(ReportStatus::Completed, Some(0));
        assert_eq!(alarm(&judge(&said, &job(), &[], 1000).outcome.unwrap()), None);
        let one = agentlab_protocol::message::ExposedSecret {
            secret: "API_KEY".into(),
            path: Some("a\u{1b}[2J/.env".into()),
            uncommitted: false,
        };
        said.exposed_secrets = vec![one; 1000];
        let end = judge(&said, &job(), &[], 1000);
        assert_eq!(end.state, JobState::Completed, "the work is not lost for it");
        let outcome = end.outcome.unwrap();
        assert_eq!(outcome.exposed_secrets.len(), MOST);
        let text = alarm(&outcome).unwrap();
        assert!(text.contains("API_KEY in a [2J/.env, and 99 more."), "{text}");
    }

    #[test]
    fn work_that_was_not_searched_to_its_end_for_secrets_is_never_taken_for_clear() {
        let outcome = |search: Option<SecretSearch>, commits: u32| {
            let mut said = report(ReportStatus::Completed, Some(0));
            (said.secret_search, said.commits) = (search, commits);
            judge(&said, &job(), &[], 1000).outcome.unwrap()
        };
        assert_eq!(outcome(Some(SecretSearch::Complete), 1).secrets_unsearched, None);
        let reason = "git\u{1b}[2J\nfailed".to_owned();
        let failed = outcome(Some(SecretSearch::Incomplete { reason }), 1);
        assert_eq!(failed.secrets_unsearched.as_deref(), Some("git [2J failed"));
        assert!(alarm(&failed).unwrap().contains("not searched to its end"));
        let silent = outcome(None, 1);
        assert_eq!(silent.secrets_unsearched.as_deref(), Some(UNSEARCHED));
        assert_eq!(outcome(None, 0).secrets_unsearched, None, "there is no work");
    }

    #[test]
    fn a_guest_cannot_cancel_its_own_job_but_an_operator_can() {
        let said = report(ReportStatus::Cancelled, Some(143));
        assert_eq!(judge(&said, &job(), &[], 1000).state, JobState::Failed);
        let asked = JobRecord {
            cancel_requested: true,
            ..job()
        };
        assert_eq!(judge(&said, &asked, &[], 1000).state, JobState::Cancelled);
        let done = report(ReportStatus::Completed, Some(0));
        assert_eq!(judge(&done, &asked, &[], 1000).state, JobState::Completed);
    }

    #[test]
    fn a_push_that_was_asked_for_is_done_or_the_job_failed() {
        let asked = JobRecord {
            push: Some(agentlab_api::PushTarget {
                branch: "agentlab/x".into(),
                url: None,
            }),
            ..job()
        };
        let said = |push| Report {
            push,
            ..report(ReportStatus::Completed, Some(0))
        };
        let pushed = PushResult::Pushed {
            commit: "B".repeat(40),
        };
        let end = judge(&said(Some(pushed.clone())), &asked, &[], 1000);
        let commit = "b".repeat(40);
        assert_eq!(end.state, JobState::Completed);
        assert_eq!(end.outcome.unwrap().push, Some(PushOutcome::Pushed { commit }));
        assert_eq!(
            judge(&said(Some(pushed)), &job(), &[], 1000)
                .outcome
                .unwrap()
                .push,
            None
        );
        let nonsense = PushResult::Pushed { commit: "x".into() };
        let refused = PushResult::Refused {
            reason: "no\u{1b}".into(),
        };
        for push in [None, Some(nonsense), Some(refused)] {
            let failure = judge(&said(push), &asked, &[], 1000).failure.unwrap();
            assert_eq!(
                (failure.code, failure.stage.as_str()),
                (ErrorCode::PushRefused, "Push")
            );
            assert!(!failure.message.contains('\u{1b}') && failure.hint.unwrap().contains("job apply"));
        }
    }

    #[test]
    fn numbers_and_texts_of_a_guest_are_bounded() {
        let mut said = report(ReportStatus::Failed, Some(3));
        said.message = Some(format!("\u{1b}[2J{}", "x".repeat(10_000)));
        said.commits = u32::MAX;
        let end = judge(&said, &job(), &[], 1000);
        let outcome = end.outcome.unwrap();
        assert_eq!((outcome.commits, outcome.agent_milliseconds), (COMMITS, 1000));
        assert_eq!(outcome.base_commit, None);
        assert_eq!(outcome.head_commit, Some("a".repeat(40)));
        let failure = end.failure.unwrap();
        assert_eq!(failure.message.chars().count(), MESSAGE);
        assert!(!failure.message.contains('\u{1b}'));
    }

    #[test]
    fn a_repository_that_does_not_clone_is_not_the_agents_fault() {
        let mut said = report(ReportStatus::Failed, None);
        said.failed_phase = Some(Phase::Repository);
        said.message = Some("fatal: repository not found".into());
        let failure = judge(&said, &job(), &[], 1000).failure.unwrap();
        assert_eq!(failure.code, ErrorCode::RepositoryUnavailable);
        assert_eq!(
            (failure.stage.as_str(), failure.message.as_str()),
            ("Repository", "fatal: repository not found")
        );
    }
}
