//! Why a job failed, in one word.

use agentlab_protocol::message::{FailureCause, Phase, Report, ReportStatus};

/// Less free space than this is none: git and agents need room to write at all.
const DISK_FULL: u64 = 4 << 20;

/// Of a report that says all but this. `disk` is the size of the one that is worked on and what is free of it.
pub(super) fn of(report: &Report, disk: (u64, u64), killed_for_memory: bool) -> Option<FailureCause> {
    if report.status != ReportStatus::Failed || report.cause.is_some() {
        return report.cause;
    }
    let said_full = report
        .message
        .as_deref()
        .is_some_and(|words| words.contains("No space left on device"));
    let (total, free) = disk;
    if said_full || (total > 0 && free < DISK_FULL.min(total / 100)) {
        return Some(FailureCause::DiskFull);
    }
    match report.failed_phase {
        Some(Phase::Repository) => Some(FailureCause::Clone),
        Some(Phase::Agent) if killed_for_memory => Some(FailureCause::Oom),
        Some(Phase::Agent) if report.exit_code.is_some() => Some(FailureCause::AgentExit),
        // Secrets, directories, the agent itself: it was not begun because it could not be begun as ordered.
        Some(Phase::Idle | Phase::Agent) => Some(FailureCause::Policy),
        Some(Phase::Push) => Some(FailureCause::Push),
        Some(Phase::Collect | Phase::Upload | Phase::Report) | None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOMY: (u64, u64) = (1 << 30, 1 << 29);

    fn failed(phase: Phase, exit_code: Option<u8>, message: &str) -> Report {
        let json = serde_json::json!({"version": 1, "job": "j", "status": "failed"});
        Report {
            failed_phase: Some(phase),
            exit_code,
            message: Some(message.to_owned()),
            ..serde_json::from_value(json).unwrap()
        }
    }

    #[test]
    fn each_way_to_fail_has_its_word() {
        let exited = failed(Phase::Agent, Some(1), "ended with status 1");
        for (report, disk, killed, cause) in [
            (
                failed(Phase::Repository, None, "fatal: no"),
                ROOMY,
                false,
                FailureCause::Clone,
            ),
            (
                failed(Phase::Repository, None, "No space left on device"),
                ROOMY,
                false,
                FailureCause::DiskFull,
            ),
            (exited.clone(), ROOMY, false, FailureCause::AgentExit),
            (exited.clone(), ROOMY, true, FailureCause::Oom),
            (exited.clone(), (1 << 30, 4096), true, FailureCause::DiskFull),
            (
                failed(Phase::Idle, None, "swap"),
                ROOMY,
                false,
                FailureCause::Policy,
            ),
            (
                failed(Phase::Agent, None, "no bwrap"),
                ROOMY,
                false,
                FailureCause::Policy,
            ),
        ] {
            assert_eq!(of(&report, disk, killed), Some(cause), "{report:?}");
        }
        let well = Report {
            status: ReportStatus::Completed,
            ..exited
        };
        assert_eq!(of(&well, (1 << 30, 0), true), None);
    }
}
