//! How the agent ended, as the report says it.

use agentlab_protocol::message::{FailureCause, Phase, Report, ReportStatus};

use super::Job;
use super::agent::{AgentEnd, Ending};
use super::host::HostLink;

impl<H: HostLink> Job<'_, H> {
    /// Puts it into the report, and what a reader of the log should know of it into that.
    pub(super) fn note_end(&self, end: &AgentEnd, report: &mut Report) {
        report.exit_code = Some(end.exit_code);
        report.agent_milliseconds = u64::try_from(end.ran.as_millis()).unwrap_or(u64::MAX);
        let (status, message) = match end.ending {
            Ending::Exited if end.exit_code == 0 => (ReportStatus::Completed, None),
            Ending::Exited
                if report.inner_sandbox != "none" && end.exit_code == 1 && self.sandbox_failed() =>
            {
                report.inner_sandbox = "none".to_owned();
                report.cause = Some(FailureCause::Policy);
                report.failed_phase = Some(Phase::Agent);
                report.exit_code = None;
                let words = format!("The inner sandbox did not start: {}", self.log.first_words());
                (ReportStatus::Failed, Some(words))
            }
            Ending::Exited => {
                let words = format!("Agent `{}` ended with status {}", self.order.agent, end.exit_code);
                report.failed_phase = Some(Phase::Agent);
                (ReportStatus::Failed, Some(words))
            }
            Ending::Deadline => {
                let deadline = self.order.deadline_seconds;
                let words = format!(
                    "Agent `{}` outlived its deadline of {deadline} s",
                    self.order.agent
                );
                (ReportStatus::Timeout, Some(words))
            }
            Ending::Cancelled => (ReportStatus::Cancelled, Some("Cancelled by the host".to_owned())),
        };
        report.status = status;
        report.message = message;
        if !end.all_gone {
            self.log
                .runner("Some processes of the agent could not be killed; its files may still change");
        }
        let milliseconds = report.agent_milliseconds;
        self.log.runner(&format!(
            "The agent ended with status {} after {milliseconds} ms",
            end.exit_code
        ));
    }

    /// bubblewrap has no exit status of its own for "not begun"; its words come before any of the agent's.
    fn sandbox_failed(&self) -> bool {
        let words = self.log.first_words();
        words.starts_with("bwrap: ") || words.starts_with("setpriv: ")
    }
}
