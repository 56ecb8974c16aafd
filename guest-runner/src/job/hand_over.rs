//! What a job hands over: its work, its artifacts, what the agent recorded of itself, its log, and the report that
//! names all of them.

use agentlab_protocol::message::{
    ArtifactRole, BUNDLE_NAME, DIFF_NAME, FILES_DIR, Phase, REPORT_NAME, Report, ReportStatus,
};

use super::collect::Work;
use super::files::Tree;
use super::upload::{self, Upload};
use super::{HostLink, Job, adapter, bounded, fail};

impl<H: HostLink> Job<'_, H> {
    /// Uploads work, artifacts, transcripts, log and report, and says in the report what came of it.
    pub(super) async fn upload(&self, report: &mut Report, work: Work) {
        self.enter(Phase::Upload);
        if let Some(message) = &report.message {
            self.log.runner(message);
        }
        let log = self.log.close();
        let log_bytes = log
            .as_ref()
            .ok()
            .and_then(|path| path.metadata().ok())
            .map_or(0, |seen| seen.len());
        let mut upload = Upload::new(
            self.host,
            self.answer.limits,
            log_bytes,
            (self.log.needles(), &self.layout.spool),
        );
        upload.left_out = work.left_out;
        for made in work.made {
            upload.made(made).await;
        }
        let artifacts = self.layout.artifacts();
        if artifacts.exists() {
            upload.tree(Tree::open(&artifacts, self.layout.user.uid)).await;
        }
        self.transcripts(&mut upload).await;
        match log {
            Ok(path) => upload.kept(upload::LOG.0, upload::LOG.1, &path).await,
            Err(error) => upload.left_out.push(format!("{}: {error}", upload::LOG.0)),
        }
        self.settle(report, &upload);
        let path = self.layout.spool.join(REPORT_NAME);
        let written = serde_json::to_string_pretty(&report)
            .map_err(std::io::Error::other)
            .and_then(|text| std::fs::write(&path, text + "\n"));
        match written {
            Ok(()) => upload.kept(REPORT_NAME, ArtifactRole::Report, &path).await,
            Err(error) => upload.left_out.push(format!("{REPORT_NAME}: {error}")),
        }
        // report.json cannot list itself; the report handed over later lists everything.
        self.settle(report, &upload);
    }

    /// What the agent recorded of itself, below its home: absent where it recorded nothing.
    async fn transcripts(&self, upload: &mut Upload<'_, H>) {
        let Ok(kind) = self.order.agent.parse() else {
            return;
        };
        let user = &self.layout.user;
        for relative in adapter::transcripts(kind) {
            let name = relative.rsplit('/').next().unwrap_or(relative);
            let prefix = format!("{FILES_DIR}transcript/{name}/");
            match Tree::open_within(&user.home, relative, &prefix, user.uid) {
                Ok(tree) => upload.tree(Ok(tree)).await,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => upload.left_out.push(format!("{prefix}: {error}")),
            }
        }
    }

    /// Puts the state of the uploads into the report.
    fn settle(&self, report: &mut Report, upload: &Upload<'_, H>) {
        report.artifacts.clone_from(&upload.uploaded);
        let left_out = upload
            .left_out
            .iter()
            .map(|entry| self.log.redact(entry))
            .collect();
        report.left_out = upload::bounded(left_out);
        if let Some(words) = &upload.broken
            && report.status == ReportStatus::Completed
        {
            fail(
                report,
                Phase::Upload,
                format!("The work could not be handed over: {words}"),
            );
        }
        if let Some(lost) = lost_work(report)
            && report.status == ReportStatus::Completed
        {
            let reasons: Vec<&str> = report
                .left_out
                .iter()
                .map(String::as_str)
                .filter(|entry| entry.starts_with(lost))
                .collect();
            let words = format!("The work could not be handed over: {}", reasons.join("; "));
            fail(report, Phase::Upload, words);
        }
        report.message = report
            .message
            .take()
            .map(|words| bounded(&self.log.redact(&words)));
    }
}

/// The first part of the work that is in the repository and not among what was uploaded.
fn lost_work(report: &Report) -> Option<&'static str> {
    let has = |role: ArtifactRole| report.artifacts.iter().any(|file| file.role == role);
    if report.commits > 0 && !has(ArtifactRole::Bundle) {
        return Some(BUNDLE_NAME);
    }
    (report.uncommitted && !has(ArtifactRole::Diff)).then_some(DIFF_NAME)
}
